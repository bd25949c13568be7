"""A circuit as Cytoscape JSON (.cyjs), for Cytoscape, Cytoscape.js and networkx's `cytoscape_graph`."""

import json
from collections.abc import Mapping

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.export.json_file import parse_json
from acdc.export.record import Saved, from_record, place, to_record

EDGE_KINDS = {"source": str, "target": str, "channel": str, "position_index": int, "kept": bool, "score": float}


def to_cytoscape(circuit: Circuit, roles: Mapping[str, str] | None = None, *, all_edges: bool = False) -> str:
    """The kept edges, or all, in ASCII. Cytoscape's y points down. `from_cytoscape` reads it."""
    record = to_record(circuit, roles, all_edges=all_edges)
    nodes = []
    for row in record.nodes:
        x, y = place(row, circuit.graph)
        nodes.append({"data": {**row, "value": row["id"], "name": row["label"]}, "position": {"x": x, "y": -y}})
    edges = [{"data": {**row, "key": row["id"]}} for row in record.edges]
    head = {"format_version": "1.0", "generated_by": "acdc", "target_cytoscapejs_version": "~3", "directed": True,
            "multigraph": True, "data": {"name": "circuit", "header": record.header}}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    body = ",\n".join(f'  "{name}": [\n{_lines(rows)}\n  ]' for name, rows in (("nodes", nodes), ("edges", edges)))
    return "\n".join(["{", *lines, ' "elements": {', body, " }", "}"]) + "\n"


def from_cytoscape(text: str, source: str = "the text") -> Saved:
    """The circuit and the roles that `to_cytoscape` wrote. `source` names the text in errors."""
    data = parse_json(text, source)
    try:
        header, elements = data["data"]["header"], data["elements"]["edges"]
        rows = [element["data"] for element in elements]
    except (KeyError, TypeError) as error:
        raise AcdcError(f"{source} is not a circuit that acdc wrote: it lacks {error}") from error
    if not isinstance(header, str) or not all(isinstance(row, dict) for row in rows):
        raise AcdcError(f"{source} is not a circuit that acdc wrote: a header or an edge is of another type")
    for row in rows:
        for name, kind in EDGE_KINDS.items():
            if name in row and type(row[name]) is not kind and not (kind is float and type(row[name]) is int):
                raise AcdcError(f"{source}: {name} of an edge is {row[name]!r}, not of type {kind.__name__}")
    return from_record(header, rows, source)


def _lines(rows: list) -> str:
    return ",\n".join(f"   {json.dumps(row, allow_nan=False)}" for row in rows)

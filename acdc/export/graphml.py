"""A circuit as GraphML, for networkx, Gephi, yEd and igraph; see `acdc.export.record` for what is in it."""

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.export.record import EDGE_TYPES, NODE_TYPES, Saved, Value, from_record, parsed, shown, to_record
from acdc.export.xml_text import local_name, parse_xml, tag

NAMESPACE = "http://graphml.graphdrawing.org/xmlns"


def to_graphml(circuit: Circuit, roles: Mapping[str, str] | None = None, *, all_edges: bool = False) -> str:
    """The kept edges, or all; parallel edges (q, k, v, positions) have ids of their own. `from_graphml` reads it."""
    record = to_record(circuit, roles, all_edges=all_edges)
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', tag("graphml", {"xmlns": NAMESPACE}, close=False)]
    lines.append(tag("key", {"id": "header", "for": "graph", "attr.name": "header", "attr.type": "string"}))
    for owner, types in (("node", NODE_TYPES), ("edge", EDGE_TYPES)):
        lines += [tag("key", {"id": f"{owner}_{name}", "for": owner, "attr.name": name, "attr.type": kind})
                  for name, kind in types.items()]
    lines.append(tag("graph", {"id": "circuit", "edgedefault": "directed"}, close=False))
    lines.append(f'<data key="header">{escape(record.header)}</data>')
    for row in record.nodes:
        lines.append(f"{tag('node', {'id': str(row['id'])}, close=False)}{_data('node', row, NODE_TYPES)}</node>")
    for row in record.edges:
        ends = {name: str(row[name]) for name in ("id", "source", "target")}
        lines.append(f"{tag('edge', ends, close=False)}{_data('edge', row, EDGE_TYPES)}</edge>")
    return "\n".join([*lines, "</graph>", "</graphml>"]) + "\n"


def from_graphml(text: str, source: str = "the text") -> Saved:
    """The circuit and the roles that `to_graphml` wrote. `source` names the text in errors."""
    root = parse_xml(text, source)
    names = {key.get("id"): key.get("attr.name") for key in root if local_name(key) == "key"}
    graph = next((element for element in root if local_name(element) == "graph"), None)
    if graph is None:
        raise AcdcError(f"{source} holds no graph")
    header = next((data.text or "" for data in graph
                   if local_name(data) == "data" and names.get(data.get("key")) == "header"), "null")
    edges = []
    for element in graph:
        if local_name(element) == "edge":
            row: dict[str, Any] = {"source": element.get("source"), "target": element.get("target")}
            for data in element:
                name = names.get(data.get("key"))
                if name in EDGE_TYPES:
                    row[name] = parsed(name, data.text or "", EDGE_TYPES, source)
            edges.append(row)
    return from_record(header, edges, source)


def _data(owner: str, row: Mapping[str, Value], types: Mapping[str, str]) -> str:
    return "".join(f'<data key="{owner}_{name}">{escape(shown(row[name]))}</data>' for name in types if name in row)

"""What every file format says of a circuit: a header, a row a node and a row an edge, and the way back.

The formats of graphs (GraphML, GEXF, Cytoscape, DOT) differ in how they write these three, not in what they say.

- The *header* is one ASCII JSON text: the graph's shape, the provenances, and the roles. It is what makes a file
  readable again, whatever characters a name has that the format has not.
- A *node* row: id, kind, layer, index, label, role, the number of edges into it and out of it.
- An *edge* row: id, source, target, channel, position, position_index, kept, score, weight. `source` and `target` are
  nodes, `channel` is q, k, v or empty, `weight` is |score|. A score of -inf (never tried) is left out.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.export.json_file import GRAPH_FIELDS, check_fields, check_record, dump_record, parse_json, read_graph
from acdc.graph import Graph, Node

FORMAT, VERSION = "acdc-graph", 1
FIELDS = {"format", "version", "graph", "provenance", "scores_provenance", "roles"}
NODE_TYPES = {"kind": "string", "layer": "int", "index": "int", "label": "string", "role": "string",
              "edges_in": "int", "edges_out": "int"}
EDGE_TYPES = {"channel": "string", "position": "string", "position_index": "int", "kept": "boolean",
              "score": "double", "weight": "double"}
STEP = 60.0  # points between the heads of a layer
Value = str | int | float | bool


class Saved(NamedTuple):
    """What a file held: a circuit, and the role of each node that has one."""

    circuit: Circuit
    roles: dict[str, str]


@dataclass(frozen=True)
class Record:
    """A circuit as a format writes it; see the module. Values are plain; what is not known is left out of a row."""

    header: str
    nodes: list[dict[str, Value]]
    edges: list[dict[str, Value]]


def to_record(circuit: Circuit, roles: Mapping[str, str] | None = None, *, all_edges: bool = False) -> Record:
    """The record of the kept edges or, with `all_edges`, of all edges that could be cut, each saying whether it is
    kept: then it reads back as the same circuit. Else what is read has no score for the edges that were left out.

    `roles`: from the name of a node, such as a9.h6, to what it is said to do.
    """
    graph, roles = circuit.graph, checked_roles(circuit.graph, roles or {})
    edges = np.arange(graph.n_edges) if all_edges else np.nonzero(circuit.kept)[0]
    header = {
        "format": json.dumps(FORMAT), "version": json.dumps(VERSION),
        "graph": json.dumps({name: getattr(graph, name) for name in GRAPH_FIELDS}),
        "provenance": dump_record(circuit.provenance, "provenance"),
        "scores_provenance": "null" if circuit.scores is None else dump_record(circuit.scores.provenance,
                                                                               "scores_provenance"),
        "roles": json.dumps(roles),
    }
    text = json.dumps(json.loads("{" + ",".join(f'"{name}":{value}' for name, value in header.items()) + "}"))
    rows = [_edge_row(circuit, edge) for edge in edges.tolist()]
    return Record(text, _node_rows(circuit, roles, edges.tolist()), rows)


def from_record(header: str, edges: Iterable[Mapping[str, Any]], source: str) -> Saved:
    """The circuit of a header and its rows of edges. `source` names the file in errors.

    Rows need `source`, `target` and `channel`, and `position_index` where the graph has positions; without `kept` an
    edge is kept. Edges without a row are not kept, and have no score (-inf).
    """
    data = parse_json(header, source)
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise AcdcError(f"{source} is not a circuit that acdc wrote: it lacks the header that says which model and "
                        "which edges. Export the circuit again")
    check_fields(data, FIELDS, source, "")
    graph = read_graph(data["graph"], source)
    for name in ("provenance", "scores_provenance"):
        if not isinstance(data[name], dict) and not (name == "scores_provenance" and data[name] is None):
            raise AcdcError(f'{source}: field "{name}" must be an object')
        check_record(data[name], f"{source}: {name}")
    kept = np.zeros(graph.n_edges, dtype=bool)
    values = np.full(graph.n_edges, -np.inf)
    seen = np.zeros(graph.n_edges, dtype=bool)
    for row in edges:
        edge = _edge_number(graph, row, source)
        if seen[edge]:
            raise AcdcError(f"{source}: the edge {graph.edge_name(edge)!r} is given twice")
        seen[edge] = True
        kept[edge] = row.get("kept", True)
        values[edge] = _score(graph, edge, row, source)
    scores = None if data["scores_provenance"] is None else EdgeScores(graph, values, data["scores_provenance"])
    if not isinstance(data["roles"], dict):
        raise AcdcError(f'{source}: field "roles" must be an object')
    return Saved(Circuit(graph, kept, scores, data["provenance"]), checked_roles(graph, data["roles"]))


def checked_roles(graph: Graph, roles: Mapping[str, Any]) -> dict[str, str]:
    """The roles, if each is a text for a node that the graph has."""
    for name, role in roles.items():
        if not isinstance(role, str):
            raise AcdcError(f"the role of {name} is {role!r}; give a text")
        node = Node.parse(name)
        known = node.kind == "logits" or name in graph.src_index or any(
            node.kind == "kv" and node == channel.node for channel in graph.channels)
        if not known:
            raise AcdcError(f"there is a role for {name!r}, which the graph of {graph.n_layers} layers of "
                            f"{graph.n_heads} heads lacks")
    return dict(roles)


def readable(text: str) -> str:
    """Printable text on one line, of characters that XML and every editor can show."""
    return " ".join("".join(c if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF else " " for c in text).split())


def boolean(text: str) -> bool:
    """What `true` or `false` means in a file."""
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


PARSERS: dict[str, Any] = {"string": str, "int": int, "double": float, "boolean": boolean}


def parsed(name: str, text: str, types: Mapping[str, str], source: str) -> Any:
    """The value of an attribute that a file holds as text."""
    try:
        return PARSERS[types[name]](text)
    except ValueError as error:
        raise AcdcError(f"{source}: {name} is {text[:80]!r}, not a {types[name]}") from error


def shown(value: Value) -> str:
    """A value as text, so that a number reads back exactly."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def place(row: Mapping[str, Value], graph: Graph) -> tuple[float, float]:
    """Where a node may lie, in points: input below, logits above, heads by index, MLPs at the right."""
    kind, layer = row["kind"], float(row["layer"])
    if kind in ("input", "logits"):
        return STEP * graph.n_heads / 2, STEP * (-1 if kind == "input" else 2 * graph.n_layers)
    x = graph.n_heads + 0.5 if kind == "mlp" else float(row["index"])
    return STEP * x, STEP * (2 * layer + {"kv": -0.5, "head": 0.0, "mlp": 0.75}[str(kind)])


def _node_rows(circuit: Circuit, roles: Mapping[str, str], edges: list[int]) -> list[dict[str, Value]]:
    graph = circuit.graph
    into: dict[Node, int] = {}
    out: dict[Node, int] = {}
    for edge in edges:
        src, dst = graph.srcs[graph.edge_src[edge]], graph.channels[graph.edge_channel[edge]].node
        out[src], into[dst] = out.get(src, 0) + 1, into.get(dst, 0) + 1
    named = {Node.parse(name) for name in roles}
    nodes = sorted({*into, *out, *named, Node("input"), Node("logits")}, key=_forward_order)
    rows = []
    for node in nodes:
        row: dict[str, Value] = {"id": node.name, "kind": node.kind, "layer": node.layer, "index": node.index,
                                 "label": node.name, "edges_in": into.get(node, 0), "edges_out": out.get(node, 0)}
        if node.name in roles:
            row["role"] = readable(roles[node.name])
        rows.append(row)
    return rows


def _edge_row(circuit: Circuit, edge: int) -> dict[str, Value]:
    graph, channel = circuit.graph, circuit.graph.channels[circuit.graph.edge_channel[edge]]
    position = int(graph.edge_position[edge])
    row: dict[str, Value] = {
        "id": f"e{edge}", "source": graph.srcs[graph.edge_src[edge]].name, "target": channel.node.name,
        "channel": channel.letter, "kept": bool(circuit.kept[edge]),
    }
    if graph.positions:
        row |= {"position": readable(graph.positions[position]), "position_index": position}
    if circuit.scores is not None and np.isfinite(circuit.scores.values[edge]):
        score = float(circuit.scores.values[edge])
        row |= {"score": score, "weight": abs(score)}
    return row


def _edge_number(graph: Graph, row: Mapping[str, Any], source: str) -> int:
    missing = [name for name in ("source", "target", "channel") if name not in row]
    if graph.positions and "position_index" not in row:
        missing.append("position_index")
    if missing:
        raise AcdcError(f"{source}: an edge does not say its {missing[0]}")
    name = f"{row['source']}->{row['target']}" + (f"<{row['channel']}>" if row["channel"] else "")
    if graph.positions:
        position = row["position_index"]
        if not isinstance(position, int) or not 0 <= position < len(graph.positions):
            raise AcdcError(f"{source}: position_index {position!r} is not one of {len(graph.positions)} positions")
        name += f"@{graph.positions[position]}"
    try:
        return graph.edge(name)
    except AcdcError as error:
        raise AcdcError(f"{source}: {error}") from error


def _score(graph: Graph, edge: int, row: Mapping[str, Any], source: str) -> float:
    if "score" not in row:
        return -math.inf
    try:
        score = float(row["score"])
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise AcdcError(f"{source}: the score of {graph.edge_name(edge)!r} is {str(row['score'])[:40]}, which is no "
                        "finite number. Leave it out where the edge was never tried")
    return score


def _forward_order(node: Node) -> tuple[int, int, int]:
    kinds = {"input": 0, "kv": 1, "head": 2, "mlp": 3, "logits": 4}
    layer = {"input": -1, "logits": 10**6}.get(node.kind, node.layer)
    return layer, kinds[node.kind], node.index

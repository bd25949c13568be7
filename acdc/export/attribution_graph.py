"""A circuit as an attribution graph of circuit-tracer and Neuronpedia, to be looked at in their pages.

Their nodes are at a token and a layer, their links are one number. So a node is drawn at each position where it takes
part (one column, `all positions`, where positions are not told apart), and a link is the sum of the scores of the edges
into q, k and v. What attention carries from where a head reads a key or value to where its output is read is a link
too, though no edge: it has the sum of the scores that enter there, shared out among the places that it leads to.

Rules that their pages follow without saying so: the label of a logit holds its probability, (p=...); some node is at
layer 1 or above; there are two tokens or more; jsNodeId is unique; a node that is no feature is of type `unknown`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.export.layout import Place, carried, edge_ends
from acdc.export.record import checked_roles, readable
from acdc.export.text import full_provenance
from acdc.graph import Graph, Node

TYPES = {"input": "embedding", "logits": "logit"}
NO_POSITIONS = ("all positions", "logits")  # a page with one token deletes every node
MOST_PINS = 200  # what circuit-tracer's page takes
MOST_BYTES = 100 * 10**6  # what Neuronpedia takes


def to_attribution_graph(circuit: Circuit, roles: Mapping[str, str] | None = None) -> str:
    """JSON of schema version 1 with the kept edges; see the module.

    `influence` is the share of all |weight| that passes through nodes at least as strong, so the page's slider hides
    the weakest first. The probability in the label of the logits is 1: a circuit does not know it.
    """
    graph, roles = circuit.graph, checked_roles(circuit.graph, roles or {})
    links = _links(circuit)
    places = {place for link in links for place in link} | {(Node("logits"), graph.n_positions - 1)}
    strength = dict.fromkeys(sorted(places, key=lambda place: (_depth(graph, place[0]), place[1])), 0.0)
    for (start, end), weight in links.items():
        strength[start] += abs(weight)
        strength[end] += abs(weight)
    influence = _influence(strength)
    number = {node: i for i, node in enumerate(dict.fromkeys(node for node, _ in strength))}
    nodes = [_node(circuit, place, roles, number[place[0]], influence[place]) for place in strength]
    if all(node["layer"] in ("E", "0") or node["feature_type"] == "logit" for node in nodes):
        nodes.append({**_node(circuit, (Node("mlp", 1), 0), {}, len(number), 1.0), "clerp": "(nothing above layer 0)"})
    grouped = _supernodes(graph, strength, roles)
    data = {
        "metadata": _metadata(circuit),
        "qParams": {"pinnedIds": [name for _, *names in grouped for name in names][:MOST_PINS], "supernodes": grouped,
                    "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": [{"source": node_id(graph, start), "target": node_id(graph, end), "weight": weight}
                  for (start, end), weight in links.items()],
    }
    text = json.dumps(data, allow_nan=False, indent=1) + "\n"
    if len(text) > MOST_BYTES:
        raise AcdcError(f"the attribution graph has {len(text):,} bytes; Neuronpedia takes {MOST_BYTES:,}. Export a "
                        "circuit with fewer edges")
    return text


def node_id(graph: Graph, place: Place) -> str:
    """`{layer}_{number}_{position}`, E for the input; the MLP's number is that after the last head's, then KV nodes."""
    node, position = place
    at = position if graph.positions or node.kind != "logits" else 1
    if node.kind == "input":
        return f"E_0_{at}"
    number = {"head": node.index, "mlp": graph.n_heads, "kv": graph.n_heads + 1 + node.index, "logits": 0}[node.kind]
    return f"{graph.n_layers + 1 if node.kind == 'logits' else node.layer}_{number}_{at}"


def _links(circuit: Circuit) -> dict[tuple[Place, Place], float]:
    """The weight between each pair of places. Without scores each edge weighs 1."""
    graph, kept = circuit.graph, np.nonzero(circuit.kept)[0]
    links: dict[tuple[Place, Place], float] = {}
    read: dict[Place, float] = {}
    for edge in kept.tolist():
        start, end = edge_ends(graph, edge)
        value = 1.0 if circuit.scores is None else float(circuit.scores.values[edge])
        value = value if np.isfinite(value) else 0.0
        links[start, end] = links.get((start, end), 0.0) + value
        if graph.channels[graph.edge_channel[edge]].letter in ("k", "v"):
            read[end] = read.get(end, 0.0) + value
    pairs = carried(graph, kept)
    for start, end in pairs:
        weight = read[start] / sum(other == start for other, _ in pairs)
        links[start, end] = links.get((start, end), 0.0) + weight
    return links


def _node(circuit: Circuit, place: Place, roles: Mapping[str, str], number: int, influence: float) -> dict[str, Any]:
    graph, (node, position) = circuit.graph, place
    name = readable(roles.get(node.name, ""))
    label = f"{node.name}: {name}" if name else node.name
    if node.kind == "logits":
        answer = readable(str((full_provenance(circuit).get("example") or {}).get("answer") or "logits"))
        label = f'Output "{answer}" (p=1.000)'
    identity = node_id(graph, place)
    layer = identity.partition("_")[0]
    at = position if graph.positions or node.kind != "logits" else 1
    made: dict[str, Any] = {
        "node_id": identity, "feature": number, "layer": layer, "ctx_idx": at,
        "feature_type": TYPES.get(node.kind, "unknown"), "jsNodeId": f"{identity}-0", "clerp": label,
        "influence": influence, "reverse_ctx_idx": 0,
    }
    if node.kind == "logits":
        made |= {"token_prob": 1.0, "is_target_logit": True}
    return made


def _influence(strength: Mapping[Place, float]) -> dict[Place, float]:
    total = sum(strength.values()) or 1.0
    shares, so_far = {}, 0.0
    for place in sorted(strength, key=lambda place: -strength[place]):
        so_far += strength[place] / total
        shares[place] = min(1.0, so_far)
    return shares


def _supernodes(graph: Graph, places: Iterable[Place], roles: Mapping[str, str]) -> list[list[str]]:
    """The places of each role that several nodes have: the page draws them as one."""
    members: dict[str, list[Place]] = {}
    for place in places:
        if roles.get(place[0].name):
            members.setdefault(readable(roles[place[0].name]), []).append(place)
    return [[role, *(node_id(graph, place) for place in of_role)] for role, of_role in members.items()
            if len({node for node, _ in of_role}) > 1]


def _metadata(circuit: Circuit) -> dict[str, Any]:
    known = full_provenance(circuit)
    model = readable(str(known.get("model") or "unknown")).rpartition("/")[2]
    name = f"{known.get('task') or 'circuit'}-{model}-{known.get('method') or ''}"
    tokens = [readable(position) or "?" for position in circuit.graph.positions] or list(NO_POSITIONS)
    return {
        "slug": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "circuit", "scan": model or "unknown",
        "prompt_tokens": tokens if len(tokens) > 1 else [*tokens, ""],
        "prompt": readable(str((known.get("example") or {}).get("clean") or "")), "node_threshold": 1.0,
        "schema_version": 1, "info": {"description": f"{circuit.n_edges:,} edges kept of {circuit.graph.n_edges:,}",
                                      "generator": {"name": "acdc", "version": "1"}},
    }


def _depth(graph: Graph, node: Node) -> tuple[int, int, int]:
    layer = {"input": -1, "logits": graph.n_layers}.get(node.kind, node.layer)
    return layer, {"kv": 0, "head": 1}.get(node.kind, 2), node.index

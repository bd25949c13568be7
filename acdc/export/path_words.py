"""A path through a circuit as a sentence."""

from collections.abc import Mapping

from acdc.circuit import Circuit
from acdc.export.paths import Path
from acdc.graph import Channel

LETTERS = {"q": "query", "k": "key", "v": "value"}


def path_words(circuit: Circuit, path: Path, roles: Mapping[str, str] | None = None) -> str:
    """`The input goes into MLP 0, whose output goes into the value of head 23.3 (name mover), whose output goes into
    the logits.` With positions, each step says where it is read. `roles`: what nodes are said to do."""
    graph, roles = circuit.graph, roles or {}
    steps = []
    for i, edge in enumerate(path.edges):
        channel = graph.channels[graph.edge_channel[edge]]
        at = f" at {graph.positions[graph.edge_position[edge]]}" if graph.positions else ""
        reader = ""
        if channel.node.kind == "kv":
            head = graph.srcs[graph.edge_src[path.edges[i + 1]]]
            role = roles.get(head.name)
            reader = f", read by head {head.layer}.{head.index}{f' ({role})' if role else ''}"
        steps.append(f"goes into {_read_by(channel, roles)}{at}{reader}")
    return f"The input {', whose output '.join(steps)}."


def _read_by(channel: Channel, roles: Mapping[str, str]) -> str:
    node = channel.node
    role = f" ({roles[node.name]})" if roles.get(node.name) else ""
    if node.kind == "logits":
        return "the logits"
    if node.kind == "mlp":
        return f"MLP {node.layer}{role}"
    owner = f"head {node.layer}.{node.index}" if node.kind == "head" else f"KV group {node.layer}.{node.index}"
    return f"the {LETTERS[channel.letter]} of {owner}{role}"

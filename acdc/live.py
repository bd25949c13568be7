"""Which nodes a circuit run must compute: those that can differ from the base run and can reach the logits."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from acdc.graph import Graph


@dataclass(frozen=True, eq=False)
class Live:
    """`src`: nodes to compute. `channel`: what such a node reads differs from the base run. `wide`: the node matters
    at every position, because some key or value depends on it; else only where the logits are read."""

    src: Bool[np.ndarray, " src"]
    wide: Bool[np.ndarray, " src"]
    channel: Bool[np.ndarray, " channel"]


def find_live(
    graph: Graph,
    kept: Bool[np.ndarray, "src channel"],
    differs: Bool[np.ndarray, " src"],
    *,
    all_differ: bool,
    post_norm: bool,
    all_positions: bool,
) -> Live:
    """Forward: what differs from the base run; backward: what the logits depend on, and at which positions.

    `differs`: nodes that differ from the start (the input, imposed nodes). `all_differ`: every node computes something
    other than its replacement (mean, zero). `post_norm`: heads of a layer share one norm, so that if one changes, all
    do, and if one is needed, all are.
    """
    assert graph.kv == "head", graph.kv
    changed, channel = differs.copy(), np.zeros(len(graph.channels), dtype=bool)
    for index in map(graph.layer, range(graph.n_layers)):
        heads = slice(index.q.start, index.v.stop)
        channel[heads] = (kept[:, heads] & changed[:, None]).any(0)
        head = channel[index.q] | channel[index.k] | channel[index.v] | all_differ
        changed[index.heads] |= head.any() if post_norm else head
        channel[index.mlp_channel] = (kept[:, index.mlp_channel] & changed).any()
        changed[index.mlp] |= channel[index.mlp_channel] | all_differ
    channel[-1] = (kept[:, -1] & changed).any()

    needed = kept[:, -1].copy()
    wide = needed & all_positions
    for index in map(graph.layer, reversed(range(graph.n_layers))):
        if needed[index.mlp]:
            needed |= kept[:, index.mlp_channel]
            wide |= kept[:, index.mlp_channel] & wide[index.mlp]
        if post_norm:
            needed[index.heads] |= needed[index.heads].any()
            wide[index.heads] |= wide[index.heads].any()
        kv = (kept[:, index.k] | kept[:, index.v]) & needed[index.heads]
        needed |= (kept[:, index.q] & needed[index.heads]).any(1) | kv.any(1)
        wide |= (kept[:, index.q] & wide[index.heads]).any(1) | kv.any(1)
    src = changed & needed
    return Live(src, wide & src, channel)

"""Node attribution patching: nodes are scored by gradients, and an edge by the weaker of its two ends.

Phases: the gradient at every channel, as for edges; each node's score is the sum over the edges out of it, since
whatever it writes is read through them; then the scores of nodes are lifted to edges.

Source: Nanda 2023, "Attribution patching" (neelnanda.io); Kramar et al. 2024 (arXiv 2403.00745); with `steps`, the
node version of EAP-IG (arXiv 2403.17806).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from acdc.circuit import EdgeScores
from acdc.discovery.eap import eap
from acdc.discovery.eap_ig import eap_ig
from acdc.discovery.gradients import check_clean_gradient
from acdc.graph import KV, Graph
from acdc.metrics import METRICS, Metric
from acdc.task import Batch
from acdc.transformer import Transformer


def node_attribution(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    steps: int | None = None,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    progress: bool = False,
) -> EdgeScores:
    """s(node u) = mean over prompts of (u_replacement - u_clean) . dL/du, the gradient at what u writes;

    s(u -> channel of v) = s(u) or s(v), whichever is smaller in size, with its sign; s(u) for v = logits.

    `steps`: None takes the gradient on the clean run (NAP); m averages it over m runs whose input lies between the
    replaced and the clean one, as in `eap_ig` (NAP-IG). s(u) is exactly the sum of the scores of `eap` (`eap_ig`) over
    the edges out of u: `eap(...).of_nodes()` holds the scores of nodes themselves. L is the metric as a loss, in its
    units; positive = the node helps. See `lifted` for KV groups and positions. Cost a batch: as `eap` or `eap_ig`.

    It misleads about edges: all edges between two important nodes look important, whether or not anything of use
    travels there, and equal scores abound, among which `top` goes by the order of the graph. Raises `AcdcError` where
    `eap` or `eap_ig` does.
    """
    if steps is None:
        check_clean_gradient(metric, "node_attribution without steps", "Give it steps, or use logit_difference")
        edges = eap(model, batches, metric, ablation=ablation, kv=kv, positions=positions, progress=progress)
    else:
        edges = eap_ig(model, batches, metric, steps=steps, ablation=ablation, kv=kv, positions=positions,
                       progress=progress)
    provenance = {**edges.provenance, "method": "node_attribution", "method_options": {"steps": steps}}
    return replace(edges, values=lifted(edges.graph, edges.node_totals()), provenance=provenance)


def lifted(graph: Graph, nodes: Float[np.ndarray, "src position"]) -> Float[np.ndarray, " edge"]:
    """For each edge the score of the one of its ends that is smaller in size, or of its src if its dst is the logits.

    An edge can matter no more than either end. The edges above a threshold in size are then all edges between the
    nodes above it. The dst of a KV group's channel is the group: the sum of its heads' scores. At a position, the src
    counts there, and so does the dst of a q channel or an MLP; what is read by a key or value there comes out at
    other positions, so that the dst's score is summed over all of them.
    """
    size = graph.n_heads // graph.n_kv_heads
    src = nodes[graph.edge_src, graph.edge_position]
    by_channel = np.zeros((len(graph.channels), graph.n_positions))
    for c, channel in enumerate(graph.channels):
        node = channel.node
        if node.kind == "logits":
            by_channel[c] = np.inf
            continue
        first = graph.layer(node.layer).heads.start
        rows = (slice(first + node.index * size, first + (node.index + 1) * size) if node.kind == "kv"
                else slice(graph.src_index[node.name], graph.src_index[node.name] + 1))
        total = nodes[rows].sum(0)
        by_channel[c] = total.sum() if channel.letter in ("k", "v") else total
    dst = by_channel[graph.edge_channel, graph.edge_position]
    return np.where(np.abs(dst) < np.abs(src), dst, src)

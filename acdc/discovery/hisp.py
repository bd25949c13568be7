"""Head importance score for pruning: how much each node matters to each prompt, whichever way, within its layer.

Source: Michel, Levy & Neubig 2019 (arXiv 1905.10650), who zero attention heads; with replacement values and MLPs as in
Conmy et al. 2023 (arXiv 2304.14997).
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from acdc.circuit import EdgeScores
from acdc.discovery.gradients import batch_scores, check_clean_gradient, products_at_points
from acdc.discovery.node_attribution import lifted
from acdc.graph import KV, Graph
from acdc.metrics import METRICS, Metric
from acdc.task import Batch, position_names
from acdc.transformer import Transformer


def hisp(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    normalise: bool = True,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    progress: bool = False,
) -> EdgeScores:
    """I(node u) = mean over prompts of |(u_replacement - u_clean) . dL/du|, the gradient at what u writes;

    s(u -> channel of v) = min(I(u), I(v)), and I(u) for v = logits.

    The product is summed over positions before its size is taken, a prompt at a time. `normalise`: the importances of
    a layer, its heads and its MLP, are divided by the root of the sum of their squares, so that no layer outweighs
    another (the input, alone in its layer, is then 1). No score is negative: they say that a node matters, not that it
    helps, and signed and magnitude rankings are the same. Without `normalise` they are in units of L, the metric as a
    loss. KV groups (the sum of the heads' importances) and positions: as `lifted` of node_attribution says. Cost a
    batch: as `eap`.

    It misleads where a node helps on some prompts and hurts on others by chance: what cancels in `node_attribution`
    adds up here. Normalised, it makes the nodes of a layer that does not matter as large as any. About edges it
    misleads as `node_attribution` does. Raises `AcdcError` for metrics without gradient on the clean run.
    """
    remedy = "Use node_attribution with steps for this metric, or HISP with logit_difference"
    check_clean_gradient(metric, "HISP", remedy)
    graph = model.graph(kv, position_names(batches, positions))
    importance = np.zeros((len(graph.srcs), graph.n_positions))
    products = partial(products_at_points, points=[1.0])
    for scores in batch_scores(model, batches, metric, graph, products, ablation=ablation, per_prompt=True,
                               progress=progress):
        for of_prompt in scores:
            importance += np.abs(EdgeScores(graph, of_prompt).node_totals())
    importance /= sum(len(batch) for batch in batches)
    if normalise:
        importance = _normalised(graph, importance)
    provenance = {"method": "hisp", "method_options": {"normalise": normalise}, "metric": metric.name,
                  "ablation": ablation}
    return EdgeScores(graph, lifted(graph, importance), provenance)


def _normalised(graph: Graph, importance: Float[np.ndarray, "src position"]) -> Float[np.ndarray, "src position"]:
    """Each layer, over its nodes and positions, with l2 norm 1; a layer of no importance stays 0."""
    result = importance.copy()
    for rows in (slice(0, 1), *(slice(graph.layer(i).heads.start, graph.layer(i).mlp + 1)
                                for i in range(graph.n_layers))):
        norm = np.linalg.norm(importance[rows])
        if norm > 0:
            result[rows] /= norm
    return result

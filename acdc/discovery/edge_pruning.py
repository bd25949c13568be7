"""Edge Pruning: a mask for every edge, learned by gradient descent so that few edges do what the model does.

Phases: every mask starts open; in each step masks are drawn, the model runs with these fractions of its edges kept, and
loss and sparsity are differentiated (`masks`); while the target sparsity rises, the edges that the loss can spare close.
Source: Bhaskar et al. 2024 (arXiv 2406.16778). Edges alone have masks here; the paper's nodes have some too.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from acdc.circuit import EdgeScores
from acdc.discovery.masks import (
    EdgeMatrix,
    Training,
    check_metric,
    open_checkpoint,
    open_masks,
    prepare_prompts,
    train_masks,
)
from acdc.graph import KV
from acdc.metrics import METRICS, Metric
from acdc.task import Batch, position_names
from acdc.transformer import Transformer, frozen


def edge_pruning(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["kl_divergence"],
    *,
    sparsity: float = 0.985,
    steps: int = 600,
    learning_rate: float = 0.8,
    prompts_per_step: int = 16,
    warmup: float = 0.8,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    progress: bool = False,
) -> EdgeScores:
    """s(edge) = sigmoid(log alpha) = P(more than half of the edge is kept), by its mask as learned; between 0 and 1.

    The masks minimise L + lambda_1 (s - t) + lambda_2 (s - t)^2, with L the mean loss of the drawn prompts, s the
    expected share of closed masks, t the target, which rises from 0 to `sparsity` over the first `warmup` of the
    `steps` and stays; lambdas ascend. L is the metric as a loss; KL keeps the whole output, logit_difference makes the
    circuit as good as it can be, beyond what the model does.

    The circuit of n edges is `scores.top(n)`, the same by either ranking, best near n = (1 - sparsity) * edges. A score
    is no estimate of what cutting the edge alone does. Cost: `steps` forward and backward passes of
    `prompts_per_step` prompts in which each channel of a head reads something of its own (some 5 to 10 passes of the
    model's own), and the activations of all prompts at once in memory.

    `checkpoint`: a file that the run is saved to as it goes; one that is killed goes on from it and ends in the same
    scores. It misleads as a ranking far from its `sparsity`: what lies below has been trained as a part of something
    larger; and with few prompts, whose peculiarities it learns. Provenance `history`: loss, sparsity and target, at
    100 steps at most. Raises `AcdcError` for metrics without gradient and options out of range.
    """
    training = Training(steps, sparsity, learning_rate, prompts_per_step, seed, warmup)
    training.check()
    check_metric(metric)
    graph = model.graph(kv, position_names(batches, positions))
    record = {"method": "edge_pruning", "method_options": asdict(training), "metric": metric.name,
              "ablation": ablation}
    saved = open_checkpoint(checkpoint, model, batches, {**record, "kv": kv, "positions": positions})
    with frozen(model):
        groups = prepare_prompts(model, batches, ablation, graph.positions)
        start = open_masks(model, graph.n_edges, training)
        state = train_masks(groups, metric, training, start, EdgeMatrix(graph, model.device), saved, progress)
    return EdgeScores(graph, state.log_alpha.double().sigmoid().cpu().numpy(), {**record, "history": state.history})

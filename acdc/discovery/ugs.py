"""Uniform gradient sampling: how often each edge is kept, learned from gradients at fractions drawn uniformly.

Phases: as in `edge_pruning`, but the fraction kept of an edge is 0 or 1 with some probability, or, the more uncertain
the edge, uniform in between; only then does its gradient count.
Source: Li & Janson 2024 (arXiv 2409.09951). There the expected number of kept edges is a part of the loss, here the
edges are trained within a budget.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from acdc.circuit import EdgeScores
from acdc.discovery.checkpoint import open_checkpoint
from acdc.discovery.masks import Distribution, EdgeMatrix, Training, first_masks, train_masks
from acdc.graph import KV
from acdc.learning import check_metric, prepare_prompts
from acdc.metrics import METRICS, Metric
from acdc.optimal_ablation import START, first_constants
from acdc.task import Batch, position_names
from acdc.transformer import Transformer, frozen


def ugs(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["kl_divergence"],
    *,
    sparsity: float = 0.985,
    steps: int = 300,
    learning_rate: float = 0.3,
    prompts_per_step: int = 8,
    warmup: float = 0.5,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    progress: bool = False,
) -> EdgeScores:
    """s(edge) = p, the probability that the edge is kept, as learned; between 0 and 1.

    The fraction kept of an edge is, with w = p (1 - p),

        uniform in (0, 1) with probability w, 1 with p - w / 2, 0 with 1 - p - w / 2

    and d(mean loss)/d(logit p) is estimated by dL/d(fraction) where the fraction was drawn uniformly, 0 elsewhere. As
    L(1) - L(0) is the mean of dL/d(fraction) over fractions from 0 to 1, the estimate is right on average, whatever the
    curvature. The expected share of kept edges falls from 1 to 1 - `sparsity` over the first `warmup` of the `steps`.

    The circuit of n edges is `scores.top(n)`, the same by either ranking. Cost, options and checkpoint as
    `edge_pruning`. It misleads where steps are few: an edge that is nearly certain gives a gradient in few of them, so
    one that was cut early hardly comes back.

    `ablation="optimal"`, as in the paper: a constant for each node, which closed edges carry, is learned along with the
    masks, from the mean over positions on. It suits what the masks were in between, and is not returned: measure each
    circuit with constants of its own, `learn_ablation(model, batches, circuit=scores.top(n, by="magnitude"))`.
    """
    training = Training(steps, sparsity, learning_rate, prompts_per_step, seed, warmup)
    check_metric(metric)
    graph = model.graph(kv, position_names(batches, positions))
    record = {"method": "ugs", "method_options": asdict(training), "metric": metric.name, "ablation": ablation}
    saved = open_checkpoint(checkpoint, model, batches, {**record, "kv": kv, "positions": positions})
    with frozen(model):
        learns = ablation == "optimal"
        groups = prepare_prompts(model, batches, START if learns else ablation, graph.positions)
        constants = first_constants(model, batches) if learns else None
        first = first_masks(model, graph.n_edges, training)
        matrix = EdgeMatrix(graph, model.device)
        state = train_masks(groups, metric, training, first, matrix, saved, progress, UNIFORM, constants)
    return EdgeScores(graph, state.log_alpha.double().sigmoid().cpu().numpy(), {**record, "history": state.history})


def fractions(logit: Float[Tensor, " n"], uniform: Float[Tensor, " n"], noise: float = 1.0) -> Float[Tensor, " n"]:
    """The fractions kept, of numbers uniform in (0, 1); their derivative by the logit is 1 in between, 0 at 0 and 1.

    The `noise` of hard concrete masks has no place here.
    """
    p = logit.sigmoid().detach()
    window = p * (1 - p)
    fraction = ((p - uniform) / window + 0.5).clamp(0, 1)
    between = ((fraction > 0) & (fraction < 1)).to(fraction.dtype)
    return fraction + between * (logit - logit.detach())


UNIFORM = Distribution(fractions, lambda logit, noise: logit.sigmoid(), straight_through=False)

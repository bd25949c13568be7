"""Edge Pruning: a mask for every edge, learned by gradient descent so that few edges do what the model does.

Phases: masks start open, or open by the size of other scores; in each step masks are drawn, the model runs with these
fractions of its edges kept, and the loss is differentiated (`masks`); while the budget of open edges falls, those that
the loss can spare close.
Source: Bhaskar et al. 2024 (arXiv 2406.16778), whose objective is `constraint="lagrangian"`; how the budget is met by
default is our own. Edges alone have masks here; the paper's nodes have some too.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from acdc.circuit import EdgeScores
from acdc.discovery.checkpoint import open_checkpoint
from acdc.discovery.masks import EdgeMatrix, Training, first_masks, train_masks
from acdc.errors import AcdcError, unknown_name
from acdc.graph import KV
from acdc.learning import check_metric, prepare_prompts
from acdc.metrics import METRICS, Metric
from acdc.task import Batch, position_names
from acdc.transformer import Transformer, frozen

OPEN_AT_FIRST = 0.1  # share of open edges where other scores say which


def edge_pruning(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["kl_divergence"],
    *,
    sparsity: float = 0.985,
    steps: int = 150,
    learning_rate: float | None = None,
    prompts_per_step: int = 8,
    warmup: float = 0.5,
    constraint: str = "budget",
    start: EdgeScores | str | None = "eap_ig",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    progress: bool = False,
) -> EdgeScores:
    """s(edge) = sigmoid(log alpha) = P(more than half of the edge is kept), by its mask as learned; between 0 and 1.

    The masks, hard concrete, minimise the mean loss L of the drawn prompts while all but a share 1 - `sparsity` of the
    edges is cut. L is the metric as a loss: KL keeps the whole output; logit_difference makes the circuit as good as it
    can be, beyond what the model does.

    `constraint="budget"`: the expected share of open masks is met exactly in every step; it falls to 1 - sparsity over
    the first `warmup` of the `steps`. It starts at 0.1 with the edges of largest |score| by `start`: scores, or the
    name of a method, which is run with its defaults on the same prompts and metric. `start=None`: it starts at 1 with
    all alike, which takes many more steps to end in a faithful circuit.

    `constraint="lagrangian"`: minimise L + lambda_1 (s - t) + lambda_2 (s - t)^2, with s the expected sparsity and t
    its target, which rises from 0; lambdas ascend. As in the paper, which takes 3000 steps of 32 prompts; a few hundred
    are not enough. All masks start open, whatever the `start`. `learning_rate`: of Adam; default 0.3, lagrangian 0.8.

    The circuit of n edges is `scores.top(n)`, the same by either ranking, best near n = (1 - sparsity) * edges. A score
    is no estimate of what cutting the edge alone does. Cost: `steps` forward and backward passes of
    `prompts_per_step` prompts in which each channel of a head reads something of its own (some 5 to 10 passes of the
    model's own), and the activations of all prompts at once in memory.

    `checkpoint`: a file that the run is saved to as it goes; one that is killed goes on from it and ends in the same
    scores. It misleads as a ranking far from its `sparsity`: what lies below has been trained as a part of something
    larger; and with few prompts, whose peculiarities it learns: measure on others. Provenance `history`: loss, sparsity
    and target, at 100 steps at most. Raises `AcdcError` for metrics without gradient and options out of range.
    """
    if learning_rate is None:
        learning_rate = 0.8 if constraint == "lagrangian" else 0.3
    if constraint == "lagrangian":
        start = None  # all masks start open
    open_at_first = 1.0 if start is None else max(OPEN_AT_FIRST, 1 - sparsity)
    training = Training(steps, sparsity, learning_rate, prompts_per_step, seed, warmup, constraint, open_at_first)
    check_metric(metric)
    graph = model.graph(kv, position_names(batches, positions))
    if isinstance(start, str):
        start = _method(start)(model, batches, metric, ablation=ablation, kv=kv, positions=positions, progress=progress)
    if start is not None and start.graph != graph:
        raise AcdcError(f"start: scores of another graph, {start.graph}, than the masks, {graph}")
    options = {**asdict(training), "start": None if start is None else start.provenance.get("method", "scores")}
    record = {"method": "edge_pruning", "method_options": options, "metric": metric.name, "ablation": ablation}
    saved = open_checkpoint(checkpoint, model, batches, {**record, "kv": kv, "positions": positions}, start)
    with frozen(model):
        groups = prepare_prompts(model, batches, ablation, graph.positions)
        first = first_masks(model, graph.n_edges, training, None if start is None else start.values)
        state = train_masks(groups, metric, training, first, EdgeMatrix(graph, model.device), saved, progress)
    return EdgeScores(graph, state.log_alpha.double().sigmoid().cpu().numpy(), {**record, "history": state.history})


def _method(name: str) -> Callable[..., EdgeScores]:
    from acdc.discovery import METHODS  # here, because that table lists this module too

    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    if METHODS[name] is edge_pruning:
        raise AcdcError("edge_pruning cannot start from itself; name another method, such as eap_ig")
    return METHODS[name]

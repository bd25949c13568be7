"""How much of the model's behaviour a circuit carries.

    f = (m(circuit) - m(empty)) / (m(full) - m(empty))

with m the mean of the metric over prompts, in the full model, in the circuit, and with every edge cut. f = 1: the
circuit does what the model does; f > 1: it does more, because what it leaves out works against the task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from acdc.ablation import Ablation, Replacement, prepare_ablation
from acdc.activations import record
from acdc.circuit import Circuit, EdgeScores, Rank
from acdc.cluster import Shared, over
from acdc.errors import AcdcError
from acdc.evaluation.curve import MIB_FRACTIONS, Curve, CurvePoint
from acdc.fitting import Halving
from acdc.metrics import METRICS, Metric
from acdc.patching import run_circuit
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

PIECES = 4  # that the circuits of a batch are divided into, for workers


@dataclass(frozen=True)
class Faithfulness:
    """A circuit's faithfulness and the means that it is made of."""

    faithfulness: float
    circuit: float
    full: float
    empty: float
    n_edges: int
    n_prompts: int


def faithfulness(
    model: Transformer,
    circuit: Circuit,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    ablation: str | Ablation = "resample",
    progress: bool = False,
) -> Faithfulness:
    """f as above, a ratio of means as in MIB (not a mean of ratios).

    `ablation`: a name, or a function from a batch to its replacement values, such as `learn_ablation` returns; the
    empty circuit carries them too.
    Cost a batch: a forward pass each for the replacements and the full model, and one circuit run. Raises
    `AcdcError` where the metric does not separate the full model from the empty circuit: f would be noise.
    """
    values = measure(model, [circuit], batches, metric, ablation=ablation, progress=progress)
    full, empty, own = (float(row.mean()) for row in values)
    return Faithfulness((own - empty) / (full - empty), own, full, empty, circuit.n_edges, values.shape[1])


def faithfulness_curve(
    model: Transformer,
    scores: EdgeScores,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    by: Rank,
    fractions: Sequence[float] = MIB_FRACTIONS,
    ablation: str | Ablation = "resample",
    progress: bool = False,
) -> Curve:
    """Faithfulness of the top int(fraction * edges) edges for each fraction; the default is MIB's grid.

    With an edge that was never tried (-inf), sizes are limited to the edges tried. Cost: one circuit run a size and
    batch; the replacements are computed once a batch.
    """
    fractions = [float(fraction) for fraction in fractions]
    if not fractions or any(not 0 <= fraction <= 1 for fraction in fractions) or fractions != sorted(fractions):
        raise AcdcError(f"fractions {fractions}: they must be ascending and lie between 0 and 1")
    tried = int((scores.ranked_values(by) > -float("inf")).sum())
    sizes = [min(int(fraction * scores.graph.n_edges), tried) for fraction in fractions]
    circuits = [scores.top(size, by=by) for size in sizes]
    values = measure(model, circuits, batches, metric, ablation=ablation, progress=progress)
    full, empty, *means = (float(row.mean()) for row in values)
    points = [
        CurvePoint(fraction, size, mean, (mean - empty) / (full - empty))
        for fraction, size, mean in zip(fractions, sizes, means, strict=True)
    ]
    return Curve(by, metric.name, full, empty, values.shape[1], tuple(points), scores.graph.n_edges)


def measure(
    model: Transformer,
    circuits: Sequence[Circuit],
    batches: Sequence[Batch],
    metric: Metric,
    *,
    ablation: str | Ablation = "resample",
    progress: bool = False,
) -> Float[Tensor, "circuit prompt"]:
    """The metric of every prompt in the full model, in the empty circuit, then in each circuit.

    Cost a batch: a forward pass each for the first two, and one circuit run for each different circuit but these.
    Raises `AcdcError` where full and empty do not differ in the metric's good direction.
    """
    first: dict[bytes, int] = {}  # of equal circuits
    places = [first.setdefault(circuit.kept.tobytes(), i) for i, circuit in enumerate(circuits)]
    different = sorted(first.values())
    n = max(1, min(len(different), PIECES))  # neighbours, which often are of about the same size, in different pieces
    parts = [different[i::n] for i in range(n)]
    items = [(i, batch, [Circuit(circuits[place].graph, circuits[place].kept) for place in part])
             for i, batch in enumerate(batches) for part in parts]
    of_item = partial(_of_item, model, metric, prepare_ablation(model, batches, ablation), Halving(), Shared())
    found = iter(tqdm(over(model, of_item, items, "metric of circuits"), desc="evaluating", unit="piece",
                      total=len(items), disable=not progress))
    columns, right = [], []
    for _ in batches:
        of_batch = [next(found) for _ in parts]
        rows = {place: row for part, one in zip(parts, of_batch, strict=True)
                for place, row in zip(part, one["circuits"], strict=True)}
        columns.append(np.stack([*of_batch[0]["ends"][:2], *(rows[place] for place in places)]))
        right.append(of_batch[0]["ends"][2])
    values = torch.from_numpy(np.concatenate(columns, axis=1)).to(model.device)
    _check_separation(values, batches, metric, float(np.concatenate(right).mean()))
    return values


def _of_item(model: Transformer, metric: Metric, replace: Ablation, fits: Halving, shared: Shared,
             item: tuple[int, Batch, Sequence[Circuit]]) -> dict[str, np.ndarray]:
    """`ends`: the metric of the full model and the empty circuit, and whether the model is right; `circuits`: the
    metric in each; of every prompt."""
    number, batch, circuits = item

    def known(rows: slice) -> tuple[Replacement, Tensor, Tensor]:
        part = batch.rows(rows)
        replacement = replace(part)
        with torch.no_grad(), frozen(model):
            reference = model.logits(record(model, part.clean).final[:, -1])
            empty = model.logits(replacement.activations.final[:, -1]).expand_as(reference)
        ends = [metric(logits, part, reference).double() for logits in (reference, empty)]
        return replacement, reference, torch.stack([*ends, METRICS["accuracy"](reference, part, reference).double()])

    def rows_of(rows: slice) -> np.ndarray:
        part = batch.rows(rows)
        replacement, reference, ends = shared.of((number, rows.start, rows.stop), lambda: known(rows))
        found = [ends[0] if circuit.kept.all() else ends[1] if not circuit.kept.any() else
                 metric(run_circuit(model, part, circuit, replacement), part, reference).double()
                 for circuit in circuits]
        return torch.stack([*ends, *found]).detach().cpu().numpy()

    values = np.concatenate([found for _, found in fits.over(len(batch), rows_of)], axis=1)
    return {"ends": values[:3], "circuits": values[3:]}


def _check_separation(values: Float[Tensor, "circuit prompt"], batches: Sequence[Batch], metric: Metric,
                      accuracy: float) -> None:
    """Refuses a metric that is no better on the clean run than with everything cut."""
    sign = 1 if metric.higher_is_better else -1
    gaps = sign * (values[0] - values[1])
    scale = values[:2].abs().max()
    if not torch.isfinite(values).all():
        raise AcdcError(f"metric {metric.name!r} is not finite; check the model's weights")
    if gaps.mean() > 1e-6 * scale:
        return
    worst = int(gaps.argmin())
    example = [example for batch in batches for example in batch.examples][worst]
    raise AcdcError(
        f"metric {metric.name!r} does not separate the clean run (mean {float(values[0].mean()):.4g}) from the ablated "
        f"one (mean {float(values[1].mean()):.4g}), so no circuit can be found for it. Worst prompt: {example.clean!r} "
        f"against {example.corrupted!r} ({float(values[0, worst]):.4g} against {float(values[1, worst]):.4g}). On "
        f"{accuracy:.0%} of the clean prompts the answer's logit is above the wrong answer's. Check "
        "that the model can do the task, and that the corrupted prompt takes the answer away"
    )

"""How far a method's scores can be trusted on this model and task: some edges are patched exactly, and compared.

Phases: sort the edges into strata by kind and |score|; draw as many from each; patch each drawn edge alone; estimate
from them, weighted by how many edges each stands for, what patching all edges would give.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from acdc.circuit import EdgeScores
from acdc.discovery.exact import exact_effects
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.metrics import METRICS, Metric
from acdc.patching import check_graph
from acdc.task import Batch
from acdc.transformer import Transformer

KINDS = ("q", "k", "v", "mlp", "logits")
SHARES = (0.01, 0.1, 0.5)  # strata of a kind: its top 1% by |score|, to 10%, to 50%, the rest; cut at the threshold too
LEAST_EDGES = 2 * len(KINDS) * (len(SHARES) + 2)  # two a stratum
ERROR_RATE = 0.05  # of calling any sampled effect distinguishable that is 0
Z = 1.959963984540054  # 95% intervals


@dataclass(frozen=True)
class Agreement:
    """Scores against exact effects, for one kind of edge (its channel: q, k, v, mlp, logits) or for all.

    `n_edges`, `n_sampled` and `n_distinguishable` count; the others estimate a value of all `n_edges`. None: undefined,
    or too few edges were drawn to tell.
    """

    kind: str
    n_edges: int
    n_sampled: int
    n_distinguishable: int
    pearson: float | None
    spearman: float | None
    sign_agreement: float | None
    missed: float | None
    missed_low: float | None
    missed_high: float | None


@dataclass(frozen=True, eq=False)
class Sample:
    """The edges drawn, in the order of the graph. `error`: standard error of `effect`, over prompts; NaN with one."""

    edge: Int[np.ndarray, " drawn"]
    stratum: Int[np.ndarray, " drawn"]
    weight: Float[np.ndarray, " drawn"]  # how many edges of its stratum it stands for; they sum to the edges with score
    score: Float[np.ndarray, " drawn"]
    effect: Float[np.ndarray, " drawn"]
    error: Float[np.ndarray, " drawn"]
    distinguishable: Bool[np.ndarray, " drawn"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """`size`: the circuit that edges are missed by; `threshold`: the least |score| in it, None for a size of 0."""

    overall: Agreement
    kinds: tuple[Agreement, ...]
    sample: Sample
    n_untried: int
    n_prompts: int
    size: int
    threshold: float | None
    seed: int

    def summary(self) -> dict[str, Any]:
        """All numbers but the sample, as JSON holds them."""
        return {
            **{name: getattr(self, name) for name in ("n_untried", "n_prompts", "size", "threshold", "seed")},
            "overall": asdict(self.overall),
            "kinds": [asdict(agreement) for agreement in self.kinds],
        }


def calibrate(
    model: Transformer,
    scores: EdgeScores,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    n: int = 400,
    size: int | None = None,
    seed: int = 0,
    ablation: str = "resample",
    progress: bool = False,
) -> Calibration:
    """Patches `n` edges alone and compares their exact effects with their scores (all edges, where there are fewer).

    Give the metric and the ablation that the scores are of. With w the weight of a drawn edge:
    - `pearson`, `spearman` of score and effect: over edges weighted by w (ranks too).
    - distinguishable: |effect| > t · standard error over prompts, t of Student's two-sided test at 0.05, Bonferroni
      over the edges drawn. `sign_agreement`: the share by w of these whose score has the effect's sign.
    - `missed`: of the edges with |effect| >= threshold, the share by w with |score| < threshold, which is the least
      |score| among the top `size` by magnitude (default: 1% of the edges with a score). `missed_low`, `missed_high`:
      a 95% interval, from a Wilson interval in each stratum.

    Edges never tried are left out and counted. Cost: two forward passes a batch, and about a third of one for each
    edge, somewhat more than `exact` takes for it, as fewer edges share a pass. Misleads: see docs/evaluation.md.
    """
    check_graph(model, scores.graph)
    if n < LEAST_EDGES:
        raise AcdcError(f"cannot calibrate with {n:,} edges: give at least {LEAST_EDGES}, two for each kind and rank")
    n_tried = int(np.isfinite(scores.values).sum())
    if not n_tried:
        raise AcdcError("no edge has a score, so there is nothing to calibrate")
    size = max(1, n_tried // 100) if size is None else size
    chosen = np.abs(scores.values[scores.top(size, by="magnitude").kept])
    threshold = float(chosen.min()) if size else math.inf
    strata = _strata(scores, threshold)
    edges, stratum, weight = _draw(strata, n, seed)
    effects = exact_effects(model, batches, metric, edges, ablation=ablation, graph=scores.graph, progress=progress)
    if not np.isfinite(effects).all():
        raise AcdcError(f"metric {metric.name!r} is not finite; check the model's weights")
    sample = Sample(edges, stratum, weight, scores.values[edges], effects.mean(1), *_distinguishable(effects))
    kinds = _kinds(scores.graph)
    return Calibration(
        _agreement("all", sample, np.full(len(edges), True), threshold),
        tuple(_agreement(kind, sample, kinds[edges] == kind, threshold) for kind in KINDS),
        sample, scores.graph.n_edges - n_tried, effects.shape[1], size, threshold if size else None, seed,
    )


def _kinds(graph: Graph) -> np.ndarray:
    """The kind of each edge."""
    return np.array([channel.letter or channel.node.kind for channel in graph.channels])[graph.edge_channel]


def _strata(scores: EdgeScores, threshold: float) -> list[Int[np.ndarray, " _"]]:
    """The edges with a score by kind and rank of |score|. No stratum has edges on both sides of the threshold."""
    strength, kinds = np.abs(scores.values), _kinds(scores.graph)
    strata = []
    for kind in KINDS:
        members = np.nonzero((kinds == kind) & np.isfinite(scores.values))[0]
        members = members[np.argsort(-strength[members], kind="stable")]
        cuts = [math.ceil(share * len(members)) for share in SHARES] + [int((strength[members] >= threshold).sum())]
        strata += [stratum for stratum in np.split(members, sorted(cuts)) if len(stratum)]
    return strata


def _draw(strata: list[Int[np.ndarray, " _"]], n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges in the order of the graph, the stratum and the weight of each: as many from each stratum, without
    replacement; what a small stratum cannot give is drawn from the larger ones."""
    generator = np.random.default_rng(seed)
    edges, stratum, weight = [], [], []
    left = n
    for done, s in enumerate(sorted(range(len(strata)), key=lambda s: len(strata[s]))):
        take = min(len(strata[s]), left // (len(strata) - done))
        left -= take
        edges.append(generator.choice(strata[s], take, replace=False))
        stratum.append(np.full(take, s))
        weight.append(np.full(take, len(strata[s]) / take))
    order = np.argsort(np.concatenate(edges))
    return np.concatenate(edges)[order], np.concatenate(stratum)[order], np.concatenate(weight)[order]


def _distinguishable(
    effects: Float[np.ndarray, "drawn prompt"],
) -> tuple[Float[np.ndarray, " drawn"], Bool[np.ndarray, " drawn"]]:
    """The standard error of each mean effect, and whether the mean differs from 0 by more than chance explains."""
    from scipy.special import stdtrit  # here, because importing it adds a filter of warnings

    n_drawn, n_prompts = effects.shape
    if n_prompts < 2:
        return np.full(n_drawn, np.nan), np.full(n_drawn, False)
    error = effects.std(1, ddof=1) / math.sqrt(n_prompts)
    quantile = float(stdtrit(n_prompts - 1, 1 - ERROR_RATE / 2 / n_drawn))
    return error, np.abs(effects.mean(1)) > quantile * error


def _agreement(kind: str, sample: Sample, rows: Bool[np.ndarray, " drawn"], threshold: float) -> Agreement:
    weight, score, effect = sample.weight[rows], sample.score[rows], sample.effect[rows]
    clear = sample.distinguishable[rows]
    same_sign = np.sign(score[clear]) == np.sign(effect[clear])
    return Agreement(
        kind, round(float(weight.sum())), int(rows.sum()), int(clear.sum()), _pearson(score, effect, weight),
        _pearson(_ranks(score, weight), _ranks(effect, weight), weight),
        float(weight[clear][same_sign].sum() / weight[clear].sum()) if clear.any() else None,
        *_missed(sample, rows, threshold),
    )


def _pearson(
    x: Float[np.ndarray, " drawn"], y: Float[np.ndarray, " drawn"], weight: Float[np.ndarray, " drawn"]
) -> float | None:
    """The correlation, weighted; None for fewer than three edges, or where all scores or all effects are equal."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = ((z - np.average(z, weights=weight)) / np.ptp(z) for z in (x, y))
    return float(np.clip(weight @ (x * y) / math.sqrt(weight @ x**2 * (weight @ y**2)), -1, 1))


def _ranks(values: Float[np.ndarray, " drawn"], weight: Float[np.ndarray, " drawn"]) -> Float[np.ndarray, " drawn"]:
    """The rank of each value among all edges, as far as the drawn ones tell; ties share their mean rank."""
    distinct, place = np.unique(values, return_inverse=True)
    mass = np.bincount(place, weight, len(distinct))
    return (np.cumsum(mass) - mass / 2)[place]


def _missed(
    sample: Sample, rows: Bool[np.ndarray, " drawn"], threshold: float
) -> tuple[float, float, float] | tuple[None, None, None]:
    """The share missed and its interval.

    In each stratum a Wilson interval, for draws without replacement, of the share of large effects; strata are summed
    by the distances of estimate and limits, squared (MOVER; Zou & Donner 2008, doi 10.1002/sim.3095); then the least
    missed with the most found gives the lower end, the reverse the upper.
    """
    found, missed = np.zeros(3), np.zeros(3)  # edges: estimate, and the squared distances to the limits below and above
    for s in np.unique(sample.stratum[rows]):
        drawn = sample.stratum == s
        n, n_edges = int(drawn.sum()), round(float(sample.weight[drawn].sum()))
        share = float((np.abs(sample.effect[drawn]) >= threshold).mean())
        low, high = _wilson(share, n, n_edges)
        total = found if np.abs(sample.score[drawn][0]) >= threshold else missed
        total += (n_edges * share, (n_edges * (share - low)) ** 2, (n_edges * (high - share)) ** 2)
    if found[0] + missed[0] == 0:
        return None, None, None
    (found_low, found_high), (missed_low, missed_high) = (
        (max(0.0, total[0] - math.sqrt(total[1])), total[0] + math.sqrt(total[2])) for total in (found, missed))
    return (
        float(missed[0] / (found[0] + missed[0])), float(missed_low / (missed_low + found_high)),
        float(missed_high / (missed_high + found_low)),
    )


def _wilson(share: float, n: int, n_edges: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share seen in `n` of `n_edges`; the share itself where all were seen."""
    if n == n_edges:
        return share, share
    n_alike = n * (n_edges - 1) / (n_edges - n)  # draws with replacement of the same variance
    centre = (share + Z**2 / (2 * n_alike)) / (1 + Z**2 / n_alike)
    reach = Z / (1 + Z**2 / n_alike) * math.sqrt(share * (1 - share) / n_alike + (Z / (2 * n_alike)) ** 2)
    return min(share, centre - reach), max(share, centre + reach)

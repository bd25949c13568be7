"""How two circuits of one architecture differ: what both keep, what one keeps, and how far that is from chance."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from acdc.circuit import Circuit, EdgeScores, Rank
from acdc.evaluation.bootstrap import LEVEL, drawn_prompts, top_edges
from acdc.evaluation.comparison import LEVELS, Overlap, on_one_graph, overlap

CHANCE_LEVEL = 0.95


@dataclass(frozen=True)
class Chance:
    """What two circuits of these sizes would share if each were drawn at random among all elements of the level.

    `expected`, `low`, `high`: the mean of the number that both have, and the central 95% of it (hypergeometric);
    `p_value`: the probability of as many as there are, or more.
    """

    expected: float
    low: int
    high: int
    p_value: float

    @property
    def p_text(self) -> str:
        """The p-value in two digits; what is too small for a number is not 0."""
        return f"= {self.p_value:.2g}" if self.p_value > 0 else "< 1e-300"


@dataclass(frozen=True)
class Interval:
    """Where the Jaccard index of the edges lies when the prompts of both circuits are drawn anew: the central `level`
    of the draws. `paired`: both were found on the same prompts, and were given the same draws of them. `held`: which
    circuit, 1 or 2, has no scores of single prompts and stays as it is; 0: none, both are drawn anew."""

    low: float
    high: float
    level: float
    n_resamples: int
    paired: bool
    held: int = 0


@dataclass(frozen=True, eq=False)
class Difference:
    """Two circuits on one graph; their overlap at each level, each beside what chance gives; how their scores agree.

    `pearson` and `spearman` are over the edges that both have scored, `same_sign` is a share of the shared edges whose
    scores are not 0. They are None where a circuit has no scores, or both are not on the same graph. `interval`: of the
    overlap of the edges, from `resampled_overlap`; None where neither circuit can be drawn anew.
    """

    first: Circuit
    second: Circuit
    overlaps: tuple[Overlap, ...]
    chances: tuple[Chance, ...]
    pearson: float | None
    spearman: float | None
    same_sign: float | None
    interval: Interval | None = None

    @property
    def shared(self) -> Bool[np.ndarray, " edge"]:
        """The edges that both keep."""
        return self.first.kept & self.second.kept

    @property
    def only_first(self) -> Bool[np.ndarray, " edge"]:
        """The edges that the first circuit keeps, and the second does not."""
        return self.first.kept & ~self.second.kept

    @property
    def only_second(self) -> Bool[np.ndarray, " edge"]:
        """The edges that the second circuit keeps, and the first does not."""
        return self.second.kept & ~self.first.kept


def difference(first: Circuit, second: Circuit) -> Difference:
    """Compares two circuits: of methods, seeds, tasks, checkpoints, or models of one shape. No model is run.

    Where the graphs tell apart different things (positions, k and v by head or by group), the finest graph that both
    can be seen on is taken, without scores. The chance is that of circuits drawn from all edges alike: real circuits
    have more in common than that, because both prefer strong nodes. It rules out coincidence, no more.
    Raises `AcdcError` where the circuits are of different architectures.
    """
    overlaps = tuple(overlap(first, second, level=level) for level in LEVELS)
    first, second = on_one_graph(first, second)
    chances = tuple(chance(found) for found in overlaps)
    pearson = spearman = same_sign = None
    if first.scores is not None and second.scores is not None:
        both = np.isfinite(first.scores.values) & np.isfinite(second.scores.values)
        a, b = (scores.values[both].astype(np.float64) for scores in (first.scores, second.scores))
        pearson = _correlation(a, b)
        spearman = _correlation(ranks(a).astype(np.float64), ranks(b).astype(np.float64))
        shared = first.kept & second.kept & both
        signs = np.sign(first.scores.values[shared]) * np.sign(second.scores.values[shared])
        same_sign = float((signs[signs != 0] > 0).mean()) if (signs != 0).any() else None
    return Difference(first, second, overlaps, chances, pearson, spearman, same_sign, resampled_overlap(first, second))


def resampled_overlap(first: Circuit, second: Circuit, *, n_resamples: int = 1000, seed: int = 0) -> Interval | None:
    """The bootstrap interval of the Jaccard index: prompts are drawn anew, and circuits of the same sizes taken.

    For prompts like these, of circuits that are the highest of their scores. Where both name the same prompts, one draw
    serves both. A circuit that cannot be drawn anew (`why_fixed`) is held as it is: then the interval leaves out what
    it owes to its own prompts. Circuits of drawn prompts differ more than those of all prompts, so the interval lies
    lower than the index itself. None where neither can be drawn, or the graphs differ. No model is run.
    """
    tops = _as_top(first), _as_top(second)
    if tops == (None, None) or first.graph != second.graph:
        return None
    paired = None not in tops and _prompts_of(first) is not None and _prompts_of(first) == _prompts_of(second)
    draws = []
    for circuit, top, own_seed in zip((first, second), tops, (seed, seed if paired else seed + 1), strict=True):
        weights = None if top is None else drawn_prompts(len(top.alone), n_resamples, own_seed)
        draws.append((np.nonzero(circuit.kept)[0], top, weights))
    found = np.empty(n_resamples)
    for draw in range(n_resamples):
        a, b = (kept if top is None or weights is None else top_edges(weights[draw] @ top.alone, len(kept), top.by)
                for kept, top, weights in draws)
        n_both = len(np.intersect1d(a, b, assume_unique=True))
        found[draw] = n_both / max(1, len(a) + len(b) - n_both)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    held = 0 if None not in tops else 1 + tops.index(None)
    return Interval(float(low), float(high), LEVEL, n_resamples, paired, held)


def why_fixed(circuit: Circuit) -> str | None:
    """Why a circuit of drawn prompts cannot be taken, to follow its name; None where it can."""
    alone = None if circuit.scores is None else circuit.scores.per_prompt
    if alone is None:
        return "comes without the scores of single prompts"
    if len(alone) < 2:
        return "was found on one prompt"
    return None if _as_top(circuit) is not None else "does not consist of the highest of its scores"


class _Top(NamedTuple):
    """The scores of single prompts, and by which ranking a circuit is the top of their mean."""

    alone: Float[np.ndarray, "prompt edge"]
    by: Rank


def _as_top(circuit: Circuit) -> _Top | None:
    scores: EdgeScores | None = circuit.scores
    if scores is None or scores.per_prompt is None or len(scores.per_prompt) < 2 or not circuit.n_edges:
        return None
    rankings: tuple[Rank, ...] = ("magnitude", "signed")
    for by in rankings:
        if np.array_equal(scores.top(circuit.n_edges, by=by).kept, circuit.kept):
            return _Top(scores.per_prompt, by)
    return None


def _prompts_of(circuit: Circuit) -> tuple[str, ...] | None:
    """What says which prompts a circuit was found on, as far as its provenance does."""
    known = {**(circuit.scores.provenance if circuit.scores else {}), **circuit.provenance}
    names = ("task", "task_sha256", "seed", "n_prompts", "split", "split_by", "prompts_sha256")
    return None if known.get("task") is None else tuple(str(known.get(name)) for name in names)


def chance(found: Overlap) -> Chance:
    """What chance would give instead of an overlap; see `Chance`."""
    from scipy.stats import hypergeom

    drawn = hypergeom(found.n_all, found.n_circuit, found.n_truth)
    low, high = drawn.ppf((1 - CHANCE_LEVEL) / 2), drawn.ppf((1 + CHANCE_LEVEL) / 2)
    expected = found.n_circuit * found.n_truth / found.n_all if found.n_all else 0.0
    return Chance(expected, int(low), int(high), float(np.clip(drawn.sf(found.n_both - 1), 0, 1)))


def jaccard_of(found: Overlap, n_both: int | float) -> float | None:
    """The Jaccard index of two circuits of the same sizes that share `n_both`."""
    union = found.n_circuit + found.n_truth - n_both
    return n_both / union if union else None


def ranks(values: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
    """The place of each value from the lowest, 0; what ties shares the mean of its places."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[group.reshape(-1)]


def places(circuit: Circuit) -> Int[np.ndarray, " edge"]:
    """The place of each edge in the order of |score|, 1 for the largest; 0 for all where there are no scores."""
    if circuit.scores is None:
        return np.zeros(circuit.graph.n_edges, dtype=int)
    order = np.argsort(-circuit.scores.ranked_values("magnitude"), kind="stable")
    found = np.empty(len(order), dtype=int)
    found[order] = np.arange(1, len(order) + 1)
    return found


def _correlation(a: Float[np.ndarray, " edge"], b: Float[np.ndarray, " edge"]) -> float | None:
    """Pearson's, None where one of the two does not vary."""
    if len(a) < 2:
        return None
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip(a @ b / size, -1, 1)) if size else None

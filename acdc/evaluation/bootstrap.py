"""How much a circuit owes to the choice of prompts: a bootstrap over them, and a comparison of templates.

Phases: prompts are drawn with replacement, as many as there are; the scores of a draw are the mean of its prompts'
scores, so nothing is run again; from each draw a circuit of the same size is taken.
Source: Efron 1979 (doi 10.1214/aos/1176344552); for circuits, Meloux et al. 2025 (arXiv 2510.00845).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from acdc.circuit import EdgeScores, Rank
from acdc.errors import AcdcError
from acdc.graph import Graph

LEVEL, RARE = 0.95, 0.05  # edges in more draws than that are certain, in fewer are not considered
CHANCE_DRAWS = 20
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TemplateSplit:
    """One template's own circuit of the same size. `overlap`: the share of the circuit's edges that are in it too;
    `by_chance`: the same for as many prompts drawn at random from all, the mean of 20 draws."""

    template: str
    n_prompts: int
    overlap: float
    by_chance: float


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What resampling the prompts says of the `size` edges that rank highest `by` score or its size.

    For each edge: `inclusion`, the share of resamples whose circuit has it; `same_sign`, the share in which its score
    has the sign that it has on all prompts; `low`, `high`, the percentile interval of its score at `LEVEL`.
    `overlap`: the mean share of the circuit's edges in the circuit of a resample.
    """

    graph: Graph
    inclusion: Float[np.ndarray, " edge"]
    same_sign: Float[np.ndarray, " edge"]
    low: Float[np.ndarray, " edge"]
    high: Float[np.ndarray, " edge"]
    overlap: float
    size: int
    by: Rank
    n_prompts: int
    n_resamples: int
    seed: int
    templates: tuple[TemplateSplit, ...]

    def summary(self) -> dict:
        """The numbers that are of no single edge, as JSON can hold them."""
        names = ("overlap", "size", "by", "n_prompts", "n_resamples", "seed")
        return {
            **{name: getattr(self, name) for name in names}, "level": LEVEL, "rare": RARE,
            "n_certain": int((self.inclusion >= LEVEL).sum()),
            "n_possible": int((self.inclusion >= RARE).sum()),
            "templates": [vars(split) for split in self.templates],
        }


def bootstrap(
    scores: EdgeScores,
    *,
    size: int,
    by: Rank,
    templates: Sequence[str] = (),
    n_resamples: int = 1000,
    seed: int = 0,
) -> Uncertainty:
    """Draws the prompts of `scores.per_prompt` anew `n_resamples` times.

    `templates`: the template of each prompt, in the order of the batches; two different ones give a split by template.
    Intervals are of the score as the method defines it, for prompts like these: no account of what the method gets
    wrong, for which see `calibrate`. With few prompts they are too narrow. Cost: no pass of the model; about two
    seconds for 32 prompts and 100,000 edges. Raises `AcdcError` for scores that are not of single prompts
    (`per_prompt=True` asks a method for them; ACDC and learned masks have none), and for less than two prompts.
    """
    alone = scores.per_prompt
    if alone is None:
        raise AcdcError(
            f"{scores.provenance.get('method', 'these scores')}: there are no scores of single prompts to resample. "
            "Ask a method that gives them, such as eap_ig, with per_prompt=True"
        )
    n_prompts = len(alone)
    if n_prompts < 2:
        raise AcdcError("one prompt cannot be resampled; give at least two")
    if n_resamples < 1:
        raise AcdcError(f"n_resamples={n_resamples}: it must be at least 1")
    if len(templates) not in (0, n_prompts):
        raise AcdcError(f"{len(templates)} templates for {n_prompts} prompts; name one for each")
    kept = scores.top(size, by=by).kept
    weights = drawn_prompts(n_prompts, n_resamples, seed)
    counts = np.zeros(scores.graph.n_edges, dtype=np.int64)
    for rows in _chunks(n_resamples, scores.graph.n_edges):
        for resampled in weights[rows] @ alone:
            counts[top_edges(resampled, size, by)] += 1
    same_sign, low, high = _spread(weights, alone, scores.values)
    return Uncertainty(
        scores.graph, counts / n_resamples, same_sign, low, high,
        float(counts[kept].sum() / n_resamples / size) if size else 1.0, size, by, n_prompts, n_resamples, seed,
        _split(alone, templates, kept, by, seed) if size else (),
    )


def drawn_prompts(n_prompts: int, n_resamples: int, seed: int) -> Float[np.ndarray, "draw prompt"]:
    """The weight of each prompt in each draw: how often it is drawn, over how many are."""
    draws = np.random.default_rng(seed).multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), n_resamples)
    return (draws / n_prompts).astype(np.float32)


def top_edges(values: Float[np.ndarray, " edge"], size: int, by: Rank) -> Int[np.ndarray, " size"]:
    """As `EdgeScores.top` has it, ties included: in a circuit beyond the edges with a score, 0 ties with 0."""
    ranked = values if by == "signed" else np.abs(values)
    if not size:
        return np.zeros(0, dtype=np.int64)
    least = np.partition(ranked, -size)[-size]
    above, level = np.nonzero(ranked > least)[0], np.nonzero(ranked == least)[0]
    return np.concatenate([above, level[: size - len(above)]])


def _spread(
    weights: Float[np.ndarray, "resample prompt"], alone: Float[np.ndarray, "prompt edge"],
    values: Float[np.ndarray, " edge"],
) -> tuple[Float[np.ndarray, " edge"], Float[np.ndarray, " edge"], Float[np.ndarray, " edge"]]:
    """How often each edge's score has its sign, and the interval that it lies in."""
    n_edges = len(values)
    same_sign, low, high = (np.zeros(n_edges) for _ in range(3))
    for columns in _chunks(n_edges, len(weights)):
        resampled = np.sort(alone[:, columns].T @ weights.T, axis=1)  # quicker than np.quantile
        n_below, n_above = (np.count_nonzero(side, axis=1) for side in (resampled < 0, resampled > 0))
        n_zero = len(weights) - n_below - n_above
        agree = np.select([values[columns] < 0, values[columns] > 0], [n_below, n_above], n_zero)
        same_sign[columns] = agree / len(weights)
        low[columns], high[columns] = (_quantile(resampled, share) for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return same_sign, low, high


def _quantile(ascending: Float[np.ndarray, "edge resample"], share: float) -> Float[np.ndarray, " edge"]:
    """The quantile of each row, between neighbours on a line."""
    place = share * (ascending.shape[1] - 1)
    below = int(place)
    above = min(below + 1, ascending.shape[1] - 1)
    return ascending[:, below] + (place - below) * (ascending[:, above] - ascending[:, below])


def _split(alone: Float[np.ndarray, "prompt edge"], templates: Sequence[str], kept: Bool[np.ndarray, " edge"], by: Rank,
           seed: int) -> tuple[TemplateSplit, ...]:
    """The split by template, those with the most prompts first; none if all prompts share one."""
    counts, size = Counter(templates), int(kept.sum())

    def overlap(rows: np.ndarray) -> float:
        return float(kept[top_edges(alone[rows].mean(0), size, by)].mean())

    rng = np.random.default_rng(seed)
    by_chance = {n: float(np.mean([overlap(rng.choice(len(alone), n, replace=False)) for _ in range(CHANCE_DRAWS)]))
                 for n in sorted(set(counts.values()))} if len(counts) > 1 else {}
    return tuple(
        TemplateSplit(name, n, overlap(np.array([template == name for template in templates])), by_chance[n])
        for name, n in counts.most_common() if by_chance
    )


def _chunks(n: int, width: int) -> list[slice]:
    """Ranges of rows of `width` float32 that fit into a chunk."""
    step = max(1, CHUNK_BYTES // (4 * width))
    return [slice(i, i + step) for i in range(0, n, step)]

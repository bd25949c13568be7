"""How well scores, or a circuit, recover a circuit that is known: ROC curves and overlaps, by named conventions.

What is compared, the *level*:

- `edge`: the edges of the graph, one a channel (q, k, v apart).
- `head`: edges between nodes, with q, k and v merged into the head, `a0.h1->a2.h3`. What InterpBench calls an edge.
- `node`: heads and MLPs. The input and the logits are in every circuit and count nowhere.

A head-level edge is in a circuit if any edge of it is, a node if any edge into it or out of it is; so each ranks as the
highest of its edges does, and enters a growing circuit with the first of them.

Two circuits need not be of equal graphs. Where one tells positions apart and the other does not, or both by other
names, positions are merged; where one has k and v by head and the other by group, they are told apart by head. How many
KV heads a model has plays no part once they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped

from acdc.circuit import Circuit, EdgeScores, Rank
from acdc.errors import AcdcError, unknown_name
from acdc.evaluation.curve import MIB_FRACTIONS
from acdc.graph import Graph

Level = Literal["edge", "head", "node"]
LEVELS: tuple[Level, ...] = ("edge", "head", "node")


@dataclass(frozen=True)
class Overlap:
    """What a circuit and the true one have in common, in counts: theirs, of both, and of all that there is.

    A number without meaning is None: the precision of an empty circuit, the recall of an empty truth. MIB's code has 0
    for the former.
    """

    level: str
    n_circuit: int
    n_truth: int
    n_both: int
    n_all: int

    @property
    def precision(self) -> float | None:
        """The share of the circuit that is true."""
        return self.n_both / self.n_circuit if self.n_circuit else None

    @property
    def recall(self) -> float | None:
        """The share of the truth that the circuit has: the true-positive rate."""
        return self.n_both / self.n_truth if self.n_truth else None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall."""
        total = self.n_circuit + self.n_truth
        return 2 * self.n_both / total if total else None

    @property
    def jaccard(self) -> float | None:
        """The size of what both have over the size of what any has."""
        union = self.n_circuit + self.n_truth - self.n_both
        return self.n_both / union if union else None

    @property
    def false_positive_rate(self) -> float | None:
        """The share of what is not true that the circuit has."""
        n_false = self.n_all - self.n_truth
        return (self.n_circuit - self.n_both) / n_false if n_false else None

    def summary(self) -> dict[str, Any]:
        """Counts and shares, as a report stores them."""
        shares = ("precision", "recall", "f1", "jaccard", "false_positive_rate")
        return {**vars(self), **{name: getattr(self, name) for name in shares}}


@dataclass(frozen=True, eq=False)
class Roc:
    """The ROC curve of a ranking: a point wherever the threshold passes a score, from (0, 0) to (1, 1).

    What ties enters at once, so a point lies only between different scores. Untried edges (-inf) rank last, all tied:
    the curve ends with one straight line to (1, 1) for them.
    """

    level: str
    by: Rank
    fpr: Float[np.ndarray, " point"]
    tpr: Float[np.ndarray, " point"]
    n_true: int
    n_all: int
    n_untried: int

    @property
    def auroc(self) -> float:
        """The area under straight lines between the points (trapezoids).

        It is the probability that something true ranks above something that is not, with ties counted half; chance
        is 0.5. auto-circuit's convention.
        """
        return trapezoids(self.fpr, self.tpr)

    @property
    def pessimistic_auroc(self) -> float:
        """The area under the steps of ACDC's authors; see `pessimistic_area`. Ties count 0, so chance is below 0.5."""
        return pessimistic_area(self.fpr, self.tpr)

    def summary(self) -> dict[str, Any]:
        """The areas and counts, as a report stores them."""
        return {"level": self.level, "by": self.by, "auroc": self.auroc, "pessimistic_auroc": self.pessimistic_auroc,
                "n_true": self.n_true, "n_all": self.n_all, "n_untried": self.n_untried}


@dataclass(frozen=True, eq=False)
class MibRoc:
    """MIB's curve of ten greedy circuits, and its area; see `mib_roc`."""

    by: Rank
    fractions: tuple[float, ...]
    fpr: Float[np.ndarray, " point"]
    tpr: Float[np.ndarray, " point"]

    @property
    def auroc(self) -> float:
        """Trapezoids over the points as they are, x divided by the last one's FPR, without (0, 0).

        What lies left of the first circuit is left out, so even a perfect ranking has less than 1 where the first
        circuit has a false edge, and the area of ten points is no probability. Chance is about 0.5.
        """
        return trapezoids(self.fpr / self.fpr[-1], self.tpr)

    def summary(self) -> dict[str, Any]:
        """The area and the points, as a report stores them."""
        return {"by": self.by, "auroc": self.auroc, "fractions": list(self.fractions), "fpr": self.fpr.tolist(),
                "tpr": self.tpr.tolist()}


def overlap(circuit: Circuit, truth: Circuit, *, level: str = "edge",
            among: Bool[np.ndarray, " edge"] | None = None) -> Overlap:
    """Precision, recall, F1 and Jaccard of a circuit against the true one (for two found circuits, the order only
    swaps precision and recall).

    `among`: which edges of the truth's graph count, such as those without the MLPs that a model lacks; default: all.
    Raises `AcdcError` where the graphs are of different models, or the level is unknown.
    """
    common = _common(circuit.graph, truth.graph)
    counts = _counted(truth.graph, common, among)
    counted = _elements(counts, common, level)
    ours = _elements(_moved(circuit.kept, circuit.graph, common) & counts, common, level)
    true = _elements(_moved(truth.kept, truth.graph, common) & counts, common, level)
    return Overlap(level, int(ours.sum()), int(true.sum()), int((ours & true).sum()), int(counted.sum()))


def roc(scores: EdgeScores, truth: Circuit, *, by: Rank, level: str = "edge",
        among: Bool[np.ndarray, " edge"] | None = None) -> Roc:
    """The ROC curve of a ranking of all edges, against the true circuit.

    FPR: the share of what is not in the truth that ranks above a threshold; TPR: the share of what is in it. `by` is
    explicit: a true edge that hurts has a negative score, so "signed" ranks it last and "magnitude" does not; truths
    made of all that matters (compiled models, ACDC with KL) want "magnitude". `among`: as for `overlap`. Raises
    `AcdcError` where everything or nothing is true: then there is no curve.

    >>> graph = Graph(1, 1, 1)
    >>> scores = EdgeScores(graph, np.arange(graph.n_edges, dtype=float))
    >>> roc(scores, scores.top(2, by="signed"), by="signed").auroc
    1.0
    """
    common = _common(scores.graph, truth.graph)
    counts = _counted(truth.graph, common, among)
    counted = _elements(counts, common, level)
    true = _elements(_moved(truth.kept, truth.graph, common) & counts, common, level)[counted]
    ranked = np.where(counts, _moved(scores.ranked_values(by), scores.graph, common), -np.inf)
    values = _elements(ranked, common, level)[counted]
    _check_both(true, level)
    order = np.argsort(-values, kind="stable")
    last_of_its_score = np.append(values[order][1:] != values[order][:-1], True)
    tp = np.cumsum(true[order])[last_of_its_score]
    fp = np.cumsum(~true[order])[last_of_its_score]
    return Roc(level, by, np.append(0.0, fp / (~true).sum()), np.append(0.0, tp / true.sum()), int(true.sum()),
               len(true), int((values == -np.inf).sum()))


def trapezoids(fpr: Float[np.ndarray, " point"], tpr: Float[np.ndarray, " point"]) -> float:
    """The area under straight lines between the points."""
    return float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))


def mib_roc(scores: EdgeScores, truth: Circuit, *, by: Rank = "magnitude",
            fractions: Sequence[float] = MIB_FRACTIONS) -> MibRoc:
    """FPR and TPR of MIB's ten circuits (arXiv 2504.13151, its code's `evaluate_area_under_roc`); edges only.

    Each is grown greedily from the logits to ceil(fraction * edges) edges, then freed of what lies on no path from
    input to logits. MIB ranks by magnitude. Where scores tie, the order is the graph's, not MIB's. Of edges that were
    never tried (-inf), which MIB does not know, all enter at fraction 1 and none before.
    """
    if not fractions or list(fractions) != sorted(fractions) or fractions[-1] != 1 or fractions[0] <= 0:
        raise AcdcError(f"fractions {list(fractions)}: they must be ascending, above 0, and end with 1")
    common = _common(scores.graph, truth.graph)
    true = _moved(truth.kept, truth.graph, common)
    _check_both(true, "edge")
    moved = EdgeScores(common, _moved(scores.values, scores.graph, common))
    tried = int(np.isfinite(moved.values).sum())
    fpr, tpr = [], []
    for fraction in fractions:
        kept = np.ones(common.n_edges, dtype=bool)
        if fraction < 1:
            kept = moved.greedy(min(math.ceil(fraction * common.n_edges), tried), by=by).drop_dangling().kept
        fpr.append((kept & ~true).sum() / (~true).sum())
        tpr.append((kept & true).sum() / true.sum())
    return MibRoc(by, tuple(fractions), np.array(fpr), np.array(tpr))


def pessimistic_area(fpr: Float[np.ndarray, " point"], tpr: Float[np.ndarray, " point"]) -> float:
    """The area under ACDC's steps: sum of (1 - FPR) * (rise of TPR) over the Pareto points, (0, 0) and (1, 1) added.

    Pareto points are those that no other has both more TPR and less FPR than. Between two points TPR counts as that of
    the left one, so the area never claims a circuit that was not found. The points may be those of circuits that do
    not contain each other, such as ACDC's at several thresholds. Chance is below 0.5, the more so the fewer points:
    0 for none. Source: Conmy et al. 2023, arXiv 2304.14997.
    """
    points = {(0.0, 0.0), (1.0, 1.0), *zip(fpr.tolist(), tpr.tolist(), strict=True)}
    area, height = 0.0, 0.0
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if y > height:  # else a point to the left has as much
            area += (1 - x) * (y - height)
            height = y
    return area


def on_one_graph(circuit: Circuit, other: Circuit) -> tuple[Circuit, Circuit]:
    """Both circuits on the finest graph that both can be seen on; scores only where that is the graph of both.

    Raises `AcdcError` where the graphs are of different models.
    """
    common = _common(circuit.graph, other.graph)
    if circuit.graph == other.graph:
        return circuit, other
    first, second = (Circuit(common, _moved(given.kept, given.graph, common), None, given.provenance)
                     for given in (circuit, other))
    return first, second


def _common(graph: Graph, other: Graph) -> Graph:
    """The finest graph that both can be seen on."""
    if (graph.n_layers, graph.n_heads, graph.parallel) != (other.n_layers, other.n_heads, other.parallel):
        raise AcdcError(
            f"the circuits are of different models: {_shape(graph)} against {_shape(other)}. Compare circuits of one "
            "architecture"
        )
    positions = graph.positions if graph.positions == other.positions else ()
    kv = graph.kv if (graph.kv, graph.n_kv_heads) == (other.kv, other.n_kv_heads) else "head"
    return replace(graph, positions=positions, kv=kv)


def _shape(graph: Graph) -> str:
    return f"{graph.n_layers} layers of {graph.n_heads} heads{' in parallel with the MLPs' * graph.parallel}"


def _moved(values: Shaped[np.ndarray, " edge"], graph: Graph, common: Graph) -> Shaped[np.ndarray, " common_edge"]:
    """Values of a graph's edges (scores, or whether kept) on a coarser graph, or one with k and v by head."""
    matrix = graph.to_matrix(values, fill=_lowest(values))
    if common.kv == "head":
        matrix = matrix[:, graph.channel_of_per_head]
    if common.positions != graph.positions:
        matrix = matrix.max(2, keepdims=True)
    return common.from_matrix(matrix)


def _counted(graph: Graph, common: Graph, among: Bool[np.ndarray, " edge"] | None) -> Bool[np.ndarray, " common_edge"]:
    if among is not None and among.shape != (graph.n_edges,):
        raise AcdcError(f"among has shape {among.shape}; give {graph.n_edges:,} booleans, one an edge of the truth")
    return _moved(np.ones(graph.n_edges, dtype=bool) if among is None else among, graph, common)


def _elements(values: Shaped[np.ndarray, " edge"], graph: Graph, level: str) -> Shaped[np.ndarray, " element"]:
    """One value an element of the level: the highest of its edges'."""
    if level not in LEVELS:
        raise unknown_name("level", level, LEVELS)
    if level == "edge":
        return values
    matrix = graph.to_matrix(values, fill=_lowest(values))[:, graph.channel_of_per_head]
    merged = _merged_channels(matrix, graph)
    if level == "head":
        return merged[_merged_channels(graph.per_head.exists, graph)]
    nodes = merged.max(2)  # src, dst
    heads_and_mlps = slice(1, len(graph.srcs))
    return np.maximum(nodes.max(1)[heads_and_mlps], nodes[:, :-1].max(0))


def _lowest(values: Shaped[np.ndarray, " edge"]) -> float:
    """What ranks below every value: False for booleans."""
    return 0.0 if values.dtype == bool else -np.inf


def _merged_channels(matrix: Shaped[np.ndarray, "src channel position"], graph: Graph
                     ) -> Shaped[np.ndarray, "src dst position"]:
    """The highest over q, k and v. The dsts are heads and MLPs in the order of the srcs, then the logits."""
    columns = []
    for layer in range(graph.n_layers):
        at = graph.per_head.layer(layer)
        columns.append(np.maximum(np.maximum(matrix[:, at.q], matrix[:, at.k]), matrix[:, at.v]))
        columns.append(matrix[:, at.mlp_channel : at.mlp_channel + 1])
    return np.concatenate([*columns, matrix[:, -1:]], axis=1)


def _check_both(true: Bool[np.ndarray, " element"], level: str) -> None:
    if not 0 < true.sum() < len(true):
        what = f"all {len(true):,}" if len(true) and true.all() else f"none of the {len(true):,}"
        raise AcdcError(f"there is no ROC curve at {level} level: {what} are in the true circuit. Give another truth")

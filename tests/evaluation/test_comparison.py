"""ROC curves and overlaps equal what is counted pair by pair, and what the conventions' authors compute."""

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.evaluation.comparison import LEVELS, Overlap, mib_roc, overlap, pessimistic_area, roc
from acdc.graph import Graph

GRAPH = Graph(2, 2, 1)


@st.composite
def compared(draw: st.DrawFn) -> tuple[EdgeScores, Circuit]:
    """Scores with ties and untried edges, and a truth that has some edges and lacks others."""
    graph = Graph(draw(st.integers(1, 2)), 2, draw(st.integers(1, 2)), draw(st.booleans()),
                  draw(st.sampled_from(["head", "group"])), draw(st.sampled_from([(), ("S", "end")])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(-3, 4, graph.n_edges).astype(float)
    values[rng.random(graph.n_edges) < draw(st.sampled_from([0, 0.2]))] = -np.inf
    kept = rng.random(graph.n_edges) < 0.3
    kept[:2] = True, False
    return EdgeScores(graph, values), Circuit(graph, kept)


def elements_of(graph: Graph, level: str) -> list[set[str]]:
    """The edges of each element by name, from what the levels are said to be."""
    found: dict[object, set[str]] = {}
    group = graph.n_heads // graph.n_kv_heads
    for name in graph.edge_names:
        src, _, rest = name.partition("->")
        channel, _, position = rest.partition("@")
        node = channel.partition("<")[0]
        dsts = [node]
        if ".g" in node:
            layer, index = node.split(".g")
            dsts = [f"{layer}.h{h}" for h in range(int(index) * group, (int(index) + 1) * group)]
        for dst in dsts:
            if level == "edge":
                found.setdefault(name, set()).add(name)
            elif level == "head":
                found.setdefault((src, dst, position), set()).add(name)
            else:
                for end in {src, dst} - {"input", "logits"}:
                    found.setdefault(end, set()).add(name)
    return list(found.values())


@settings(deadline=None)
@given(compared(), st.sampled_from(LEVELS), st.sampled_from(["signed", "magnitude"]))
def test_the_area_is_the_share_of_pairs_in_order(given_pair, level, by):
    scores, truth = given_pair
    rank = dict(zip(scores.graph.edge_names, scores.ranked_values(by), strict=True))
    kept = set(truth.edge_names)
    elements = elements_of(scores.graph, level)
    highest = [max(rank[name] for name in names) for names in elements]
    true = [bool(names & kept) for names in elements]
    if all(true):
        with pytest.raises(AcdcError, match="no ROC curve"):
            roc(scores, truth, by=by, level=level)
        return
    pairs = [(a > b) + (a == b) / 2 for a, t in zip(highest, true, strict=True) if t
             for b, u in zip(highest, true, strict=True) if not u]
    found = roc(scores, truth, by=by, level=level)
    assert found.auroc == pytest.approx(np.mean(pairs))
    assert (found.n_all, found.n_true) == (len(elements), sum(true))
    assert found.n_untried == highest.count(-np.inf)
    strictly = [a > b for a, t in zip(highest, true, strict=True) if t
                for b, u in zip(highest, true, strict=True) if not u]
    assert found.pessimistic_auroc == pytest.approx(np.mean(strictly))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8))
def test_the_pessimistic_area_lies_under_the_steps(points):
    def height(x):
        return max([0.0, *(y for fpr, y in points if fpr <= x)])

    edges = sorted({0.0, 1.0, *(fpr for fpr, _ in points)})
    area = sum((right - left) * height(left) for left, right in zip(edges, edges[1:], strict=False))
    fpr, tpr = (np.array([point[i] for point in points], dtype=float) for i in (0, 1))
    assert pessimistic_area(fpr, tpr) == pytest.approx(area)


def test_a_line_of_ties_is_chance_for_one_and_nothing_for_the_other():
    scores = EdgeScores(GRAPH, np.zeros(GRAPH.n_edges))
    found = roc(scores, scores.top(5, by="signed"), by="signed")
    assert (found.auroc, found.pessimistic_auroc) == (0.5, 0.0)
    assert (found.fpr.tolist(), found.tpr.tolist()) == ([0, 1], [0, 1])


def test_signed_ranks_what_hurts_last_and_magnitude_first():
    values = np.linspace(0.1, 0.5, GRAPH.n_edges)
    values[7] = -9
    truth = Circuit.from_edges(GRAPH, [GRAPH.edge_name(7)])
    scores = EdgeScores(GRAPH, values)
    assert roc(scores, truth, by="signed").auroc == 0
    assert roc(scores, truth, by="magnitude").auroc == 1


def mib_by_hand(scores: EdgeScores, truth: Circuit, fraction: float) -> tuple[float, float]:
    """As EAP-IG grows a graph (`apply_greedy`) and cleans it (`prune`), with dictionaries."""
    value = dict(zip(scores.graph.edge_names, np.abs(scores.values), strict=True))
    into: dict[str, list[str]] = {}
    for name in value:
        into.setdefault(name.partition("->")[2].partition("<")[0], []).append(name)
    heap, nodes, kept = [], {"logits"}, set()
    for name in into["logits"]:
        heapq.heappush(heap, (-value[name], name))
    left = fraction * len(value)
    while left > 0:
        left -= 1
        name = heapq.heappop(heap)[1]
        kept.add(name)
        src = name.partition("->")[0]
        if src not in nodes:
            nodes.add(src)
            for other in into.get(src, []):
                heapq.heappush(heap, (-value[other], other))
    before = None
    while before != kept:
        before = set(kept)
        srcs = {name.partition("->")[0] for name in kept} | {"logits"}
        dsts = {name.partition("->")[2].partition("<")[0] for name in kept} | {"input"}
        kept = {name for name in kept
                if name.partition("->")[0] in dsts and name.partition("->")[2].partition("<")[0] in srcs}
    true = set(truth.edge_names)
    return len(kept - true) / (len(value) - len(true)), len(kept & true) / len(true)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_mibs_ten_points_are_those_of_its_code(seed, parallel):
    rng = np.random.default_rng(seed)
    graph = Graph(3, 2, 2, parallel)
    scores = EdgeScores(graph, rng.normal(size=graph.n_edges))
    truth = Circuit(graph, rng.random(graph.n_edges) < 0.2)
    found = mib_roc(scores, truth)
    points = [mib_by_hand(scores, truth, fraction) for fraction in found.fractions]
    np.testing.assert_allclose(np.stack([found.fpr, found.tpr], 1), points)
    x, y = [p[0] / points[-1][0] for p in points], [p[1] for p in points]
    area = sum((x[i + 1] - x[i]) * (y[i + 1] + y[i]) / 2 for i in range(9))
    assert found.auroc == pytest.approx(area)


def test_mibs_circuits_with_untried_edges():
    graph = Graph(3, 2, 2)
    values = np.where(np.arange(graph.n_edges) % 2 == 0, np.arange(graph.n_edges) + 1.0, -np.inf)
    truth = EdgeScores(graph, np.arange(graph.n_edges, dtype=float)).top(9, by="signed")
    found = mib_roc(EdgeScores(graph, values), truth)
    assert (found.fpr[-1], found.tpr[-1]) == (1, 1)
    assert found.fpr[-2] < 0.5


@pytest.mark.parametrize("fractions", [[], [0.5], [0.0, 1.0], [0.5, 0.2, 1.0]])
def test_fractions_that_mib_cannot_have(fractions):
    scores = EdgeScores(GRAPH, np.arange(GRAPH.n_edges, dtype=float))
    with pytest.raises(AcdcError, match="ascending, above 0"):
        mib_roc(scores, scores.top(3, by="signed"), fractions=fractions)


@settings(deadline=None)
@given(compared(), st.sampled_from(LEVELS), st.integers(0, 2**32 - 1))
def test_overlaps_are_those_of_sets(given_pair, level, seed):
    _, truth = given_pair
    circuit = Circuit(truth.graph, np.random.default_rng(seed).random(truth.graph.n_edges) < 0.3)
    elements = elements_of(truth.graph, level)
    ours, true = ({i for i, names in enumerate(elements) if names & set(c.edge_names)} for c in (circuit, truth))
    found = overlap(circuit, truth, level=level)
    assert (found.n_circuit, found.n_truth, found.n_both, found.n_all) == (
        len(ours), len(true), len(ours & true), len(elements))
    if ours:
        assert found.precision == pytest.approx(len(ours & true) / len(ours))
        assert found.jaccard == pytest.approx(len(ours & true) / len(ours | true))
    if ours & true:
        assert found.precision and found.recall
        assert found.f1 == pytest.approx(2 / (1 / found.precision + 1 / found.recall))
    if len(true) < len(elements):
        assert found.false_positive_rate == pytest.approx(len(ours - true) / (len(elements) - len(true)))
    assert found.summary()["recall"] == found.recall


def test_what_has_no_meaning_is_none():
    assert (Overlap("edge", 0, 3, 0, 5).precision, Overlap("edge", 3, 0, 0, 5).recall) == (None, None)
    assert (Overlap("edge", 0, 0, 0, 5).f1, Overlap("edge", 0, 0, 0, 5).jaccard) == (None, None)
    assert Overlap("edge", 3, 5, 3, 5).false_positive_rate is None


def test_graphs_that_differ_in_how_fine_they_are():
    fine = Graph(2, 2, 1, positions=("S", "end"))
    circuit = Circuit.from_edges(fine, ["input->a0.h0<k>@S", "input->a0.h0<k>@end", "a0.h0->logits@end"])
    truth = Circuit.from_edges(Graph(2, 2, 1, kv="group"), ["input->a0.g0<k>", "m0->m1"])
    found = overlap(circuit, truth)  # the group's key is both heads'
    assert (found.n_circuit, found.n_truth, found.n_both, found.n_all) == (2, 3, 1, GRAPH.n_edges)
    other = Circuit.from_edges(Graph(2, 2, 2), ["input->a0.h0<k>"])  # the same graph by head, of a model without groups
    assert overlap(circuit, other).n_both == 1
    scores = EdgeScores(fine, np.arange(fine.n_edges, dtype=float))
    assert roc(scores, truth, by="signed").n_all == GRAPH.n_edges


def test_only_what_counts_is_counted():
    among = np.array(["m" not in name for name in GRAPH.edge_names])
    truth = Circuit.from_edges(GRAPH, ["a0.h0->logits", "m0->logits"])
    scores = EdgeScores(GRAPH, np.arange(GRAPH.n_edges, dtype=float))
    found = overlap(scores.top(GRAPH.n_edges, by="signed"), truth, among=among)
    assert (found.n_all, found.n_truth, found.n_both) == (among.sum(), 1, 1)
    others = scores.values[among & ~truth.kept]
    share = (others < scores["a0.h0->logits"]).mean()
    assert roc(scores, truth, by="signed", among=among).auroc == pytest.approx(share)
    with pytest.raises(AcdcError, match="one an edge of the truth"):
        overlap(truth, truth, among=among[:3])


@pytest.mark.parametrize("kept", [np.zeros(GRAPH.n_edges, dtype=bool), np.ones(GRAPH.n_edges, dtype=bool)])
def test_a_truth_of_all_or_nothing_has_no_curve(kept):
    scores = EdgeScores(GRAPH, np.arange(GRAPH.n_edges, dtype=float))
    for compare in (roc, mib_roc):
        with pytest.raises(AcdcError, match="no ROC curve"):
            compare(scores, Circuit(GRAPH, kept), by="signed")


def test_other_models_and_levels_are_refused():
    truth = Circuit(GRAPH, np.ones(GRAPH.n_edges, dtype=bool))
    other = Circuit.from_edges(Graph(3, 2, 1), [])
    with pytest.raises(AcdcError, match="2 layers of 2 heads against 3 layers of 2 heads"):
        overlap(truth, other)
    with pytest.raises(AcdcError, match="Did you mean 'node'"):
        overlap(truth, truth, level="nodes")


def test_the_curve_of_a_large_model_takes_a_moment():
    graph = Graph(12, 12, 12)
    scores = EdgeScores(graph, np.random.default_rng(0).normal(size=graph.n_edges))
    truth = Circuit(graph, np.random.default_rng(1).random(graph.n_edges) < 0.03)
    for level in LEVELS[:2]:
        assert math.isclose(roc(scores, truth, by="signed", level=level).auroc, 0.5, abs_tol=0.06)
    assert 0.4 < mib_roc(scores, truth).auroc < 0.6

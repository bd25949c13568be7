"""Differences are sets, chance is what drawing at random gives, and correlations are numpy's."""

from math import comb

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.evaluation.comparison import Overlap
from acdc.evaluation.difference import chance, difference, places
from acdc.graph import Graph


def scored(seed: int, n: int, graph: Graph | None = None) -> Circuit:
    graph = graph or Graph(2, 2, 2)
    values = np.round(np.random.default_rng(seed).normal(size=graph.n_edges), 1)  # some tie
    values[::7] = -np.inf if seed % 2 else 0.0
    return EdgeScores(graph, values, {"seed": seed}).top(n, by="magnitude")


def test_differences_are_sets():
    a, b = scored(0, 15), scored(1, 20)
    found = difference(a, b)
    names = a.graph.edge_names
    expected = set(a.edge_names), set(b.edge_names)
    assert {names[i] for i in np.nonzero(found.shared)[0]} == expected[0] & expected[1]
    assert {names[i] for i in np.nonzero(found.only_first)[0]} == expected[0] - expected[1]
    assert {names[i] for i in np.nonzero(found.only_second)[0]} == expected[1] - expected[0]
    assert found.overlaps[0].n_both == len(expected[0] & expected[1])


def test_correlations_are_scipys():
    a, b = scored(0, 15), scored(1, 20)
    assert a.scores is not None and b.scores is not None
    both = np.isfinite(a.scores.values) & np.isfinite(b.scores.values)
    x, y = a.scores.values[both], b.scores.values[both]
    found = difference(a, b)
    assert found.pearson == pytest.approx(pearsonr(x, y).statistic, abs=1e-12)
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    same = difference(a, a)
    assert same.same_sign == 1 and same.pearson == pytest.approx(1) and not same.only_first.any()
    opposite = Circuit(a.graph, a.kept, EdgeScores(a.graph, 0 - a.scores.values))
    assert difference(a, opposite).same_sign == 0


def test_chance_is_what_drawing_gives():
    n_all, n_a, n_b, n_both = 12, 5, 6, 4
    found = chance(Overlap("edge", n_a, n_b, n_both, n_all))
    weights = [comb(n_b, k) * comb(n_all - n_b, n_a - k) / comb(n_all, n_a) for k in range(n_a + 1)]
    assert found.expected == pytest.approx(sum(k * w for k, w in enumerate(weights)))
    assert found.p_value == pytest.approx(sum(weights[n_both:]))
    assert sum(weights[: found.low]) <= 0.025 < sum(weights[: found.low + 1])
    assert sum(weights[: found.high]) < 0.975 <= sum(weights[: found.high + 1])
    empty = chance(Overlap("edge", 0, 0, 0, 10))
    assert (empty.expected, empty.low, empty.high, empty.p_value) == (0, 0, 0, 1)


def test_graphs_that_tell_apart_different_things_are_merged_and_have_no_scores():
    names = ("S2", "end")
    a, b = scored(0, 15), scored(0, 30, Graph(2, 2, 2, positions=names))
    found = difference(a, b)
    assert found.first.graph == found.second.graph == a.graph
    assert found.pearson is None and found.same_sign is None and found.first.scores is None
    assert set(found.second.edge_names) == {name.partition("@")[0] for name in b.edge_names}
    with pytest.raises(AcdcError, match="different models"):
        difference(a, scored(0, 5, Graph(3, 2, 2)))


def test_places_are_ranks_from_one():
    circuit = scored(0, 5)
    assert circuit.scores is not None
    at = places(circuit)
    assert sorted(at) == list(range(1, circuit.graph.n_edges + 1))
    values = np.abs(circuit.scores.values)[np.argsort(at)]
    assert (np.diff(values) <= 0).all()
    assert not places(Circuit(circuit.graph, circuit.kept)).any()

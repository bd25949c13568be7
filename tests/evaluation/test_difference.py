"""Differences are sets, chance is what drawing at random gives, and correlations are numpy's."""

from math import comb

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.evaluation.comparison import Overlap
from acdc.evaluation.difference import chance, difference, places, resampled_overlap, why_fixed
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


def with_prompts(which: int, n: int, **record) -> Circuit:
    graph = Graph(2, 2, 2)
    alone = np.random.default_rng(which).normal(size=(5, graph.n_edges)).astype(np.float32)
    known = {"task": "t", "seed": 0, **record}
    return EdgeScores(graph, alone.mean(0), known, alone).top(n, by="magnitude")


def test_the_interval_is_that_of_drawing_the_prompts_by_hand():
    a, b = with_prompts(0, 15), with_prompts(1, 20)
    found = difference(a, b).interval
    assert found is not None and found.paired and found == resampled_overlap(a, b)
    draws = np.random.default_rng(0).multinomial(5, np.full(5, 0.2), 1000)
    indices = []
    for draw in draws:
        tops = [set(np.argsort(-np.abs((draw / 5) @ circuit.scores.per_prompt), kind="stable")[: circuit.n_edges])
                for circuit in (a, b) if circuit.scores is not None]
        indices.append(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(indices, [0.025, 0.975])), abs=1e-9)
    other = difference(a, with_prompts(1, 20, seed=1)).interval
    assert other is not None and not other.paired
    same = difference(a, a).interval
    assert same is not None and (same.low, same.high) == (1, 1)


def test_a_circuit_without_scores_of_single_prompts_is_held_as_it_is():
    a, b = with_prompts(0, 15), scored(1, 20)
    draws = np.random.default_rng(0).multinomial(5, np.full(5, 0.2), 1000)
    assert a.scores is not None and a.scores.per_prompt is not None
    tops = [set(np.argsort(-np.abs((draw / 5) @ a.scores.per_prompt), kind="stable")[:15]) for draw in draws]
    other = set(np.nonzero(b.kept)[0])
    indices = [len(top & other) / len(top | other) for top in tops]
    found, back = difference(a, b).interval, difference(b, a).interval
    assert found is not None and back is not None and (found.held, found.paired, back.held) == (2, False, 1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(indices, [0.025, 0.975])), abs=1e-9)
    chosen = Circuit.from_edges(a.graph, list(a.edge_names[5:]), scores=a.scores)  # not the highest of its scores
    held = difference(chosen, a).interval
    assert held is not None and held.held == 1 and why_fixed(chosen) == "does not consist of the highest of its scores"
    assert difference(b, b).interval is None and why_fixed(a) is None
    assert why_fixed(b) == "comes without the scores of single prompts"


def test_prompts_are_the_same_only_where_their_tokens_are():
    a, b = (with_prompts(which, 15, prompts_sha256=str(which)) for which in (0, 1))
    interval = difference(a, b).interval
    assert interval is not None and not interval.paired

"""Selections agree with the plainest way to make them, and cleaning with reachability."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.graph import Graph

SHAPES = [(2, 2, 2, False, "head"), (3, 4, 2, False, "group"), (3, 2, 2, True, "head"), (2, 4, 2, True, "group")]
graphs = st.sampled_from([Graph(*shape) for shape in SHAPES])
rankings = st.sampled_from(["signed", "magnitude"])


@st.composite
def scores(draw: st.DrawFn) -> EdgeScores:
    """Few distinct values, so that ties are common, and some edges never tried."""
    graph = draw(graphs)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(-3, 4, graph.n_edges).astype(float)
    values[rng.random(graph.n_edges) < draw(st.sampled_from([0.0, 0.3]))] = -np.inf
    return EdgeScores(graph, values, {"method": "made up"})


def key(value: float, by: str) -> float:
    return abs(value) if by == "magnitude" and np.isfinite(value) else value


@given(scores(), rankings, st.data())
def test_top_takes_the_highest_and_of_ties_the_first(scored, by, data):
    tried = int(np.isfinite(scored.values).sum())
    n = data.draw(st.integers(0, tried))
    order = sorted(range(len(scored.values)), key=lambda e: (-key(scored.values[e], by), e))
    circuit = scored.top(n, by=by)
    assert np.nonzero(circuit.kept)[0].tolist() == sorted(order[:n])
    assert np.isfinite(scored.values[circuit.kept]).all()
    assert circuit.provenance == {"method": "made up", "selection": f"top {n} by {by}"}
    assert circuit.scores is scored


@given(scores(), rankings)
def test_more_than_there_are_scores_is_refused(scored, by):
    tried = int(np.isfinite(scored.values).sum())
    for select in (scored.top, scored.greedy):
        for n in (-1, tried + 1):
            with pytest.raises(AcdcError, match="cannot keep"):
                select(n, by=by)


@given(scores(), rankings, st.integers(-4, 4))
def test_above_is_strict_and_never_takes_the_untried(scored, by, threshold):
    kept = scored.above(float(threshold), by=by).kept
    assert kept.tolist() == [bool(np.isfinite(v)) and key(v, by) > threshold for v in scored.values]


@given(scores(), rankings, st.data())
def test_greedy_adds_the_highest_edge_into_what_is_there(scored, by, data):
    graph = scored.graph
    n = data.draw(st.integers(0, min(25, int(np.isfinite(scored.values).sum()))))
    nodes, chosen = {"logits"}, []
    size = graph.n_heads // graph.n_kv_heads
    for _ in range(n):
        candidates = [
            edge for edge in range(graph.n_edges)
            if edge not in chosen and np.isfinite(scored.values[edge])
            and graph.channels[graph.edge_channel[edge]].node.name in nodes
        ]
        if not candidates:
            break
        best = min(candidates, key=lambda e: (-key(scored.values[e], by), e))
        chosen.append(best)
        src = graph.srcs[graph.edge_src[best]]
        nodes |= {src.name, f"a{src.layer}.g{src.index // size}"} if src.kind == "head" else {src.name}
    assert np.nonzero(scored.greedy(n, by=by).kept)[0].tolist() == sorted(chosen)


@given(graphs, st.integers(0, 2**32 - 1), st.floats(0.02, 0.5))
def test_drop_dangling_keeps_what_lies_on_a_path(graph, seed, density):
    kept = np.random.default_rng(seed).random(graph.n_edges) < density
    circuit = Circuit(graph, kept)
    view = graph.to_networkx(kept)
    from_input = nx.descendants(view, "input") | {"input"}
    to_logits = nx.ancestors(view, "logits") | {"logits"}
    expected = np.zeros(graph.n_edges, dtype=bool)
    for src, dst, data in view.edges(data=True):
        if data["cuttable"]:
            expected[data["edge"]] = src in from_input and dst in to_logits
    clean = circuit.drop_dangling()
    assert np.array_equal(clean.kept, expected)
    assert clean.drop_dangling() == clean


@given(graphs, st.integers(0, 2**32 - 1))
def test_from_edges_is_the_inverse_of_edge_names(graph, seed):
    circuit = Circuit(graph, np.random.default_rng(seed).random(graph.n_edges) < 0.2)
    assert Circuit.from_edges(graph, list(circuit.edge_names)) == circuit
    assert circuit.n_edges == len(circuit.edge_names)


def test_nodes_are_in_the_order_of_the_forward_pass():
    circuit = Circuit.from_edges(Graph(2, 2, 1, kv="group"), ["m0->a1.g0<k>", "a1.h1->m1", "input->logits"])
    assert [node.name for node in circuit.nodes] == ["input", "m0", "a1.g0", "a1.h1", "m1", "logits"]


def test_scores_and_kept_must_fit_the_graph():
    graph, other = Graph(1, 1, 1), Graph(1, 2, 2)
    with pytest.raises(AcdcError, match="scores of shape"):
        EdgeScores(graph, np.zeros(3))
    with pytest.raises(AcdcError, match="kept must be"):
        Circuit(graph, np.zeros(3, dtype=bool))
    with pytest.raises(AcdcError, match="another graph"):
        Circuit(graph, np.zeros(graph.n_edges, dtype=bool), EdgeScores(other, np.zeros(other.n_edges)))
    for bad in (np.nan, np.inf):
        values = np.zeros(graph.n_edges)
        values[2] = bad
        with pytest.raises(AcdcError, match=f"the first at {graph.edge_name(2)}"):
            EdgeScores(graph, values)


def test_a_score_is_found_by_name():
    graph = Graph(1, 2, 2)
    scored = EdgeScores(graph, np.arange(graph.n_edges, dtype=float))
    assert [scored[name] for name in graph.edge_names] == scored.values.tolist()

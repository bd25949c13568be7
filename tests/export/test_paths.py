"""Paths equal those of plain enumeration; the backbone is the strongest that hangs together."""

import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.circuit import Circuit, EdgeScores
from acdc.export.paths import backbone, edge_strengths, strongest_paths
from acdc.graph import Graph

SHAPES = [(2, 2, 2, False, "head"), (2, 4, 2, False, "group"), (3, 2, 2, True, "head"), (3, 1, 1, False, "head")]
POSITIONS = [(), ("end",), ("S2", "end"), ("0", "1", "2")]


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    graph = Graph(*draw(st.sampled_from(SHAPES)), draw(st.sampled_from(POSITIONS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = rng.random(graph.n_edges) < draw(st.sampled_from([0.1, 0.25, 0.4])) / graph.n_positions**0.5
    kind = draw(st.sampled_from(["none", "ties", "distinct"]))
    if kind == "none":
        return Circuit(graph, kept)
    values = rng.normal(size=graph.n_edges) if kind == "distinct" else rng.integers(-2, 3, graph.n_edges) * 1.0
    values[rng.random(graph.n_edges) < 0.1] = -np.inf
    return Circuit(graph, kept, EdgeScores(graph, values))


def all_paths(circuit: Circuit) -> list[tuple[float, int, tuple[int, ...]]]:
    """(-strength, length, edges) of every path from networkx on which edges also meet by position, in order."""
    strengths = edge_strengths(circuit)
    view = circuit.graph.to_networkx(circuit.kept)
    found = []
    for path in nx.all_simple_edge_paths(view, "input", "logits"):
        steps = [view.edges[step] for step in path if view.edges[step]["cuttable"]]
        if all(a["channel"] in ("k", "v") or a.get("position") == b.get("position")
               for a, b in itertools.pairwise(steps)):
            edges = tuple(step["edge"] for step in steps)
            found.append((-min(float(strengths[edge]) for edge in edges), len(edges), edges))
    return sorted(found)


@given(circuits(), st.integers(0, 30))
def test_the_strongest_paths_are_those_of_enumeration(circuit, n):
    found = [(-path.strength, len(path.edges), path.edges) for path in strongest_paths(circuit, n)]
    assert found == list(itertools.islice(all_paths(circuit), n))


@pytest.mark.parametrize("graph", [Graph(30, 9, 3), Graph(12, 4, 2, kv="group", positions=tuple("abcdefghij"))])
def test_many_paths_are_no_problem(graph):
    circuit = Circuit(graph, np.ones(graph.n_edges, dtype=bool))
    lengths = [len(path.edges) for path in strongest_paths(circuit, 1000)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 1
    assert len(lengths) == 1000


def test_only_keys_and_values_move_between_positions():
    graph = Graph(2, 2, 2, positions=("S1", "S2", "end"))
    kept = ["input->a0.h1<v>@S1", "a0.h1->m0@S2", "m0->a1.h0<q>@S2", "m0->a1.h1<k>@S2", "a1.h0->logits@end",
            "a1.h1->logits@end", "input->m1@S2", "m1->logits@end"]
    circuit = Circuit.from_edges(graph, kept)
    [path] = strongest_paths(circuit, 10)
    assert [graph.edge_name(edge) for edge in path.edges] == [
        "input->a0.h1<v>@S1", "a0.h1->m0@S2", "m0->a1.h1<k>@S2", "a1.h1->logits@end"
    ]
    assert backbone(circuit, 4).edges.tolist() == sorted(path.edges)


@given(circuits(), st.integers(1, 12))
def test_the_backbone_hangs_together_and_leaves_out_nothing_stronger(circuit, max_edges):
    shown = backbone(circuit, max_edges)
    edges, strengths = set(shown.edges.tolist()), edge_strengths(circuit)
    assert len(edges) == len(shown.edges) == min(len(edges), max_edges)
    assert circuit.kept[shown.edges].all()
    if circuit.n_edges <= max_edges:
        assert edges == set(np.nonzero(circuit.kept)[0])
    if shown.on_paths:
        drawn = np.zeros_like(circuit.kept)
        drawn[shown.edges] = True
        assert np.array_equal(Circuit(circuit.graph, drawn).drop_dangling().kept, drawn)
        ranked = sorted((strengths[e] for e in np.nonzero(circuit.drop_dangling().kept)[0]), reverse=True)
        by_strength = sorted((strengths[e] for e in edges), reverse=True)
        assert by_strength[: shown.n_strongest] == pytest.approx(ranked[: shown.n_strongest])
    elif circuit.n_edges > max_edges:
        assert len(edges) == max_edges
        hidden = circuit.kept.copy()
        hidden[shown.edges] = False
        assert strengths[shown.edges].min() >= strengths[hidden].max()

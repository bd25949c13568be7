"""The description counts right, aligns its columns, and manages without scores."""

import numpy as np
import pytest

from acdc.circuit import Circuit, EdgeScores
from acdc.export.paths import strongest_paths
from acdc.export.text import describe, node_rows, path_text, size_rows
from acdc.graph import Graph

EDGES = {"input->a0.h1<q>": 0.5, "input->m0": 0.25, "a0.h1->m0": -2.0, "m0->a1.h0<k>": 1.0, "a1.h0->logits": 0.75}


def circuit(scored: bool = True) -> Circuit:
    graph = Graph(2, 2, 2)
    values = np.full(graph.n_edges, -np.inf)
    for name, value in EDGES.items():
        values[graph.edge(name)] = value
    scores = EdgeScores(graph, values, {"method": "exact", "model": "toy"}) if scored else None
    return Circuit.from_edges(graph, list(EDGES), scores=scores, provenance={"task": "ioi", "faithfulness": 0.98765})


def test_sizes():
    assert dict(size_rows(circuit())) == {
        "edges": "5 of 46 (10.870%)", "heads": "2 of 4", "MLPs": "1 of 2",
        "channels": "q 1, k 1, v 0, MLP 2, logits 1",
    }


def at_positions() -> Circuit:
    graph = Graph(2, 2, 2, positions=("S1", "S2", "end"))
    kept = ["input->a0.h1<k>@S1", "input->a0.h1<k>@S2", "a0.h1->m0@S2", "m0->a1.h0<v>@S2", "a1.h0->logits@end"]
    return Circuit.from_edges(graph, kept)


def test_positions_are_counted_and_named():
    assert dict(size_rows(at_positions())) == {
        "edges": f"5 of 124 ({5 / 124:.3%})", "src, channel": f"4 pairs of 46 ({4 / 46:.3%}), at one position or more",
        "positions": "3 of 3: 1 at S1, 3 at S2, 1 at end", "heads": "2 of 4", "MLPs": "1 of 2",
        "channels": "q 0, k 2, v 1, MLP 1, logits 1",
    }
    assert {row[0]: row[1:] for row in node_rows(at_positions())} == {
        "input": ["0", "2", "S1, S2"], "a0.h1": ["2", "1", "S1, S2"], "m0": ["1", "1", "S2"],
        "a1.h0": ["1", "1", "S2, end"], "logits": ["1", "0", "end"],
    }
    lines = describe(at_positions()).splitlines()
    assert "  input -> a0.h1<k>@S1 -> m0@S2 -> a1.h0<v>@S2 -> logits@end" in lines
    assert ["a1.h0", "1", "1", "S2,", "end"] in [line.split() for line in lines]
    assert "  input->a0.h1<k>@S1" in lines


def test_many_positions_of_a_node_are_counted():
    graph = Graph(1, 1, 1, positions=tuple("0123456789"))
    made = Circuit.from_edges(graph, [f"input->m0@{i}" for i in range(8)])
    assert [row[-1] for row in node_rows(made)] == ["8 positions", "8 positions"]
    assert dict(size_rows(made))["positions"].startswith("8 of 10: 1 at 0, 1 at 1, ")
    nothing = Circuit.from_edges(graph, [])
    assert dict(size_rows(nothing))["positions"] == "0 of 10"


def test_nodes_add_up():
    rows = {row[0]: row[1:] for row in node_rows(circuit())}
    assert rows == {
        "input": ["0", "2", "0", "0.75"], "a0.h1": ["1", "1", "0.5", "2"], "m0": ["2", "1", "2.25", "1"],
        "a1.h0": ["1", "1", "1", "0.75"], "logits": ["1", "0", "0.75", "0"],
    }
    assert [row[0] for row in node_rows(circuit())][0] == "m0"


def test_the_whole_text():
    text = describe(circuit())
    lines = text.splitlines()
    assert lines[0].split() == ["model", "toy"]
    assert "  faithfulness  0.9877" in lines
    assert "     -2  a0.h1->m0" in lines
    assert "  0.5  input -> a0.h1<q> -> m0 -> a1.h0<k> -> logits" in lines
    assert "  0.25  input -> m0 -> a1.h0<k> -> logits" in lines
    start = lines.index("strongest nodes (all 5)")
    assert len({len(line) for line in lines[start + 1 : start + 7]}) == 1


def test_without_scores():
    text = describe(circuit(scored=False))
    assert "score" not in text
    assert "shortest paths" in text
    assert text.index("input -> m0 -> a1.h0<k>") < text.index("input -> a0.h1<q> -> m0")


@pytest.mark.parametrize("scored", [True, False])
def test_numbers_bound_the_lists(scored):
    text = describe(circuit(scored), n_edges=2, n_paths=1, n_nodes=0)
    assert text.count("->") == 2 + 3 + (1 if scored else 0)
    assert "edges (2 of 5)" in text
    assert "nodes" not in text


def test_an_empty_circuit_and_one_without_a_path():
    graph = Graph(2, 2, 2)
    assert f"0 of {graph.n_edges}" in describe(Circuit.from_edges(graph, []))
    assert "no kept path" in describe(Circuit.from_edges(graph, ["a0.h1->logits"]))


def test_a_shared_channel_names_the_head_that_goes_on():
    made = Circuit.from_edges(Graph(2, 4, 2, kv="group"), ["input->a1.g1<k>", "a1.h3->logits"])
    [path] = strongest_paths(made, 5)
    assert path_text(made, path) == "input -> a1.g1<k> (a1.h3) -> logits"
    assert "KV heads" in describe(made)

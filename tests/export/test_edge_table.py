"""The table holds what the circuit and its uncertainty hold, to the last bit."""

import csv
import io

import numpy as np

from acdc.circuit import Circuit, EdgeScores
from acdc.evaluation.bootstrap import bootstrap
from acdc.export.edge_table import edge_table
from acdc.graph import Graph

GRAPH = Graph(2, 2, 2, positions=("S1", "end"))


def test_rows_are_the_edges_with_their_scores_and_intervals():
    alone = np.random.default_rng(0).normal(size=(9, GRAPH.n_edges)).astype(np.float32)
    scores = EdgeScores(GRAPH, alone.astype(np.float64).mean(0), {}, alone)
    circuit = scores.top(7, by="magnitude")
    found = bootstrap(scores, size=7, by="magnitude", n_resamples=40)
    rows = list(csv.DictReader(io.StringIO(edge_table(circuit, found))))
    assert {row["edge"] for row in rows if row["kept"] == "1"} == set(circuit.edge_names)
    assert len(rows) == (circuit.kept | (found.inclusion >= 0.05)).sum() > 7
    sizes = [abs(float(row["score"])) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    for row in rows:
        edge = GRAPH.edge(row["edge"])
        assert row["edge"] == f"{row['src']}->{row['channel']}@{row['position']}"
        assert float(row["score"]) == scores.values[edge]
        assert [float(row[name]) for name in ("low", "high", "inclusion", "same_sign")] == [
            found.low[edge], found.high[edge], found.inclusion[edge], found.same_sign[edge]]


def test_what_is_not_known_is_empty():
    circuit = Circuit.from_edges(Graph(2, 2, 2), ["input->a0.h1<q>", "a0.h1->logits"])
    assert edge_table(circuit) == ("edge,src,channel,position,kept,score\r\n"
                                   "input->a0.h1<q>,input,a0.h1<q>,,1,\r\na0.h1->logits,a0.h1,logits,,1,\r\n")
    untried = EdgeScores(circuit.graph, np.full(circuit.graph.n_edges, -np.inf))
    assert edge_table(Circuit(circuit.graph, circuit.kept, untried)).splitlines()[1].endswith(",1,")

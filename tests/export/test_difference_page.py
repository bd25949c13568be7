"""The page, the table and the figure of a difference say what the difference is."""

import csv
import io
import json
import re

import numpy as np
from made_circuits import HOSTILE

from acdc.circuit import Circuit, EdgeScores
from acdc.evaluation.difference import difference
from acdc.export.difference_drawing import difference_drawing
from acdc.export.difference_report import difference_report, difference_table, summary
from acdc.export.drawing import Stroke, Words
from acdc.export.palette import BOTH, ONLY_FIRST, ONLY_SECOND
from acdc.graph import Graph


def pair(positions: tuple[str, ...] = ()):
    graph = Graph(3, 3, 3, positions=positions)
    rng = np.random.default_rng(0)
    values = rng.normal(size=graph.n_edges)
    a = EdgeScores(graph, values, {"method": "eap", "model": "m", "seed": 0}).top(20, by="magnitude")
    b = EdgeScores(graph, values + rng.normal(size=graph.n_edges), {"method": "eap_ig", "model": "m", "seed": 0})
    return difference(a, b.top(25, by="magnitude"))


def test_each_edge_of_the_figure_has_the_colour_of_its_set():
    for positions in ((), ("S2", "end")):
        found = pair(positions)
        drawing = difference_drawing(found, ("A", "B"), max_edges=100)
        names = found.first.graph.edge_names
        drawn = {shape.name: shape.colour for shape in drawing.shapes if isinstance(shape, Stroke) and shape.name}
        sets = ((found.shared, BOTH), (found.only_first, ONLY_FIRST), (found.only_second, ONLY_SECOND))
        assert drawn == {names[i]: colour for edges, colour in sets for i in np.nonzero(edges)[0]}
        texts = [shape.text for shape in drawing.shapes if isinstance(shape, Words)]
        assert f"A only ({found.only_first.sum()})" in texts and f"both ({found.shared.sum()})" in texts


def test_the_table_has_every_edge_of_either_circuit_once_and_exact_scores():
    found = pair()
    rows = list(csv.DictReader(io.StringIO(difference_table(found))))
    assert len(rows) == len({row["edge"] for row in rows}) == int((found.first.kept | found.second.kept).sum())
    assert found.first.scores is not None and found.second.scores is not None
    for row in rows:
        edge = found.first.graph.edge(row["edge"])
        assert float(row["score_first"]) == found.first.scores.values[edge]
        assert float(row["score_second"]) == found.second.scores.values[edge]
        kept = {"both": (True, True), "first": (True, False), "second": (False, True)}[row["kept_by"]]
        assert (bool(found.first.kept[edge]), bool(found.second.kept[edge])) == kept


def test_the_page_says_what_differs_and_escapes_names():
    found = pair()
    text = difference_report(found, ("EAP", HOSTILE[0]))
    assert "| method | eap | eap\\_ig | differs |" in text and "| seed | 0 | 0 |  |" in text
    assert f"{found.overlaps[0].jaccard:.3f}" in text and "<img" not in re.sub(r"\\.", "", text)
    assert json.loads(json.dumps(summary(found), allow_nan=False))["levels"]["edge"]["n_both"] == found.shared.sum()


def test_circuits_without_scores_or_edges_have_a_page_too():
    graph = Graph(2, 2, 2)
    empty, one = Circuit.from_edges(graph, []), Circuit.from_edges(graph, ["input->logits"])
    for a, b in ((empty, empty), (empty, one), (one, one)):
        found = difference(a, b)
        assert difference_report(found, ("a", "b"))
        assert difference_drawing(found, ("a", "b")).height > 0
        assert len(difference_table(found).splitlines()) == 1 + int((a.kept | b.kept).sum())

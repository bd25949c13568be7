"""The report says what the provenance and the curves say, and nothing in a prompt breaks the page."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.circuit import Circuit, EdgeScores
from acdc.discovery import METHODS, UNSIGNED
from acdc.evaluation.bootstrap import bootstrap
from acdc.evaluation.curve import Curve, CurvePoint
from acdc.export.report import code, escaped, quoted, report, table
from acdc.graph import Graph

PROVENANCE = {
    "model": "smollm2", "model_sha256": "ab" * 32, "task": "ioi", "task_description": "who gets the drink",
    "example": {"clean": "A | B `gave`\nto", "corrupted": "*C*", "answer": " Mary", "wrong": " John"},
    "n_prompts": 64, "seed": 0, "metric": "logit_difference", "ablation": "resample", "method": "eap_ig",
    "method_options": {"steps": 5}, "selection": "top 3 by magnitude", "versions": {"torch": "2.13", "acdc": "0.1"},
    "command": ["acdc", "find", "--task", "my task"], "clean_metric": 4.5, "corrupted_metric": -4.25,
    "circuit_metric": 4.0, "faithfulness": 0.943, "seconds": {"score": 12.5, "curve": 30.25},
}


def circuit(**changes) -> Circuit:
    names = ["input->a0.h1<q>", "a0.h1->logits", "input->logits"]
    return Circuit.from_edges(Graph(2, 2, 2), names, provenance={**PROVENANCE, **changes})


def curve(*faithfulness: float) -> Curve:
    points = tuple(CurvePoint((i + 1) / 10, 6 * (i + 1), f, f) for i, f in enumerate(faithfulness))
    return Curve("signed", "logit_difference", 4.5, -4.25, 64, points)


def test_everything_known_is_said():
    text = report(circuit(), [curve(0.5, 1.0)])
    for part in (
        "# ioi in smollm2", "| Options | steps 5 |", "| Seed | 0 |", "torch 2.13, acdc 0.1", "12.5", "30.25",
        "| Metric, full model | 4.5 |", "| Metric, all edges cut | -4.25 |",
        "| Faithfulness | 0.943 |", "3 of 46", "![The circuit](circuit.svg)", "](curve.png)", "CPR 0.075, CMD 0.025",
        "acdc find --task 'my task'", "2403.17806", "2504.13151", '`" Mary"`', "input -> a0.h1<q> -> logits",
    ):
        assert part in text, part


def test_areas_of_a_curve_that_stops_short_are_given_twice():
    points = tuple(CurvePoint(x, n, f, f) for x, n, f in ((0.1, 10, 0.0), (0.2, 20, 1.0), (1.0, 20, 1.0)))
    short = Curve("magnitude", "logit_difference", 1.0, 0.0, 64, points, 100)
    text = report(circuit(), [short])
    assert "| 100.000% | 20 | 20.000% | 1 | 1.000 |  |" in text
    assert r"| \|score\| | asked for | 0.850 | 0.050 | 0.849 |" in text.replace("\\\\", "\\") or "asked for" in text
    assert "| kept | 0.050 | 0.050 | 0.500 | 0.500 | - | - |" in text
    assert text.count("| asked for |") == 1


def test_calibration_is_a_line_of_what_is_defined():
    overall = {"n_sampled": 400, "pearson": 0.9, "spearman": None, "sign_agreement": 0.875, "missed": 0.25,
               "missed_low": 0.125, "missed_high": 0.5}
    assert ("**Against exact effects.** 400 edges patched; Pearson 0.900; the sign agrees for 87.5% of clear "
            "effects; 25.0% of large effects missed \\(95% interval 12.5% to 50.0%\\)."
            ) in report(circuit(calibration={"overall": overall}))
    undefined = dict.fromkeys(overall) | {"n_sampled": 50}
    assert "effects.** 50 edges patched.\n" in report(circuit(calibration={"overall": undefined}))


def test_what_other_prompts_would_give_is_said():
    alone = np.random.default_rng(0).normal(size=(6, 46)).astype(np.float32)
    scores = EdgeScores(Graph(2, 2, 2), alone.astype(np.float64).mean(0), {}, alone)
    found = bootstrap(scores, size=5, by="magnitude", templates=["a|b", "c"] * 3, n_resamples=30)
    chosen = scores.top(5, by="magnitude")
    text = report(Circuit(chosen.graph, chosen.kept, scores, {"uncertainty": found.summary()}), [], found)
    assert f"resampled 30 times, the top 5 edges by magnitude share {found.overlap:.1%} with those of" in text
    split = found.templates[0]
    assert f"| a\\|b | 3 | {split.overlap:.1%} | {split.by_chance:.1%} |" in text
    many = [vars(split) | {"template": f"t{i}", "overlap": i / 20} for i in range(12)]
    record = {"uncertainty": {**found.summary(), "templates": many}}
    assert "| t9 |" in (text := report(circuit(**record))) and "2 more templates, of as many prompts or fewer: 50.0% " \
        "to 55.0%." in text and "t10" not in text
    text = report(Circuit(chosen.graph, chosen.kept, scores, {"uncertainty": found.summary()}), [], found)
    strongest = int(np.argmax(np.abs(scores.values)))
    assert f"| {found.low[strongest]:+.4g} to {found.high[strongest]:+.4g} | {found.inclusion[strongest]:.1%} |" in text
    assert "interval" not in report(chosen)


@pytest.mark.parametrize("method", METHODS)
def test_a_score_that_is_no_rise_of_the_loss_is_not_called_one(method):
    text = report(circuit(method=method))
    assert ("A score is the estimated rise of the loss" in text) == (method not in {*UNSIGNED, "ensemble", "random"})


def test_nothing_known_is_nothing_said():
    text = report(Circuit.from_edges(Graph(2, 2, 2), []), figure=None)
    assert "None" not in text
    assert "asked" not in text
    assert "![" not in text


@pytest.mark.parametrize(("faithfulness", "flagged"), [(1.0, False), (1.0004, False), (1.04, True), (3.5, True)])
def test_more_than_the_full_model_is_flagged_in_words(faithfulness, flagged):
    assert ("exceeds the full model" in report(circuit(), [curve(0.5, faithfulness)])) is flagged
    assert ("exceeds the full model" in report(circuit(faithfulness=faithfulness))) is flagged


@given(st.text(), st.text(alphabet="`|\\ \n*_<a"))
def test_a_prompt_stays_in_its_cell(first, second):
    for text in (first, second):
        for cell in (quoted(text), escaped(text)):
            assert not re.search(r"[\n\r]", cell)
            assert not re.search(r"(?<!\\)(\\\\)*\|", cell.replace("\\|", ""))


def test_code_survives_backticks():
    assert code("a`b``c") == "```a`b``c```"
    assert code("`x") == "`` `x ``"
    assert quoted(" Mary") == '`" Mary"`'


def test_a_table_has_a_row_a_line():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_every_row_of_a_table_has_as_many_cells():
    lines = [line.replace("\\|", "") for line in report(circuit(), [curve(0.5, 3.0)]).splitlines()]
    for before, line in zip(lines, lines[1:], strict=False):
        if line.startswith("|") and before.startswith("|"):
            assert line.count("|") == before.count("|")

"""Tables and pictures of a grid show its numbers; what is best is bold."""

import csv
import io

import pytest

from acdc.errors import AcdcError
from acdc.evaluation.curve import MIB_FRACTIONS
from acdc.export.benchmark_figure import faithfulness_figure, heat_map
from acdc.export.benchmark_tables import overview, results_csv, results_latex, results_markdown, rows_of, table
from acdc.export.figure import figure_bytes

SETTINGS = {"prompts": 8, "test_prompts": 4, "ablation": "resample", "kv": "head", "dtype": "float32"}


def cell(method, f, *, task="t_1", seed=0, cmd=0.5, smallest=None, **others):
    """A cell whose curve is f at every size; its intervals are f ± 0.1."""
    points = [{"fraction": x, "n_edges": int(1000 * x), "f": f, "interval": [f - 0.1, f + 0.1]} for x in MIB_FRACTIONS]
    curve = {"points": points, "cpr": {"value": f, "interval": [f, f]}, "cmd": {"value": cmd, "interval": [0.4, 0.6]}}
    return {"model": "folder/model", "task": task, "method": method, "seed": seed, "status": "done", "loss": "kl",
            "metric": "logit_difference", "by": "magnitude", "n_prompts": 8, "n_test_prompts": 4, "n_edges": 1000,
            "full": 3.0, "empty": 1.0, "curves": {"signed": curve, "magnitude": curve}, "cpr": curve["cpr"],
            "cmd": curve["cmd"], "own": None, "seconds": 3.0, "cpu_seconds": 2.0, "evaluation_seconds": 1.0,
            "peak_gib": 1.5, **others,
            "smallest": smallest and {"fraction": 0.1, "n_edges": smallest, "f": 0.95, "interval": [0.9, 1]}}


def search(method, n_edges, f):
    own = {"fraction": None, "n_edges": n_edges, "f": f, "interval": [None, None]}
    return cell(method, f) | {"curves": {}, "cpr": None, "cmd": None, "own": own, "smallest": None, "peak_gib": None}


FAILED = {"model": "folder/model", "task": "t_1", "method": "exact", "seed": 0, "status": "failed",
          "error": "AcdcError", "message": "no"}


def test_csv_holds_all_numbers():
    cells = [cell("eap", 0.25, smallest=70), search("acdc", 30, 0.5), FAILED]
    first, second, third = csv.DictReader(io.StringIO(results_csv(cells)))
    assert float(first["f_signed_0.01"]) == 0.25 and float(first["f_magnitude_1_high"]) == 0.35
    assert (first["cmd"], first["cmd_low"], first["smallest_edges"], first["own_f"]) == ("0.5", "0.4", "70", "")
    assert (second["own_edges"], second["own_f"], second["own_f_low"], second["cpr"]) == ("30", "0.5", "", "")
    assert (third["status"], third["message"], third["seconds"]) == ("failed", "no", "")


def test_the_best_of_a_column_is_bold():
    rows = rows_of([cell("a", 0.8, cmd=0.3), cell("b", 1.1, smallest=50), cell("c", 1.9, smallest=40),
                    search("d", 3, 1.0)])
    lines = table(rows, lambda text: f"*{text}*")
    bold = [[text.startswith("*") for text in line[1:9]] for line in lines]
    none, f = [False] * 8, [True] * 5
    assert bold == [[*none[:6], True, False], [*f, False, False, False], [*none[:7], True], none]
    assert lines[3][8] == "its own: 3 (0.30%), f 1.00" and lines[1][1] == "*1.10 ± 0.10*"
    equal = table(rows_of([cell("a", 0.5), cell("b", 0.501)]), lambda text: f"*{text}*")
    assert not any(text.startswith("*") for line in equal for text in line)


def test_seeds_are_averaged():
    row, = rows_of([cell("a", 0.4, smallest=20), cell("a", 0.8, seed=1, smallest=40)])
    assert row.f[0].text() == "0.60 ± 0.20" and row.smallest == (30, 0.03, 0.95)
    row, = rows_of([cell("a", 0.4, smallest=20), cell("a", 0.8, seed=1)])
    assert row.smallest is None
    assert overview([cell("a", 0.4), cell("a", 0.8, seed=1)]) == (["method", "t_1"], [["a", "0.60"]])


def test_markdown_and_latex_say_it():
    cells = [cell("eap", 0.25), cell("eap", 0.5, task="u"), search("acdc:shortlist=5%", 30, 0.5), FAILED]
    text = results_markdown(cells, SETTINGS)
    assert "| eap | 0.25 | 0.50 |" in text and "| acdc:shortlist=5% | 0.50 (3.0%) | – |" in text
    assert "## t\\_1 in model\n1,000 edges; 4 held-out prompts, seed 0; logit\\_difference 3.000" in text
    assert "- failed: exact: no" in text
    latex = results_latex(cells, SETTINGS)
    assert r"acdc:shortlist=5\% & --" in latex and r"\caption{t\_1 in model." in latex
    assert "% failed: exact: no" in latex
    assert r"eap \textbar{}s\textbar{} & \textbf{0.25 $\pm$ 0.10}" in results_latex([*cells, cell("b", 0.1)], SETTINGS)
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{table}") == 2


EVIL = "a\n\\write18{x}\\input{y}$\\frac{$ <b># c\n# head\n![i](http://x/y.png)|\x1b\u202e\x00`"


def test_names_of_files_are_no_markup():
    named = {"model": EVIL, "task": EVIL, "metric": EVIL}
    done = [cell(EVIL, 0.25) | named, search(EVIL, 30, 0.5) | named]
    cells = [*done, FAILED | {"message": EVIL, "method": EVIL}]
    latex, markdown = results_latex(cells, SETTINGS), results_markdown(cells, SETTINGS)
    set_by_latex = [line for line in latex.splitlines() if not line.startswith("%")]
    assert not any(command in line for line in set_by_latex for command in (r"\write", r"\input", "$\\frac"))
    assert r"\textbackslash{}write18\{x\}" in latex and all(c.isprintable() for c in latex.replace("\n", ""))
    heads = [line for line in markdown.splitlines() if line.startswith("#")]
    assert len(heads) == 4 and heads[:2] == ["# Benchmark", "## Overview"] and "![" not in markdown
    assert "<b>" not in markdown and not {"\x1b", "\u202e", "\x00"} & set(markdown)
    assert {line.count(" | ") for line in markdown.splitlines() if line.startswith("|")} == {1, 10}
    for figure in (faithfulness_figure(done), heat_map(done)):
        figure_bytes(figure, "png")


def test_only_failures():
    assert "Nothing was measured" in results_markdown([FAILED], SETTINGS)
    assert "tabular" not in results_latex([FAILED], SETTINGS)
    for draw in (faithfulness_figure, heat_map):
        with pytest.raises(AcdcError, match="no cell to draw"):
            draw([])


def test_pictures_show_the_numbers():
    cells = [cell("eap", 0.25), cell("eap", 0.75, seed=1), search("acdc", 30, 0.5)]
    axes = faithfulness_figure(cells).axes[0]
    curve = next(line for line in axes.lines if line.get_label() == "eap |s|")
    assert list(curve.get_xdata()) == list(MIB_FRACTIONS) and set(curve.get_ydata()) == {0.5}
    point = next(line for line in axes.lines if line.get_label().startswith("acdc"))
    assert (list(point.get_xdata()), list(point.get_ydata())) == ([0.03], [0.5])
    f, cmd = heat_map([*cells, cell("random", 0.0, task="u")]).axes
    assert [text.get_text() for text in f.texts] == ["0.50", "0.50", "0.00"]
    assert [text.get_text() for text in cmd.texts] == ["0.50", "0.50"]
    assert [label.get_text() for label in f.get_yticklabels()] == ["eap", "acdc", "random"]

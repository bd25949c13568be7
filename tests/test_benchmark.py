"""`acdc benchmark`: each cell is what the library computes; finished cells stay, failed ones do not stop the others."""

import csv
import io
import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_cli import TOKENIZER, run, save_model, solvable

import acdc.grid.cell
import acdc.models
from acdc.benchmarks import grid as grid_record
from acdc.commands.benchmark import write_tables
from acdc.commands.benchmark_cells import split_prompts
from acdc.discovery import METHODS
from acdc.errors import AcdcError
from acdc.evaluation.bench import prepare_bench
from acdc.evaluation.curve import MIB_FRACTIONS, Curve, CurvePoint
from acdc.evaluation.faithfulness import faithfulness, faithfulness_curve
from acdc.evaluation.significance import interval
from acdc.grid.folder import GridFolder
from acdc.grid.method_run import MethodRun, parse_method
from acdc.machine import peak_memory, reset_peak_memory
from acdc.metrics import METRICS
from acdc.models import load_model
from acdc.tasks import load_task

N, N_TEST = 8, 6
METHOD_TEXTS = ("eap", "eap_ig:steps=2,by=signed", "acdc:threshold=0.02,shortlist=30%,prompts=4", "random")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A tiny model, a task file, and a finished grid."""
    base = tmp_path_factory.mktemp("benchmark")
    hf = save_model(base / "model")
    (base / "task.json").write_text(json.dumps(solvable(hf, N + N_TEST, seed=0)))
    status, out, err = run(*command(base, base / "out"))
    assert status == 0, err
    assert out.count("[4/4]") == 1
    return base


def command(base, out, *, methods=METHOD_TEXTS, **options):
    settings = {"prompts": N, "test-prompts": N_TEST, **options}
    return ["benchmark", "--models", base / "model", "--tasks", base / "task.json", "--methods", *methods, "--out", out,
            *(word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value))]


def cells(folder):
    return {cell["method"]: cell for cell in json.loads((folder / "results.json").read_text())["cells"]}


@pytest.fixture(scope="module")
def parts(given):
    model = load_model(given / "model")
    train, test = split_prompts(str(given / "task.json"), TOKENIZER, N, N_TEST, 0)
    return model, train, test.batches(TOKENIZER, batch_size=4)


def test_cells_are_what_the_library_computes(given, parts):
    model, train, held_out = parts
    found = cells(given / "out")
    assert list(found) == list(METHOD_TEXTS)
    for text, options in (("eap", {}), ("eap_ig:steps=2,by=signed", {"steps": 2})):
        cell, name = found[text], text.partition(":")[0]
        scores = METHODS[name](model, train.batches(TOKENIZER), **options)
        for by in ("signed", "magnitude"):
            expected = faithfulness_curve(model, scores, held_out, by=by)
            curve = cell["curves"][by]
            assert [p["n_edges"] for p in curve["points"]] == [p.n_edges for p in expected.points]
            np.testing.assert_allclose([p["f"] for p in curve["points"]], [p.faithfulness for p in expected.points],
                                       atol=1e-5)
            assert curve["cpr"]["value"] == pytest.approx(expected.cpr, abs=1e-5)
            assert curve["cmd"]["value"] == pytest.approx(expected.cmd, abs=1e-5)
            assert (cell["full"], cell["empty"]) == pytest.approx((expected.full, expected.empty), abs=1e-5)
        assert cell["cpr"] == cell["curves"]["signed"]["cpr"] and cell["cmd"] == cell["curves"]["magnitude"]["cmd"]
        sizes = sorted({*MIB_FRACTIONS, *acdc.grid.cell.SOUGHT})
        fine = faithfulness_curve(model, scores, held_out, by=cell["by"], fractions=sizes).smallest_faithful()
        smallest = cell["smallest"] and cell["smallest"]["n_edges"]
        assert smallest == (fine.n_edges if fine is not None and fine.fraction < 1 else None)
    assert found["eap"]["by"] == "magnitude" and found["eap_ig:steps=2,by=signed"]["by"] == "signed"


def test_a_search_is_measured_at_its_own_circuit(given, parts):
    model, train, held_out = parts
    cell = cells(given / "out")[METHOD_TEXTS[2]]
    batches = replace(train, examples=train.examples[:4]).batches(TOKENIZER)
    ranking = METHODS["eap_ig"](model, batches)
    shortlist = ranking.top(int(0.3 * ranking.graph.n_edges), by="magnitude")
    scores = METHODS["acdc"](model, batches, threshold=0.02, shortlist=shortlist)
    expected = faithfulness(model, scores.above(0.02, by="signed"), held_out)
    assert cell["own"]["n_edges"] == expected.n_edges > 0
    assert cell["own"]["f"] == pytest.approx(expected.faithfulness, abs=1e-5)
    assert (cell["curves"], cell["cpr"], cell["n_prompts"], cell["loss"]) == ({}, None, 4, "kl_divergence")


def test_prompts_are_divided_without_overlap(given):
    train, test = split_prompts(str(given / "task.json"), TOKENIZER, N, N_TEST, 0)
    assert (len(train), len(test)) == (N, N_TEST)
    assert not {e.clean for e in train.examples} & {e.clean for e in test.examples}
    assert split_prompts(str(given / "task.json"), TOKENIZER, N, N_TEST, 1)[1] != test
    train, test = split_prompts("ioi", TOKENIZER, 5, 5, 3)
    drawn = list(load_task("ioi", TOKENIZER, n=10, seed=3).examples)
    random.Random(3).shuffle(drawn)
    assert (*train.examples, *test.examples) == tuple(drawn)
    with pytest.raises(AcdcError, match="has 14 different prompts; --prompts 10 and --test-prompts 5 ask for 15"):
        split_prompts(str(given / "task.json"), TOKENIZER, 10, 5, 0)


def test_built_in_tasks(given, tmp_path):
    asked = command(given, tmp_path / "out", methods=["eap"])
    asked[asked.index("--tasks") + 1] = "ioi"
    run(*asked)
    (cell,) = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    assert cell["task_sha256"] is None and "metric" in cell.get("message", "metric")  # the model may not be able to


def test_a_finished_grid_is_not_measured_again(given, monkeypatch):
    before = (given / "out" / "results.json").read_text()
    monkeypatch.setattr(acdc.models, "load_model", None)
    status, out, err = run(*command(given, given / "out"))
    assert status == 0 and out.count("there already") == 4 and not err
    assert (given / "out" / "results.json").read_text() == before


def test_other_settings_and_other_folders_are_refused(given, tmp_path):
    status, _, err = run(*command(given, given / "out", ablation="mean"))
    assert status == 1 and "holds results of other settings: ablation 'resample' there and 'mean' here" in err
    (tmp_path / "mine").write_text("x")
    status, _, err = run(*command(given, tmp_path))
    assert status == 1 and "no folder of benchmark results" in err and [p.name for p in tmp_path.iterdir()] == ["mine"]
    shutil.copytree(given / "out", tmp_path / "out")
    (next((tmp_path / "out" / "cells").glob("*eap-0*"))).write_text("{")
    status, _, err = run(*command(given, tmp_path / "out"))
    assert status == 1 and "is damaged" in err


@pytest.mark.parametrize(("damage", "field"), [
    ({"model": "\ud800"}, "model"),
    ({"own": {"fraction": None, "n_edges": 5, "f": 0.5, "interval": [None, None]}}, "curves"),
])
def test_a_cell_that_says_what_none_can_is_refused(given, tmp_path, damage, field):
    shutil.copytree(given / "out", tmp_path / "out")
    stored = next((tmp_path / "out" / "cells").glob("*-eap-0*"))
    stored.write_text(json.dumps({**json.loads(stored.read_text()), **damage}))
    status, _, err = run(*command(given, tmp_path / "out"))
    assert status == 1 and f"is damaged ({field} is missing, or is not" in err


def test_names_of_pictures_are_plain(given, tmp_path):
    names = {"model": "x" * 400 + "$\\frac{$\0", "task": "../<b>\x1b[2J\n"}
    write_tables(tmp_path, [{**cells(given / "out")["eap"], **names}],
                 json.loads((given / "out" / "settings.json").read_text()))
    assert {path.name for path in tmp_path.glob("*.png")} == {"x" * 60 + "-b_2J.png", "overview.png"}


def test_other_weights_under_the_same_name_are_refused(given, tmp_path):
    save_model(tmp_path / "model", seed=9)
    shutil.copy(given / "task.json", tmp_path)
    folder = GridFolder(tmp_path / "out", {})
    status, _, err = run(*command(tmp_path, folder.path, methods=["random"]))
    stored = next((folder.path / "cells").iterdir())
    stored.write_text(json.dumps({**json.loads(stored.read_text()), "model_sha256": "0" * 64}))
    status, _, err = run(*command(tmp_path, folder.path, methods=["random", "eap"]))
    assert status == 1 and "with other weights" in err


def test_a_method_that_refuses_does_not_stop_the_others(given, tmp_path):
    arguments = command(given, tmp_path / "out", methods=["eap_ig", "eap"], ablation="zero")
    status, out, err = run(*arguments)
    found = cells(tmp_path / "out")
    assert status == 0 and "failed: model, task, eap_ig" in err
    assert (found["eap_ig"]["status"], found["eap"]["status"]) == ("failed", "done")
    assert "zero ablation" in found["eap_ig"]["message"] and found["eap_ig"]["message"] in out
    assert "- failed: eap\\_ig: " in (tmp_path / "out" / "results.md").read_text()
    assert "failed" in next(csv.DictReader(io.StringIO((tmp_path / "out" / "results.csv").read_text())))["status"]
    assert run(*arguments)[1].count("there already") == 2
    assert run(*arguments, "--retry-failed")[1].count("there already") == 1


def test_a_mistake_in_a_method_is_stored_and_said(given, tmp_path, monkeypatch):
    real = acdc.grid.cell.run_cell
    monkeypatch.setattr(acdc.grid.cell, "run_cell", lambda model, run, *a, **k: (
        real(model, run, *a, **k) if run.method == "random" else 1 / 0))
    status, _, err = run(*command(given, tmp_path / "out", methods=["eap", "random"]))
    found = cells(tmp_path / "out")
    assert status == 1 and "1 of 2 cells failed in an unforeseen way" in err
    assert found["eap"]["error"] == "ZeroDivisionError" and "run_cell" in "".join(found["eap"]["traceback"])
    assert found["random"]["status"] == "done"


def test_a_task_that_cannot_be_had_fails_alone(given, tmp_path):
    arguments = command(given, tmp_path / "out", methods=["eap", "random"], prompts=N + 1)
    status, _, _ = run(*arguments)
    found = cells(tmp_path / "out")
    assert status == 0 and {cell["status"] for cell in found.values()} == {"failed"}
    assert "different prompts" in found["random"]["message"]


def test_an_interrupt_leaves_what_is_finished(given, tmp_path, monkeypatch):
    real = acdc.grid.cell.run_cell

    def interrupted(model, run, *arguments, **options):
        if run.method == "random":
            raise KeyboardInterrupt
        return real(model, run, *arguments, **options)

    arguments = command(given, tmp_path / "out", methods=["eap", "random"])
    monkeypatch.setattr(acdc.grid.cell, "run_cell", interrupted)
    status, _, err = run(*arguments)
    assert status == 130 and "1 finished cells are in" in err and list(cells(tmp_path / "out")) == ["eap"]
    assert not [path for path in (tmp_path / "out").rglob(".acdc-*")]
    monkeypatch.setattr(acdc.grid.cell, "run_cell", real)
    status, out, _ = run(*arguments)
    assert status == 0 and out.count("there already") == 1 and list(cells(tmp_path / "out")) == ["eap", "random"]


@pytest.mark.parametrize(("text", "expected"), [
    ("eap", MethodRun("eap", "eap")),
    (" edge_pruning:sparsity=0.99,steps=300", MethodRun(
        "edge_pruning:sparsity=0.99,steps=300", "edge_pruning", {"sparsity": 0.99, "steps": 300}, "kl_divergence",
        "signed")),
    ("eap_ig:loss=kl_divergence,prompts=4", MethodRun(
        "eap_ig:loss=kl_divergence,prompts=4", "eap_ig", {}, "kl_divergence", "signed", 4)),
    ("ensemble:methods=eap+gim", MethodRun("ensemble:methods=eap+gim", "ensemble", {"methods": ("eap", "gim")})),
    ("hisp:normalise=false", MethodRun("hisp:normalise=false", "hisp", {"normalise": False})),
    ("node_attribution:steps=5", MethodRun("node_attribution:steps=5", "node_attribution", {"steps": 5})),
    ("acdc:shortlist=5%,by=signed", MethodRun("acdc:shortlist=5%,by=signed", "acdc", {}, "kl_divergence", "signed",
                                              shortlist="5%")),
])
def test_texts_of_methods(text, expected):
    assert parse_method(text) == expected


@pytest.mark.parametrize(("text", "message"), [
    ("eep", "unknown method 'eep'. Did you mean 'eap'"), ("eap:steps=3", "unknown option of 'eap' 'steps'"),
    ("eap_ig:steps", "'steps' is no option=value"), ("eap_ig:steps=2.5", "steps='2.5' must be a whole number"),
    ("hisp:normalise=maybe", "must be true or false"), ("gim:gate=inf", "must be a finite number"),
    ("eap:loss=nothing", "unknown metric 'nothing'"), ("eap:by=luck", "unknown ranking 'luck'"),
    ("eap:prompts=0", "must be at least 1"), ("acdc:shortlist=x", "neither a number of edges"),
    ("eap:shortlist=5%", "unknown option of 'eap' 'shortlist'"), ("eap:ablation=zero", "unknown option"),
    ("ensemble:methods=eap+what", "unknown method 'what'"),
])
def test_texts_that_mean_no_method(text, message):
    with pytest.raises(AcdcError) as error:
        parse_method(text)
    assert message in str(error.value)


def test_intervals_are_over_the_held_out_prompts(given, parts):
    model, train, batches = parts
    bench = prepare_bench(model, batches, METRICS["logit_difference"])
    scores = METHODS["eap"](model, train.batches(TOKENIZER))
    gains = bench.gains([scores.top(int(x * scores.graph.n_edges), by="signed") for x in MIB_FRACTIONS])
    curve = cells(given / "out")["eap"]["curves"]["signed"]
    for point, estimate in zip(curve["points"], bench.estimates(gains), strict=True):
        assert point["interval"] == pytest.approx([estimate.low, estimate.high], abs=1e-3)
    drawn = [Curve("signed", "", 0.0, 0.0, 0, tuple(map(CurvePoint, MIB_FRACTIONS, [0] * 10, [0.0] * 10, f)))
             for f in bench.draws(gains).T.tolist()]
    for name in ("cpr", "cmd"):
        expected = interval(np.array([[getattr(one, name) for one in drawn]]), bench.n_prompts)[0]
        assert curve[name]["interval"] == pytest.approx(expected.tolist(), abs=1e-3)


def test_the_grid_on_the_page_of_results(given, tmp_path):
    grid_record.write(given / "out", tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert (tmp_path / "grid.png").read_bytes() == (given / "out" / "overview.png").read_bytes()
    assert "## Methods by tasks: f at 1% of the edges" in page and "## task in model" in page
    own = cells(given / "out")[METHOD_TEXTS[2]]["own"]
    assert f"its own: {own['n_edges']}" in page
    record = json.loads((tmp_path / "grid_model_task.json").read_text())
    assert [line[0].split(" |s|")[0] for line in record["rows"]] == list(METHOD_TEXTS)
    words = record["command"]
    assert f"--prompts {N} --test-prompts {N_TEST} --ablation resample" in words and "'" not in words
    with pytest.raises(AcdcError, match="holds no results.json"):
        grid_record.write(tmp_path, tmp_path)


def test_peak_memory_counts_anew():
    if not reset_peak_memory():
        pytest.skip("this system cannot reset the peak")
    before = peak_memory()
    taken = np.ones(2**26)  # half a GiB
    assert peak_memory() - before > 0.45
    del taken
    assert reset_peak_memory() and peak_memory() - before < 0.1

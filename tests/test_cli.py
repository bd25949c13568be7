"""The command line writes what the library computes; every mistake is one line, and leaves nothing behind."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import GROUPED
from tiny_tokenizer import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import acdc.cli
from acdc.architectures import ARCHITECTURES
from acdc.cli import main
from acdc.commands.discover import OUTPUTS
from acdc.discovery import METHODS, masks
from acdc.evaluation.battery import Settings, run_battery
from acdc.evaluation.bench import prepare_bench
from acdc.evaluation.calibration import calibrate
from acdc.evaluation.curve import curves_of
from acdc.evaluation.difference import difference
from acdc.evaluation.faithfulness import faithfulness, faithfulness_curve
from acdc.evaluation.task_check import check_task
from acdc.export.json_file import circuit_from_json, circuit_to_json
from acdc.live_state import LiveState
from acdc.metrics import METRICS
from acdc.models import load_model, weights_hash
from acdc.optimal_ablation import learn_ablation
from acdc.packaged import PACKAGED
from acdc.tasks import TASKS, load_task
from acdc.tasks.ioi import TEMPLATES, ioi

TOKENIZER = tiny_tokenizer()


def run(*arguments):
    """Exit status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def save_model(folder, n_layers=2, seed=4):  # a model whose curve comes near 1 before its end
    config = LlamaConfig(**{**GROUPED, "num_hidden_layers": n_layers, "vocab_size": len(TOKENIZER)})
    hf, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in hf.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    hf.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return hf


def solvable(hf, n, seed):
    """IOI prompts of two lengths; the answer is whichever name the model likes more for the second subject."""
    rows = []
    for example in ioi(TOKENIZER, n=n, seed=seed, templates=(TEMPLATES[0], TEMPLATES[17]), same_length=False).examples:
        tokens = (torch.tensor([TOKENIZER(text)["input_ids"]]) for text in (example.clean, example.corrupted))
        with torch.no_grad():
            clean, corrupted = (hf(ids).logits[0, -1] for ids in tokens)
        names = [example.answer, example.wrong]
        gain = [float((clean - corrupted)[TOKENIZER("to" + name)["input_ids"][-1]]) for name in names]
        answer, wrong = names if gain[0] > gain[1] else names[::-1]
        rows.append({"clean": example.clean, "corrupted": example.corrupted, "answer": answer, "wrong": wrong,
                     "template": example.template, "roles": dict(example.roles)})
    return rows


@pytest.fixture(scope="session")
def given(tmp_path_factory):
    """A tiny model, task files for it, a circuit that `discover` found, and what the library says to the same."""
    base = tmp_path_factory.mktemp("given")
    hf = save_model(base / "model")
    rows = solvable(hf, 5, seed=0)
    (base / "task.json").write_text(json.dumps(rows))
    (base / "other.json").write_text(json.dumps(solvable(hf, 4, seed=1)))
    arguments = ["discover", "--model", base / "model", "--task", base / "task.json", "--out", base / "found",
                 "--batch-size", 3]
    before = sorted(base.iterdir())
    status, out, err = run(*arguments)
    assert status == 0, err
    assert sorted(base.iterdir()) == sorted([*before, base / "found"])
    model = load_model(base / "model")
    batches = load_task(base / "task.json", TOKENIZER).batches(TOKENIZER, batch_size=3)
    assert len({len(batch) for batch in batches}) > 1 and len({batch.clean.shape[1] for batch in batches}) > 1
    scores = METHODS["eap_ig"](model, batches, per_prompt=True)
    return SimpleNamespace(
        base=base, rows=rows, model=model, batches=batches, scores=scores, arguments=list(map(str, arguments)), out=out,
        circuit=read(base / "found"), discover=arguments[:5],
    )


def read(folder):
    return circuit_from_json((folder / "circuit.json").read_text())


FEW = (0.2, 0.5, 1.0)


@pytest.fixture
def quick(monkeypatch):
    """No plan, no pictures and few points of the curve: what takes most of the time of a tiny run."""
    monkeypatch.setattr("acdc.commands.discover.stages", lambda *args: [])
    monkeypatch.setattr("acdc.commands.discover.planned", lambda arguments, model, batches, *_: batches)
    curve = partial(faithfulness_curve, fractions=FEW)
    monkeypatch.setattr("acdc.evaluation.faithfulness.faithfulness_curve", curve)
    monkeypatch.setattr("acdc.export.figure.circuit_figure", lambda *args, **kwargs: None)
    monkeypatch.setattr("acdc.export.curve_figure.curve_figure", lambda *args, **kwargs: None)
    monkeypatch.setattr("acdc.export.figure.save_figure", lambda figure, path: path.write_bytes(b"drawn"))


def test_discover_writes_its_files(given):
    folder = given.base / "found"
    assert sorted(path.name for path in folder.iterdir()) == sorted(OUTPUTS)
    text = (folder / "circuit.json").read_text()
    assert circuit_to_json(circuit_from_json(text)) == text
    for name in ("circuit.png", "curve.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n")
    assert ElementTree.parse(folder / "circuit.svg").getroot().tag.endswith("svg")
    assert f"{given.circuit.provenance['faithfulness']:.4g}" in (folder / "report.md").read_text()


def test_what_is_written_is_what_the_library_computes(given):
    circuit, known = given.circuit, given.circuit.provenance
    assert circuit.scores == given.scores
    result = faithfulness(given.model, circuit, given.batches)
    assert (known["faithfulness"], known["clean_metric"], known["corrupted_metric"], known["circuit_metric"]) == (
        result.faithfulness, result.full, result.empty, result.circuit)
    assert known["n_prompts"] == result.n_prompts == 5
    assert known["model_sha256"] == weights_hash(given.model)
    assert known["example"].items() <= given.rows[0].items()
    assert known["command"] == shlex.join(["acdc", *given.arguments])
    assert f"faithfulness {result.faithfulness:.4f}" in given.out
    assert f"written to {given.base / 'found'}" in given.out


def test_without_a_size_the_smallest_faithful_point_of_the_curve_is_taken(given):
    curve = faithfulness_curve(given.model, given.scores, given.batches, by="magnitude")
    within = [point for point in curve.points if 0.9 <= point.faithfulness <= 1.1]
    size = min(point.n_edges for point in within)
    assert 0 < size < given.scores.graph.n_edges
    assert (given.circuit.kept == given.scores.top(size, by="magnitude").kept).all()


SELECTIONS = {
    "--size 50": lambda scores, curve: scores.top(50, by="magnitude"),
    "--size 7%": lambda scores, curve: scores.top(7, by="magnitude"),
    "--size 0": lambda scores, curve: scores.top(0, by="magnitude"),
    "--above 0.05": lambda scores, curve: scores.above(0.05, by="magnitude"),
    "--above -0.01 --by signed": lambda scores, curve: scores.above(-0.01, by="signed"),
    "--by signed": lambda scores, curve: scores.top(curve("signed").smallest_faithful().n_edges, by="signed"),
    "--greedy --size 20 --by signed": lambda scores, curve: scores.greedy(20, by="signed"),
    "--size 30 --drop-dangling": lambda scores, curve: scores.top(30, by="magnitude").drop_dangling(),
}


@pytest.mark.parametrize("options", SELECTIONS)
def test_selections(given, tmp_path, quick, options):
    status, _, err = run(*given.discover, "--out", tmp_path / "out", "--batch-size", 3, *options.split())
    assert status == 0, err

    def curve(by):
        return faithfulness_curve(given.model, given.scores, given.batches, by=by, fractions=FEW)

    circuit, expected = read(tmp_path / "out"), SELECTIONS[options](given.scores, curve)
    assert circuit.scores == given.scores
    assert np.array_equal(circuit.kept, expected.kept)
    assert circuit.provenance["faithfulness"] == faithfulness(given.model, circuit, given.batches).faithfulness
    assert ("dangling" in circuit.provenance["selection"]) == ("dangling" in options)
    assert curves_of(circuit.provenance) == [curve(by) for by in ("magnitude", "signed")]


SETTINGS = {
    "--method exact --size 9 --metric kl_divergence --ablation zero": (
        "exact", {"metric": "kl_divergence"}, {"ablation": "zero"}),
    "--method eap --size 9 --ablation mean": ("eap", {"per_prompt": True}, {"ablation": "mean"}),
    "--steps 2 --size 9 --kv group": ("eap_ig", {"steps": 2, "kv": "group", "per_prompt": True}, {}),
    "--size 9 --positions roles": ("eap_ig", {"positions": "roles", "per_prompt": True}, {}),
    "--method gim --temperature 3 --gate 1 --size 9": (
        "gim", {"temperature": 3.0, "gate": 1.0, "per_prompt": True}, {}),
    "--method relp --pattern constant --size 9": ("relp", {"pattern": "constant", "per_prompt": True}, {}),
    "--method edge_pruning --steps 3 --prompts-per-step 2 --size 9": (
        "edge_pruning", {"steps": 3, "prompts_per_step": 2, "loss": "kl_divergence"}, {}),
    "--method edge_pruning --steps 3 --prompts-per-step 2 --size 9 --metric logit_difference": (
        "edge_pruning", {"steps": 3, "prompts_per_step": 2}, {}),
    "--method acdc --threshold 0.2 --loss logit_difference": ("acdc", {"threshold": 0.2}, {}),
    "--method ensemble --methods exact,eap --combine rank --size 9": (
        "ensemble", {"methods": ["exact", "eap"], "combine": "rank"}, {}),
    "--method eap_ig_activations --steps 2 --gradients all --size 9": (
        "eap_ig_activations", {"steps": 2, "gradients": "all", "per_prompt": True}, {}),
    "--method hisp --no-normalise --size 9": ("hisp", {"normalise": False}, {}),
    "--method node_attribution --steps 2 --size 9": ("node_attribution", {"steps": 2}, {}),
    "--method random --seed 3 --size 9": ("random", {"seed": 3}, {}),
}


@pytest.mark.parametrize("options", SETTINGS)
def test_settings_reach_the_method_and_the_measurement(given, tmp_path, quick, options):
    status, _, err = run(*given.discover, "--out", tmp_path / "out", "--batch-size", 3, *options.split())
    assert status == 0, err
    method, settings, ablation = SETTINGS[options]
    metric = METRICS[settings.get("metric", "logit_difference")]
    own = {"loss": metric.name, **settings}
    loss = METRICS[own.pop("loss")]
    scores = METHODS[method](given.model, given.batches, **{**own, "metric": loss}, **ablation)
    expected = scores.top(9, by="magnitude") if "9" in options else scores.above(0.2, by="signed")
    circuit = read(tmp_path / "out")
    assert circuit.scores == scores
    assert np.array_equal(circuit.kept, expected.kept) and 0 < circuit.n_edges < circuit.graph.n_edges
    result = faithfulness(given.model, circuit, given.batches, metric, **ablation)
    assert circuit.provenance["faithfulness"] == result.faithfulness


def test_evaluate_gives_what_discover_gave(given, tmp_path):
    status, out, _ = run("evaluate", given.base / "found", "--batch-size", 3, "--curve", "--out", tmp_path / "e.json")
    assert status == 0
    record, known = json.loads((tmp_path / "e.json").read_text()), given.circuit.provenance
    assert record["faithfulness"] == known["faithfulness"]
    assert f"faithfulness {known['faithfulness']:.4f}" in out
    assert (record["n_edges"], record["n_prompts"]) == (given.circuit.n_edges, 5)
    for measured, by in zip(record["curves"], ("magnitude", "signed"), strict=True):
        curve = faithfulness_curve(given.model, given.scores, given.batches, by=by)
        assert measured == curve.summary()
        for value in vars(curve.areas()).values():
            assert f"{value:.3f}" in out
    assert [path.name for path in tmp_path.iterdir()] == ["e.json"]
    at_once, _, _ = run("evaluate", given.base / "found" / "circuit.json", "--out", tmp_path / "e.json")
    again = json.loads((tmp_path / "e.json").read_text())
    assert at_once == 0 and again["faithfulness"] == pytest.approx(known["faithfulness"], abs=1e-4)


def test_evaluate_on_other_prompts_with_another_metric(given, tmp_path):
    status, _, _ = run("evaluate", given.base / "found", "--task", given.base / "other.json", "--metric",
                       "kl_divergence", "--ablation", "mean", "--out", tmp_path / "e.json")
    assert status == 0
    batches = load_task(given.base / "other.json", TOKENIZER).batches(TOKENIZER)
    result = faithfulness(given.model, given.circuit, batches, METRICS["kl_divergence"], ablation="mean")
    record = json.loads((tmp_path / "e.json").read_text())
    assert (record["faithfulness"], record["n_prompts"]) == (result.faithfulness, 4)


def test_evaluate_learns_constants_on_the_prompts_that_the_circuit_was_found_with(given, tmp_path):
    asked = ("evaluate", given.base / "found", "--batch-size", 3, "--ablation", "optimal", "--metric", "kl_divergence",
             "--out", tmp_path / "e.json")
    for name, more in (("task.json", "with; give --seed or --task"), ("other.json", "with\n")):
        task = given.base / name
        status, out, _ = run(*asked, "--task", task)
        assert status == 0
        assert f"learned by kl_divergence on the 5 prompts that the circuit was found {more}" in out
        learned = learn_ablation(given.model, given.batches, circuit=given.circuit)
        batches = load_task(task, TOKENIZER).batches(TOKENIZER, batch_size=3)
        result = faithfulness(given.model, given.circuit, batches, METRICS["kl_divergence"], ablation=learned)
        record = json.loads((tmp_path / "e.json").read_text())
        assert (record["circuit"], record["empty"], record["ablation"]) == (result.circuit, result.empty, "optimal")


def test_constants_are_refused_where_they_cannot_be_learned(given, tmp_path):
    message, _ = refused(tmp_path, *given.discover, "--out", tmp_path / "out", "--ablation", "optimal")
    assert "acdc evaluate CIRCUIT --ablation optimal" in message
    message, _ = refused(tmp_path, "calibrate", given.base / "found", "--ablation", "optimal")
    assert "'optimal' is learned for one circuit" in message
    message, _ = refused(tmp_path, "evaluate", given.base / "found", "--ablation", "optimal", "--curve")
    assert "each size would need constants of its own" in message
    text = edited("n_prompts", None)((given.base / "found" / "circuit.json").read_text())
    (tmp_path / "circuit.json").write_bytes(text)
    message, _ = refused(tmp_path, "evaluate", tmp_path / "circuit.json", "--ablation", "optimal")
    assert "does not say by its n_prompts which prompts" in message


def test_calibrate_gives_what_the_library_gives(given, tmp_path):
    status, out, err = run("calibrate", given.base / "found", "--batch-size", 3, "--edges", 60, "--seed", 2, "--out",
                           tmp_path / "c.json")
    assert status == 0, err
    result = calibrate(given.model, given.scores, given.batches, n=60, size=given.circuit.n_edges, seed=2)
    record = json.loads((tmp_path / "c.json").read_text())
    assert result.summary().items() <= record.items()
    assert [row["effect"] for row in record["edges"]] == result.sample.effect.tolist()
    assert {row["edge"]: row["score"] for row in record["edges"]} == {
        name: given.scores[name] for name in map(given.scores.graph.edge_name, result.sample.edge.tolist())}
    for row in (result.overall, *result.kinds):
        line = next(line for line in out.splitlines() if line.split()[0] == row.kind)
        shown = [None if cell == "-" else float(cell) for cell in line.split()[1:5]]
        assert shown == [row.n_edges, row.n_sampled, *(
            None if value is None else pytest.approx(value, abs=5e-4) for value in (row.pearson, row.spearman))]
    assert f"top {given.circuit.n_edges} by |score|" in out


def test_calibrate_takes_the_metric_that_the_scores_are_of(given, tmp_path, quick):
    options = ("--size", 9, "--loss", "kl_divergence", "--ablation", "mean", "--batch-size", 3, "--calibrate", 50)
    assert run(*given.discover, "--out", tmp_path / "out", *options)[0] == 0
    circuit = read(tmp_path / "out")
    result = calibrate(given.model, circuit.scores, given.batches, METRICS["kl_divergence"], n=50, size=9,
                       ablation="mean")
    assert circuit.provenance["calibration"] == result.summary()
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"50 edges patched; Pearson {result.overall.pearson:.3f}" in report and "calibrate" in report
    assert run("calibrate", tmp_path / "out", "--batch-size", 3, "--edges", 50, "--out", tmp_path / "c.json")[0] == 0
    again = json.loads((tmp_path / "c.json").read_text())
    assert result.summary().items() <= again.items() and again["metric"] == "kl_divergence"


def test_show_tasks_models_and_help(given):
    status, out, err = run("show", given.base / "found", "--edges", 3, "--paths", 1)
    edges = np.argsort(-np.abs(given.scores.values), kind="stable")[:4]
    names = [given.scores.graph.edge_name(int(edge)) for edge in edges]
    assert (status, err) == (0, "") and [name in out for name in names] == [True] * 3 + [False]
    assert all(f"\n{name} " in f"\n{run('tasks')[1]}" for name in TASKS)
    assert all(name in run("models")[1] for name in (*ARCHITECTURES, *PACKAGED))
    for command in ("discover", "evaluate", "calibrate", "show", "tasks", "models"):
        status, out, _ = run(command, "--help")
        assert status == 0 and "None" not in out and "False" not in out


def test_tasks_are_measured(given, tmp_path):
    """With a tokenizer of few words only two can be made; the others say why."""
    batches = load_task("ioi", TOKENIZER, n=3).batches(TOKENIZER)
    check = check_task(given.model, batches)
    status, out, err = run("tasks", "--model", given.base / "model", "--prompts", 3, "--out", tmp_path / "t.json")
    assert status == 0, err
    records = {record["task"]: record for record in json.loads((tmp_path / "t.json").read_text())}
    assert records.keys() == TASKS.keys() and [name for name in TASKS if "cannot" not in records[name]] == [
        "ioi", "induction"]
    assert vars(check).items() <= records["ioi"].items() and records["ioi"]["able"] == check.able
    assert f"{check.clean:.3f}" in out and "capitals " in out and "cannot be made: capitals needs 2 or more" in out
    status, out, _ = run("tasks", "ioi", "--tokenizer", given.base / "model")
    task = load_task("ioi", TOKENIZER, n=4)
    assert status == 0 and "Wang et al. 2022" in out and repr(task.examples[0].clean) in out
    assert f"{task.provenance['possible']:.1e}" in out and "S2 " in out
    for prompts in (["--prompts", 5], []):  # all that the file holds
        status, out, _ = run("tasks", given.base / "task.json", "--model", given.base / "model", *prompts)
        assert status == 0 and f"{check_task(given.model, given.batches).clean:.3f}" in out


def test_mistakes_about_tasks(given, tmp_path):
    for arguments, message in (
        (("--out", tmp_path / "t.json"), "--out needs --tokenizer or --model"),
        (("--model", "x", "--tokenizer", "y"), "give one"), (("--prompts", 0), "--prompts 0: it must be at least 1"),
        (("ioo", "--tokenizer", given.base / "model"), "unknown task 'ioo'. Did you mean 'ioi'"),
        (("--tokenizer", tmp_path), "cannot load a tokenizer for"),
    ):
        assert message in refused(tmp_path, "tasks", *arguments)[0]


def test_a_circuit_found_on_one_part_is_measured_on_the_other(given, tmp_path, quick):
    rows = [{**row, "template": str(i % 2)} for i, row in enumerate(given.rows)]
    (tmp_path / "task.json").write_text(json.dumps(rows))
    options = ("--task", tmp_path / "task.json", "--size", 9, "--split", "train", "--out", tmp_path / "found")
    assert run(*given.discover[:3], *options)[0] == 0
    circuit, known = read(tmp_path / "found"), read(tmp_path / "found").provenance
    assert (known["split"], known["split_by"], known["n_prompts"]) == ("train", "template", 3)
    for asked, split in ((("--split", "test"), "test"), ((), "train")):
        status, out, err = run("evaluate", tmp_path / "found", *asked, "--out", tmp_path / "e.json")
        assert status == 0, err
        batches = load_task(tmp_path / "task.json", TOKENIZER, split=split).batches(TOKENIZER)
        record = json.loads((tmp_path / "e.json").read_text())
        assert record["faithfulness"] == faithfulness(given.model, circuit, batches).faithfulness
        assert record["split"] == split and f"split {split}" in out


def test_a_circuit_file_cannot_have_python_run(given, tmp_path):
    text = edited("task_source", str(tmp_path / "mine.py"))((given.base / "found" / "circuit.json").read_text())
    (tmp_path / "circuit.json").write_bytes(text)
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    message, _ = refused(tmp_path, "evaluate", tmp_path / "circuit.json")
    assert "only run if you ask for it" in message


def test_the_seed_chooses_the_prompts(given, tmp_path, quick):
    ioi_by_kl = ("--task", "ioi", "--metric", "kl_divergence", "--prompts", 2)  # which any model separates
    examples = []
    for seed in (3, 4):
        out = tmp_path / str(seed)
        assert run(*given.discover, *ioi_by_kl, "--size", 9, "--seed", seed, "--out", out)[0] == 0
        known, first = read(out).provenance, ioi(TOKENIZER, n=2, seed=seed).examples[0]
        assert (known["seed"], known["example"]) == (seed, {field: getattr(first, field) for field in known["example"]})
        assert run("evaluate", out, "--out", tmp_path / "e.json")[0] == 0
        examples.append((known["example"], json.loads((tmp_path / "e.json").read_text())["faithfulness"]))
        assert examples[-1][1] == known["faithfulness"]
    assert examples[0] != examples[1]


def test_kept_prompt_scores_give_diff_the_interval_of_memory(given, tmp_path, quick):
    circuits = []
    for method in ("eap_ig", "eap"):
        asked = (*given.arguments[:5], "--batch-size", 3, "--method", method, "--size", 20, "--keep-prompt-scores")
        assert run(*asked, "--resamples", 0 if method == "eap" else 1000, "--out", tmp_path / method)[0] == 0
        circuit, alone = read(tmp_path / method), METHODS[method](given.model, given.batches, per_prompt=True)
        assert circuit.scores == alone and ("uncertainty" in circuit.provenance) == (method == "eap_ig")
        circuits.append(replace(circuit, scores=alone))
    assert run("diff", tmp_path / "eap_ig", tmp_path / "eap", "--out", tmp_path / "diff")[0] == 0
    found = json.loads((tmp_path / "diff" / "diff.json").read_text())["interval"]
    expected = difference(*circuits).interval
    assert expected is not None and expected.paired and found == vars(expected)
    span = f"{expected.low:.3f} to {expected.high:.3f}"
    page, svg = ((tmp_path / "diff" / name).read_text() for name in ("diff.md", "diff.svg"))
    assert f"| {span} |" in page and span in (tmp_path / "diff" / "diff.html").read_text() and span in svg
    assert run(*given.discover, "--size", 20, "--out", tmp_path / "eap", "--overwrite")[0] == 0
    assert not (tmp_path / "eap" / "prompt_scores.safetensors").exists()  # it was of the circuit that is replaced
    said = run("diff", tmp_path / "eap_ig", tmp_path / "eap")[1]
    assert "of eap_ig alone: eap comes without the scores of single prompts, and is held as it is" in said


def test_overwrite_replaces_the_circuit_and_nothing_else(given, tmp_path, quick):
    out = tmp_path / "made" / "for" / "it"
    assert run(*given.discover, "--size", 3, "--out", out)[0] == 0
    (out / "notes.txt").write_text("mine")
    assert run(*given.discover, "--size", 4, "--out", out, "--overwrite")[0] == 0
    assert read(out).n_edges == 4 and (out / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == sorted([*OUTPUTS, "notes.txt"])
    assert [path.name for path in out.parent.iterdir()] == ["it"]


def test_what_was_said_of_a_circuit_that_is_replaced_is_set_aside(given, tmp_path, quick):
    out = tmp_path / "out"
    assert run(*given.discover, "--size", 3, "--out", out)[0] == 0
    for name in ("annotations.json", "tests.json", "masks.png"):
        (out / name).write_text("old")
    status, _, err = run(*given.discover, "--size", 4, "--out", out, "--overwrite")
    assert status == 0 and f"note: {out / 'annotations.json'} was of the circuit that is replaced" in err
    assert {path.name for path in out.iterdir()} - set(OUTPUTS) == {"annotations.before.json", "tests.before.json"}
    assert (out / "annotations.before.json").read_text() == "old"


@pytest.mark.parametrize("options", [
    ("evaluate", "circuits/mine"), ("calibrate", "circuits/mine/circuit.json"), ("view", "circuits/mine"),
    ("export", "circuits/mine", "--to", "dot"), ("compare", "circuits/mine", "ioi")])
def test_what_is_read_is_not_replaced(given, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(given.base / "found", tmp_path / "circuits" / "mine")
    (tmp_path / "link.json").symlink_to("circuits/mine/circuit.json")
    for out in ("circuits/mine/circuit.json", "link.json"):
        assert "is the circuit that is read" in refused(tmp_path, *options, "--out", out)[0]


def test_prompts_are_not_replaced_by_what_is_measured_on_them(given, tmp_path):
    shutil.copy(given.base / "task.json", tmp_path)
    task = tmp_path / "task.json"
    assert "is the task that" in refused(tmp_path, "evaluate", given.base / "found", "--task", task, "--out", task)[0]


def refused(out_folder, *arguments, status=1):
    """The one line of the refusal, without `acdc: `; nothing else but progress is said, and nothing is written."""
    before = sorted(out_folder.rglob("*"))
    found, out, err = run(*arguments)
    *progress, message = err.splitlines()
    assert found == status and out == ""
    assert message.startswith("acdc: ") and len(message) > len("acdc: ")
    assert all(line.startswith(("loading ", "plan: ")) or " pairs of prompts such as " in line for line in progress)
    assert sorted(out_folder.rglob("*")) == before
    return message.removeprefix("acdc: "), progress


BAD_VALUES = {
    "--task nonsense": "unknown task 'nonsense'",
    "--task absent.json": "there is no file of this name",
    "--method eap_gi": "unknown method 'eap_gi'. Did you mean 'eap_ig'?",
    "--metric logit_diff": "unknown metric 'logit_diff'",
    "--ablation resampel": "unknown ablation 'resampel'",
    "--by size": "unknown ranking 'size'",
    "--kv heads": "unknown kv 'heads'",
    "--seed -1": "--seed -1: it must be 0 or more",
    "--dtype float16": "unknown dtype 'float16'",
    "--device gpu": "cannot use device 'gpu'",
    "--device meta": "cannot use device 'meta'",
    "--device hpu": "cannot use device 'hpu'",
    "--size abc": "neither a number of edges",
    "--size -3": "neither a number of edges",
    "--size=-1%": "neither a number of edges",
    "--size nan%": "neither a number of edges",
    "--size inf%": "neither a number of edges",
    "--size 101%": "neither a number of edges",
    "--above nan": "--above nan: it must be a finite number",
    "--calibrate 49": "--calibrate 49: patch at least 50 edges",
    "--greedy": "give that too",
    "--greedy --above 0.1": "give that too",
    "--steps 0": "--steps 0: it must be at least 1",
    "--steps 3 --method exact": "method 'exact' takes no --steps",
    "--threshold 0.1": "method 'eap_ig' takes no --threshold",
    "--combine rank": "method 'eap_ig' takes no --combine",
    "--normalise": "method 'eap_ig' takes no --normalise",
    "--method eap_ig_activations --gradients al": "unknown gradients 'al'. Did you mean 'all'?",
    "--method ensemble --combine ranks": "unknown combine 'ranks'. Did you mean 'rank'?",
    "--method ensemble --methods eap,eap_gi": "unknown method 'eap_gi'. Did you mean 'eap_ig'?",
    "--method ensemble --methods eap": "name two different methods or more",
    "--method ensemble --methods eap,acdc": "acdc cannot be a part of an ensemble",
    "--method random --seed -1": "--seed -1: method 'random' needs one of 0 or more",
    "--threshold nan --method acdc": "--threshold nan: it must be a finite number",
    "--prompts 0": "--prompts 0: it must be at least 1",
    "--batch-size 0": "--batch-size 0: it must be at least 1",
}


@pytest.mark.parametrize("options", BAD_VALUES)
def test_bad_values_are_refused_before_the_model_is_loaded(given, tmp_path, options):
    message, progress = refused(tmp_path, *given.discover, "--out", tmp_path / "out", *options.split())
    assert BAD_VALUES[options] in message
    assert progress == []


@pytest.mark.parametrize("options", ["--steps two", "--size 3 --above 1", "--colour red", "--prompts", "--size -3%"])
def test_a_wrong_command_line_is_one_line_too(given, tmp_path, options):
    message, _ = refused(tmp_path, *given.discover, "--out", tmp_path / "out", *options.split(), status=2)
    assert "`acdc discover --help`" in message or "`acdc --help`" in message


LATE = {
    "--size 111": "the graph has 110 edges",
    "--prompts 6": "holds 5. Ask for 1 to that",
    "--task ioi --prompts 999999999999": "cannot make 999,999,999,999 different ioi examples",
    "--metric accuracy": "has no gradient",
    "--ablation zero --metric kl_divergence": "Use resample or a mean",
    "--metric kl_divergence --method eap": "every score would be 0",
    "--method acdc_sequential --threshold 1e9 --size 110": "edges with a score",
}


@pytest.mark.parametrize("options", LATE)
def test_what_only_the_model_or_the_task_tells_is_refused_as_well(given, tmp_path, options):
    message, _ = refused(tmp_path, *given.discover, "--out", tmp_path / "out", *options.split())
    assert LATE[options] in message


def prompts(**changes):
    def change(rows):
        rows[1].update({"roles": {}, **changes})
        return json.dumps(rows)

    return change


BAD_TASKS = {
    "missing field": (lambda rows: json.dumps([{k: v for k, v in row.items() if k != "wrong"} for row in rows]),
                      "wrong missing"),
    "not JSON": (lambda rows: json.dumps(rows)[:-9], "not valid JSON"),
    "unequal length": (prompts(corrupted="When Adam and Amy went to the store, Alan then gave a drink to"),
                       "differ in length"),
    "answer of two tokens": (prompts(answer=" store drink"), "' store drink' is not one token after the prompt"),
    "same prompts": (prompts(clean="Then, Adam and Amy", corrupted="Then, Adam and Amy"), "are the same"),
    "too long": (prompts(clean="to" + " the" * 70, corrupted="to" + " a" * 70), "takes at most 64"),
}


@pytest.mark.parametrize("mistake", BAD_TASKS)
def test_task_files_with_mistakes(given, tmp_path, mistake):
    change, expected = BAD_TASKS[mistake]
    (tmp_path / "task.json").write_text(change(json.loads(json.dumps(given.rows))))
    message, _ = refused(tmp_path, *given.discover, "--task", tmp_path / "task.json", "--out", tmp_path / "out")
    assert expected in message


def test_a_task_that_the_model_cannot_do_names_the_worst_prompt(given, tmp_path):
    turned = [{**row, "answer": row["wrong"], "wrong": row["answer"]} for row in given.rows]
    (tmp_path / "task.json").write_text(json.dumps(turned))
    message, _ = refused(tmp_path, *given.discover, "--task", tmp_path / "task.json", "--out", tmp_path / "out")
    assert "does not separate" in message and any(repr(row["clean"]) in message for row in turned)


def altered(given, tmp_path, change):
    """A copy of the model with other weights."""
    folder = shutil.copytree(given.base / "model", tmp_path / "altered")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_models_that_cannot_be_had(given, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for name in ("smolm2", "no such//model", tmp_path / "empty", tmp_path / "absent"):
        message, _ = refused(tmp_path, *given.discover, "--model", name, "--out", tmp_path / "out")
        assert f"cannot load the model {str(name)!r}" in message and "smollm2" in message
    nan = altered(given, tmp_path, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    message, _ = refused(tmp_path, *given.discover, "--model", nan, "--out", tmp_path / "out")
    assert "these weights are not finite: model.norm.weight" in message
    file = nan / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    message, _ = refused(tmp_path, *given.discover, "--model", nan, "--out", tmp_path / "out")
    assert "holds no model that can be loaded" in message


def test_folders_that_cannot_be_written(given, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "file" / "far" / "below", tmp_path / "lost",
                "/proc/circuit", tmp_path / ("x" * 300), tmp_path / "new" / ("x" * 300) / "out"):
        message, progress = refused(tmp_path, *given.discover, "--out", out)
        assert str(out) in message and progress == []
    assert "two lines" in refused(tmp_path, *given.discover, "--out", tmp_path / "file" / "two\nlines")[0]
    message, progress = refused(given.base, *given.discover, "--out", given.base / "found")
    assert "already holds circuit.json" in message and "--overwrite" in message and progress == []


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["method", "picture"])
def test_ctrl_c_leaves_nothing(given, tmp_path, monkeypatch, place):
    shutil.copytree(given.base / "found", tmp_path / "old")
    old = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    if place == "method":
        monkeypatch.setitem(METHODS, "eap_ig", interrupt)
    else:
        monkeypatch.setattr("acdc.export.figure.save_figure", interrupt)
    for options in (("--out", tmp_path / "new" / "out"), ("--out", tmp_path / "old", "--overwrite")):
        message, _ = refused(tmp_path, *given.discover, *options, status=130)
        assert message == "interrupted; no result was written"
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == old


def test_a_full_memory_is_a_message_and_a_bug_is_not(given, tmp_path, monkeypatch):
    def fails_by(error):
        def method(*args, **kwargs):
            raise error

        monkeypatch.setitem(METHODS, "eap_ig", method)
        return *given.discover, "--out", tmp_path / "out"

    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB"), MemoryError(),
                  RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")):
        assert "smaller --batch-size" in refused(tmp_path, *fails_by(error))[0]
    with pytest.raises(RuntimeError, match="overlapping memory"):
        run(*fails_by(RuntimeError("overlapping memory")))
    assert list(tmp_path.iterdir()) == []


def test_a_circuit_of_another_model_is_refused(given, tmp_path):
    save_model(tmp_path / "deeper", n_layers=3)
    found = given.base / "found"
    for options in ((), ("--other-weights",)):
        message, _ = refused(tmp_path, "evaluate", found, "--model", tmp_path / "deeper", *options)
        assert "its graph has 2 layers" in message and "has 3 of 4" in message
    other = altered(given, tmp_path, lambda weights: weights["model.embed_tokens.weight"].mul_(1.1))
    message, _ = refused(tmp_path, "evaluate", found, "--model", other)
    assert "--other-weights" in message and str(other) in message
    status, out, _ = run("evaluate", found, "--model", other, "--other-weights", "--batch-size", 3)
    assert (status, f"faithfulness {given.circuit.provenance['faithfulness']:.4f}" in out) == (0, False)
    message, _ = refused(tmp_path, "evaluate", found, "--dtype", "bfloat16")
    assert "(float32)" in message and "(bfloat16)" in message


def edited(key, *value):
    """Another value in the provenance, or none."""

    def change(text):
        data = json.loads(text)
        data["provenance"].pop(key, None)
        data["provenance"].update(zip([key], value, strict=False))
        return json.dumps(data).encode()

    return change


BAD_CIRCUITS = {
    "truncated": (lambda text: text[: len(text) // 2].encode(), "is not JSON"),
    "empty": (lambda text: b"", "is not JSON"),
    "other JSON": (lambda text: b"[1, 2]", "is not a circuit"),
    "not text": (lambda text: b"\xff\xfe\x00", "not UTF-8"),
    "no model": (edited("model"), "does not say its model; give --model"),
    "seed of text": (edited("seed", "zero"), "seed is 'zero', not int"),
    "seed below 0": (edited("seed", -1), "--seed -1: it must be 0 or more"),
    "split of a number": (edited("split", 5), "split is 5, not str; give --split"),
    "task of numbers": (edited("task_source", [1]), "task_source is [1], not str"),
    "null": (edited("metric", None), "metric is None, not str; give --metric"),
    "lost task": (edited("task_source", "/lost.json"), "unknown task '/lost.json'"),
}


@pytest.mark.parametrize("mistake", BAD_CIRCUITS)
def test_circuit_files_with_mistakes(given, tmp_path, mistake):
    change, expected = BAD_CIRCUITS[mistake]
    path = tmp_path / "circuit.json"
    path.write_bytes(change((given.base / "found" / "circuit.json").read_text()))
    message, progress = refused(tmp_path, "evaluate", path)
    assert expected in message and progress == []
    if "JSON" in expected or "circuit" in expected or "UTF" in expected:
        assert expected in refused(tmp_path, "show", tmp_path)[0]


def test_other_mistakes_of_evaluate_and_show(given, tmp_path):
    found = given.base / "found"
    for out, expected in ((tmp_path / "missing" / "e.json", "is not a folder"), (tmp_path, "that is a folder")):
        message, progress = refused(tmp_path, "evaluate", found, "--out", out)
        assert f"cannot write to {out}" in message and expected in message and progress == []
    for circuit in (tmp_path, tmp_path / "absent.json", found / "circuit.json" / "below"):
        for command in ("evaluate", "show"):
            assert str(circuit) in refused(tmp_path, command, circuit)[0]
    unscored = json.loads((found / "circuit.json").read_text()) | {"scores": None, "scores_provenance": None}
    (tmp_path / "circuit.json").write_text(json.dumps(unscored))
    message, progress = refused(tmp_path, "evaluate", tmp_path, "--curve")
    assert "has no scores" in message and progress == []
    message, progress = refused(tmp_path, "calibrate", tmp_path)
    assert "nothing to calibrate" in message and progress == []
    message, progress = refused(tmp_path, "calibrate", found, "--edges", 49)
    assert "--edges 49: patch at least 50 edges" in message and progress == []
    message, progress = refused(tmp_path, "calibrate", found, "--out", tmp_path)
    assert "that is a folder" in message and progress == []
    assert "--edges -1: it must be 0 or more" in refused(tmp_path, "show", found, "--edges", "-1")[0]


def test_a_process_of_its_own_says_no_more(given, tmp_path):
    """What libraries print and warn of would show here; and a reader that leaves early is no mistake."""
    turned = [{**row, "answer": row["wrong"], "wrong": row["answer"]} for row in given.rows]
    (tmp_path / "task.json").write_text(json.dumps(turned))
    options = ["--task", tmp_path / "task.json", "--out", tmp_path / "new" / "out"]
    command = [sys.executable, "-m", "acdc.cli", *map(str, [*given.discover, *options])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 3) and "does not separate" in lines[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["task.json"]
    reading, writing = os.pipe()
    os.close(reading)
    show = [sys.executable, acdc.cli.__file__, "show", str(given.base / "found")]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(show, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_learned_masks_are_saved_and_drawn(given, tmp_path, quick, monkeypatch):
    """Ctrl-C after some steps leaves the checkpoint beside the folder; the same command then goes on to the end."""
    options = ["--method", "edge_pruning", "--steps", "6", "--prompts-per-step", "2", "--size", "9"]
    assert run(*given.discover, *options, "--out", tmp_path / "whole")[0] == 0
    assert (tmp_path / "whole" / "masks.png").read_bytes() == b"drawn" and not (tmp_path / "whole.checkpoint").exists()
    assert "](masks.png)" in (tmp_path / "whole" / "report.md").read_text()
    mean_loss, calls = masks.mean_loss, []

    def interrupted(*arguments):
        calls.append(arguments)
        return interrupt() if len(calls) == 4 else mean_loss(*arguments)

    monkeypatch.setattr(masks, "SAVE_EVERY", 1)
    monkeypatch.setattr(masks, "mean_loss", interrupted)
    assert run(*given.discover, *options, "--out", tmp_path / "resumed")[0] == 130
    assert (tmp_path / "resumed.checkpoint").exists() and not (tmp_path / "resumed").exists()
    assert run(*given.discover, *options, "--out", tmp_path / "resumed")[0] == 0
    assert len(calls) == 4 + 3 and not (tmp_path / "resumed.checkpoint").exists()
    assert read(tmp_path / "resumed").scores == read(tmp_path / "whole").scores


def test_an_interrupted_acdc_goes_on_from_its_journal(given, tmp_path, quick, monkeypatch):
    """Ctrl-C after some decisions leaves the journal beside the folder; the same command then goes on to the end."""
    options = ["--method", "acdc", "--threshold", "0.02", "--loss", "kl_divergence", "--shortlist", "60%"]
    assert run(*given.discover, *options, "--out", tmp_path / "whole")[0] == 0
    assert not (tmp_path / "whole.journal").exists()
    refresh, calls = LiveState.refresh, []

    def interrupted(state, kept):
        calls.append(state)
        return interrupt() if len(calls) == 8 else refresh(state, kept)

    monkeypatch.setattr(LiveState, "refresh", interrupted)
    assert run(*given.discover, *options, "--out", tmp_path / "resumed")[0] == 130
    assert (tmp_path / "resumed.journal").exists() and not (tmp_path / "resumed").exists()
    status, _, err = run(*given.discover, *options[:3], "0.03", *options[4:], "--out", tmp_path / "resumed")
    assert status == 1 and "its threshold is 0.02, here it is 0.03" in err
    calls.clear()
    assert run(*given.discover, *options, "--out", tmp_path / "resumed")[0] == 0
    assert not (tmp_path / "resumed.journal").exists()
    assert read(tmp_path / "resumed").scores == read(tmp_path / "whole").scores
    assert read(tmp_path / "whole").scores.provenance["method_options"]["shortlist"].endswith("removed untested")


class Full(io.StringIO):
    """An output that takes nothing."""

    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("order", ["calibrate found --edges 60", "compare found found",
                                   "probe --model model --task task.json --variable corrupted --site m0 --controls 2"])
def test_a_result_is_written_before_it_is_printed(given, tmp_path, monkeypatch, order):
    monkeypatch.chdir(given.base)
    with redirect_stdout(Full()), redirect_stderr(io.StringIO()):
        assert main([*order.split(), "--out", str(tmp_path / "out")]) == 1
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["out"]


QUICK_TEST = ["--random", 19, "--inflated", 29, "--edges", 6, "--resamples", 200]


def test_test_prints_and_writes_what_the_library_says(given, tmp_path):
    only = ("sufficiency", "minimality_edges", "shi_equivalence")
    out = tmp_path / "tests.json"
    status, printed, err = run("test", given.base / "found", "--only", ",".join(only), "--out", out, *QUICK_TEST,
                               "--batch-size", 3, "--other-task", given.base / "other.json",
                               "--other-circuit", given.base / "found")
    assert status == 0, err
    assert set(tmp_path.iterdir()) == {out, tmp_path / "tests.md"}
    page, record = (tmp_path / "tests.md").read_text(), json.loads(out.read_text())
    page = re.sub(r"\\(.)", r"\1", page)  # what is printed is not escaped as Markdown is
    assert printed == f"{page}written to {out} and {tmp_path / 'tests.md'}\n"
    bench = prepare_bench(given.model, given.batches, METRICS["logit_difference"], n_resamples=200)
    settings = Settings(random=19, inflated=29, edges=6)
    expected = run_battery(bench, given.circuit, settings, only=only)
    assert record["tests"][:3] == json.loads(json.dumps([vars(result) for result in expected.results]))
    assert [test["name"] for test in record["tests"][3:]] == [
        "dissociation from other", "dissociation from another circuit"]
    assert (record["verdict"], record["settings"]["edges"], record["n_prompts"]) == (expected.verdict, 6, 5)
    for test in record["tests"]:
        assert f"- **{test['verdict']}** {test['name']}: {test['reason']}" in page


@pytest.mark.parametrize("command", [
    ("test", "--only", "sufficiency", "--other-task", "others.json", *QUICK_TEST),
    ("evaluate", "--ablation", "optimal", "--task", "measured.json")])
def test_work_on_other_prompts_is_not_gone_on_from(given, tmp_path, monkeypatch, command):
    """Where a file of prompts is another when a run is started again, also one that is not measured on alone."""
    name, *options = command
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("acdc.pieces.SECONDS", 0.0)
    shutil.copytree(given.base / "found", "found")
    shutil.copy(given.base / "other.json", "measured.json")
    first, second = (json.loads((given.base / file).read_text())[:4] for file in ("task.json", "other.json"))
    changing = "others.json" if name == "test" else "learned.json"
    circuit = json.loads(Path("found/circuit.json").read_text())
    if name == "evaluate":
        circuit["provenance"] |= {"task_source": str(tmp_path / changing), "n_prompts": None, "seed": 0}
        circuit["provenance"]["n_prompts"] = 4
        Path("found/circuit.json").write_text(json.dumps(circuit))
    asked = (name, "found", *options, "--out", "out.json")

    def put(prompts):
        Path(changing).write_text(json.dumps(prompts))

    put(second)
    assert run(*asked)[0] == 0
    fresh = Path("out.json").read_bytes()
    Path("out.json").unlink()
    put(first)
    with monkeypatch.context() as patch:
        patch.setattr(f"acdc.commands.{name}.write_file", interrupt)
        assert run(*asked)[0] == 130 and list(tmp_path.glob("out.json.pieces-*"))
    put(second)
    status, _, err = run(*asked)
    assert status == 0 and "going on from" not in err
    assert Path("out.json").read_bytes() == fresh


@pytest.mark.parametrize(("arguments", "says"), [
    (["--only", "sufficency"], "unknown test 'sufficency'"),
    (["--only", ","], "names no test"),
    (["--tolerance", 0], "tolerance 0.0"),
    (["--random", 5], "random 5: it must be at least 19"),
    (["--resamples", 5], "5 resamples are too few"),
    (["--out", "page.md"], "give the name of the JSON file"),
    (["--other-circuit", "nowhere"], "no circuit file"),
    (["--other-task", "nowhere"], "nowhere"),
    (["--prompts", 1], "one prompt has no spread"),
])
def test_test_refuses(given, arguments, says):
    before = sorted(given.base.iterdir())
    status, out, err = run("test", given.base / "found", *arguments)
    assert (status, out) == (1, "") and says in err, err
    assert sorted(given.base.iterdir()) == before

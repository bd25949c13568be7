"""`acdc lens`, `tune-lens`, `trace` and `patch` write what the library says, and name mistakes in one line."""

import csv
import json

import numpy as np
import pytest
import torch
from tiny_models import GROUPED
from tiny_tokenizer import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from acdc.annotation.causal_tracing import Noise, averaged, noise_scale, trace
from acdc.annotation.lens import attribute_answers, logit_lens
from acdc.annotation.patching_sweep import sweep
from acdc.annotation.tuned_lens import load_tuned_lens
from acdc.cli import main
from acdc.models import load_model
from acdc.tasks import load_task
from acdc.tasks.ioi import NAMES

FIRST, SECOND, THIRD = NAMES[:3]
PROMPT = f"When {FIRST} and {SECOND} went to the store, {SECOND}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with a tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("tiny"), tiny_tokenizer()
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(**{**GROUPED, "vocab_size": len(tokenizer)}, initializer_range=0.3))
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_lens_of_a_task(folder, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["lens", "--model", str(folder), "--task", "ioi", "--prompts", "6", "--out", str(out)]) == 0
    batches = load_task("ioi", model.tokenizer, n=6).batches(model.tokenizer)
    found = attribute_answers(model, batches)
    table = rows(out / "attribution.csv")
    assert [row["node"] for row in table] == list(found.nodes)
    numbers = [[float(row[name]) for name in ("value", "low", "high")] for row in table]
    np.testing.assert_allclose(numbers, [[one.value, one.low, one.high] for one in found.nodes.values()], atol=1e-6)
    first = logit_lens(model, batches[0].clean[:1])
    assert len(rows(out / "lens.csv")) == first.top.numel()
    assert float(rows(out / "lens.csv")[0]["kl"]) == pytest.approx(float(first.kl[0, 0, 0]), rel=1e-4)
    record = json.loads((out / "lens.json").read_text())
    assert record["mean_at_end"]["resid3"]["logit_difference"] == pytest.approx(record["logit_difference"], rel=1e-3)
    assert is_png(out / "lens.png") and is_png(out / "attribution.png")
    assert "mean over prompts" in capsys.readouterr().out


def test_tune_lens_trains_what_lens_reads_with(folder, model, tmp_path, capsys):
    text, out, read = tmp_path / "text.txt", tmp_path / "tuned", tmp_path / "read"
    text.write_text(f"{PROMPT} and {THIRD} went to the school, " * 40)
    arguments = ["tune-lens", "--model", str(folder), "--text", str(text), "--context", "12", "--steps", "30",
                 "--out", str(out)]
    assert main(arguments) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()[2:5]]
    assert all(float(tuned) < float(logit) for _, logit, tuned in printed) and len(printed) == 3
    assert load_tuned_lens(model, out).history == [] and not list(tmp_path.glob("*.checkpoint"))
    typed = ["lens", "--model", str(folder), "--prompt", PROMPT, "--answer", f" {FIRST}", "--out", str(read)]
    assert main([*typed, "--tuned", str(out)]) == 0
    assert json.loads((read / "lens.json").read_text())["lens"] == "tuned lens"


def test_trace_of_a_prompt_and_of_a_task(folder, model, tmp_path):
    out = tmp_path / "out"
    shared = ["trace", "--model", str(folder), "--samples", "2", "--window", "2", "--out", str(out)]
    assert main([*shared, "--prompt", PROMPT, "--answer", f" {FIRST}", "--subject", SECOND, "--noise", "0.5"]) == 0
    tokens = torch.tensor(model.tokenizer(PROMPT)["input_ids"])
    answer = model.tokenizer(f"{PROMPT} {FIRST}")["input_ids"][-1]
    one = trace(model, tokens, answer, [len(tokens) - 1], Noise(0.5, 2), window=2)
    record = json.loads((out / "trace.json").read_text())
    for kind, found in record["traces"][0]["restored"].items():
        np.testing.assert_allclose(found, one.restored[kind], atol=1e-7)
    assert len(rows(out / "trace.csv")) == 3 * 3 * len(tokens) and is_png(out / "trace.png")

    task = [*shared, "--overwrite", "--task", "ioi", "--prompts", "3", "--subject", "S1,S2", "--only", "mlp"]
    assert main(task) == 0
    batches = load_task("ioi", model.tokenizer, n=3).batches(model.tokenizer)
    prompts = [(batch.clean[i], int(batch.answer[i]), [example.roles["S1"], example.roles["S2"]])
               for batch in batches for i, example in enumerate(batch.examples)]
    noise = Noise(noise_scale(model, [tokens[at] for tokens, _, at in prompts]), 2)
    columns, values = averaged([trace(model, *prompt, noise, kinds=["mlp"], window=2) for prompt in prompts], "mlp")
    record = json.loads((out / "trace.json").read_text())["indirect"]
    assert list(record) == ["mlp"] and record["mlp"]["columns"] == columns
    np.testing.assert_allclose(record["mlp"]["by_layer"], values, atol=1e-7)


def test_patch_of_a_prompt_and_of_a_task(folder, model, tmp_path):
    out = tmp_path / "out"
    shared = ["patch", "--model", str(folder), "--out", str(out)]
    task = ["--task", "ioi", "--prompts", "4", "--positions", "roles", "--direction", "noising"]
    assert main([*shared, *task]) == 0
    batches = load_task("ioi", model.tokenizer, n=4).batches(model.tokenizer)
    record = json.loads((out / "patch.json").read_text())["sweeps"]
    for place in ("residual", "attention", "mlp", "head"):
        expected = sweep(model, batches, place=place, direction="noising", positions="roles")
        assert record[place]["columns"] == list(expected.columns)
        np.testing.assert_allclose(record[place]["share"], expected.share, atol=1e-6)
    assert is_png(out / "patch.png") and len(rows(out / "patch.csv")) == sum(
        len(one["rows"]) * len(one["columns"]) for one in record.values())
    typed = ["--prompt", PROMPT, "--corrupted", PROMPT.replace(FIRST, THIRD), "--answer", f" {FIRST}", "--wrong",
             f" {SECOND}", "--only", "residual", "--overwrite"]
    assert main([*shared, *typed]) == 0
    share = np.array(json.loads((out / "patch.json").read_text())["sweeps"]["residual"]["share"])
    assert share[0, 1] == pytest.approx(1, abs=1e-4) and share[-1, -1] == pytest.approx(1, abs=1e-4)


def test_mistakes_are_named(folder, tmp_path, capsys):
    def refused(message, *arguments):
        assert main([*arguments, "--model", str(folder), "--out", str(tmp_path / "out")]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("acdc: ")]
        assert message in line and not (tmp_path / "out").exists()

    typed = ["--prompt", PROMPT, "--answer", f" {FIRST}"]
    refused("give either --task, or --prompt", "lens")
    refused("give either --task, or --prompt", "lens", "--task", "ioi", *typed)
    refused("--answer belongs to --prompt", "lens", "--task", "ioi", "--answer", " x")
    refused("--prompt without --answer", "lens", "--prompt", PROMPT)
    refused("the prompt is empty", "lens", "--prompt", "", "--answer", "a")
    refused("not one token", "lens", "--prompt", PROMPT, "--answer", " and and")
    refused("are the same", "lens", *typed, "--wrong", f" {FIRST}")
    refused("holds no tuned lens", "lens", *typed, "--tuned", str(tmp_path))
    refused("tokens; give 1 to", "lens", *typed, "--top", "100000")
    refused("does not occur", "trace", *typed, "--subject", "nobody")
    refused("no token of role 'X'", "trace", "--task", "ioi", "--subject", "S1,X")
    refused("unknown kind of place", "trace", *typed, "--subject", FIRST, "--only", "mlps")
    refused("must be a positive number", "trace", *typed, "--subject", FIRST, "--noise", "0")
    refused("needs --corrupted, --answer and --wrong", "patch", *typed)
    refused("unknown direction", "patch", "--task", "ioi", "--direction", "up")
    refused("cannot read the text", "tune-lens", "--text", str(tmp_path / "none.txt"))
    (tmp_path / "short.txt").write_text(PROMPT)
    refused("Give more text", "tune-lens", "--text", str(tmp_path / "short.txt"), "--context", "60")
    refused("steps=0", "tune-lens", "--steps", "0")

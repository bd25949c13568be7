"""What a plan says is near what is then measured, and a budget is kept."""

import argparse
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_batch
from tiny_models import VOCAB
from transformers import LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from acdc import machine, planning
from acdc.circuit import Circuit
from acdc.cli import main
from acdc.commands import loading
from acdc.discovery import METHODS
from acdc.errors import AcdcError
from acdc.fitting import most_at_once
from acdc.live_bytes import peak_bytes
from acdc.machine import free_memory, memory_now, peak_memory, reset_peak_memory
from acdc.metrics import METRICS
from acdc.optimal_ablation import learn_ablation
from acdc.planning import MARGIN, Stage, duration, gib, make_plan, rebatched
from acdc.stages import loss_of, stage_of_constants, stages_of_method
from acdc.transformer import Transformer

LOGIT_DIFFERENCE = METRICS["logit_difference"]
SCORING = {"ablation": "resample", "kv": "head", "positions": "all"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    """Large enough that what it takes stands out from what Python does."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2)
    return Transformer(AutoModelForCausalLM.from_config(config).eval(), None, "small")


def test_bytes_in_use_are_counted():
    weight = torch.randn(100, 100, requires_grad=True)

    def run():
        x = torch.ones(1000, 100)  # 400 kB, as every product below
        y = (x @ weight).exp()  # kept for the backward pass
        y.sum().backward()
        weight.grad = None

    run()
    assert 3 * 400_000 <= peak_bytes(run, CPU, [weight]) <= 4.5 * 400_000
    assert 800_000 <= peak_bytes(lambda: np.zeros(100_000), CPU) <= 900_000


@pytest.mark.parametrize(("name", "options", "n"), [
    ("eap", {}, 32), ("eap_ig", {}, 16), ("acdc", {"threshold": 10.0}, 16),
    ("edge_pruning", {"steps": 2, "prompts_per_step": 8}, 16), ("exact", {}, 8)])
def test_a_plan_is_near_what_is_measured(model, name, options, n):
    """Peak memory beside what is there before: within a factor of 2. Seconds are of a machine that others use."""
    batches = [make_batch(n, 24)]
    loss = loss_of(name, LOGIT_DIFFERENCE, None)
    graph = model.graph()
    if name == "acdc":
        few = Circuit(graph, np.arange(graph.n_edges) % 4 == 0)
        options = {**options, "shortlist": few}
    planned = {**options, "shortlist": few.n_edges} if name == "acdc" else options
    plan = make_plan(model, batches, stages_of_method(model, name, batches, loss, planned, SCORING))
    assert plan.at_once == n and plan.passes > 0
    if name == "exact":
        edges = np.arange(graph.n_edges - 200, graph.n_edges)
        options = {"edges": edges}
        from acdc.discovery.exact import exact_effects as run
    else:
        run = METHODS[name]
    peak = peak_bytes(lambda: run(model, batches, loss, **options), CPU, [*model.hf.parameters()])
    foreseen = (plan.peak() - plan.before) * 2**30
    assert 0.5 < foreseen / peak < 2, (foreseen, peak)


def test_learning_constants_is_planned(model):
    batches = [make_batch(8, 24)]
    graph = model.graph()
    circuit = Circuit(graph, np.arange(graph.n_edges) % 4 == 0)
    plan = make_plan(model, batches, [stage_of_constants(model, circuit, batches)])
    peak = peak_bytes(lambda: learn_ablation(model, batches, circuit=circuit, steps=2), CPU, [*model.hf.parameters()])
    assert 0.5 < (plan.peak() - plan.before) * 2**30 / peak < 2


@pytest.mark.skipif(not reset_peak_memory(), reason="peak memory cannot be counted anew here")
def test_a_budget_is_kept(model):
    batches = [make_batch(64, 24)]
    stages = stages_of_method(model, "eap_ig", batches, LOGIT_DIFFERENCE, {}, SCORING)
    room = make_plan(model, batches, stages).costs[0]
    budget = memory_now() + room.peak(64, 64) / 3
    plan = make_plan(model, batches, stages, memory=budget)
    assert 0 < plan.at_once < 32
    parts = rebatched(batches, plan.at_once)
    assert most_at_once(parts) == plan.at_once and sum(map(len, parts)) == 64
    reset_peak_memory()
    METHODS["eap_ig"](model, parts)
    assert peak_memory() < budget


def test_what_does_not_fit_is_refused_with_a_remedy(model):
    batches = [make_batch(4, 8)]
    stages = stages_of_method(model, "eap", batches, LOGIT_DIFFERENCE, {}, SCORING)
    with pytest.raises(AcdcError, match=r"eap would take [\d.]+ GiB, even with one prompt at a time.*--memory allows "
                                        r"0.10.*bfloat16"):
        make_plan(model, batches, stages, memory=0.1)


def test_a_quick_plan_says_too_much_rather_than_too_little(model, monkeypatch):
    """And where it says that all prompts at once do not fit, the careful plan decides."""
    def sample(few):
        time.sleep(0.15)
        torch.ones(2_000_000 + 1_000_000 * sum(map(len, few)))
        return 3.0

    batches, stages, gib_of = [make_batch(64, 4)], [Stage("it", sample)], 4e6 * MARGIN / 2**30
    careful = make_plan(model, batches, stages)
    quick = make_plan(model, batches, stages, quick=True, pass_seconds=2.0)
    assert careful.at_once == quick.at_once == 64 and quick.passes == quick.seconds / 2
    assert careful.costs[0].peak(64, 64) == pytest.approx((2 + 64) * gib_of, rel=0.01)
    assert quick.costs[0].peak(64, 64) == pytest.approx((2 + 8) * 8 * gib_of, rel=0.01)
    monkeypatch.setattr(planning, "memory_now", lambda device: 1.0)
    between = make_plan(model, batches, stages, quick=True, memory=1 + 73 * gib_of)
    assert between.at_once == 64 and between.costs[0].fixed == pytest.approx(8e6, rel=0.05)


@pytest.mark.parametrize(("text", "size"), [("8GiB", 8), ("512MiB", 0.5), ("8", 8), ("1.5 gib", 1.5)])
def test_sizes(text, size):
    assert gib(text) == size


def test_sizes_that_are_none():
    for text in ("", "GiB", "-1", "8 apples", "nan", "inf"):
        with pytest.raises(AcdcError, match="no size above 0"):
            gib(text)


def test_durations():
    assert [duration(s) for s in (0.1, 5, 200, 9000)] == ["a second", "5 s", "3 min", "2 h"]


def test_the_command_says_what_discover_would_take(tmp_path, capsys, monkeypatch):
    options = ["--model", "digits_vit", "--task", "digits", "--method", "eap", "--prompts", "6"]
    assert main(["plan", *options]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"eap +[\d,]+ +.+ +\d+\.\d\d\n.*circuits of 50% of the edges.*exact effects.*plan: about .* "
                     r"forward passes; peak memory \d+\.\d\d GiB, .* 6 prompts at once", printed, re.S)
    assert main(["plan", *options, "--memory", "10MiB"]) == 1
    assert "--memory allows 0.01" in capsys.readouterr().err
    rest = ["--out", str(tmp_path / "found"), "--calibrate", "0", "--resamples", "0"]
    assert main(["discover", *options, "--memory", "100GiB", *rest]) == 0
    assert "plan: about" in capsys.readouterr().err
    monkeypatch.setattr(loading, "SMALL", 0.0)
    assert main(["discover", *options, *rest, "--overwrite"]) == 0
    assert "plan: about" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 8, 8), (12, 12, 12), (30, 9, 3)])
@pytest.mark.parametrize("options", [{}, {"shortlist": 20}])
def test_a_search_is_planned_in_models_of_any_shape(shape, options):
    """In the random circuit that stands for what is found, few heads have a way to the logits."""
    layers, heads, kv_heads = shape
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=4 * heads, intermediate_size=8, num_hidden_layers=layers,
                         num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=4)
    model, batches = Transformer(AutoModelForCausalLM.from_config(config).eval(), None, "shape"), [make_batch(2, 6)]
    for kv in ("head", "group"):
        stages = stages_of_method(model, "acdc", batches, LOGIT_DIFFERENCE, options, {**SCORING, "kv": kv})
        assert make_plan(model, batches, stages, quick=True).seconds > 0


def test_a_run_that_goes_on_has_as_many_prompts_at_once_as_before(model, tmp_path, monkeypatch, capsys):
    """Whatever is free by then; a run with other options is planned anew."""
    batches, arguments = [make_batch(8, 6)], argparse.Namespace(memory="8GiB", method="eap", batch_size=8)
    stages = partial(stages_of_method, model, "eap", batches, LOGIT_DIFFERENCE, {}, SCORING)

    def at_once(room, **options):
        def plan(*args, **kwargs):
            return replace(make_plan(*args, **kwargs), at_once=room)

        monkeypatch.setattr(planning, "make_plan", plan)
        spent = []
        given = argparse.Namespace(**{**vars(arguments), **options})
        found = loading.planned(given, model, batches, stages, tmp_path / "out", spent)
        assert spent == [tmp_path / "out.plan"] and given.batch_size == len(found[0])
        return len(found[0])

    assert at_once(4) == 4 and at_once(2) == 4
    assert "4 prompts at once, as when this run began" in capsys.readouterr().err
    assert at_once(8) == 4 and at_once(8, method="eap_ig") == 8 and at_once(2) == 2
    (tmp_path / "out.plan").write_text("nonsense")
    assert at_once(4) == 4


def test_limits_of_the_process_and_of_its_groups(tmp_path, monkeypatch):
    free = free_memory()
    groups, limits = tmp_path / "cgroup", tmp_path / "limits"
    inner = limits / "job" / "step"
    inner.mkdir(parents=True)
    (limits / "memory" / "old").mkdir(parents=True)
    monkeypatch.setattr(machine, "GROUPS", groups)
    monkeypatch.setattr(machine, "LIMITS", limits)
    groups.write_text("0::/job/step\n5:cpu:/x\n")
    assert free_memory() == pytest.approx(free, rel=0.2)  # no group says anything
    for folder, most in ((inner, "max\n"), (inner.parent, f"{2**29}\n")):
        (folder / "memory.max").write_text(most)
        (folder / "memory.current").write_text(f"{3 * 2**28}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {2**29}\n")
    assert free_memory() == 0.25
    groups.write_text("4:cpu,memory:/old\n0::/\n")
    for name, value in (("limit_in_bytes", 2**28), ("usage_in_bytes", 2**27)):
        (limits / "memory" / "old" / f"memory.{name}").write_text(str(value))
    (limits / "memory" / "old" / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 0\n")
    assert free_memory() == 0.125


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_a_limited_process_knows(tmp_path):
    code = ("import resource; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); "
            "from acdc.machine import free_memory; print(free_memory())")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 8

"""Nothing is lost: a short version of `python -m acdc.benchmarks.faults`."""

import random
import subprocess
import sys

import pytest
import torch

from acdc.benchmarks import soak as soak_module
from acdc.benchmarks.soak import soak
from acdc.discovery import METHODS


@pytest.mark.parametrize(("what", "times", "jobs"), [
    ("kill", 2, ["eap_ig", "exact", "acdc", "edge_pruning", "calibrate", "annotate", "trace", "tune-lens", "sae",
                 "benchmark"]),
    ("kill", 1, ["ifr", "acdc_sequential", "evaluate", "test", "probe", "patch"]),
    ("stop", 2, ["eap_ig", "acdc", "edge_pruning", "calibrate", "sae"]),
])
def test_a_killed_or_stopped_job_goes_on_to_the_same_result(what, times, jobs):
    """In a process of its own, which forks."""
    command = [sys.executable, "-W", "ignore", "-m", "acdc.benchmarks.faults", what, "--times", str(times), "--jobs"]
    done = subprocess.run([*command, *jobs], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == jobs


def test_many_runs_leave_no_trace():
    rows = soak(2 * len(METHODS))
    assert [line["value"] for line in rows][1] <= 0


@pytest.mark.parametrize("trace", ["seed", "hook", "requires_grad", "memory"])
def test_the_soak_finds_what_is_left(monkeypatch, trace):
    kept = []

    def leaky(model, batches, metric, **options):
        if trace == "seed":
            torch.rand(1)
        elif trace == "hook":
            model.hf.register_forward_hook(lambda *args: None)
        elif trace == "requires_grad":
            next(model.hf.parameters()).requires_grad_(False)
        else:
            kept.append((torch.zeros(1000), random.random()))

    monkeypatch.setitem(METHODS, "random", leaky)
    monkeypatch.setattr(soak_module, "CYCLE", ["random"])
    with pytest.raises(AssertionError, match={"seed": "random state", "memory": "tensors"}.get(trace, trace)):
        soak(4)

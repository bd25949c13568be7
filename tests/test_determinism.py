"""The same command gives the same bytes; other threads and batch sizes the same numbers, but for rounding."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny

from acdc.cli import main
from acdc.discovery import METHODS
from acdc.task import Batch
from acdc.tensor_file import tensor_bytes

TOLERANCE = 1e-4  # of the largest score, in float32: see docs/determinism.md
SUMMED = ("eap", "eap_ig", "eap_clean_corrupted", "relp", "gim", "hisp", "ifr", "exact")  # over prompts


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The tiny model and prompts that jobs are killed on, and a circuit found there, in a process of its own."""
    folder = tmp_path_factory.mktemp("given")
    code = ("import sys, torch\nfrom pathlib import Path\nfrom acdc.benchmarks.fault_jobs import prepare\n"
            "torch.set_num_threads(1)\nprepare(Path(sys.argv[1]))")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(folder)], check=True, capture_output=True)
    return folder


def test_the_same_command_writes_the_same_bytes(given, monkeypatch):
    """But for the seconds of each stage, in circuit.json and the report. Figures and pages are drawn for real."""
    monkeypatch.chdir(given)
    found = []
    for _ in range(2):
        command = ["discover", "--model", "model", "--task", "task.json", "--out", "out", "--calibrate", "50",
                   "--keep-prompt-scores"]
        assert main([*command, "--resamples", "20"]) == 0
        assert main(["view", "out", "--out", "out/page.html"]) == 0
        files = {path.name: path.read_bytes() for path in (given / "out").iterdir()}
        for path in (given / "out").iterdir():
            path.unlink()
        (given / "out").rmdir()
        record = json.loads(files["circuit.json"])
        assert set(record["provenance"].pop("seconds")) == {"load", "discover", "evaluate", "resample", "calibrate"}
        assert {"device", "threads", "dtype", "seed", "command", "model_sha256", "task_sha256", "versions"} <= set(
            record["provenance"])
        assert set(record["provenance"]["versions"]) == {"python", "acdc", "torch", "transformers", "numpy"}
        files["circuit.json"] = re.sub(rb'"seconds": \{[^}]*\}', b"", files["circuit.json"])
        for name in ("report.md", "report.html"):
            files[name], n = re.subn(rb"load \d[^|<]*calibrate [0-9.]+", b"", files[name])
            assert n == 1
        files["page.html"] = re.sub(rb'"seconds": ?\{[^}]*\}', b"", files["page.html"])
        found.append(files)
    assert found[0].keys() == found[1].keys() and len(found[0]) == 9
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []


def test_two_threads_give_the_same_scores_but_for_rounding():
    model, batches = tiny("llama", torch.float32), [make_batch(4)]
    scores = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            scores.append({name: METHODS[name](model, batches).values for name in SUMMED})
        finally:
            torch.set_num_threads(1)
    for name in SUMMED:
        assert _distance(scores[0][name], scores[1][name]) < TOLERANCE, name


@pytest.mark.parametrize("name", SUMMED)
def test_batch_sizes_give_the_same_scores_but_for_rounding(name):
    model, whole = tiny("llama", torch.float32), make_batch(4)
    parts = [Batch(*(getattr(whole, key)[i : i + 2] for key in ("clean", "corrupted", "answer", "wrong")),
                   examples=whole.examples[i : i + 2]) for i in (0, 2)]
    assert _distance(METHODS[name](model, [whole]).values, METHODS[name](model, parts).values) < TOLERANCE


def _distance(first, second):
    return np.abs(first - second).max() / np.abs(first).max()


def test_tensors_with_texts_are_the_same_bytes():
    tensors = {"b": torch.arange(3.0), "a": torch.zeros(2, 2)}
    about = {f"key {i}": "é" * i for i in range(12)}
    written = {tensor_bytes(tensors, dict(reversed(about.items()) if i % 2 else about)) for i in range(8)}
    assert len(written) == 1
    from safetensors.torch import load

    (content,) = written
    read = load(content)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == about

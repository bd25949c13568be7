"""Scores are compared edge by edge: agreement is found where it is, a difference where one is, a peer missing said."""

import argparse
import subprocess
import sys

import numpy as np
import pytest
import torch

from acdc.benchmarks.acdc_speed import random_gpt2
from acdc.benchmarks.peers import scores as peer_scores
from acdc.benchmarks.peers.eap_ig_side import OnCpu, reduced, tokens_as_given
from acdc.benchmarks.peers.scores import AUTO_CIRCUIT, COLUMNS, EAP_IG, NO_POSITION, SMALL, agreement, aligned, table
from acdc.benchmarks.peers.side import PeerMissingError, ask
from acdc.discovery import METHODS
from acdc.metrics import METRICS


def test_agreement_of_equal_and_of_other_scores():
    ours = np.random.default_rng(0).normal(size=1000)
    found = agreement(ours, ours / 8)
    assert (found.n_top, found.shared, found.beyond) == (10, 10, 0)
    assert found.pearson == pytest.approx(1) and found.factor == pytest.approx(1 / 8)
    theirs = ours.copy()
    strongest = np.abs(ours).argmax()
    theirs[strongest] = 0
    found = agreement(ours, theirs)
    assert (found.shared, found.beyond, found.largest) == (9, 1, 1)


def test_ties_count_as_agreement():
    ours = np.array([3.0, 2, 2, 1] + [0.1] * 196)
    theirs = np.array([3.0, 2, 2.000001, 1] + [0.1] * 196)  # another of two equals comes second
    found = agreement(ours, theirs)
    assert (found.n_top, found.shared, found.beyond) == (2, 1, 0)


def test_edges_are_aligned_by_name():
    model, batches = random_gpt2(1, 2, 16)
    scores = METHODS["eap"](model, batches)
    theirs = dict(reversed([(name, scores[name]) for name in scores.graph.edge_names]))
    np.testing.assert_array_equal(*aligned(scores, theirs, "all"))
    assert len(aligned(scores, theirs, "not out of input")[0]) == sum(
        not name.startswith("input->") for name in scores.graph.edge_names)
    with pytest.raises(AssertionError, match="input->logits"):
        aligned(scores, {name: s for name, s in theirs.items() if name != "input->logits"}, "all")


def perfect(models):
    """A peer that scores as we do, but halves what a loss with a mean is given."""
    def answer(python, script, model, batch, **request):
        place = next(name for name, known in models.items() if known is model)
        wanted = EAP_IG if script == "eap_ig_side.py" else AUTO_CIRCUIT
        rows = [row for row in wanted if row.model == place]
        assert len(request.get("runs", request.get("functions"))) == len(rows)
        scored = [METHODS[row.method](model, [batch], METRICS[row.loss], **row.options) for row in rows]
        return {"versions": {"peer": "1"}, "scores": [
            {name: float(value) / (2 if row.peer.get("reduce") == "mean" else 1)
             for name, value in zip(scores.graph.edge_names, scores.values, strict=True)}
            for row, scores in zip(rows, scored, strict=True)]}

    return answer


@pytest.fixture(scope="module")
def models():
    model, (batch,) = random_gpt2(1, 2, 16, 3)
    return {"as it is": model, NO_POSITION: peer_scores.without_position_embedding(model),
            SMALL: random_gpt2(1, 1, 16)[0]}, batch


def test_the_table_of_a_peer_that_agrees(models, monkeypatch, tmp_path):
    (tmp_path / "src" / "eap").mkdir(parents=True)
    monkeypatch.setattr(peer_scores, "ask", perfect(models[0]))
    lines, known = table(argparse.Namespace(peer_python="peer", eap_ig_source=tmp_path), *models)
    assert len(lines) == len(EAP_IG) + len(AUTO_CIRCUIT) and {len(line) for line in lines} == {len(COLUMNS)}
    assert all(line[3] == "1.0000000" for line in lines)
    factors = {line[0]: line[5] for line in lines}
    assert factors.pop("EAP-IG: EAP in batches of 8, mean loss") == "0.5" and set(factors.values()) == {"1"}
    assert known["EAP-IG"] == {"peer": "1"}


def test_a_peer_that_is_not_there_is_said_to_be_missing(models, tmp_path):
    nowhere = str(tmp_path / "python")
    lines, _ = table(argparse.Namespace(peer_python=nowhere, eap_ig_source=None), *models)
    assert [line[0] for line in lines] == ["EAP-IG: not compared, no source was given",
                                           f"auto-circuit: not compared, there is no Python at {nowhere}"]
    lines, _ = table(argparse.Namespace(peer_python=nowhere, eap_ig_source=tmp_path), *models)
    assert "holds no src/eap" in lines[0][0]


def test_a_bare_git_directory_is_a_source(tmp_path):
    (tmp_path / "library" / "src" / "eap").mkdir(parents=True)
    (tmp_path / "library" / "src" / "eap" / "x.py").write_text("x = 1\n")
    git = ["git", "-C", str(tmp_path / "library"), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "work").mkdir()
    source, commit = peer_scores.source_of(tmp_path / "library" / ".git", tmp_path / "work")
    assert (source / "eap" / "x.py").read_text() == "x = 1\n" and len(commit) == 40
    assert peer_scores.source_of(tmp_path / "library", tmp_path / "work") == (tmp_path / "library" / "src", commit)


def test_asking_another_python(models, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import json, sys\nrequest = json.load(open(sys.argv[1]))\n"
                      "request['files'] = sorted(__import__('os').listdir(request['folder']))\n"
                      "json.dump(request, open(sys.argv[2], 'w'))\n")
    batch = models[1]
    answer = ask(sys.executable, str(script), models[0]["as it is"], batch, runs=[1])
    assert answer["clean"] == batch.clean.tolist() and answer["runs"] == [1] and "config.json" in answer["files"]
    script.write_text("import a_library_that_is_not_there")
    with pytest.raises(PeerMissingError, match="No module named 'a_library_that_is_not_there'"):
        ask(sys.executable, str(script), models[0]["as it is"], batch)
    script.write_text("1 / 0")
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        ask(sys.executable, str(script), models[0]["as it is"], batch)


@pytest.mark.parametrize("loss", ["logit_difference", "kl_divergence"])
def test_the_library_is_given_our_losses(models, loss):
    batch, generator = models[1], torch.Generator().manual_seed(0)
    logits, clean = torch.randn(2, len(batch), 5, 512, generator=generator)
    labels = torch.stack([batch.answer, batch.wrong], dim=1)
    expected = METRICS[loss].loss(logits[:, -1], batch, clean[:, -1])
    arguments = (logits, clean, tokens_as_given(None, batch.clean)[2], labels)
    torch.testing.assert_close(reduced(loss, "each")(*arguments), expected)
    torch.testing.assert_close(reduced(loss, "sum")(*arguments), expected.sum())
    torch.testing.assert_close(reduced(loss, "mean")(*arguments), expected.mean())


def test_what_asks_for_a_gpu_gets_the_cpu():
    with OnCpu():
        assert torch.zeros(2, device="cuda").device.type == "cpu"

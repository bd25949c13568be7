"""Incremental ACDC decides as sequential ACDC does, edge by edge; its journal; its options."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES

from acdc.discovery.acdc import acdc, acdc_sweep
from acdc.discovery.acdc_sequential import acdc_sequential
from acdc.discovery.eap_ig import eap_ig
from acdc.discovery.exact import exact
from acdc.errors import AcdcError
from acdc.live_state import LiveState
from acdc.metrics import METRICS

LOGIT_DIFFERENCE = METRICS["logit_difference"]


def assert_same(ours, sequential, family):
    """The same decisions from the same effects; untried edges are the same too."""
    tried = np.isfinite(sequential.values)
    assert (np.isfinite(ours.values) == tried).all()
    np.testing.assert_allclose(ours.values[tried], sequential.values[tried], atol=1e-5 if "gemma" in family else 1e-9)
    threshold = sequential.provenance["method_options"]["threshold"]
    assert (ours.above(threshold, by="signed").kept == sequential.above(threshold, by="signed").kept).all()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(FAMILIES), seed=st.integers(0, 10**6), log_threshold=st.floats(-3, 0.5),
    metric=st.sampled_from(["kl_divergence", "logit_difference", "probability_difference"]),
    ablation=st.sampled_from(["resample", "mean_over_positions"]), kv=st.sampled_from(["head", "group"]),
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(2, 7)), min_size=1, max_size=2),
    memory=st.sampled_from([1e-9, 1e-4, 1.0]), positions=st.sampled_from(["all", "each", "roles"]),
)
def test_decisions_are_those_of_sequential_acdc(family, seed, log_threshold, metric, ablation, kv, shapes, memory,
                                                positions):
    model = tiny(family)
    shapes = shapes[:1] if positions == "each" else shapes
    batches = [make_batch(n, length, seed + i, first=length // 2) for i, (n, length) in enumerate(shapes)]
    options = {"threshold": 10**log_threshold, "ablation": ablation, "kv": kv, "positions": positions}
    ours = acdc(model, batches, METRICS[metric], memory_gib=memory, **options)
    assert_same(ours, acdc_sequential(model, batches, METRICS[metric], **options), family)


@pytest.mark.parametrize("threshold", [0.02])
def test_decisions_in_every_family(family, threshold):
    model, batches = tiny(family), [make_batch(2, 6)]
    ours, sequential = (method(model, batches, threshold=threshold) for method in (acdc, acdc_sequential))
    assert_same(ours, sequential, family)


def test_an_effect_equal_to_the_threshold_is_kept():
    model, batches = tiny("gpt2"), [make_batch(2, 6)]
    threshold = acdc(model, batches, threshold=1e9)["m2->logits"]
    scores = acdc(model, batches, threshold=threshold)
    assert scores.above(threshold, by="signed").kept[scores.graph.edge("m2->logits")]
    assert scores["m2->logits"] == np.nextafter(threshold, np.inf)


def test_absolute_effects_keep_edges_that_hurt():
    model, batches = tiny("llama"), [make_batch(2, 6)]
    signed, absolute = (acdc(model, batches, LOGIT_DIFFERENCE, threshold=0.1, effect=effect)
                        for effect in ("signed", "absolute"))
    hurts = absolute.values[np.isfinite(absolute.values)] <= -0.1
    assert hurts.any()
    kept = absolute.above(0.1, by="magnitude").kept
    assert (kept == (np.abs(absolute.values) > 0.1) & np.isfinite(absolute.values)).all()
    assert not (signed.above(0.1, by="signed").kept & (signed.values < 0)).any()


def test_the_order_of_srcs_is_an_option():
    """The first src tried has the effect that it has alone, the last one has it after all other cuts."""
    model, batches = tiny("llama"), [make_batch(2, 6, first=5)]
    latest, earliest = (acdc(model, batches, threshold=1e9, order=order) for order in ("latest", "earliest"))
    alone = exact(model, batches, METRICS["kl_divergence"])
    for first, scores, last in (("m2", latest, "input"), ("input", earliest, "m2")):
        assert scores[f"{first}->logits"] == pytest.approx(alone[f"{first}->logits"], abs=1e-12)
        assert scores[f"{last}->logits"] != pytest.approx(alone[f"{last}->logits"], abs=1e-3)


def test_a_shortlist_is_all_that_is_tried(family):
    """Everything off it is cut at once: the sequential algorithm from there decides the same."""
    model, batches = tiny(family), [make_batch(2, 6)]
    shortlist = eap_ig(model, batches).top(80, by="magnitude")
    scores = acdc(model, batches, LOGIT_DIFFERENCE, threshold=0.05, shortlist=shortlist)
    sequential = acdc_sequential(model, batches, LOGIT_DIFFERENCE, threshold=0.05, shortlist=shortlist)
    assert_same(scores, sequential, family)
    assert not (np.isfinite(scores.values) & ~shortlist.kept).any()
    assert scores.provenance["method_options"]["shortlist"].startswith("80 edges tried (eap_ig, top 80 by ma")


def test_a_sweep_is_a_search_for_each_threshold(tmp_path, monkeypatch):
    """The same scores, with less to compute: stages before the first decision that differs are shared."""
    model, batches, thresholds = tiny("llama"), [make_batch(2, 6)], [0.02, 0.0201, 0.3]
    refresh, calls = LiveState.refresh, []
    monkeypatch.setattr(LiveState, "refresh", lambda state, kept: calls.append(1) or refresh(state, kept))
    alone, counts = [], []
    for threshold in thresholds:
        calls.clear()
        alone.append(acdc(model, batches, threshold=threshold))
        counts.append(len(calls))
    calls.clear()
    assert acdc_sweep(model, batches, thresholds=thresholds) == alone
    assert counts[0] < len(calls) < sum(counts)
    journals = [tmp_path / f"{threshold}" for threshold in thresholds]
    assert acdc_sweep(model, batches, thresholds=thresholds, journals=journals) == alone
    calls.clear()
    assert acdc_sweep(model, batches, thresholds=thresholds, journals=journals) == alone
    assert not calls
    with pytest.raises(AcdcError, match="3 thresholds, 1 journals"):
        acdc_sweep(model, batches, thresholds=thresholds, journals=[None])


def test_bad_options_are_refused():
    model, batches = tiny("gpt2"), [make_batch()]
    for options, message in (({"threshold": float("nan")}, "finite number"), ({"effect": "abs"}, "absolute"),
                             ({"order": "late"}, "latest"), ({"memory_gib": 0.0}, "above 0"),
                             ({"shortlist": eap_ig(tiny("llama"), batches, kv="group").top(3, by="signed")}, "graph")):
        with pytest.raises(AcdcError, match=message):
            acdc(model, batches, **options)


def test_a_journal_is_taken_up_where_it_ends(tmp_path, monkeypatch):
    """Cut off after any number of bytes, it leads to the same scores; a whole one needs no evaluation."""
    model, batches, path = tiny("llama"), [make_batch(2, 6)], tmp_path / "journal"
    whole = acdc(model, batches, threshold=0.02, journal=path)
    assert acdc(model, batches, threshold=0.02) == whole
    content = path.read_bytes()
    for n in np.random.default_rng(0).integers(0, len(content), 12):
        path.write_bytes(content[:n])
        assert acdc(model, batches, threshold=0.02, journal=path) == whole
        assert path.read_bytes() == content
    monkeypatch.setattr("acdc.live_state.LiveState.refresh", None)
    assert acdc(model, batches, threshold=0.02, journal=path) == whole


def test_a_journal_of_another_search_is_refused(tmp_path):
    model, batches, path = tiny("llama"), [make_batch(2, 6)], tmp_path / "journal"
    acdc(model, batches, threshold=0.5, journal=path)
    content = path.read_bytes()
    other_weights = tiny("llama")
    with torch.no_grad():
        other_weights.hf.lm_head.weight[0, 0] += 1e-6
    for arguments, options, what in (
        ((other_weights, batches), {"threshold": 0.5}, "model"), ((model, batches), {"threshold": 0.4}, "threshold"),
        ((model, [make_batch(2, 6, seed=1)]), {"threshold": 0.5}, "prompts"),
        ((model, batches, LOGIT_DIFFERENCE), {"threshold": 0.5}, "metric"),
        ((model, batches), {"threshold": 0.5, "kv": "group"}, "kv"),
    ):
        with pytest.raises(AcdcError, match=f"of another search: its {what} is"):
            acdc(*arguments, journal=path, **options)
        assert path.read_bytes() == content
    path.write_text("my thesis")
    with pytest.raises(AcdcError, match="not a journal"):
        acdc(model, batches, threshold=0.5, journal=path)
    assert path.read_text() == "my thesis"
    path.write_bytes(content[:-20].replace(b'"edges"', b'"edge') + content[-20:])
    with pytest.raises(AcdcError, match="damaged"):
        acdc(model, batches, threshold=0.5, journal=path)


SEARCH = """
import sys, json
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from conftest import make_batch, tiny
from acdc.discovery.acdc import acdc
scores = acdc(tiny("mistral"), [make_batch(3, 9), make_batch(2, 7)], threshold=0.004, journal=sys.argv[2] or None)
print(json.dumps([str(value) for value in scores.values]))
"""


def run_search(journal: str, hash_seed: str = "0") -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", SEARCH, str(Path(__file__).parents[1]), journal],
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                            env={**os.environ, "PYTHONHASHSEED": hash_seed})


def test_killed_runs_end_in_the_same_circuit(tmp_path):
    """SIGKILL at random moments, again and again, and once to the end; also determinism over processes."""
    runs = [run_search("", seed) for seed in ("1", "2")]
    expected, other = (json.loads(run.communicate()[0]) for run in runs)
    assert expected == other
    journal, rng = tmp_path / "journal", np.random.default_rng(0)
    n_kills, sizes = 0, [0]
    while n_kills < 4:
        run = run_search(str(journal))
        while run.poll() is None and (not journal.exists() or journal.stat().st_size <= sizes[-1] + 1):
            time.sleep(0.002)  # until it has got further than the last one
        time.sleep(float(rng.random()) * 0.02)
        if run.poll() is not None:
            journal.unlink()
            sizes = [0]
            continue
        run.send_signal(signal.SIGKILL)
        run.wait()
        n_kills += 1
        sizes.append(journal.stat().st_size if journal.exists() else 0)
    assert json.loads(run_search(str(journal)).communicate()[0]) == expected

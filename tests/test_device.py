"""A model on another device: nothing on the CPU is computed with there, and the scores are the same."""

import inspect

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from planted_heads import mover_batch, mover_model
from pretend_device import Elsewhere, move, moved, second_device

from acdc.ablation import prepare_ablation
from acdc.annotation.annotate import annotate
from acdc.circuit import Circuit
from acdc.discovery import METHODS
from acdc.evaluation.calibration import calibrate
from acdc.metrics import METRICS
from acdc.patching import run_circuit

LOGIT_DIFFERENCE = METRICS["logit_difference"]


def elsewhere(family):
    model = tiny(family)
    move(model.hf)
    return model


def test_the_second_device_refuses_what_a_gpu_does():
    here = torch.arange(3.0)
    with second_device():
        there = Elsewhere(here)
        assert (there + 1).device == there.device != here.device
        assert torch.equal((there + 1).cpu(), here + 1)
        for wrong in (lambda: there + here, lambda: there == here, lambda: torch.cat([there, here])):
            with pytest.raises(RuntimeError, match="on the CPU"):
                wrong()


@pytest.mark.parametrize(("ablation", "positions"), [("resample", "roles"), ("mean", "all")])
@pytest.mark.parametrize("name", METHODS)
def test_scores_of_a_model_on_another_device(name, ablation, positions):
    method, options = METHODS[name], {"ablation": ablation, "positions": positions, "kv": "group"}
    if "threshold" in inspect.signature(method).parameters:
        options["threshold"] = 0.5
    if "sparsity" in inspect.signature(method).parameters:
        options |= {"steps": 2, "prompts_per_step": 2}
    batch = make_batch(2, 5, first=2)
    with second_device():
        found = method(elsewhere("llama"), [moved(batch)], LOGIT_DIFFERENCE, **options)
    np.testing.assert_allclose(found.values, method(tiny("llama"), [batch], LOGIT_DIFFERENCE, **options).values,
                               atol=1e-9)


def test_circuits_and_calibration_on_another_device():
    model, batch = tiny("gemma2"), make_batch(3, 6)
    scores = METHODS["eap"](model, [batch], LOGIT_DIFFERENCE, positions="roles", kv="group")
    circuit = scores.top(60, by="magnitude")
    expected = run_circuit(model, batch, circuit, prepare_ablation(model, [batch])(batch))
    trust = calibrate(model, scores, [batch], LOGIT_DIFFERENCE, n=60, size=20).overall
    with second_device():
        other, there = elsewhere("gemma2"), moved(batch)
        logits = run_circuit(other, there, circuit, prepare_ablation(other, [there])(there)).cpu()
        assert calibrate(other, scores, [there], LOGIT_DIFFERENCE, n=60, size=20).overall.pearson == pytest.approx(
            trust.pearson)
    torch.testing.assert_close(logits, expected)


def test_annotations_on_another_device():
    for model, other, batch in ((tiny("qwen3"), tiny("qwen3"), make_batch(6, 6)),
                                (mover_model(), mover_model(), mover_batch())):
        circuit = Circuit(model.graph(), np.ones(model.graph().n_edges, dtype=bool))
        expected = annotate(model, circuit, [batch])
        move(other.hf)
        with second_device():
            found = annotate(other, circuit, [moved(batch)])
        assert [(a.node, a.kind) for a in found] == [(a.node, a.kind) for a in expected]
        ours, theirs = ([a.value for a in notes if a.value is not None] for notes in (found, expected))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)

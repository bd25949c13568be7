"""`exact` is one patched run for every edge."""

import numpy as np
import pytest
from conftest import make_batch, tiny

from acdc.ablation import prepare_ablation
from acdc.circuit import Circuit
from acdc.discovery import exact as module
from acdc.discovery.exact import exact, exact_effects
from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.patching import run_circuit
from acdc.task import position_names


@pytest.mark.parametrize(("kv", "positions"), [("head", "all"), ("group", "roles")])
@pytest.mark.parametrize(("metric", "ablation"), [("logit_difference", "resample"), ("kl_divergence", "mean"),
                                                  ("accuracy", "zero")])
def test_each_edge_equals_its_own_patched_run(family, kv, positions, metric, ablation, monkeypatch):
    monkeypatch.setattr(module, "TOKENS_PER_PASS", 100)
    model, batch, metric = tiny(family), make_batch(2, 7), METRICS[metric]
    graph = model.graph(kv, position_names([batch], positions))
    replacement = prepare_ablation(model, [batch], ablation)(batch)
    everything = np.ones(graph.n_edges, dtype=bool)
    reference = run_circuit(model, batch, Circuit(graph, everything), replacement)
    scores = exact(model, [batch], metric, ablation=ablation, kv=kv, positions=positions, per_prompt=True)
    np.testing.assert_allclose(scores.per_prompt.mean(0), scores.values, atol=1e-6)
    sample = np.random.default_rng(0).choice(graph.n_edges, 40, replace=False)
    for edge in sample:
        kept = everything.copy()
        kept[edge] = False
        logits = run_circuit(model, batch, Circuit(graph, kept), replacement)
        expected = (metric.loss(logits, batch, reference) - metric.loss(reference, batch, reference)).mean()
        assert scores.values[edge] == pytest.approx(float(expected), abs=5e-6 if "gemma" in family else 1e-9)


@pytest.mark.parametrize(("kv", "ablation"), [("head", "resample"), ("group", "mean")])
def test_chosen_edges_are_those_of_exact_prompt_by_prompt(kv, ablation, monkeypatch):
    model, batches, metric = tiny("qwen2"), [make_batch(3, 7), make_batch(2, 5, seed=1)], METRICS["kl_divergence"]
    scores = exact(model, batches, metric, ablation=ablation, kv=kv, per_prompt=True)
    options = {"ablation": ablation, "graph": scores.graph}
    edges = np.random.default_rng(0).choice(scores.graph.n_edges, 30, replace=False)
    patched = []
    effects_of = module._EdgePatch.effects
    monkeypatch.setattr(module._EdgePatch, "effects", lambda patch, channel, edges: (
        patched.extend(edges), effects_of(patch, channel, edges))[1])
    effects = exact_effects(model, batches, metric, edges, **options)
    assert effects.shape == (30, 5) and len(patched) == 30 * len(batches)  # no src but the chosen ones is run
    np.testing.assert_allclose(effects.mean(1), scores.values[edges], atol=1e-12)
    np.testing.assert_allclose(effects.T, scores.per_prompt[:, edges], atol=1e-6)
    singles = [type(batch)(*(getattr(batch, name)[i : i + 1] for name in ("clean", "corrupted", "answer", "wrong")),
                           examples=batch.examples[i : i + 1]) for batch in batches for i in range(len(batch))]
    if ablation == "resample":
        columns = [exact_effects(model, [single], metric, edges, **options) for single in singles]
        np.testing.assert_allclose(effects, np.concatenate(columns, axis=1), atol=1e-12)
    assert exact_effects(model, batches, metric, edges[:0], **options).shape == (0, 5)
    with pytest.raises(AcdcError, match="no edge -1: the graph's"):
        exact_effects(model, batches, metric, np.array([3, -1]), **options)

"""`exact` is one patched run for every edge."""

import numpy as np
import pytest
from conftest import make_batch, tiny

from acdc.ablation import prepare_ablation
from acdc.circuit import Circuit
from acdc.discovery import exact as module
from acdc.discovery.exact import exact
from acdc.metrics import METRICS
from acdc.patching import run_circuit


@pytest.mark.parametrize("kv", ["head", "group"])
@pytest.mark.parametrize(("metric", "ablation"), [("logit_difference", "resample"), ("kl_divergence", "mean"),
                                                  ("accuracy", "zero")])
def test_each_edge_equals_its_own_patched_run(family, kv, metric, ablation, monkeypatch):
    monkeypatch.setattr(module, "TOKENS_PER_PASS", 100)
    model, batch, metric = tiny(family), make_batch(2, 7), METRICS[metric]
    graph, replacement = model.graph(kv), prepare_ablation(model, [batch], ablation)(batch)
    everything = np.ones(graph.n_edges, dtype=bool)
    reference = run_circuit(model, batch, Circuit(graph, everything), replacement)
    scores = exact(model, [batch], metric, ablation=ablation, kv=kv)
    sample = np.random.default_rng(0).choice(graph.n_edges, 40, replace=False)
    for edge in sample:
        kept = everything.copy()
        kept[edge] = False
        logits = run_circuit(model, batch, Circuit(graph, kept), replacement)
        expected = (metric.loss(logits, batch, reference) - metric.loss(reference, batch, reference)).mean()
        assert scores.values[edge] == pytest.approx(float(expected), abs=5e-6 if "gemma" in family else 1e-9)

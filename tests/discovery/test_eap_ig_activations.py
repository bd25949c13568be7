"""EAP-IG over activations against naive autograd, and against exact patching of whole sublayers."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from naive import NaiveModel

from acdc.discovery import gradients as gradients_module
from acdc.discovery.eap import eap
from acdc.discovery.eap_ig_activations import eap_ig_activations
from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.patching import patch_nodes

LOGIT_DIFFERENCE = METRICS["logit_difference"]


def sublayers(model):
    """The srcs that move together."""
    heads = [[f"a{layer}.h{h}" for h in range(model.n_heads)] for layer in range(model.n_layers)]
    return [["input"], *(part for layer in range(model.n_layers) for part in (heads[layer], [f"m{layer}"]))]


def naive_scores(model, batch, metric, steps, gradients, ablation):
    naive, graph = NaiveModel(model.hf), model.graph()
    with torch.no_grad():
        reference, clean = naive.run(batch.clean, graph)
        _, replaced = naive.run(batch.corrupted, graph)
        if ablation == "zero":
            replaced = {name: torch.zeros_like(value) for name, value in replaced.items()}
        if ablation == "mean":
            replaced = {name: value.mean(0, keepdim=True).expand_as(value) for name, value in replaced.items()}
    scores = np.zeros(graph.n_edges)
    for moved in sublayers(model):
        for k in range(1, steps + 1):
            fixed = {name: replaced[name] + k / steps * (clean[name] - replaced[name]) for name in moved}
            leaves: dict[str, torch.Tensor] = {}
            logits, _ = naive.run(batch.clean, graph, leaves=leaves,
                                  edit=lambda name, x, fixed=fixed: fixed.get(name, x))
            loss = metric.loss(logits, batch, reference).sum()
            found = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True,
                                                         materialize_grads=True), strict=True))
            for edge in range(graph.n_edges):
                src = graph.srcs[graph.edge_src[edge]].name
                if gradients == "all" or src in moved:
                    gradient = found[graph.channels[graph.edge_channel[edge]].name]
                    scores[edge] += float(((replaced[src] - clean[src]) * gradient).sum())
    return scores / steps / len(batch) / (len(sublayers(model)) if gradients == "all" else 1)


def assert_close(ours, expected, rtol=1e-5):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("gradients", ["own", "all"])
def test_scores_are_the_naive_ones(family, gradients):
    model, batch = tiny(family), make_batch(2, 7)
    expected = naive_scores(model, batch, LOGIT_DIFFERENCE, 2, gradients, "resample")
    assert_close(eap_ig_activations(model, [batch], steps=2, gradients=gradients).values, expected)


@pytest.mark.parametrize(("family", "metric", "ablation"), [
    ("gpt2", "kl_divergence", "zero"), ("gemma2", "probability_difference", "mean"),
    ("gpt_neox", "kl_divergence", "mean"),
])
@pytest.mark.parametrize("gradients", ["own", "all"])
def test_other_metrics_and_ablations(family, metric, ablation, gradients):
    model, batch = tiny(family), make_batch(2, 7)
    expected = naive_scores(model, batch, METRICS[metric], 3, gradients, ablation)
    found = eap_ig_activations(model, [batch], METRICS[metric], steps=3, gradients=gradients, ablation=ablation)
    assert_close(found.values, expected)


def test_scores_out_of_a_sublayer_sum_to_the_effect_of_patching_it(family):
    """As the steps grow; two numbers of steps are extrapolated, as the error of a right-hand sum goes with 1 / steps.
    The model is smoothed, so that few steps are enough."""
    model, batch = tiny(family), make_batch(2, 7)
    with torch.no_grad():
        for block in model.blocks:
            for weight in (*block.attention.modules, block.attention.out):
                weight.weight *= 0.4
    coarse, fine = (eap_ig_activations(model, [batch], steps=steps).of_nodes() for steps in (15, 30))
    first_order, sums, effects = eap(model, [batch]).of_nodes(), [], []
    with torch.no_grad():
        logits = model.hf(batch.clean).logits[:, -1]
        clean = LOGIT_DIFFERENCE.loss(logits, batch, logits).mean()
        for moved in sublayers(model):
            patched = patch_nodes(model, batch, moved)
            effects.append(float(LOGIT_DIFFERENCE.loss(patched, batch, logits).mean() - clean))
            sums.append([sum(2 * fine[n] - coarse[n] for n in moved), sum(first_order[n] for n in moved)])
    integral, tangent = np.abs(np.array(sums).T - effects).max(1) / np.abs(effects).max()
    assert integral < 1e-2
    assert tangent > 5 * integral or family == "gpt2_compiled"  # which has no norms and is almost linear


def test_one_step_is_the_clean_gradient():
    model, batch = tiny("gemma3"), make_batch()
    assert_close(eap_ig_activations(model, [batch], steps=1).values, eap(model, [batch]).values)


@pytest.mark.parametrize("gradients", ["own", "all"])
@pytest.mark.parametrize(("positions", "kv"), [("roles", "group"), ("each", "head")])
def test_positions_and_prompts(positions, kv, gradients, monkeypatch):
    model, batch = tiny("qwen2"), make_batch(3, 7)
    options = {"gradients": gradients, "steps": 2, "kv": kv}
    whole = eap_ig_activations(model, [batch], **options)
    monkeypatch.setattr(gradients_module, "PRODUCT_BYTES", 1)
    scores = eap_ig_activations(model, [batch], positions=positions, per_prompt=True, **options)
    summed = scores.graph.to_matrix(scores.values).sum(2, keepdims=True)
    np.testing.assert_allclose(whole.graph.from_matrix(summed), whole.values, atol=1e-9)
    np.testing.assert_allclose(scores.per_prompt.mean(0), scores.values, atol=1e-5)
    assert scores.provenance["method_options"] == {"steps": 2, "gradients": gradients}


def test_mistakes_are_refused():
    model, batches = tiny("gpt2"), [make_batch()]
    with pytest.raises(AcdcError, match="steps=0"):
        eap_ig_activations(model, batches, steps=0)
    with pytest.raises(AcdcError, match="unknown gradients 'al'.* 'all'"):
        eap_ig_activations(model, batches, gradients="al")
    with pytest.raises(AcdcError, match="the only point of 1 step"):
        eap_ig_activations(model, batches, METRICS["kl_divergence"], steps=1)

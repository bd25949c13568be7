"""The contract that every method in METHODS obeys: positive = helps, one score an edge, the model untouched."""

import inspect

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny

from acdc.discovery import METHODS
from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.task import position_names

LOGIT_DIFFERENCE = METRICS["logit_difference"]


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def is_acdc(method):
    return "threshold" in inspect.signature(method).parameters


def planted():
    """A model in which only a0.h1 and a2.h3 write anything."""
    model = tiny("gpt2")
    with torch.no_grad():
        for layer, block in enumerate(model.hf.transformer.h):
            keep = {0: 1, 2: 3}.get(layer)
            rows = torch.arange(24) // 6 == (-1 if keep is None else keep)
            block.attn.c_proj.weight *= rows[:, None]
            block.mlp.c_proj.weight.zero_()
    return model


def is_mask(method):
    """Learned masks score what is kept of an edge: close to 0 for one that does nothing, but not 0."""
    return "sparsity" in inspect.signature(method).parameters


def quick(method, threshold):
    """Options that make a method quick: most edges need not be tried, masks are trained for a few steps."""
    if is_mask(method):
        return {"steps": 4, "prompts_per_step": 2}
    return {"threshold": threshold} if is_acdc(method) else {}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random" and not is_mask(METHODS[name])])
def test_a_planted_circuit_is_found(name):
    method = METHODS[name]
    model, batches = planted(), [make_batch(4)]
    scores = method(model, batches, LOGIT_DIFFERENCE)
    graph = scores.graph
    silent = [node.name for node in graph.srcs if node.name not in ("input", "a0.h1", "a2.h3")]
    if name == "ifr":  # which looks at no loss, and sees the biases that MLPs write
        silent_heads = [graph.src_index[name] for name in silent if name.startswith("a")]
        assert (scores.values[np.isin(graph.edge_src, silent_heads)] == 0).all()
    from_silent = np.isin(graph.edge_src, [graph.src_index[name] for name in silent])
    read = [f"a0.h1<{x}>" for x in "qkv"] + [f"a2.h3<{x}>" for x in "qkv"] + ["logits"]
    into_read = np.isin(graph.edge_channel, [graph.channel_index[name] for name in read])
    tried = np.isfinite(scores.values)
    assert np.abs(scores.values[tried & (from_silent | ~into_read)]).max() < 1e-9 or name == "ifr"
    for edge in ("a2.h3->logits", "a0.h1->logits", "input->a0.h1<v>", "input->a2.h3<v>", "a0.h1->a2.h3<v>"):
        untried = is_acdc(method) and scores[edge] == -np.inf
        assert untried or abs(scores[edge]) > 1e-7, edge
    assert np.isfinite(scores["a2.h3->logits"])


@pytest.mark.parametrize("name", [name for name in METHODS if is_mask(METHODS[name])])
def test_masks_of_a_planted_circuit_stay_open(name):
    """What writes nothing is closed, and ranks below what is needed."""
    scores = METHODS[name](planted(), [make_batch(4)], sparsity=0.8, steps=120)
    graph = scores.graph
    silent = [i for i, node in enumerate(graph.srcs) if node.name not in ("input", "a0.h1", "a2.h3")]
    highest = scores.values[np.isin(graph.edge_src, silent)].max()
    assert highest < 0.5 < scores["a2.h3->logits"]
    assert ((scores.values >= 0) & (scores.values <= 1)).all()


def test_scores_are_finite_deterministic_and_of_every_edge(method, family):
    model = tiny(family)
    batches = [make_batch(2, 5, first=1), make_batch(1, 7)]
    options = quick(method, threshold=0.5)
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    for kv in ("head", "group"):
        scores, again = (method(model, batches, LOGIT_DIFFERENCE, kv=kv, **options) for _ in range(2))
        assert scores == again
        assert scores.values.shape == (model.graph(kv).n_edges,)
        assert not np.isnan(scores.values).any()
        assert scores.provenance["metric"] == "logit_difference"
    assert all(torch.equal(weight, before[name]) for name, weight in model.hf.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.hf.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_prompts_count_once_however_they_are_batched(method):
    model, whole = tiny("llama"), make_batch(4, 6)
    singles = [type(whole)(*(getattr(whole, f)[i : i + 1] for f in ("clean", "corrupted", "answer", "wrong")),
                           examples=whole.examples[i : i + 1]) for i in range(4)]
    options = quick(method, threshold=0.05)
    together = method(model, [whole], LOGIT_DIFFERENCE, **options).values
    apart = method(model, singles, LOGIT_DIFFERENCE, **options).values
    np.testing.assert_allclose(together, apart, atol=1e-6 if is_mask(method) else 1e-9)  # Adam divides by gradients


LINEAR = ("eap", "eap_ig", "eap_clean_corrupted", "relp", "gim")  # in what a src writes


@pytest.mark.parametrize("positions", ["each", "roles"])
def test_scores_by_position(method, positions, request):
    model, batches = tiny("llama"), [make_batch(3, 6)]
    options = quick(method, threshold=0.5)
    scores = method(model, batches, LOGIT_DIFFERENCE, positions=positions, **options)
    assert scores.graph == model.graph(positions=position_names(batches, positions))
    again = method(model, batches, LOGIT_DIFFERENCE, positions=positions, **options)
    assert scores == again and not np.isnan(scores.values).any()
    if request.node.callspec.params["method"] in LINEAR:
        whole = method(model, batches, LOGIT_DIFFERENCE, **options)
        summed = scores.graph.to_matrix(scores.values).sum(2, keepdims=True)
        np.testing.assert_allclose(whole.graph.from_matrix(summed), whole.values, atol=1e-10)


def test_scores_of_single_prompts_have_their_mean(method):
    if "per_prompt" not in inspect.signature(method).parameters:
        pytest.skip("its scores are of all prompts together")
    model, batches = tiny("llama"), [make_batch(2, 6), make_batch(1, 6, seed=1)]
    scores = method(model, batches, LOGIT_DIFFERENCE, per_prompt=True)
    assert scores.per_prompt.shape == (3, scores.graph.n_edges)
    np.testing.assert_allclose(scores.per_prompt.mean(0), scores.values, atol=1e-6)


def test_a_metric_without_gradient_is_refused_by_gradient_methods():
    for name in ("eap", "eap_ig", "eap_ig_activations", "eap_clean_corrupted", "relp", "gim", "node_attribution",
                 "hisp", "ensemble", "edge_pruning", "subnetwork_probing", "ugs"):
        with pytest.raises(AcdcError, match="no gradient"):
            METHODS[name](tiny("gpt2"), [make_batch()], METRICS["accuracy"])
    for name in ("eap", "relp", "gim", "node_attribution", "hisp"):
        with pytest.raises(AcdcError, match="every score would be 0"):
            METHODS[name](tiny("gpt2"), [make_batch()], METRICS["kl_divergence"])
    with pytest.raises(AcdcError, match="steps=0"):
        METHODS["eap_ig"](tiny("gpt2"), [make_batch()], LOGIT_DIFFERENCE, steps=0)
    with pytest.raises(AcdcError, match="finite number"):
        METHODS["acdc"](tiny("gpt2"), [make_batch()], LOGIT_DIFFERENCE, threshold=float("nan"))

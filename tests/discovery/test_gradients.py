"""EAP, EAP-IG and clean-corrupted EAP against slow, independent computations."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from naive import NaiveModel

from acdc.discovery import gradients
from acdc.discovery.eap import eap
from acdc.discovery.eap_clean_corrupted import eap_clean_corrupted
from acdc.discovery.eap_ig import eap_ig
from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.task import position_groups


def naive_scores(model, batch, metric, points, ablation="resample"):
    """The mean over prompts of the naive products, edge by edge."""
    products = naive_products(model, batch, metric, points, ablation)
    return np.array([float(products[edge].sum()) / len(batch) for edge in model.graph().edge_names])


def naive_products(model, batch, metric, points, ablation="resample"):
    """By edge, token by token. One autograd pass a point, with a tensor of its own for what each channel reads."""
    naive, graph = NaiveModel(model.hf), model.graph()
    with torch.no_grad():
        reference, clean = naive.run(batch.clean, graph)
        _, replaced = naive.run(batch.corrupted, graph)
        if ablation == "zero":
            replaced = {name: torch.zeros_like(value) for name, value in replaced.items()}
        if ablation == "mean":
            replaced = {name: value.mean(0, keepdim=True).expand_as(value) for name, value in replaced.items()}
    products = dict.fromkeys(graph.edge_names, torch.zeros(()))
    for point in points:
        leaves: dict[str, torch.Tensor] = {}
        embedding = replaced["input"] + point * (clean["input"] - replaced["input"])
        logits, _ = naive.run(batch.clean, graph, embedding=embedding, leaves=leaves)
        loss = metric.loss(logits, batch, reference).sum()
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True,
                                                     materialize_grads=True), strict=True))
        for edge in range(graph.n_edges):
            src = graph.srcs[graph.edge_src[edge]].name
            channel = graph.channels[graph.edge_channel[edge]].name
            product = ((replaced[src] - clean[src]) * grads[channel]).sum(-1) / len(points)
            products[f"{src}->{channel}"] = products[f"{src}->{channel}"] + product
    return products


def assert_close(ours, expected, rtol=1e-5):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=rtol * np.abs(expected).max())


def test_eap_is_the_naive_gradient(family):
    model, batch = tiny(family), make_batch()
    metric = METRICS["logit_difference"]
    assert_close(eap(model, [batch], metric).values, naive_scores(model, batch, metric, [1.0]))


@pytest.mark.parametrize("metric", ["logit_difference", "kl_divergence", "probability_difference"])
def test_eap_ig_is_the_naive_gradient(family, metric):
    model, batch = tiny(family), make_batch()
    expected = naive_scores(model, batch, METRICS[metric], [0, 1 / 3, 2 / 3])
    assert_close(eap_ig(model, [batch], METRICS[metric], steps=3).values, expected)


@pytest.mark.parametrize("metric", ["logit_difference", "kl_divergence", "probability_difference"])
def test_eap_clean_corrupted_is_the_naive_gradient(family, metric):
    model, batch = tiny(family), make_batch()
    expected = naive_scores(model, batch, METRICS[metric], [1, 0])
    assert_close(eap_clean_corrupted(model, [batch], METRICS[metric]).values, expected)


@pytest.mark.parametrize(("family", "ablation"), [("gpt2_compiled", "zero"), ("llama", "mean")])
def test_eap_clean_corrupted_with_other_ablations(family, ablation):
    model, batch = tiny(family), make_batch()
    metric = METRICS["logit_difference"]
    expected = naive_scores(model, batch, metric, [1, 0], ablation)
    assert_close(eap_clean_corrupted(model, [batch], metric, ablation=ablation).values, expected)


def test_eap_clean_corrupted_is_the_mean_of_eap_and_of_eap_ig_with_one_step():
    model, batches, kl = tiny("gemma2"), [make_batch(2), make_batch(1, 7)], METRICS["kl_divergence"]
    corrupted = eap_ig(model, batches, steps=1).values
    assert_close(eap_clean_corrupted(model, batches).values, (eap(model, batches).values + corrupted) / 2)
    assert_close(eap_clean_corrupted(model, batches, kl).values, eap_ig(model, batches, kl, steps=1).values / 2)


@pytest.mark.parametrize(("family", "ablation"), [("gpt2_compiled", "zero"), ("llama", "mean"), ("gemma3", "mean"),
                                                  ("gpt_neox", "mean")])
def test_other_ablations(family, ablation):
    model, batch = tiny(family), make_batch()
    metric = METRICS["logit_difference"]
    expected = naive_scores(model, batch, metric, [0, 0.5], ablation)
    assert_close(eap_ig(model, [batch], metric, steps=2, ablation=ablation).values, expected)


def test_eap_with_zero_ablation(family):
    model, batch = tiny(family), make_batch()
    metric = METRICS["logit_difference"]
    assert_close(eap(model, [batch], metric, ablation="zero").values, naive_scores(model, batch, metric, [1], "zero"))


def test_a_path_from_an_input_of_zero_is_refused_where_there_are_norms():
    for method in (eap_ig, eap_clean_corrupted):
        with pytest.raises(AcdcError, match=f"{method.__name__} with zero ablation.* start at an input of 0"):
            method(tiny("llama"), [make_batch()], ablation="zero")


def test_float32_agrees_with_float64(family):
    batch = make_batch()
    exact = eap_ig(tiny(family), [batch]).values
    assert_close(eap_ig(tiny(family, torch.float32), [batch]).values, exact, 1e-4)


def test_bfloat16_runs_and_resembles_float64(family):
    batch = make_batch()
    exact = eap(tiny(family), [batch]).values
    assert np.corrcoef(eap(tiny(family, torch.bfloat16), [batch]).values, exact)[0, 1] > 0.97


def test_eap_is_the_finite_difference():
    """Corrupting an edge a little moves the loss by its score, in proportion."""
    model, batch, epsilon = tiny("gpt2"), make_batch(), 1e-5
    naive, graph, metric = NaiveModel(model.hf), model.graph(), METRICS["logit_difference"]
    scores = eap(model, [batch], metric)
    with torch.no_grad():
        _, clean = naive.run(batch.clean, graph)
        _, corrupted = naive.run(batch.corrupted, graph)
        for edge in np.random.default_rng(0).choice(graph.n_edges, 30, replace=False):
            kept = np.ones(graph.n_edges, dtype=bool)
            kept[edge] = False
            losses = []
            for sign in (1, -1):
                moved = {name: clean[name] + sign * epsilon * (corrupted[name] - clean[name]) for name in clean}
                logits, _ = naive.run(batch.clean, graph, kept, moved)
                losses.append(float(metric.loss(logits, batch, logits).mean()))
            assert (losses[0] - losses[1]) / (2 * epsilon) == pytest.approx(scores.values[edge], abs=1e-6)


def test_group_scores_are_sums_of_head_scores(family):
    model, batch = tiny(family), make_batch()
    heads, groups = (eap_ig(model, [batch], kv=kv) for kv in ("head", "group"))
    matrix = heads.graph.to_matrix(heads.values)
    summed = np.zeros(groups.graph.exists.shape)
    for column, into in enumerate(groups.graph.channel_of_per_head):
        summed[:, into] += matrix[:, column]
    np.testing.assert_allclose(groups.values, groups.graph.from_matrix(summed), atol=1e-12)


@pytest.mark.parametrize("positions", ["each", "roles"])
def test_scores_by_position_are_the_naive_ones(family, positions):
    model, batch, metric = tiny(family), make_batch(), METRICS["logit_difference"]
    scores = eap(model, [batch], metric, positions=positions)
    graph = scores.graph
    products = naive_products(model, batch, metric, [1.0])
    at = position_groups(batch, graph.positions)
    expected = []
    for edge in range(graph.n_edges):
        there = products[graph.edge_name(edge).split("@")[0]] * (at == graph.edge_position[edge])
        expected.append(float(there.sum()) / len(batch))
    assert_close(scores.values, np.array(expected))


@pytest.mark.parametrize(("positions", "kv"), [("all", "head"), ("roles", "group")])
@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_scores_of_a_prompt_are_those_that_it_has_alone(ablation, positions, kv):
    model, batches = tiny("qwen2"), [make_batch(3, 7), make_batch(2, 7, seed=1)]
    options = {"positions": positions, "kv": kv, "per_prompt": True, "ablation": ablation}
    scores = eap_ig(model, batches, steps=2, **options)
    assert scores.per_prompt.shape == (5, scores.graph.n_edges)
    np.testing.assert_allclose(scores.per_prompt.mean(0), scores.values, atol=1e-6)
    if ablation == "resample":
        for row, batch, i in ((0, batches[0], 0), (2, batches[0], 2), (4, batches[1], 1)):
            tensors = (getattr(batch, name)[i : i + 1] for name in ("clean", "corrupted", "answer", "wrong"))
            alone = eap_ig(model, [type(batch)(*tensors, batch.examples[i : i + 1])], steps=2, **options)
            by_name = [alone[name] for name in scores.graph.edge_names]
            np.testing.assert_allclose(scores.per_prompt[row], by_name, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"positions": "roles", "per_prompt": True}])
def test_prompts_in_chunks_give_the_same_scores(monkeypatch, options):
    model, batch = tiny("llama"), make_batch(5)
    whole = eap_ig(model, [batch], **options)
    monkeypatch.setattr(gradients, "PRODUCT_BYTES", 1)
    chunked = eap_ig(model, [batch], **options)
    np.testing.assert_allclose(chunked.values, whole.values, atol=1e-12)
    if options:
        np.testing.assert_allclose(chunked.per_prompt, whole.per_prompt, atol=1e-7)

"""Superposition: known geometries, the phases that the toy model has, and neurons that answer to one or several."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny_hf

from acdc.annotation.superposition import feature_dimensionality, neurons_and_features, polysemanticity
from acdc.benchmarks.superposition import boundary, losses_by_theory, packing, phases, train
from acdc.errors import AcdcError
from acdc.models import load_model
from acdc.sae.sparse_coder import SparseCoder


def test_dimensionality_of_known_geometries():
    angles = torch.arange(5) * 2 * math.pi / 5
    pentagon = torch.stack([angles.cos(), angles.sin()], 1)
    torch.testing.assert_close(feature_dimensionality(pentagon), torch.full((5,), 2 / 5))
    torch.testing.assert_close(feature_dimensionality(torch.tensor([[1.0], [-1]])), torch.full((2,), 1 / 2))
    torch.testing.assert_close(feature_dimensionality(torch.eye(4) * 3), torch.ones(4))
    assert feature_dimensionality(torch.tensor([[1.0, 0], [0, 0]])).tolist() == [1, 0]


def test_two_features_in_one_dimension_share_it_where_they_are_rare():
    """Dense: the more important one has it. Rare and of like importance: both, as opposites."""
    density = torch.tensor([1.0, 1.0, 0.03, 0.03])
    importance = torch.tensor([[1, 0.1], [1, 10.0], [1, 1], [1, 0.8]])
    weight, losses = train(density.repeat_interleave(4), importance.repeat_interleave(4, 0), 1, steps=1500)
    best = weight.view(4, 4, 2, 1)[torch.arange(4), losses.view(4, 4).argmin(1)]
    assert phases(best).tolist() == [0, 1, 2, 2]
    assert (best[2:, 0, 0] * best[2:, 1, 0] < 0).all()


def test_losses_and_boundary_by_theory_are_those_of_the_model():
    """Means over drawn inputs, of a model with the weights that the theory speaks of."""
    random = torch.Generator().manual_seed(0)
    for density, importance in ((0.9, 0.3), (0.3, 4.0), (0.1, 1.0)):
        x = torch.rand(400_000, 2, generator=random) * (torch.rand(400_000, 2, generator=random) < density)
        weight = torch.tensor([1.0, importance])
        own = torch.stack([x[:, 0], torch.full((len(x),), density / 2)], 1)
        own = own if importance <= 1 else torch.stack([torch.full((len(x),), density / 2), x[:, 1]], 1)
        shared = torch.relu((x[:, 0] - x[:, 1])[:, None] * torch.tensor([1.0, -1.0]))
        measured = [float((weight * (x - rebuilt) ** 2).sum(1).mean()) for rebuilt in (own, shared)]
        assert losses_by_theory(density, importance) == pytest.approx(measured, rel=0.03)
    for importance in (0.2, 1.0, 5.0):
        at = float(boundary(np.array([importance]))[0])
        own, shared = losses_by_theory(at, importance)
        assert own == pytest.approx(shared)
        own, shared = losses_by_theory(at / 2, importance)
        assert own > shared


def test_rare_features_are_packed_and_dense_ones_are_not():
    dense, pairs, rare = packing(np.array([0.7, 0.15, 0.02]))
    assert 4 <= (dense > 0).sum() <= 6 and dense[dense > 0].mean() > 0.8
    assert 9 <= (pairs > 0).sum() <= 11 and pairs[pairs > 0].mean() == pytest.approx(0.5, abs=0.06)
    assert (rare > 0).sum() >= 12 and rare[rare > 0].mean() < 0.45


def test_neurons_that_follow_one_feature_and_several():
    random = torch.Generator().manual_seed(0)
    features = (torch.rand(4000, 60, generator=random) < 0.05) * torch.rand(4000, 60, generator=random)
    noise = 0.05 * torch.randn(4000, 4, generator=random)
    neurons = torch.stack([features[:, 3], features[:, :4].sum(1), -features[:, 7], torch.zeros(4000)], 1) + noise
    found = polysemanticity(neurons, features)
    assert found[0] == pytest.approx(1, abs=0.05) and found[1] == pytest.approx(4, abs=0.4)
    assert found[2] == pytest.approx(1, abs=0.05) and found[3] == 0
    with pytest.raises(AcdcError, match="the same tokens, 30 at least"):
        polysemanticity(neurons[:20], features[:20])


def test_no_answers_are_found_by_chance_where_features_are_rare_and_neurons_seldom_large():
    """A normal distribution of correlations would have nine in ten of these neurons answer to something."""
    random = torch.Generator().manual_seed(0)
    features = (torch.rand(2000, 100, generator=random) < 0.005) * torch.rand(2000, 100, generator=random)
    neurons = torch.relu(torch.randn(2000, 200, generator=random) - 1) ** 2
    assert (polysemanticity(neurons, features) > 0).mean() <= 0.04
    assert polysemanticity(torch.full((50, 1), 0.1), torch.full((50, 1), 1000.1)).tolist() == [0]


@pytest.mark.parametrize("name", ["m1", "m1.in"])
def test_neurons_and_features_of_a_coder_on_the_same_tokens(name):
    """Neurons that are the features: each answers to itself. Where they were read: HuggingFace's own modules."""
    model = load_model(tiny_hf("llama"))
    tokens = torch.randint(model.hf.config.vocab_size, (20, 9), generator=torch.Generator().manual_seed(0))
    width, n = model.hf.config.hidden_size, 24
    seen = {}
    mlp = model.hf.model.layers[1].mlp
    hooks = [mlp.register_forward_hook(lambda module, args, out: seen.update({"m1.in": args[0], "m1": out})),
             mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.update(neurons=args[0]))]
    with torch.no_grad():
        model.hf(tokens)
    for hook in hooks:
        hook.remove()
    weights = {"W_enc": torch.randn(width, n, generator=torch.Generator().manual_seed(1)),
               "W_dec": torch.zeros(n, width), "b_dec": torch.zeros(width), "b_enc": torch.zeros(n)}
    coder = SparseCoder("relu", name, "m1", weights, centred=False)
    neurons, features = neurons_and_features(model, coder, tokens)
    torch.testing.assert_close(neurons, seen["neurons"][:, 1:].flatten(0, 1))
    torch.testing.assert_close(features, torch.relu(seen[name][:, 1:].flatten(0, 1) @ weights["W_enc"]))
    with pytest.raises(AcdcError, match="reads resid1, which has no neurons of its own"):
        neurons_and_features(model, replace(coder, site="resid1"), tokens)

"""Superposition: known geometries, the phases that the toy model has, and neurons that answer to one or several."""

import math

import numpy as np
import pytest
import torch

from acdc.annotation.superposition import feature_dimensionality, polysemanticity
from acdc.benchmarks.superposition import packing, phases, train
from acdc.errors import AcdcError


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

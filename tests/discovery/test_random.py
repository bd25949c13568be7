"""Random scores are the seed's, and nothing else's."""

import numpy as np
import pytest
from conftest import make_batch, tiny

from acdc.discovery.random import random
from acdc.errors import AcdcError
from acdc.metrics import METRICS


def test_scores_depend_on_the_seed_alone():
    model, other = tiny("gpt2"), tiny("gpt_neox_sequential")
    scores = random(model, [make_batch()], seed=3)
    assert scores.provenance["method_options"] == {"seed": 3}
    same = random(other, [make_batch(2, 6), make_batch(1)], METRICS["accuracy"], seed=3, ablation="zero")
    assert np.array_equal(scores.values, same.values)
    assert not np.isin(scores.values, random(model, [make_batch()], seed=4).values).any()


def test_scores_are_uniform():
    scores = np.stack([random(tiny("llama"), [make_batch()], seed=seed).values for seed in range(200)])
    assert -1 <= scores.min() < -0.99 and 0.99 < scores.max() < 1
    quarters = np.histogram(scores, bins=4, range=(-1, 1))[0] / scores.size
    np.testing.assert_allclose(quarters, 0.25, atol=0.01)
    np.testing.assert_allclose(scores.mean(0), 0, atol=0.25)  # six standard errors: no edge is preferred
    assert abs(np.corrcoef(scores[:, 0], scores[:, 1])[0, 1]) < 0.3


def test_the_model_is_not_run(monkeypatch):
    model = tiny("gpt2")
    monkeypatch.setattr(type(model.hf), "forward", None)
    random(model, [make_batch()])


def test_what_is_refused():
    model = tiny("gpt2")
    with pytest.raises(AcdcError, match="seed=-1"):
        random(model, [make_batch()], seed=-1)
    with pytest.raises(AcdcError, match="no prompts"):
        random(model, [])
    with pytest.raises(AcdcError, match="unknown ablation 'means'. Did you mean 'mean'"):
        random(model, [make_batch()], ablation="means")

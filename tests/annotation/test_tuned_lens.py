"""A tuned lens starts as the logit lens, beats it on text it has not seen, and is the same however it was made."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file, save_file

import acdc.annotation.tuned_lens as tuned_lens
from acdc.annotation.lens import logit_lens
from acdc.annotation.tuned_lens import (
    Training,
    lens_divergence,
    load_tuned_lens,
    save_tuned_lens,
    train_tuned_lens,
)
from acdc.errors import AcdcError


def text(n, seed=0):
    return torch.randint(97, (n, 12), generator=torch.Generator().manual_seed(seed))


SHORT = Training(steps=6, windows_per_step=3, tokens_per_step=20)


@pytest.fixture(scope="module")
def model():
    return tiny("llama", torch.float32)


@pytest.fixture(scope="module")
def lens(model):
    return train_tuned_lens(model, text(6), SHORT)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_it_beats_the_logit_lens_at_every_layer_on_text_it_has_not_seen(family):
    model = tiny(family, torch.float32)
    before = lens_divergence(model, text(20, seed=1))
    found = train_tuned_lens(model, text(200), Training(steps=150, windows_per_step=8, learning_rate=1e-2))
    after = lens_divergence(model, text(20, seed=1), found)
    assert (after < 0.9 * before).all(), (before, after)
    early, late = (np.mean([point["kl"] for point in found.history[part]]) for part in (slice(10), slice(-10, None)))
    assert late < early and len(found.history) == 150


def test_divergences_are_those_of_the_readings(model, lens):
    windows, streams = text(3, seed=2), [f"resid{i}" for i in range(3)]
    for translate in (None, lens):
        expected = logit_lens(model, windows, streams, translate=translate).kl.mean((1, 2))
        torch.testing.assert_close(lens_divergence(model, windows, translate), expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_a_step_is_that_of_the_mean_divergence(model):
    """The first step of Adam is the rate times the gradient's sign, in units of each dimension."""
    windows = text(1)
    one = train_tuned_lens(model, windows, Training(steps=1, windows_per_step=1, tokens_per_step=12))
    weight, bias = (torch.zeros(shape, requires_grad=True) for shape in ((3, 24, 24), (3, 24)))
    with torch.no_grad():
        hidden = model.hf(windows, output_hidden_states=True)
    gradients = []
    for layer in range(3):
        h = hidden.hidden_states[layer]
        lens = model.hf.lm_head(model.hf.model.norm(h + h @ weight[layer].T + bias[layer])).log_softmax(-1)
        kl = torch.nn.functional.kl_div(lens, hidden.logits.log_softmax(-1), log_target=True, reduction="sum")
        gradients.append(torch.autograd.grad(kl, (weight, bias)))
    of_weight, of_bias = (torch.stack(parts).sum(0) for parts in zip(*gradients, strict=True))
    for moved, gradient in ((one.weight, of_weight), (one.bias, of_bias)):
        clear = gradient.abs() > 1e-3 * gradient.abs().max()
        assert torch.equal(moved.sign()[clear], -gradient.sign()[clear])


def test_a_run_that_is_killed_goes_on_to_the_same_lens(model, lens, tmp_path, monkeypatch):
    monkeypatch.setattr(tuned_lens, "SAVE_EVERY", 2)
    real, calls = tuned_lens._step, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(tuned_lens, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_tuned_lens(model, text(6), SHORT, checkpoint=tmp_path / "state")
    monkeypatch.setattr(tuned_lens, "_step", real)
    found = train_tuned_lens(model, text(6), SHORT, checkpoint=tmp_path / "state")
    assert torch.equal(found.weight, lens.weight) and torch.equal(found.bias, lens.bias)
    assert found.history == lens.history and lens.weight.abs().max() > 0
    with pytest.raises(AcdcError, match="its seed is 0, here it is 1"):
        train_tuned_lens(model, text(6), Training(**{**vars(SHORT), "seed": 1}), checkpoint=tmp_path / "state")
    with pytest.raises(AcdcError, match="its text is"):
        train_tuned_lens(model, text(6, seed=5), SHORT, checkpoint=tmp_path / "state")


def test_a_saved_lens_comes_back(model, lens, tmp_path):
    save_tuned_lens(lens, model, tmp_path / "lens")
    found = load_tuned_lens(model, tmp_path / "lens")
    assert torch.equal(found.weight, lens.weight) and torch.equal(found.bias, lens.bias)
    stored = load_file(tmp_path / "lens" / "params.safetensors")
    assert sorted(stored) == ["0.bias", "0.weight", "1.bias", "1.weight", "2.bias", "2.weight"]
    linear = torch.nn.Linear(24, 24)
    linear.load_state_dict({"weight": stored["1.weight"], "bias": stored["1.bias"]})
    h = torch.randn(5, 24)
    torch.testing.assert_close(h + linear(h), found(1, h))
    config = json.loads((tmp_path / "lens" / "config.json").read_text())
    assert config == {"base_model_name_or_path": "llama", "d_model": 24, "num_hidden_layers": 3, "bias": True,
                      "base_model_revision": None, "unembed_hash": config["unembed_hash"],
                      "lens_type": "linear_tuned_lens"}


def test_mistakes_are_named(model, lens, tmp_path):
    def refused(message, of=model):
        with pytest.raises(AcdcError, match=message):
            load_tuned_lens(of, tmp_path / "lens")

    refused("holds no tuned lens")
    (tmp_path / "lens").mkdir()
    (tmp_path / "lens" / "params.pt").write_bytes(b"")
    refused("is a pickle.*convert it once")
    save_tuned_lens(lens, model, tmp_path / "lens")
    config, weights = tmp_path / "lens" / "config.json", tmp_path / "lens" / "params.safetensors"
    good = json.loads(config.read_text())
    for change, message in [({"d_model": 25}, "d_model is 25, llama has 24"), ({"num_hidden_layers": 4}, "layers is 4"),
                            ({"unembed_hash": "x"}, "unembed_hash is 'x'"), ({"bias": False}, "bias true"),
                            ({"lens_type": "other"}, "lens_type")]:
        config.write_text(json.dumps({**good, **change}))
        refused(message)
    config.write_text("[")
    refused("cannot be read")
    config.write_text(json.dumps(good))
    tensors = load_file(weights)
    for change, message in [({"1.bias": torch.zeros(3)}, r"'1.bias' has the shape \(3,\)"),
                            ({"3.bias": torch.zeros(24)}, "'3.bias'"),
                            ({"1.bias": torch.full((24,), torch.nan)}, "not finite"),
                            *(({"1.bias": torch.ones(24, dtype=dtype)}, "not floating-point") for dtype in (
                                torch.bool, torch.int64, torch.complex64))]:
        save_file({**tensors, **change}, weights)
        refused(message)
    weights.write_bytes(b"no")
    refused("is not a tuned lens, or is damaged")
    with pytest.raises(AcdcError, match="no windows"):
        train_tuned_lens(model, text(0))
    for change in ({"steps": 0}, {"tokens_per_step": 0}, {"learning_rate": 0.0}, {"seed": -1}):
        with pytest.raises(AcdcError, match=next(iter(change))):
            Training(**change)
    with pytest.raises(AcdcError, match="smaller learning rate"):
        train_tuned_lens(model, text(2), Training(steps=9, learning_rate=1e38))

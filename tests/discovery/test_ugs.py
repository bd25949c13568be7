"""Uniform gradient sampling: the fractions are drawn as said, and the gradient is right on average; its constants."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny

from acdc.discovery import masks
from acdc.discovery.masks import EdgeMatrix, State, Training, budget_step, first_masks
from acdc.discovery.ugs import UNIFORM, fractions, ugs
from acdc.learning import Adam, mean_loss, prepare_prompts
from acdc.metrics import METRICS
from acdc.optimal_ablation import RATE, first_constants
from acdc.transformer import frozen


@pytest.mark.parametrize("logit", [-3.0, 0.0, 1.5])
def test_fractions_are_drawn_as_said(logit):
    uniform = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    drawn = fractions(torch.full((200_000,), logit, dtype=torch.float64), uniform)
    p = torch.tensor(logit).double().sigmoid()
    window = p * (1 - p)
    between = drawn[(drawn > 0) & (drawn < 1)]
    assert float((drawn == 1).double().mean()) == pytest.approx(float(p - window / 2), abs=1e-4)
    assert len(between) / 200_000 == pytest.approx(float(window), abs=1e-4)
    torch.testing.assert_close(between.sort().values, torch.linspace(0, 1, len(between)).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("logit", [-2.0, 0.7])
def test_gradient_is_right_on_average(logit):
    """For a loss that is far from linear: d/d(logit p) of p L(1) + (1 - p) L(0)."""
    uniform = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    point = torch.full((400_000,), logit, dtype=torch.float64, requires_grad=True)
    drawn = fractions(point, uniform)
    (torch.sin(5 * drawn) + drawn**3).mean().backward()
    assert point.grad is not None
    p = torch.tensor(logit).double().sigmoid()
    expected = p * (1 - p) * (torch.sin(torch.tensor(5.0)) + 1)
    assert float(point.grad.sum()) == pytest.approx(float(expected), rel=1e-2)


def test_constants_are_learned_with_the_masks():
    """Three steps written out: both are moved by the gradients of the same loss, torch's own Adam for the constants."""
    model, batches = tiny("qwen2"), [make_batch(3, 6), make_batch(2, 8)]
    graph, options = model.graph(), {"steps": 3, "sparsity": 0.6, "prompts_per_step": 3}
    scores = ugs(model, batches, ablation="optimal", **options)
    assert scores.provenance["ablation"] == "optimal"
    training = Training(3, 0.6, 0.3, 3, 0, 0.5)
    with frozen(model):
        groups = prepare_prompts(model, batches, "mean_over_positions", ())
        constants = first_constants(model, batches)
        first, none = first_masks(model, graph.n_edges, training), torch.zeros(2)
        state = State(first.clone(), none, (Adam(first, (0.9, 0.98)), Adam(none)), 0, [])
        shift = torch.zeros_like(constants.shift, requires_grad=True)
        optimiser, matrix = torch.optim.Adam([shift]), EdgeMatrix(graph, model.device)
        for step in range(3):
            state.step = step
            constants.shift = shift
            chosen = training.draw(step, 5)
            uniform = torch.rand(graph.n_edges, generator=training.generator("masks", step), dtype=torch.float64)

            def loss_of(masks, chosen=chosen):
                return mean_loss(groups, chosen, matrix(masks), METRICS["kl_divergence"], constants.logits,
                                 constants.shift)

            budget_step(loss_of, training, state, uniform.clamp(1e-6, 1 - 1e-6), UNIFORM)
            optimiser.param_groups[0]["lr"] = RATE * min(1, 2 - 2 * step / 3)
            optimiser.step()
            optimiser.zero_grad()
    np.testing.assert_allclose(scores.values, state.log_alpha.sigmoid().numpy(), atol=1e-9)
    assert np.abs(scores.values - ugs(model, batches, ablation="mean_over_positions", **options).values).max() > 1e-6


def test_a_run_that_learns_constants_goes_on_to_the_same_result(tmp_path, monkeypatch):
    model, batches, path = tiny("llama"), [make_batch(3, 6)], tmp_path / "masks.safetensors"
    options = {"steps": 6, "sparsity": 0.8, "prompts_per_step": 2, "ablation": "optimal"}
    whole = ugs(model, batches, **options)
    loss, n_left = masks.mean_loss, 4

    def four_times(*given):
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise InterruptedError
        return loss(*given)

    monkeypatch.setattr(masks, "SAVE_EVERY", 2)
    monkeypatch.setattr(masks, "mean_loss", four_times)
    with pytest.raises(InterruptedError):
        ugs(model, batches, checkpoint=path, **options)
    monkeypatch.setattr(masks, "mean_loss", loss)
    assert ugs(model, batches, checkpoint=path, **options) == whole

"""Uniform gradient sampling: the fractions are drawn as said, and the gradient is right on average."""

import pytest
import torch

from acdc.discovery.ugs import fractions


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

"""Metrics equal what can be computed by hand, and their losses fall as the run does better."""

import math

import pytest
import torch
from torch.nn.functional import kl_div

from acdc.metrics import METRICS
from acdc.task import Batch, Example

EXAMPLE = Example("a", "b", "c", "d")


def batch_of(answer, wrong):
    n = len(answer)
    zeros = torch.zeros((n, 1), dtype=torch.int64)
    return Batch(zeros, zeros, torch.tensor(answer), torch.tensor(wrong), (EXAMPLE,) * n)


LOGITS = torch.tensor([[0.0, math.log(2), math.log(3), math.log(4)], [5.0, 1.0, 5.0, 5.0]])
REFERENCE = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
BATCH = batch_of([3, 1], [1, 0])

VALUES = {
    "logit_difference": [math.log(4) - math.log(2), -4.0],
    "probability_difference": [4 / 10 - 2 / 10, (math.e - math.e**5) / (math.e + 3 * math.e**5)],
    "answer_rank": [1.0, 4.0],
    "accuracy": [1.0, 0.0],
}


@pytest.mark.parametrize("name", VALUES)
def test_values_by_hand(name):
    value = METRICS[name].value(LOGITS, BATCH, REFERENCE)
    torch.testing.assert_close(value, torch.tensor(VALUES[name]))


def test_kl_by_hand_and_by_torch():
    value = METRICS["kl_divergence"].value(LOGITS, BATCH, REFERENCE)
    by_hand = sum(0.25 * math.log(0.25 / p) for p in (0.1, 0.2, 0.3, 0.4))
    assert float(value[0]) == pytest.approx(by_hand, abs=1e-6)
    expected = kl_div(LOGITS.log_softmax(-1), REFERENCE.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(value, expected)


def test_kl_and_its_gradient_are_zero_at_the_clean_run():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    value = METRICS["kl_divergence"].value(logits, batch_of([1] * 3, [2] * 3), logits.detach().clone())
    assert value.tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(logits), atol=1e-15, rtol=0)


def test_kl_is_positive_elsewhere_and_ignores_a_constant():
    kl = METRICS["kl_divergence"].value
    assert (kl(LOGITS, BATCH, REFERENCE) > 0).all()
    torch.testing.assert_close(kl(LOGITS + 7, BATCH, REFERENCE), kl(LOGITS, BATCH, REFERENCE - 3))


def test_ties():
    """Equal logits do not rank above the answer, and are no win."""
    logits, batch = torch.zeros(1, 5), batch_of([2], [3])
    assert METRICS["answer_rank"].value(logits, batch, logits).tolist() == [1.0]
    assert METRICS["accuracy"].value(logits, batch, logits).tolist() == [0.0]


@pytest.mark.parametrize("name", METRICS)
def test_loss_falls_as_the_answer_gains(name):
    """From the wrong answer ahead to the clean run, where the answer is ahead."""
    reference = torch.tensor([[4.0, 0.0, 1.0]])
    batch = batch_of([0], [1])
    losses = [float(METRICS[name].loss(torch.tensor([[gain, 4.0 - gain, 1.0]]), batch, reference))
              for gain in (0.0, 1.5, 2.5, 4.0)]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
    sign = -1 if METRICS[name].higher_is_better else 1
    at_start = METRICS[name].value(torch.tensor([[0.0, 4.0, 1.0]]), batch, reference)
    assert losses[0] == sign * float(at_start)


@pytest.mark.parametrize("name", METRICS)
def test_flags_are_true(name):
    metric = METRICS[name]
    assert metric.name == name
    logits = LOGITS.clone().requires_grad_()
    value = metric.value(logits, BATCH, REFERENCE)
    differentiable = value.requires_grad and torch.autograd.grad(value.sum(), logits)[0].abs().sum() > 0
    assert bool(differentiable) == metric.differentiable
    reads = not torch.equal(metric.value(LOGITS, BATCH, REFERENCE), metric.value(LOGITS, BATCH, LOGITS))
    assert reads == metric.reads_reference


@pytest.mark.parametrize("name", METRICS)
def test_one_by_one_is_as_a_batch(name):
    metric = METRICS[name]
    together = metric.value(LOGITS, BATCH, REFERENCE)
    for i in range(2):
        alone = metric.value(LOGITS[i : i + 1], batch_of([int(BATCH.answer[i])], [int(BATCH.wrong[i])]),
                             REFERENCE[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1])

"""How well a run does a task: logits at the last position -> one number a prompt.

A `Metric` knows which direction is good. Discovery minimises its `loss`; evaluation reports its `value`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.task import Batch

Logits = Float[Tensor, "batch vocab"]
PerPrompt = Float[Tensor, " batch"]


@dataclass(frozen=True)
class Metric:
    """`value(logits, batch, reference)`: one number a prompt; `reference` are the logits of the clean run.

    `reads_reference`: whether it compares with the clean run. `differentiable`: whether gradient methods can use it.
    """

    name: str
    value: Callable[[Logits, Batch, Logits], PerPrompt]
    higher_is_better: bool = True
    differentiable: bool = True
    reads_reference: bool = False

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> PerPrompt:
        """The value, computed in float32 at least."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        return self.value(logits.to(wide), batch, reference.to(wide))

    def loss(self, logits: Logits, batch: Batch, reference: Logits) -> PerPrompt:
        """Lower is better: the value, with its sign turned where higher is better."""
        value = self(logits, batch, reference)
        return -value if self.higher_is_better else value


def pick(values: Logits, tokens: Tensor) -> PerPrompt:
    return values.gather(1, tokens[:, None])[:, 0]


def logit_difference(logits: Logits, batch: Batch, reference: Logits) -> PerPrompt:
    """logit(answer) - logit(wrong)."""
    return pick(logits, batch.answer) - pick(logits, batch.wrong)


def probability_difference(logits: Logits, batch: Batch, reference: Logits) -> PerPrompt:
    """p(answer) - p(wrong), between -1 and 1."""
    probabilities = logits.softmax(dim=-1)
    return pick(probabilities, batch.answer) - pick(probabilities, batch.wrong)


def kl_divergence(logits: Logits, batch: Batch, reference: Logits) -> PerPrompt:
    """KL(clean || run) = sum over the vocabulary of p_clean (log p_clean - log p), in nats.

    It is 0 with gradient 0 at the clean run itself: plain EAP, which takes its gradient there, scores every edge 0.
    """
    clean, run = reference.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    return (clean.exp() * (clean - run)).sum(dim=-1)


def answer_rank(logits: Logits, batch: Batch, reference: Logits) -> PerPrompt:
    """1 + the number of tokens with a higher logit than the answer: 1 is the top."""
    return 1.0 + (logits > pick(logits, batch.answer)[:, None]).sum(dim=-1).to(logits.dtype)


def accuracy(logits: Logits, batch: Batch, reference: Logits) -> PerPrompt:
    """1 where the answer beats the wrong answer, else 0."""
    return (pick(logits, batch.answer) > pick(logits, batch.wrong)).to(torch.float32)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("logit_difference", logit_difference),
        Metric("probability_difference", probability_difference),
        Metric("kl_divergence", kl_divergence, higher_is_better=False, reads_reference=True),
        Metric("answer_rank", answer_rank, higher_is_better=False, differentiable=False),
        Metric("accuracy", accuracy, differentiable=False),
    )
}

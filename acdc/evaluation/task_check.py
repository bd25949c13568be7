"""Whether a model can do a task: the metric on clean and corrupted prompts, and how often the answer wins."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.activations import record
from acdc.errors import AcdcError
from acdc.fitting import over_batches
from acdc.metrics import METRICS, Metric
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

ABLE = 0.9  # the accuracy from which a model counts as able to do a task


@dataclass(frozen=True)
class TaskCheck:
    """Means over prompts. `accuracy`: the share of clean prompts where logit(answer) > logit(wrong);
    `corrupted_accuracy`: the same of the corrupted prompts, with the clean prompt's answer."""

    metric: str
    clean: float
    corrupted: float
    accuracy: float
    corrupted_accuracy: float
    n_prompts: int
    higher_is_better: bool = True

    @property
    def able(self) -> bool:
        """Accuracy of at least 0.9, and the corrupted prompts take some of it and of the metric away."""
        gain = (self.clean - self.corrupted) * (1 if self.higher_is_better else -1)
        return self.accuracy >= ABLE and self.corrupted_accuracy < self.accuracy and gain > 0


def check_task(model: Transformer, batches: Sequence[Batch], metric: Metric = METRICS["logit_difference"]) -> TaskCheck:
    """How well `model` does the task of `batches` on its clean and on its corrupted prompts.

    Cost: two forward passes a batch. Answer and wrong answer are those of the clean prompt in both, so that 0 on the
    corrupted prompts says that nothing is left to tell them apart, and a negative logit difference that the corrupted
    prompt speaks for the wrong answer.

    Misleads where answers are easy to guess: an accuracy of 1 against one wrong answer is not a probability of 1.

        check = check_task(model, load_task("ioi", model.tokenizer).batches(model.tokenizer))
        print(check.able, check.accuracy)
    """
    if not batches:
        raise AcdcError("no prompts given: the list of batches is empty")
    rows = torch.cat([found for _, found in over_batches(batches, lambda b: _measure(model, b, metric))], dim=1)
    clean, corrupted, accuracy, corrupted_accuracy = (float(row.mean()) for row in rows)
    return TaskCheck(metric.name, clean, corrupted, accuracy, corrupted_accuracy, rows.shape[1],
                     metric.higher_is_better)


def _measure(model: Transformer, batch: Batch, metric: Metric) -> Float[Tensor, "row batch"]:
    with torch.no_grad(), frozen(model):
        clean, corrupted = (model.logits(record(model, tokens).final[:, -1])
                            for tokens in (batch.clean, batch.corrupted))
        rows = [measured(logits, batch, clean) for measured in (metric, METRICS["accuracy"])
                for logits in (clean, corrupted)]
    return torch.stack([row.double() for row in rows])

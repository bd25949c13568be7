"""What interventions do to a task's metric and to the loss on running text, before and after, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.annotation.sites import read
from acdc.annotation.text import next_token_loss
from acdc.errors import AcdcError
from acdc.evaluation.significance import Estimate, draw_weights, interval
from acdc.intervention.generation import Cut
from acdc.intervention.interventions import Intervention, intervened
from acdc.metrics import METRICS, Metric
from acdc.patching import run_circuit
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

WINDOWS_PER_PASS = 4


@dataclass(frozen=True)
class BeforeAfter:
    """Means with their intervals at 95%; `change` is after - before, prompt by prompt."""

    before: Estimate
    after: Estimate
    change: Estimate

    def __str__(self) -> str:
        return f"{self.before} before, {self.after} after, change {self.change}"


def metric_change(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    interventions: Sequence[Intervention] = (),
    cut: Cut | None = None,
    seed: int = 0,
) -> BeforeAfter:
    """The metric of the clean prompts without and with interventions, or with a circuit cut.

    A metric that compares with the clean run compares with the model as it is. Intervals are over draws of the prompts.
    Cost: two passes a batch. Raises `AcdcError` for both interventions and a cut, and for fewer than two prompts.
    """
    rows: list[list[Tensor]] = [[], []]
    for batch in batches:
        reference = last_logits(model, batch)
        rows[0].append(metric(reference, batch, reference))
        rows[1].append(metric(last_logits(model, batch, interventions, cut), batch, reference))
    before, after = (torch.cat(row).double().cpu().numpy() for row in rows)
    return before_after(before, after, seed)


def last_logits(model: Transformer, batch: Batch, interventions: Sequence[Intervention] = (), cut: Cut | None = None
                ) -> Float[Tensor, "batch vocab"]:
    """The logits after the clean prompts."""
    return _logits(model, batch.clean, interventions, cut, batch)[:, -1]


def before_after(before: Float[np.ndarray, " prompt"], after: Float[np.ndarray, " prompt"], seed: int = 0
                 ) -> BeforeAfter:
    """Means and intervals of numbers of the same prompts."""
    rows = np.stack([before, after, after - before])
    ends = interval(rows @ draw_weights(len(before), 2000, seed).T, len(before))
    return BeforeAfter(*(Estimate(float(row.mean()), *map(float, end)) for row, end in zip(rows, ends, strict=True)))


def text_loss(
    model: Transformer,
    windows: Int[Tensor, "window pos"],
    *,
    interventions: Sequence[Intervention] = (),
    cut: Cut | None = None,
) -> Float[np.ndarray, " window"]:
    """The mean cross-entropy of each window's next tokens, in nats: what an intervention costs on text it is not for.

    Cost: one pass over the windows, a circuit run for a cut. Errors as `metric_change`.
    """
    losses = []
    for tokens in windows.split(WINDOWS_PER_PASS):
        none = tokens[:, 0]
        logits = _logits(model, tokens, interventions, cut, Batch(tokens, tokens, none, none, ()), everywhere=True)
        losses.append(next_token_loss(logits, tokens))
    return torch.cat(losses).double().cpu().numpy()


def _logits(model: Transformer, tokens: Tensor, interventions: Sequence[Intervention], cut: Cut | None, batch: Batch,
            everywhere: bool = False) -> Float[Tensor, "batch pos vocab"]:
    if cut is not None:
        if interventions:
            raise AcdcError("interventions and a cut at once: a circuit is run node by node, where they have no place; "
                            "ablate nodes by interventions, or give one of both")
        logits = run_circuit(model, batch, cut.circuit, cut.ablation(batch), all_positions=everywhere)
        return logits if everywhere else logits[:, None]
    final = f"resid{model.n_layers}"
    with intervened(model, interventions):
        resid = read(model, tokens, [final])[final]
    with torch.no_grad(), frozen(model):
        return model.logits(resid if everywhere else resid[:, -1:])

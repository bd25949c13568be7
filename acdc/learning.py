"""What learning by gradient descent takes: prompts ready to be run softly, those of a step, their loss, and Adam.

Everything random in a step depends on the seed and the number of the step alone.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.ablation import check_ablation, prepare_ablation
from acdc.activations import record
from acdc.errors import AcdcError
from acdc.fitting import Halving, most_at_once
from acdc.metrics import Metric
from acdc.soft_circuit import SoftCircuit, joined, soft_circuit, soft_weights
from acdc.task import Batch
from acdc.transformer import Transformer

Run = Callable[[SoftCircuit, Tensor], Tensor]  # from prompts and what is kept of each edge to logits


def generator(seed: int, kind: str, number: int) -> torch.Generator:
    """Of its own for each step (or epoch) and purpose."""
    digest = hashlib.sha256(f"{kind} {seed} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def draw_prompts(seed: int, step: int, n_drawn: int, n: int) -> Int[Tensor, " prompt"]:
    """The prompts of a step: all n are gone through in random order, again and again."""
    size = min(n_drawn, n)
    places = range(step * size, (step + 1) * size)
    epochs = {place // n: None for place in places}
    orders = {epoch: torch.randperm(n, generator=generator(seed, "epoch", epoch)) for epoch in epochs}
    return torch.stack([orders[place // n][place % n] for place in places])


def check_metric(metric: Metric) -> None:
    if not metric.differentiable:
        raise AcdcError(f"metric {metric.name!r} has no gradient; use a differentiable one, such as kl_divergence")


@dataclass(frozen=True, eq=False)
class Group:
    """All prompts of one length, ready to run; `numbers`: which of all prompts they are. `fits`: how many are run at
    once."""

    soft: SoftCircuit
    batch: Batch
    reference: Float[Tensor, "batch vocab"]
    numbers: Int[Tensor, " batch"]
    fits: Halving


def prepare_prompts(model: Transformer, batches: Sequence[Batch], ablation: str, positions: Sequence[str]
                    ) -> list[Group]:
    """The prompts by length, whatever the batches, of which the largest says how many are run at once. To be called
    inside `frozen`."""
    check_ablation(batches, ablation)
    numbers = torch.arange(sum(map(len, batches))).split([len(batch) for batch in batches])
    by_length: dict[int, list[int]] = {}
    for i, batch in enumerate(batches):
        by_length.setdefault(batch.clean.shape[1], []).append(i)
    merged = [_merge([batches[i] for i in places]) for places in by_length.values()]
    replacements = prepare_ablation(model, merged, ablation)
    fits = Halving(at_once=most_at_once(batches))
    weights = soft_weights(model)
    groups = []
    for batch, places in zip(merged, by_length.values(), strict=True):
        def run(rows: slice, batch: Batch = batch) -> tuple[SoftCircuit, Tensor]:
            some = batch.rows(rows)
            with torch.no_grad():
                reference = model.logits(record(model, some.clean).final[:, -1])
            soft = soft_circuit(model, some, replacements(some), positions, weights=weights,
                                start=batch.first_difference)
            return soft, reference

        parts = [part for _, part in fits.over(len(batch), run)]
        groups.append(Group(joined([soft for soft, _ in parts]), batch, torch.cat([logits for _, logits in parts]),
                            torch.cat([numbers[i] for i in places]), fits))
    return groups


def _merge(batches: Sequence[Batch]) -> Batch:
    tensors = (torch.cat([getattr(b, name) for b in batches]) for name in ("clean", "corrupted", "answer", "wrong"))
    return Batch(*tensors, examples=tuple(example for batch in batches for example in batch.examples))


def mean_loss(groups: Sequence[Group], chosen: Int[Tensor, " prompt"], kept: Float[Tensor, "src channel position"],
              metric: Metric, run: Run = SoftCircuit.logits, *learned: Tensor) -> Float[Tensor, ""]:
    """The mean loss of the chosen prompts (one that is chosen twice, at the seam of two epochs, counts twice).

    It can be differentiated once, by `kept` and by what else `run` reads that is `learned`: the gradients are computed
    here, part by part of the prompts, in the dtype of these tensors, and added up.
    """
    inputs = [x for x in (kept, *learned) if x.requires_grad]
    total = kept.new_zeros(())
    gradients = [torch.zeros_like(x) for x in inputs]
    for group in groups:
        rows = (chosen[:, None] == group.numbers).nonzero()[:, 1].to(kept.device)
        for _, (loss, found) in group.fits.over(len(rows), lambda which, group=group, rows=rows: _loss_and_gradients(
                group, rows[which], kept, inputs, metric, run)):
            total += loss
            for gradient, more in zip(gradients, found, strict=True):
                gradient.add_(more)
    n = len(chosen)
    return _Known.apply(total / n, [gradient / n for gradient in gradients], *inputs)  # type: ignore[return-value]


def _loss_and_gradients(group: Group, rows: Int[Tensor, " prompt"], kept: Tensor, inputs: Sequence[Tensor],
                        metric: Metric, run: Run) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The sum over some prompts of a group, and its gradients by `inputs`, of which `kept` may be one."""
    own = kept.detach().requires_grad_(kept.requires_grad)
    with torch.enable_grad():
        loss = _loss(group, rows, own, metric, run)
        leaves = [own if x is kept else x for x in inputs]
        return loss.detach(), torch.autograd.grad(loss, leaves) if leaves else ()


def _loss(group: Group, rows: Int[Tensor, " prompt"], kept: Tensor, metric: Metric, run: Run) -> Float[Tensor, ""]:
    """The sum over some prompts of a group."""
    batch = group.batch
    some = Batch(batch.clean[rows], batch.corrupted[rows], batch.answer[rows], batch.wrong[rows],
                 tuple(batch.examples[i] for i in rows.cpu().tolist()))
    logits = run(group.soft.rows(rows), kept.to(group.reference.dtype))
    return metric.loss(logits, some, group.reference[rows]).sum()


class _Known(torch.autograd.Function):
    """A number whose gradients by some tensors are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(outer[0] * gradient for gradient in ctx.gradients)


class Adam:
    """Adam without weight decay, with a state that can be saved. Source: Kingma & Ba 2015 (arXiv 1412.6980)."""

    EPS = 1e-8

    def __init__(self, like: Tensor, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.betas = betas
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)

    def change(self, gradient: Tensor, step: int, learning_rate: float, n_strongest: int | None = None) -> Tensor:
        """What to add to go down; `step` from 0. `n_strongest`: epsilon is the size of the mean gradient that so many
        others reach."""
        first, second = self.betas
        self.mean.lerp_(gradient, 1 - first)
        self.square.lerp_(gradient.square(), 1 - second)
        mean = self.mean / (1 - first ** (step + 1))
        eps = self.EPS
        if n_strongest is not None:
            eps = max(eps, float(mean.abs().sort(descending=True).values[min(n_strongest, len(mean) - 1)]))
        return -learning_rate * mean / (self.square / (1 - second ** (step + 1))).sqrt_().add_(eps)

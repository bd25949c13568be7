"""What learning by gradient descent takes: prompts ready to be run softly, those of a step, their loss, and Adam.

Everything random in a step depends on the seed and the number of the step alone.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.ablation import check_ablation, prepare_ablation
from acdc.activations import record
from acdc.errors import AcdcError
from acdc.metrics import Metric
from acdc.soft_circuit import SoftCircuit, soft_circuit
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
    """All prompts of one length, ready to run; `numbers`: which of all prompts they are."""

    soft: SoftCircuit
    batch: Batch
    reference: Float[Tensor, "batch vocab"]
    numbers: Int[Tensor, " batch"]


def prepare_prompts(model: Transformer, batches: Sequence[Batch], ablation: str, positions: Sequence[str]
                    ) -> list[Group]:
    """The prompts by length, whatever the batches. To be called inside `frozen`."""
    check_ablation(batches, ablation)
    numbers = torch.arange(sum(map(len, batches))).split([len(batch) for batch in batches])
    by_length: dict[int, list[int]] = {}
    for i, batch in enumerate(batches):
        by_length.setdefault(batch.clean.shape[1], []).append(i)
    merged = [_merge([batches[i] for i in places]) for places in by_length.values()]
    replacements = prepare_ablation(model, merged, ablation)
    groups: list[Group] = []
    for batch, places in zip(merged, by_length.values(), strict=True):
        soft = soft_circuit(model, batch, replacements(batch), positions)
        soft = replace(soft, weights=groups[0].soft.weights) if groups else soft
        with torch.no_grad():
            reference = model.logits(record(model, batch.clean).final[:, -1])
        groups.append(Group(soft, batch, reference, torch.cat([numbers[i] for i in places])))
    return groups


def _merge(batches: Sequence[Batch]) -> Batch:
    tensors = (torch.cat([getattr(b, name) for b in batches]) for name in ("clean", "corrupted", "answer", "wrong"))
    return Batch(*tensors, examples=tuple(example for batch in batches for example in batch.examples))


def mean_loss(groups: Sequence[Group], chosen: Int[Tensor, " prompt"], kept: Float[Tensor, "src channel position"],
              metric: Metric, run: Run = SoftCircuit.logits) -> Float[Tensor, ""]:
    """The mean loss of the chosen prompts (one that is chosen twice, at the seam of two epochs, counts twice)."""
    total = kept.new_zeros(())
    for group in groups:
        rows = (chosen[:, None] == group.numbers).nonzero()[:, 1]
        if len(rows):
            which = rows.to(kept.device)
            batch = group.batch
            some = Batch(batch.clean[which], batch.corrupted[which], batch.answer[which], batch.wrong[which],
                         tuple(batch.examples[i] for i in rows.tolist()))
            logits = run(group.soft.rows(which), kept.to(group.reference.dtype))
            total = total + metric.loss(logits, some, group.reference[which]).sum()
    return total / len(chosen)


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

"""What an edge that is not kept carries: the replacement values of every node.

- `resample`: what src computes on the corrupted prompt.
- `mean`: the mean of what src computes over the task's prompts of the same length (two at least), by position.
- `mean_over_positions`: the mean over all positions of all prompts.
- `zero`: nothing.

Constants that are learned for a circuit: `acdc.optimal_ablation`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Literal

import torch
from torch import Tensor

from acdc.activations import Activations, attention_bias, record
from acdc.errors import AcdcError, unknown_name
from acdc.fitting import over_batches
from acdc.task import Batch, Example
from acdc.transformer import Transformer, frozen


@dataclass(frozen=True, eq=False)
class Replacement:
    """Replacement values for one batch; tensors may have batch size 1, to be broadcast.

    `consistent`: they come from one real run, so a node that reads only replacements computes its own replacement. A
    mean of runs is not itself a run.
    """

    activations: Activations
    consistent: bool

    def rows(self, which: slice) -> "Replacement":
        """Of some of the prompts."""
        return Replacement(self.activations.map(lambda x: x[which] if x.shape[0] > 1 else x), self.consistent)

    def start(self, model: Transformer, batch: Batch) -> int:
        """The first position at which a run of the clean prompts can differ from the replacement: a causal model
        computes the same before the first embedding that differs (the last position, if none does)."""
        if not (self.consistent and model.causal):
            return 0
        base = self.activations.input
        if base.shape[:2] != batch.clean.shape:
            raise AcdcError(
                f"the replacement is of {base.shape[0]} prompts of {base.shape[1]} tokens, the batch has "
                f"{batch.clean.shape[0]} of {batch.clean.shape[1]}. Compute it for this batch"
            )
        with torch.no_grad():
            differs = (model.embed(batch.clean) != base).flatten(2).any(-1).any(0).nonzero()
        return int(differs[0]) if len(differs) else base.shape[1] - 1


Ablation = Callable[[Batch], Replacement]


def prepare_ablation(
    model: Transformer,
    batches: Sequence[Batch],
    name: str | Ablation = "resample",
    *,
    mean_of: Literal["corrupted", "clean"] = "corrupted",
) -> Ablation:
    """A function from a batch to its replacement values: what `name` is, unless it is one of `ABLATIONS`.

    `mean_of`: which prompts the means are taken over; all `batches` count, each prompt once. The default averages over
    the corrupted prompts, as the IOI paper does over its ABC distribution (Wang et al. 2022, arXiv 2211.00593).
    Cost: one forward pass a batch, when called for resample, at once for the means; none for zero.
    """
    check_ablation(batches, name)
    if not isinstance(name, str):
        return name
    if mean_of not in ("corrupted", "clean"):
        raise unknown_name("prompts to average over", mean_of, ["corrupted", "clean"])
    if name == "resample":
        return partial(_resample, model)
    if name == "zero":
        zero = _without_nodes(model)
        return lambda batch: zero
    if name == "mean":
        _check_lengths(batches)
        by_length = {length: _mean(model, [b for b in batches if b.clean.shape[1] == length], mean_of, dims=(0,))
                     for length in {batch.clean.shape[1] for batch in batches}}
        return lambda batch: _of_length(by_length, batch.clean.shape[1])
    mean = _mean(model, batches, mean_of, dims=(0, 1))
    return lambda batch: mean


ABLATIONS = ("resample", "mean", "mean_over_positions", "zero")


def check_ablation(batches: Sequence[Batch], name: str | Ablation) -> None:
    """Refuses an empty list of prompts and an unknown ablation."""
    if not batches:
        raise AcdcError("no prompts given: the list of batches is empty")
    if isinstance(name, str):
        check_name(name)


def check_name(name: str) -> None:
    if name == "optimal":
        raise AcdcError(
            f"ablation 'optimal' is learned for one circuit, so it cannot be had here: use {', '.join(ABLATIONS)}. "
            "Then measure the circuit found with `acdc evaluate CIRCUIT --ablation optimal`, or in Python with "
            "ablation=learn_ablation(model, batches, circuit=circuit)"
        )
    if name not in ABLATIONS:
        raise unknown_name("ablation", name, ABLATIONS)


def _check_lengths(batches: Sequence[Batch]) -> None:
    """Refuses a mean over one prompt: it would be that prompt's own run."""
    examples: dict[int, list[Example]] = {}
    for batch in batches:
        examples.setdefault(batch.clean.shape[1], []).extend(batch.examples)
    for length, same_length in examples.items():
        if len(same_length) == 1:
            raise AcdcError(
                f"mean ablation: {same_length[0].clean!r} is the only prompt of {length} tokens, so the mean would be "
                "its own run. Give more prompts of that length, or use mean_over_positions"
            )


def _of_length(by_length: dict[int, Replacement], length: int) -> Replacement:
    if length not in by_length:
        known = ", ".join(map(str, sorted(by_length)))
        raise AcdcError(f"no mean for prompts of {length} tokens; the means were taken over prompts of {known} tokens")
    return by_length[length]


def _resample(model: Transformer, batch: Batch) -> Replacement:
    with frozen(model):
        return Replacement(record(model, batch.corrupted), consistent=True)


def _mean(model: Transformer, batches: Sequence[Batch], of: str, dims: tuple[int, ...]) -> Replacement:
    """The mean over dims: (0,) prompts, (0, 1) prompts and positions; summed in float64."""
    count = sum(len(batch) * (batch.clean.shape[1] if 1 in dims else 1) for batch in batches)

    def summed(batch: Batch) -> Activations:
        return record(model, getattr(batch, of)).map(lambda x: x.double().sum(dims, keepdim=True))

    with frozen(model):
        total = reduce(Activations.plus, (found for _, found in over_batches(batches, summed)))
        mean = total.map(lambda x: (x / count).to(model.dtype))
        return Replacement(with_own_projections(model, mean), consistent=False)


def _without_nodes(model: Transformer) -> Replacement:
    """Every node's output 0: what remains in the residual stream is the attention biases b_O, which no node owns."""
    one = model.blocks[0].attention.out_weight
    d_model, (n_heads, d_head) = one.shape[-1], one.shape[:2]
    nothing = one.new_zeros(1, 1, d_model)
    no_z = one.new_zeros(1, 1, n_heads, d_head)
    with frozen(model), torch.no_grad():
        resid, attn_in, mlp_in = nothing, [], []
        for block in model.blocks:
            attn_in.append(resid)
            bias = attention_bias(block)
            after = resid if bias is None else resid + bias
            mlp_in.append(resid if model.parallel else after)
            resid = after
        n = model.n_layers
        run = Activations(nothing, attn_in, [], [], [], [no_z] * n, [None] * n, mlp_in, [nothing] * n, resid)
        return Replacement(with_own_projections(model, run), consistent=False)


def with_own_projections(model: Transformer, run: Activations) -> Activations:
    """q, k and v as the projections compute them from what the attention channels read when all is replaced."""
    projected: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
    with torch.no_grad():
        for block, resid in zip(model.blocks, run.attn_in, strict=True):
            for values, own in zip(projected.values(), block.attention.project(block.attn_norm(resid)), strict=True):
                values.append(own)
    return Activations(**{**run.__dict__, **projected})

"""Where heads look: the attention patterns of a run, single or averaged by the roles of tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.activations import Activations, record
from acdc.errors import AcdcError
from acdc.fitting import over_batches
from acdc.task import Batch, position_groups, position_names
from acdc.transformer import Transformer, frozen

Patterns = Float[Tensor, "batch head query key"]


def patterns(model: Transformer, run: Activations, layer: int, heads: Sequence[int] | None = None) -> Patterns:
    """The attention patterns of some heads of a layer (default: all), as the model computes them.

    Row t holds the shares, summing to 1, that the query at token t gives to each key; soft-caps, windows, rotary
    embedding, norms of q and k, and grouped KV heads included. In float32 at least. No pass of the model: `run` is a
    recorded one. Raises `AcdcError` for a layer or head that the model has not.
    """
    heads = list(range(model.n_heads)) if heads is None else list(heads)
    if not 0 <= layer < model.n_layers or not all(0 <= head < model.n_heads for head in heads):
        raise AcdcError(f"no heads {heads} in layer {layer}: {model.name} has layers 0 to {model.n_layers - 1} of "
                        f"heads 0 to {model.n_heads - 1}")
    kv = model.kv_head[heads]
    seen: list[Tensor] = []

    def keep(scores):  # without shapes: it would be checked anew at every call
        seen.append(scores.softmax(-1))
        return seen[0]

    with torch.no_grad():
        model.attend(model.blocks[layer].attention, run.q[layer][:, :, heads], run.k[layer][:, :, kv],
                     run.v[layer][:, :, kv], 0, softmax=keep)
    return seen[0]


def role_names(batches: Sequence[Batch]) -> tuple[str, ...]:
    """The roles of tokens that attention is averaged over: those that the prompts label, else each place where all
    prompts have one length, else none."""
    if any(0 <= place % batch.clean.shape[1] < batch.clean.shape[1] - 1
           for batch in batches for example in batch.examples for place in example.roles.values()):
        return position_names(batches, "roles")
    if len({batch.clean.shape[1] for batch in batches}) == 1:
        return position_names(batches, "each")
    return ()


def mean_patterns(model: Transformer, batches: Sequence[Batch], heads: Sequence[tuple[int, int]],
                  names: Sequence[str]) -> Float[Tensor, "head role role"]:
    """For each (layer, head): the attention that queries of one role give to all tokens of another, on clean prompts.

    Mean over the queries of that role in all prompts, so rows sum to 1. `names`: from `role_names` or
    `acdc.task.position_names`. Cost: a forward pass a batch.
    """
    def summed(batch: Batch) -> tuple[Tensor, Tensor]:
        member = torch.nn.functional.one_hot(position_groups(batch, names), len(names)).float()
        run, sums = record(model, batch.clean), torch.zeros(len(heads), len(names), len(names), dtype=torch.float64)
        for layer in sorted({layer for layer, _ in heads}):
            places = [i for i, (of, _) in enumerate(heads) if of == layer]
            pattern = patterns(model, run, layer, [heads[i][1] for i in places]).float()
            sums[places] = torch.einsum("bqr,bhqk,bks->hrs", member, pattern, member).cpu().double()
        return sums, member.sum((0, 1)).cpu().double()

    with torch.no_grad(), frozen(model):
        found = [found for _, found in over_batches(batches, summed)]
    totals, counts = (torch.stack(parts).sum(0) for parts in zip(*found, strict=True))
    return (totals / counts.clamp(min=1)[None, :, None]).float()

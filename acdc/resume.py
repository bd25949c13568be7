"""A plain forward pass from the middle of the model, over the last positions only."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.activations import Activations
from acdc.architectures.anatomy import Block
from acdc.transformer import Transformer


def resume(
    model: Transformer, base: Activations, layer: int, resid: Float[Tensor, "rows pos d_model"], start: int, *,
    at_mlp: bool = False, edit: Callable[[str, Tensor], Tensor] | None = None,
) -> Float[Tensor, "rows vocab"]:
    """Logits at the last position from the residual stream at the input of a layer, or of its MLP (`at_mlp`).

    `resid` holds positions from `start`; earlier keys and values are those of `base`, whose batch the rows repeat:
    row i belongs to prompt i modulo batch. In a parallel block the MLP reads what attention reads, so `at_mlp` has no
    meaning there. `edit`: gets the name of a layer's attention or MLP (`a5`, `m5`) and what it adds to the residual
    stream, and returns what it shall add.
    """
    assert not (at_mlp and model.parallel)
    repeats = len(resid) // len(base.input)
    for i in range(layer, model.n_layers):
        block = model.blocks[i]
        mlp_reads = resid
        if not (at_mlp and i == layer):
            attended = _attention(model, block, base, i, resid, start, repeats)
            attended = attended if edit is None else edit(f"a{i}", attended)
            mlp_reads = resid if model.parallel else resid + attended
            resid = resid + attended
        added = block.mlp_output(mlp_reads)
        resid = resid + (added if edit is None else edit(f"m{i}", added))
    return model.logits(resid[:, -1])


def _attention(model: Transformer, block: Block, base: Activations, layer: int, resid: Tensor, start: int,
               repeats: int) -> Tensor:
    attention, kv = block.attention, model.kv_head
    q, k, v = attention.project(block.attn_norm(resid))
    if start:
        k = torch.cat([base.k[layer][:, :start].repeat(repeats, 1, 1, 1), k], dim=1)
        v = torch.cat([base.v[layer][:, :start].repeat(repeats, 1, 1, 1), v], dim=1)
    out = attention.output(model.attend(attention, q, k[:, :, kv], v[:, :, kv], start))
    return out if block.attn_post is None else block.attn_post(out)

"""The gradient at every channel of a run in which one sublayer writes something else.

The sublayers are numbered as they write: 0 is the input, 2l + 1 the attention of layer l (all heads together), 2l + 2
its MLP. Up to the sublayer that is moved, the run is the clean one, which is at hand; what lies after it is computed,
at positions from `start` (which must be 0 if the model is not causal), with earlier keys and values from the clean run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.activations import Activations, Resid, out_weight
from acdc.discovery.gradients import LayerGradient, head_gradient
from acdc.transformer import Transformer

Loss = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class _Taps:
    """What the loss is differentiated by, and what attention reads, by layer; k and v for each query head."""

    attn_in: dict[int, Resid] = field(default_factory=dict)
    qkv: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    mlp_in: dict[int, Resid] = field(default_factory=dict)


def n_sublayers(model: Transformer) -> int:
    return 2 * model.n_layers + 1


def srcs_of(model: Transformer, sublayer: int) -> slice:
    """The srcs that write in a sublayer."""
    if sublayer == 0:
        return slice(0, 1)
    index = model.graph().layer((sublayer - 1) // 2)
    return index.heads if sublayer % 2 else slice(index.mlp, index.mlp + 1)


def change_of(model: Transformer, clean: Activations, replaced: Activations, sublayer: int, start: int) -> Resid:
    """replacement - clean of what a sublayer writes, at positions from `start`."""
    if sublayer == 0:
        return (replaced.input - clean.input)[:, start:]
    layer = (sublayer - 1) // 2
    if sublayer % 2 == 0:
        return (replaced.mlp[layer] - clean.mlp[layer])[:, start:]
    z = (replaced.z[layer] - clean.z[layer])[:, start:]
    return z.flatten(2) @ out_weight(model.blocks[layer]).flatten(0, 1)


def gradients_after(
    model: Transformer, clean: Activations, loss: Loss, start: int, sublayer: int, by: Resid
) -> tuple[list[LayerGradient], Float[Tensor, "batch d_model"]]:
    """Gradients at what lies after a sublayer, when it writes `by` more than on the clean run.

    Those of layers before it are not to be read. Cost: a forward and a backward pass over what lies after it, at
    positions from `start`.
    """
    layer, at_mlp = sublayer // 2, False
    if sublayer == 0 or (sublayer % 2 == 1 and not model.parallel):
        resid = clean.attn_in[0] if sublayer == 0 else clean.mlp_in[layer]
        at_mlp = sublayer > 0
    else:
        layer = (sublayer - 1) // 2 + 1
        resid = clean.attn_in[layer] if layer < model.n_layers else clean.final
    return _gradients(model, clean, loss, start, resid[:, start:] + by, layer, at_mlp=at_mlp, fixed={})


def gradients_around(
    model: Transformer, clean: Activations, loss: Loss, start: int, sublayer: int, by: Resid
) -> tuple[list[LayerGradient], Float[Tensor, "batch d_model"]]:
    """Gradients at all channels of the same run. The output of the sublayer that is moved is a constant, through which
    no gradient flows back. Cost: a forward and a backward pass over positions from `start`."""
    resid = clean.attn_in[0][:, start:]
    if sublayer == 0:
        return _gradients(model, clean, loss, start, resid + by, 0, at_mlp=False, fixed={})
    layer = (sublayer - 1) // 2
    wrote = clean.mlp[layer][:, start:]
    if sublayer % 2:
        after = clean.attn_in[layer + 1] if layer + 1 < model.n_layers else clean.final
        added = after - clean.attn_in[layer] - clean.mlp[layer] if model.parallel else (
            clean.mlp_in[layer] - clean.attn_in[layer])
        wrote = added[:, start:]
    return _gradients(model, clean, loss, start, resid, 0, at_mlp=False, fixed={sublayer: wrote + by})


def _gradients(
    model: Transformer, clean: Activations, loss: Loss, start: int, resid: Resid, layer: int, *, at_mlp: bool,
    fixed: Mapping[int, Resid],
) -> tuple[list[LayerGradient], Float[Tensor, "batch d_model"]]:
    """From the residual stream at the input of `layer`, or of its MLP, to the logits and back."""
    taps = _Taps()
    with torch.enable_grad():
        x = resid.detach().contiguous().requires_grad_()
        for i in range(layer, model.n_layers):
            mlp_reads = x
            if not (at_mlp and i == layer):
                attended = fixed[2 * i + 1] if 2 * i + 1 in fixed else _attended(model, clean, i, x, start, taps)
                mlp_reads = x if model.parallel else x + attended
                x = x + attended
            taps.mlp_in[i] = mlp_reads.view_as(mlp_reads)  # a view, so that its gradient is that of this branch
            x = x + (fixed[2 * i + 2] if 2 * i + 2 in fixed else model.blocks[i].mlp_output(taps.mlp_in[i]))
        final = x[:, -1]
        total = loss(model.logits(final)).sum()
        leaves = [*(t for qkv in taps.qkv.values() for t in qkv), *taps.mlp_in.values(), final]
        found = iter(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    heads = {i: head_gradient(model, i, taps.attn_in[i], qkv, [next(found) for _ in qkv])
             for i, qkv in taps.qkv.items()}
    wide = torch.promote_types(model.dtype, torch.float32)
    mlps = {i: next(found).to(wide) for i in taps.mlp_in}
    no_u = resid.new_zeros(3 * model.n_heads, *resid.shape[:2], model.blocks[0].attention.q.d_head, dtype=wide)
    no_mlp = torch.zeros_like(resid, dtype=wide)
    layers = [
        LayerGradient(heads[i].u if i in heads else no_u, [(heads[i].x_hat, heads[i].along)] if i in heads else [],
                      mlps.get(i, no_mlp))
        for i in range(model.n_layers)
    ]
    return layers, next(found).to(wide)


def _attended(model: Transformer, clean: Activations, layer: int, x: Resid, start: int, taps: _Taps) -> Resid:
    """What attention adds to the residual stream x."""
    block, kv = model.blocks[layer], model.kv_head
    attention = block.attention
    q, k, v = attention.project(block.attn_norm(x))
    k, v = (torch.cat([getattr(clean, name)[layer][:, :start], now], dim=1)[:, :, kv]
            for name, now in (("k", k), ("v", v)))
    taps.attn_in[layer], taps.qkv[layer] = x, (q, k, v)
    out = attention.output(model.attend(attention, q, k, v, start))
    return out if block.attn_post is None else block.attn_post(out)

"""What a fused run computes: HF's own forward, with hooks that note what nodes write and channels read.

A head's contribution to the residual stream is linear in its z (the attention output before W_O), so z is what is
noted. Where a norm follows attention (Gemma), the contribution is the head's part of the normalised sum: z is then
scaled by the rstd of the run that it was computed in, and the norm's gain is folded into W_O (`out_weight`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acdc.architectures.anatomy import Block
from acdc.transformer import Transformer

Resid = Float[Tensor, "batch pos d_model"]
Heads = Float[Tensor, "batch pos head d_head"]
KVHeads = Float[Tensor, "batch pos kv_head d_head"]


@dataclass(frozen=True, eq=False)
class Activations:
    """One run: what each node wrote and what each channel read; lists go over layers.

    `z` is scaled as said above; `attn_scale` is that scale (None without post-norm). `q`, `k`, `v` are what the
    projections returned, before norms and rotary embedding, `k` and `v` per KV head. `attn_in`, `mlp_in` and `final`
    are the residual stream where attention, MLP and the final norm read it.
    """

    input: Resid
    attn_in: list[Resid]
    q: list[Heads]
    k: list[KVHeads]
    v: list[KVHeads]
    z: list[Heads]
    attn_scale: list[Float[Tensor, "batch pos 1"] | None]
    mlp_in: list[Resid]
    mlp: list[Resid]
    final: Resid

    def map(self, function: Callable[[Tensor], Tensor]) -> "Activations":
        """The same record with `function` applied to every tensor."""
        return Activations(**{f.name: _each(function, getattr(self, f.name)) for f in fields(self)})

    def plus(self, other: "Activations") -> "Activations":
        """The sum of two records, tensor by tensor."""
        return Activations(**{f.name: _each(torch.add, getattr(self, f.name), getattr(other, f.name))
                              for f in fields(self)})

    def expanded(self, batch: int, length: int) -> "Activations":
        """The same record with tensors of batch size 1, or of one position, repeated (as views)."""
        return self.map(lambda x: x.expand(batch, length, *x.shape[2:]))


def _each(function: Callable[..., Tensor], *values: Any) -> Any:
    """Of fields of records: tensors, lists of them, or None where there is nothing."""
    if isinstance(values[0], list):
        return [_each(function, *items) for items in zip(*values, strict=True)]
    return None if values[0] is None else function(*values)


@dataclass(frozen=True, eq=False)
class Taps:
    """The tensors of a run that a loss is differentiated by. The logits are computed from `final` alone.

    `z` is not scaled here, and its heads lie side by side. The gradient with respect to `mlp_in` and `final` is that of
    the branch that reads them, not of the residual stream that passes by.
    """

    z: list[Float[Tensor, "batch pos head_d_head"]]
    mlp_in: list[Resid]
    final: Resid


def out_weight(block: Block) -> Float[Tensor, "head d_head d_model"]:
    """W_O of each head, times the gain of the norm that follows, if one does."""
    weight = block.attention.out_weight
    gain = None if block.attn_post is None else block.attn_post.gain
    return weight if gain is None else weight * gain


def written(block: Block, heads: list[int], z: Float[Tensor, "*where head d_head"]
            ) -> Float[Tensor, "head *where d_model"]:
    """What some heads write, given their z (scaled, where a norm follows)."""
    by_head = z.movedim(-2, 0)
    return (by_head.flatten(1, -2) @ out_weight(block)[heads]).unflatten(1, by_head.shape[1:-1])


def share_of_rounding(rest: Float[Tensor, "*where d_model"], wrote: Float[Tensor, "head *where d_model"]
                      ) -> Float[Tensor, "head *where d_model"]:
    """What the heads of a layer with a post-norm must add, so that they sum to exactly what HF's norm returned.

    HF rounds that norm to float32, our closed form does not: the `rest` is shared out by the size of what each head
    writes, so that a head that writes nothing still writes exactly nothing.
    """
    size = wrote.abs()
    return rest * size / size.sum(0).clamp(min=torch.finfo(size.dtype).tiny)


def attention_bias(block: Block) -> Float[Tensor, " d_model"] | None:
    """b_O: it is added to the residual stream whatever the heads do, and belongs to no node."""
    return block.attention.out_bias


def contribution(model: Transformer, run: Activations, src: int) -> Resid:
    """What one node added to the residual stream in a run."""
    if src == 0:
        return run.input
    layer, place = divmod(src - 1, model.n_heads + 1)
    if place == model.n_heads:
        return run.mlp[layer]
    return run.z[layer][:, :, place] @ out_weight(model.blocks[layer])[place]


def differences(
    model: Transformer, clean: Activations, replaced: Activations, start: int, rows: slice, dtype: torch.dtype,
    srcs: slice = slice(None),
) -> Float[Tensor, "src batch pos d_model"]:
    """replacement - clean contribution of `srcs`, which hold all of a layer's heads or none; for some prompts, at
    positions from `start`."""
    change = partial(_change, rows, start, dtype)
    graph = model.graph()
    first, end, _ = srcs.indices(len(graph.srcs))
    of_input = change(clean.input, replaced.input)
    result = of_input.new_empty(end - first, *of_input.shape)
    if first == 0:
        result[0] = of_input
    for layer, block in enumerate(model.blocks):
        index = graph.layer(layer)
        if first <= index.heads.start and index.heads.stop <= end:
            z = change(clean.z[layer], replaced.z[layer]).permute(2, 0, 1, 3).flatten(1, 2)
            heads = result[index.heads.start - first : index.heads.stop - first]
            torch.bmm(z, out_weight(block).to(dtype), out=heads.flatten(1, 2))
        if first <= index.mlp < end:
            result[index.mlp - first] = change(clean.mlp[layer], replaced.mlp[layer])
    return result


def _change(rows: slice, start: int, dtype: torch.dtype, ours: Tensor, theirs: Tensor) -> Tensor:
    return theirs[rows, start:].to(dtype) - ours[rows, start:].to(dtype)


def record(model: Transformer, tokens: Int[Tensor, "batch pos"], input: Resid | None = None) -> Activations:
    """One forward pass without gradients and without the unembedding; `input` replaces what the first block reads."""
    with torch.no_grad():
        return _run(model, tokens, input, with_gradients=False)[0]


def record_with_taps(model: Transformer, tokens: Int[Tensor, "batch pos"], input: Resid | None = None
                     ) -> tuple[Activations, Taps]:
    """One forward pass that can be differentiated by its taps; `input` replaces what the first block reads."""
    with torch.enable_grad():
        return _run(model, tokens, input, with_gradients=True)


class _Recorder:
    """What the hooks of a run note; `outputs`: of the modules that compute q, k and v."""

    def __init__(self, input: Resid | None, with_gradients: bool) -> None:
        self.input, self.with_gradients = input, with_gradients
        self.seen: dict[str, list[Any]] = {f.name: [] for f in fields(Activations)}
        self.taps: dict[str, list[Any]] = {f.name: [] for f in fields(Taps)}
        self.outputs: dict[nn.Module, Tensor] = {}

    def block_input(self, layer: int, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        if layer == 0:
            x = x if self.input is None else self.input
            x = x.detach().requires_grad_(self.with_gradients)
            self.seen["input"].append(x.detach())
        self.seen["attn_in"].append(x.detach())
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def projection(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.outputs[module] = output.detach()

    def z(self, block: Block, module: nn.Module, args: tuple) -> None:
        """With q, k and v, as all modules that compute them have run."""
        self.taps["z"].append(args[0])
        self.seen["z"].append(args[0].detach().unflatten(-1, (block.attention.q.n_heads, block.attention.q.d_head)))
        if block.attn_post is None:
            self.seen["attn_scale"].append(None)
        for name in ("q", "k", "v"):
            projection = getattr(block.attention, name)
            self.seen[name].append(projection.of_output(self.outputs[projection.module]))

    def attention_sum(self, block: Block, module: nn.Module, args: tuple) -> None:
        assert block.attn_post is not None
        scale = block.attn_post.statistics(args[0].detach())[1].to(args[0].dtype)
        self.seen["attn_scale"].append(scale)
        self.seen["z"][-1] = self.seen["z"][-1] * scale[..., None]

    def tap(self, name: str, module: nn.Module, args: tuple) -> tuple[Tensor]:
        """Notes what one branch reads. A view, so that its gradient is that branch's own."""
        x = args[0].view_as(args[0])
        self.seen[name].append(x.detach())
        self.taps[name].append(x)
        return (x,)

    def mlp(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.seen["mlp"].append(output.detach())


def _run(model: Transformer, tokens: Tensor, input: Tensor | None, with_gradients: bool) -> tuple[Activations, Taps]:
    recorder = _Recorder(input, with_gradients)
    with hooks() as add:
        for layer, block in enumerate(model.blocks):
            attention = block.attention
            add(block.module.register_forward_pre_hook(partial(recorder.block_input, layer), with_kwargs=True))
            for module in attention.modules:
                add(module.register_forward_hook(recorder.projection))
            add(attention.out.register_forward_pre_hook(partial(recorder.z, block)))
            if block.attn_post is not None:
                add(block.attn_post.module.register_forward_pre_hook(partial(recorder.attention_sum, block)))
            add(block.mlp_norm.module.register_forward_pre_hook(partial(recorder.tap, "mlp_in")))
            writes_mlp = block.mlp if block.mlp_post is None else block.mlp_post.module
            add(writes_mlp.register_forward_hook(recorder.mlp))
        add(model.anatomy.final_norm.module.register_forward_pre_hook(partial(recorder.tap, "final")))
        model.run_body(tokens)
    single = {"input", "final"}
    record: dict[str, Any] = {name: values[0] if name in single else values for name, values in recorder.seen.items()}
    home, taps = model.device, recorder.taps
    return Activations(**record).map(lambda x: x.to(home)), Taps(taps["z"], taps["mlp_in"], taps["final"][0])


@contextmanager
def hooks() -> Iterator[Any]:
    """Collects hook handles and removes them on exit."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()

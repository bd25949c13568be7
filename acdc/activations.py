"""What a fused run computes: HF's own forward, with hooks that note what nodes write and channels read.

A head's contribution to the residual stream is linear in its z (the attention output before W_O), so z is what is
noted. Where a norm follows attention (Gemma), the contribution is the head's part of the normalised sum: z is then
scaled by the rstd of the run that it was computed in, and the norm's gain is folded into W_O (`out_weight`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
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

        def apply(value: Any) -> Any:
            if isinstance(value, list):
                return [apply(item) for item in value]
            return None if value is None else function(value)

        return Activations(**{f.name: apply(getattr(self, f.name)) for f in fields(self)})

    def plus(self, other: "Activations") -> "Activations":
        """The sum of two records, tensor by tensor."""

        def add(a: Any, b: Any) -> Any:
            if isinstance(a, list):
                return [add(*pair) for pair in zip(a, b, strict=True)]
            return None if a is None else a + b

        return Activations(**{f.name: add(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})

    def expanded(self, batch: int, length: int) -> "Activations":
        """The same record with tensors of batch size 1, or of one position, repeated (as views)."""
        return self.map(lambda x: x.expand(batch, length, *x.shape[2:]))


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

    def change(ours: Tensor, theirs: Tensor) -> Tensor:
        return theirs[rows, start:].to(dtype) - ours[rows, start:].to(dtype)

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


def record(model: Transformer, tokens: Int[Tensor, "batch pos"], input: Resid | None = None) -> Activations:
    """One forward pass without gradients and without the unembedding; `input` replaces what the first block reads."""
    with torch.no_grad():
        return _run(model, tokens, input, with_gradients=False)[0]


def record_with_taps(model: Transformer, tokens: Int[Tensor, "batch pos"], input: Resid | None = None
                     ) -> tuple[Activations, Taps]:
    """One forward pass that can be differentiated by its taps; `input` replaces what the first block reads."""
    with torch.enable_grad():
        return _run(model, tokens, input, with_gradients=True)


def _run(model: Transformer, tokens: Tensor, input: Tensor | None, with_gradients: bool) -> tuple[Activations, Taps]:
    seen: dict[str, list[Any]] = {f.name: [] for f in fields(Activations)}
    taps: dict[str, list[Any]] = {f.name: [] for f in fields(Taps)}

    def tap(name: str, x: Tensor) -> Tensor:
        """Notes what one branch reads. A view, so that its gradient is that branch's own."""
        seen[name].append(x.detach())
        x = x.view_as(x)
        taps[name].append(x)
        return x

    def reads_block_input(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> Any:
            x = args[0] if args else kwargs["hidden_states"]
            if layer == 0:
                x = x if input is None else input
                x = x.detach().requires_grad_(with_gradients)
                seen["input"].append(x.detach())
            seen["attn_in"].append(x.detach())
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        return hook

    def reads_z(block: Block) -> Any:
        def hook(module: nn.Module, args: tuple) -> None:
            taps["z"].append(args[0])
            seen["z"].append(args[0].detach().unflatten(-1, (block.attention.q.n_heads, block.attention.q.d_head)))
            if block.attn_post is None:
                seen["attn_scale"].append(None)

        return hook

    def reads_attention_sum(block: Block) -> Any:
        def hook(module: nn.Module, args: tuple) -> None:
            assert block.attn_post is not None
            scale = block.attn_post.statistics(args[0].detach())[1].to(args[0].dtype)
            seen["attn_scale"].append(scale)
            seen["z"][-1] = seen["z"][-1] * scale[..., None]

        return hook

    with hooks() as add:
        for layer, block in enumerate(model.blocks):
            attention, outputs = block.attention, {}
            add(block.module.register_forward_pre_hook(reads_block_input(layer), with_kwargs=True))
            for module in attention.modules:
                add(module.register_forward_hook(_notes_output(outputs)))
            add(attention.out.register_forward_pre_hook(reads_z(block)))
            add(attention.out.register_forward_pre_hook(_splits_projections(block, outputs, seen)))
            if block.attn_post is not None:
                add(block.attn_post.module.register_forward_pre_hook(reads_attention_sum(block)))
            add(block.mlp_norm.module.register_forward_pre_hook(lambda m, args: (tap("mlp_in", args[0]),)))
            writes_mlp = block.mlp if block.mlp_post is None else block.mlp_post.module
            add(writes_mlp.register_forward_hook(lambda m, args, out: seen["mlp"].append(out.detach())))
        final_norm = model.anatomy.final_norm.module
        add(final_norm.register_forward_pre_hook(lambda m, args: (tap("final", args[0]),)))
        model.run_body(tokens)
    single = {"input", "final"}
    record: dict[str, Any] = {name: values[0] if name in single else values for name, values in seen.items()}
    home = model.device
    return Activations(**record).map(lambda x: x.to(home)), Taps(taps["z"], taps["mlp_in"], taps["final"][0])


def _notes_output(outputs: dict[nn.Module, Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        outputs[module] = output.detach()

    return hook


def _splits_projections(block: Block, outputs: dict, seen: dict[str, list[Any]]) -> Any:
    """A hook that notes q, k and v once all modules that compute them have run."""

    def hook(module: nn.Module, args: tuple) -> None:
        for name in ("q", "k", "v"):
            projection = getattr(block.attention, name)
            seen[name].append(projection.of_output(outputs[projection.module]))

    return hook


@contextmanager
def hooks() -> Iterator[Any]:
    """Collects hook handles and removes them on exit."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()

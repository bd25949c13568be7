"""Runs the model with a fraction of each edge kept, differentiably: what masks are learned through.

A channel reads, as in a circuit run,

    base total + sum over srcs of kept * (what src computes now - its replacement)

with `kept` any real number instead of 0 or 1. The loss is differentiated by `kept`: kept * (now - replacement) has the
derivative (now - replacement) . g, with g the gradient at what the channel reads, and passes kept * g on to src.

What srcs deviate by is written into one buffer as the forward pass goes, and so are, on the way back, the gradients
there: the sums over srcs, which are most of the work, are matrix products in place. Autograd differentiates only
inside a *stage* (the heads of a layer, an MLP, the unembedding), from what its channels read to what it writes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.ablation import Replacement
from acdc.activations import Activations, share_of_rounding, written
from acdc.architectures.anatomy import Block
from acdc.positions import Cells, cells_of, sum_kept
from acdc.task import Batch, position_groups
from acdc.transformer import Transformer, frozen

Kept = Float[Tensor, "src channel position"]
Reads = Float[Tensor, "channel batch pos d_model"]


@dataclass(frozen=True, eq=False)
class SoftCircuit:
    """Prompts of one length with their base run (the replacement), ready to be run with any `kept`.

    `input`: clean - replacement of the input node. `base`: at positions from `start`, without q, k and v; `earlier`:
    the keys and values before. `position`: what each token counts as, where `kept` tells positions apart. `weights`: of
    each layer, q, k and v of every query head, times the gain of the norm before them.
    """

    model: Transformer
    base: Activations
    earlier: list[tuple[Tensor, Tensor]]
    input: Float[Tensor, "batch pos d_model"]
    start: int
    position: Int[Tensor, "batch pos"]
    n_positions: int
    weights: tuple[Float[Tensor, "channel d_head d_model"], ...]

    def logits(self, kept: Kept, replaced: Float[Tensor, "src #batch #pos d_model"] | None = None
               ) -> Float[Tensor, "batch vocab"]:
        """Logits at the last position, differentiable by `kept` (over the channels of each query head).

        With every `kept` 0 or 1 they are those of `run_circuit`. Entries that are no edges are not read, and get the
        gradient 0. `replaced`: what the srcs write in the base run, to differentiate by it too; it is not read, and
        needs an ablation whose values are no real run (`Replacement.consistent` is False).
        Cost: 2 (backward: 4) * edges * prompts * positions * d_model operations and, as each channel of a head reads
        something of its own, the projections. Memory: two buffers of srcs * prompts * positions * d_model numbers.
        """
        with frozen(self.model):
            return _Logits.apply(kept, replaced, self)  # type: ignore[return-value]

    def rows(self, which: Int[Tensor, " row"]) -> "SoftCircuit":
        """The same of some prompts."""

        def some(x: Tensor) -> Tensor:
            return x[which] if x.shape[0] > 1 else x

        return replace(self, base=self.base.map(some), earlier=[(some(k), some(v)) for k, v in self.earlier],
                       input=self.input[which], position=self.position[which])

    @cached_property
    def cells(self) -> Cells:
        return cells_of(self.position, self.n_positions)


def soft_circuit(model: Transformer, batch: Batch, replacement: Replacement, positions: Sequence[str] = (), *,
                 weights: tuple[Tensor, ...] | None = None, start: int | None = None) -> SoftCircuit:
    """`positions`: the names of the token positions that edges are told apart by (`Graph.positions`). `weights`: the
    model's `soft_weights`, if at hand. `start`: an earlier position to start from than where the prompts differ."""
    differs = replacement.start(model, batch)
    start = differs if start is None else min(start, differs)
    run = replacement.activations
    with torch.no_grad(), frozen(model):
        deviation = (model.embed(batch.clean) - run.input)[:, start:]
        earlier = [(k[:, :start].clone(), v[:, :start].clone()) for k, v in zip(run.k, run.v, strict=True)]
        without = Activations(**{**run.__dict__, "q": [], "k": [], "v": [], "attn_scale": []})
        base = without.map(lambda x: x[:, start:].clone() if x.shape[1] > 1 else x)
        weights = soft_weights(model) if weights is None else weights
    groups = position_groups(batch, positions)[:, start:]
    return SoftCircuit(model, base, earlier, deviation, start, groups, max(1, len(positions)), weights)


def soft_weights(model: Transformer) -> tuple[Float[Tensor, "channel d_head d_model"], ...]:
    """`SoftCircuit.weights`, which all prompts share."""
    with torch.no_grad():
        return tuple(_weights(model, block) for block in model.blocks)


def joined(parts: Sequence[SoftCircuit]) -> SoftCircuit:
    """Prompts of one length and start that were prepared one after the other."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    shared = any(part.base.input.shape[0] < part.input.shape[0] for part in parts)  # a mean, of all prompts

    def join(*tensors: Tensor) -> Tensor:
        return tensors[0] if shared else torch.cat(tensors)

    base: dict[str, Any] = {}
    for name, values in vars(first.base).items():
        each = [getattr(part.base, name) for part in parts]
        base[name] = [join(*one) for one in zip(*each, strict=True)] if isinstance(values, list) else join(*each)
    earlier = [(join(*ks), join(*vs)) for ks, vs in
               (zip(*of_layer, strict=True) for of_layer in zip(*(part.earlier for part in parts), strict=True))]
    return replace(first, base=Activations(**base), earlier=earlier, input=torch.cat([part.input for part in parts]),
                   position=torch.cat([part.position for part in parts]))


def _weights(model: Transformer, block: Block) -> Float[Tensor, "channel d_head d_model"]:
    attention, kv, gain = block.attention, model.kv_head, block.attn_norm.gain
    weight = torch.cat([attention.q.weight, attention.k.weight[kv], attention.v.weight[kv]])
    return weight if gain is None else weight * gain


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept: Tensor, replaced: Tensor | None, circuit: SoftCircuit) -> Tensor:
        assert replaced is None or circuit.start == 0, circuit.start
        ctx.run = _Run(circuit, kept.detach())
        ctx.shape = None if replaced is None else replaced.shape
        return ctx.run.forward()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        kept, replaced = ctx.run.backward(gradients[0], with_replaced=ctx.shape is not None)
        return kept, None if replaced is None else replaced.sum_to_size(ctx.shape), None


@dataclass(frozen=True, eq=False)
class _Stage:
    """Some channels that read the first `n` srcs, at all positions of the window or the last; and what they write."""

    channels: slice
    n: int
    srcs: slice
    reads: Reads
    wrote: Float[Tensor, "src batch pos d_model"]


class _Run:
    """One forward pass, and what its backward pass needs."""

    def __init__(self, circuit: SoftCircuit, kept: Kept) -> None:
        self.circuit, self.model, self.base = circuit, circuit.model, circuit.base
        self.graph, self.kept = circuit.model.graph(), kept
        self.stages: list[_Stage] = []
        self.deviations = circuit.input.new_empty(len(self.graph.srcs), *circuit.input.shape)

    def forward(self) -> Float[Tensor, "batch vocab"]:
        self.deviations[0] = self.circuit.input
        for layer, block in enumerate(self.model.blocks):
            index, parallel = self.graph.layer(layer), self.model.parallel
            heads, mlp = slice(index.q.start, index.v.stop), slice(index.mlp_channel, index.mlp_channel + 1)
            self._compute(heads, index.heads.start, index.heads, self.base.attn_in[layer],
                          lambda x, i=layer: head_deviations(self.circuit, i, x))
            self._compute(mlp, index.heads.start if parallel else index.mlp, slice(index.mlp, index.mlp + 1),
                          self.base.mlp_in[layer], lambda x, i=layer, b=block: b.mlp_output(x) - self.base.mlp[i])
        last = slice(len(self.graph.channels) - 1, None)
        final = self.base.final[:, -1:]
        reads = self._read(last, len(self.graph.srcs), self.deviations[:, :, -1:], final).requires_grad_()
        with torch.enable_grad():
            logits = self.model.logits(reads[0, :, 0])
        self.last = reads, logits
        return logits.detach()

    def _compute(self, channels: slice, n: int, srcs: slice, base: Tensor, write: Callable[[Reads], Tensor]) -> None:
        reads = self._read(channels, n, self.deviations[:n], base).requires_grad_()
        with torch.enable_grad():
            wrote = write(reads)
        self.deviations[srcs] = wrote.detach()
        self.stages.append(_Stage(channels, n, srcs, reads, wrote))

    def _read(self, channels: slice, n: int, deviations: Tensor, base: Tensor) -> Reads:
        """The sums of what channels read."""
        kept = self.kept[:n, channels].transpose(0, 1)
        base = base.expand(deviations.shape[1:])
        if kept.shape[2] > 1:
            return base + sum_kept(kept, deviations, self.circuit.cells)
        flat = base.reshape(1, -1).expand(len(kept), -1)
        return torch.addmm(flat, kept[:, :, 0], deviations.flatten(1)).view(-1, *deviations.shape[1:])

    def backward(self, gradient: Float[Tensor, "batch vocab"], with_replaced: bool
                 ) -> tuple[Kept, Float[Tensor, "src batch pos d_model"] | None]:
        """The gradients by `kept` and by what srcs write in the base run.

        A src's replacement r reaches a channel as (1 - kept) r: the gradients of all that can read it, less those of
        what it writes now.
        """
        of_kept = torch.zeros_like(self.kept)
        buffer = torch.zeros_like(self.deviations)
        of_replaced = torch.empty_like(buffer) if with_replaced else None
        reads, logits = self.last
        at_read = torch.autograd.grad(logits, reads, gradient)[0][0, :, 0]
        last = self.kept[:, -1, -1]
        of_kept[:, -1, -1] = self.deviations[:, :, -1].flatten(1) @ at_read.flatten()
        buffer[:, :, -1] = last[:, None, None] * at_read
        read_later = torch.zeros_like(buffer[0])
        read_later[:, -1] = at_read
        held: Tensor | float = 0.0  # what the MLP of a parallel block reads: not the heads beside it
        for stage in reversed(self.stages):
            if of_replaced is not None:
                of_replaced[stage.srcs] = read_later - buffer[stage.srcs]
            if not stage.wrote.requires_grad:  # an MLP without effect
                continue
            at_reads = torch.autograd.grad(stage.wrote, stage.reads, buffer[stage.srcs])[0]
            self._send_back(stage, at_reads, of_kept, buffer)
            if of_replaced is not None:
                held = held + at_reads.sum(0)
                if stage.srcs.start == stage.n:
                    read_later, held = read_later + held, 0.0
        if of_replaced is not None:
            of_replaced[0] = read_later - buffer[0]
        return of_kept, of_replaced

    def _send_back(self, stage: _Stage, at_reads: Tensor, of_kept: Tensor, buffer: Tensor) -> None:
        """The gradient at what channels read, on to `kept` and to what srcs write."""
        n, channels = stage.n, stage.channels
        kept, of_kept = self.kept[:n, channels], of_kept[:n, channels]
        if kept.shape[2] == 1:
            gradient = at_reads.flatten(1)
            of_kept[:, :, 0] = self.deviations[:n].flatten(1) @ gradient.T
            buffer[:n].flatten(1).addmm_(kept[:, :, 0], gradient)
            return
        values, at, sent = self.deviations[:n].flatten(1, 2), at_reads.flatten(1, 2), buffer[:n].flatten(1, 2)
        for position, cell in enumerate(self.circuit.cells):
            if not len(cell):
                continue
            gradient = at[:, cell].flatten(1)
            of_kept[:, :, position] = values[:, cell].flatten(1) @ gradient.T
            sent[:, cell] += (kept[:, :, position] @ gradient).unflatten(1, (len(cell), -1))


def head_deviations(circuit: SoftCircuit, layer: int, reads: Reads) -> Float[Tensor, "head batch pos d_model"]:
    """now - base of what the heads of a layer write, from what each of their q, k and v channels reads."""
    model, base, block = circuit.model, circuit.base, circuit.model.blocks[layer]
    attention, n_heads, kv = block.attention, circuit.model.n_heads, circuit.model.kv_head
    batch = reads.shape[1]
    of_heads = projected(model, block, circuit.weights[layer], reads).permute(1, 2, 0, 3)
    q, k, v = of_heads.split(n_heads, dim=2)
    if circuit.start:
        earlier = [x[:, :, kv].expand(batch, -1, -1, -1) for x in circuit.earlier[layer]]
        k, v = torch.cat([earlier[0], k], dim=1), torch.cat([earlier[1], v], dim=1)
    z = model.attend(attention, q, k, v, circuit.start)
    total = z.new_zeros(())
    if block.attn_post is not None:
        total = attention.output(z)
        z = z * block.attn_post.statistics(total)[1].to(z.dtype)[..., None]
    heads = list(range(n_heads))
    by = written(block, heads, z - base.z[layer])
    if block.attn_post is not None:
        with torch.no_grad():
            rest = block.attn_post(total) - (base.mlp_in[layer] - base.attn_in[layer]) - by.sum(0)
            rounding = share_of_rounding(rest, written(block, heads, z))
        by = by + rounding
    return by


def projected(model: Transformer, block: Block, weight: Float[Tensor, "channel d_head d_model"], reads: Reads
              ) -> Float[Tensor, "channel batch pos d_head"]:
    """What q, k and v of every query head compute of what each alone reads, norm included."""
    attention, norm = block.attention, block.attn_norm
    if norm.eps is None or norm.centered or reads.dtype != torch.float32:
        weight = weight if norm.gain is None else weight_without_gain(model, block)
        values = torch.einsum("cbpd,chd->cbph", norm(reads), weight)
    else:
        values = _NormedProduct.apply(reads.flatten(1, 2), weight, norm.eps)
        values = values.unflatten(1, reads.shape[1:3])  # type: ignore[union-attr]
    biases = [part.bias for part in (attention.q, attention.k, attention.v)]
    if biases[0] is None:
        return values
    q, k, v = (bias for bias in biases if bias is not None)
    return values + torch.cat([q, k[model.kv_head], v[model.kv_head]])[:, None, None]


def weight_without_gain(model: Transformer, block: Block) -> Float[Tensor, "channel d_head d_model"]:
    attention, kv = block.attention, model.kv_head
    return torch.cat([attention.q.weight, attention.k.weight[kv], attention.v.weight[kv]])


class _NormedProduct(torch.autograd.Function):
    """W (x * rstd), rstd = (mean of x^2 + eps)^(-1/2): the scale after the product, and one pass over x back.

    With u = rstd * gradient, the gradient by x is W^T u - x * rstd^2 * (W x rstd . gradient) / d_model.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).pow_(2).div_(x.shape[-1]).add_(eps).rsqrt_()
        values = torch.bmm(x, weight.mT).mul_(scale)
        ctx.save_for_backward(x, weight, scale, values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale, values = ctx.saved_tensors
        gradient = gradients[0]
        along = (values * gradient).sum(-1, keepdim=True) * scale.square() / x.shape[-1]
        return torch.bmm(gradient * scale, weight).addcmul_(x, along, value=-1), None, None

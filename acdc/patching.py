"""Runs the model with each edge kept or replaced; activation patching and path patching.

Everything here is one computation: deviations from a *base run* travel along kept edges. A channel reads

    base total + sum over kept edges of (what src computes now - what src computed in the base run)

and a node that no deviation reaches *is* its base value, so only live nodes are computed, at the positions that can
deviate and that the logits depend on. Cost grows with the circuit, not with the model.

- Circuit run: the base run holds the replacement values, and the input deviates (clean - corrupted).
- Activation patching: the base run is the clean one (noising) or the corrupted one (denoising), nodes of the other run
  are imposed, every edge is kept.
- Path patching: the base run is the clean one, the src's corrupted value is imposed, only the paths' edges are kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acdc.ablation import Replacement
from acdc.activations import Activations, Resid, contribution, record, share_of_rounding, written
from acdc.circuit import Circuit
from acdc.errors import AcdcError, unknown_name
from acdc.graph import Graph
from acdc.live import Live, find_live
from acdc.positions import Cells, cells_of, sum_kept
from acdc.task import Batch, position_groups
from acdc.transformer import Transformer, frozen

Logits = Float[Tensor, "batch *pos vocab"]


@dataclass(frozen=True, eq=False)
class Deviation:
    """now - base of one node, over the positions from the start of the window. `positions`: where it is imposed,
    whatever the node computes; None: everywhere, and the node is not computed."""

    value: Resid
    positions: Bool[Tensor, " pos"] | None = None


def run_circuit(
    model: Transformer, batch: Batch, circuit: Circuit, replacement: Replacement, *, all_positions: bool = False
) -> Logits:
    """Logits of the clean prompts with the circuit's edges kept and every other edge carrying its replacement.

    Returns (batch, vocab) at the last position, or (batch, pos, vocab), which a circuit by position has not. With
    nothing cut they are the model's own logits; with everything cut and resample ablation, those of the corrupted
    prompts. Cost: only live nodes are computed; one to a few forward passes for a dense circuit (each head reads a
    residual stream of its own), less than one for a small one. Memory: live nodes * prompts * positions that can
    differ * d_model.
    """
    check_graph(model, circuit.graph)
    if all_positions and circuit.graph.positions:
        raise AcdcError(
            "all_positions for a circuit by position: its edges into the logits exist at the last token only, so there "
            "are no logits of the circuit at others. Leave it out, or give a circuit without positions"
        )
    start = 0 if all_positions else replacement.start(model, batch)
    with torch.no_grad(), frozen(model):
        base = replacement.activations
        deviation = Deviation((model.embed(batch.clean) - base.input)[:, start:])
        kept = kept_matrix(circuit.graph, circuit.kept)
        cells = cells_of(position_groups(batch, circuit.graph.positions)[:, start:], circuit.graph.n_positions)
        return propagate(model, base, kept, {0: deviation}, start=start, consistent=replacement.consistent,
                         all_positions=all_positions, cells=cells)


def patch_nodes(
    model: Transformer,
    batch: Batch,
    nodes: Sequence[str],
    *,
    positions: Sequence[int] | None = None,
    direction: Literal["noising", "denoising"] = "noising",
) -> Logits:
    """Activation patching: logits (batch, vocab) with the output of `nodes` taken from the other run.

    `noising`: the clean run with corrupted activations; a node matters if the metric falls. `denoising`: the corrupted
    run with clean activations; a node suffices if it is restored. `positions`: only at these token positions (negative
    ones count from the end). Cost: two forward passes for the activations and one for what lies downstream.
    Source: Meng et al. 2022 (arXiv 2202.05262); Heimersheim & Nanda 2024 (arXiv 2404.15255) on the two directions.
    """
    if direction not in ("noising", "denoising"):
        raise unknown_name("direction", direction, ["noising", "denoising"])
    graph = model.graph()
    if not nodes:
        raise AcdcError("no node given; at least one is needed")
    with torch.no_grad(), frozen(model):
        clean, corrupted = record(model, batch.clean), record(model, batch.corrupted)
        base, other = (clean, corrupted) if direction == "noising" else (corrupted, clean)
        where = _position_mask(positions, batch.clean)
        imposed = {
            _src(graph, node): Deviation(contribution(model, other, _src(graph, node))
                                         - contribution(model, base, _src(graph, node)), where)
            for node in nodes
        }
        return propagate(model, base, graph.exists, imposed, start=0)


def patch_paths(
    model: Transformer, batch: Batch, paths: Iterable[Sequence[str]], *, positions: Sequence[int] | None = None
) -> Logits:
    """Path patching: logits (batch, vocab) of the clean run when the first node of each path takes its corrupted value
    for that path alone.

    A path is a node followed by channels, each a read of the node before: `["a0.h1", "a9.h6<k>", "logits"]`. Everything
    off the paths stays clean: nodes in between recompute from what the paths bring them. To send a value through
    every route, use `patch_nodes`. `positions`: only there does the src take its corrupted value. Paths that cross, so
    that their edges form paths that were not given, are refused.
    Source: Wang et al. 2022 (arXiv 2211.00593); Goldowsky-Dill et al. 2023 (arXiv 2304.05969).
    """
    graph, paths = model.graph(), [tuple(path) for path in paths]
    kept, starts = np.zeros_like(graph.exists), set()
    for path in paths:
        if len(path) < 2 or path[-1] != "logits":
            raise AcdcError(f"path {list(path)} must name a node, then channels, and end in 'logits'")
        starts.add(path[0])
        src = path[0]
        for channel in path[1:]:
            edge = graph.edge(f"{src}->{channel}")
            kept[graph.edge_src[edge], graph.edge_channel[edge]] = True
            src = graph.channels[graph.edge_channel[edge]].node.name
    if not starts:
        raise AcdcError("no path given; at least one is needed")
    n_paths, n_given = _count_paths(graph, kept[:, :, 0], {_src(graph, name) for name in starts}), len(set(paths))
    if n_paths != n_given:
        raise AcdcError(
            f"the edges of the {n_given} paths given form {n_paths} paths from {', '.join(sorted(starts))} to the "
            "logits, because they meet in a node, or one begins inside another. Patch them one at a time"
        )
    with torch.no_grad(), frozen(model):
        clean, corrupted = record(model, batch.clean), record(model, batch.corrupted)
        where = _position_mask(positions, batch.clean)
        imposed = {}
        for node in starts:
            value = contribution(model, corrupted, _src(graph, node)) - contribution(model, clean, _src(graph, node))
            imposed[_src(graph, node)] = Deviation(value if where is None else value * where[None, :, None])
        return propagate(model, clean, kept, imposed, start=0)


def _count_paths(graph: Graph, kept: Bool[np.ndarray, "src channel"], starts: set[int]) -> int:
    """How many paths of kept edges lead from `starts` to the logits; one that meets another start ends there."""
    ways = [0] * len(graph.srcs)
    place: dict[str, list[int]] = {}
    for c, channel in enumerate(graph.channels):
        place.setdefault(channel.node.name, []).append(c)
    into = [[*np.nonzero(kept[:, c])[0]] for c in range(len(graph.channels))]
    for src, node in enumerate(graph.srcs):
        ways[src] = 1 if src in starts else sum(ways[s] for c in place.get(node.name, []) for s in into[c])
    return sum(ways[s] for s in into[-1])


def check_graph(model: Transformer, graph: Graph) -> None:
    if model.graph(graph.kv) != graph.at_all_positions:
        raise AcdcError(
            f"the circuit is of another model: its graph has {graph.n_layers} layers of {graph.n_heads} heads and "
            f"{graph.n_kv_heads} KV heads{' in parallel with the MLPs' * graph.parallel}, {model.name} has "
            f"{model.n_layers} of {model.n_heads} and {model.n_kv_heads}{' in parallel' * model.parallel}. Load the "
            "model that it was found in"
        )


def kept_matrix(graph: Graph, kept: Bool[np.ndarray, " edge"]) -> Bool[np.ndarray, "src channel position"]:
    """Which srcs each channel of each query head reads now, at each position."""
    return graph.to_matrix(kept)[:, graph.channel_of_per_head]


def _src(graph: Graph, name: str) -> int:
    if name not in graph.src_index:
        raise unknown_name("node", name, graph.src_index)
    return graph.src_index[name]


def _position_mask(positions: Sequence[int] | None, tokens: Tensor) -> Bool[Tensor, " pos"] | None:
    if positions is None:
        return None
    length = tokens.shape[1]
    if any(not -length <= position < length for position in positions):
        raise AcdcError(f"positions {list(positions)} of prompts of {length} tokens; each must be in 0 to {length - 1}")
    mask = torch.zeros(length, dtype=torch.bool, device=tokens.device)
    mask[list(positions)] = True
    return mask


def propagate(
    model: Transformer,
    base: Activations,
    kept: Bool[np.ndarray, "src channel position"],
    imposed: Mapping[int, Deviation],
    *,
    start: int,
    consistent: bool = True,
    all_positions: bool = False,
    cells: Cells = (),
) -> Logits:
    """Logits when deviations from `base` travel along kept edges. `start`: the first position that can deviate.

    `kept` is over the channels of each query head (`Graph.per_head`). `consistent`: see `Replacement`. `cells`: the
    tokens from `start` that count as each position, where `kept` tells positions apart.
    """
    graph = model.graph()
    batch, window, _ = next(iter(imposed.values())).value.shape
    differs = np.zeros(len(graph.srcs), dtype=bool)
    differs[list(imposed)] = True
    live = find_live(graph, np.asarray(kept.any(-1)), differs, all_differ=not consistent, all_positions=all_positions,
                     post_norm=model.blocks[0].attn_post is not None)
    read = slice(None) if all_positions else slice(window - 1, window)
    run = _Run(model, base, kept, live, start, read, cells)
    run.allocate(batch, window, {src for src in imposed if _is_given(model, live, src, imposed[src])})
    for src in imposed.keys() & (run.row.keys() - run.computed):
        run.impose(src, imposed)
    for layer in range(model.n_layers):
        index = graph.layer(layer)
        heads = [h for h in range(model.n_heads) if index.heads.start + h in run.computed]
        run.heads(layer, [h for h in heads if live.wide[index.heads.start + h]], run.everywhere)
        run.heads(layer, [h for h in heads if not live.wide[index.heads.start + h]], run.read)
        for h in heads:
            run.impose(index.heads.start + h, imposed)
        if index.mlp in run.computed:
            run.mlp(layer)
            run.impose(index.mlp, imposed)
    return run.logits()


def _is_given(model: Transformer, live: Live, src: int, deviation: Deviation) -> bool:
    """Whether an imposed node need not be computed. The heads of a layer with a post-norm are, or are not, together."""
    graph = model.graph()
    node = graph.srcs[src]
    if model.blocks[0].attn_post is None or node.kind != "head":
        return deviation.positions is None
    index = graph.layer(node.layer)
    return not live.channel[index.q.start : index.v.stop].any()


class _Run:
    """The state of one propagation: what each live node deviates by, in the order of the forward pass."""

    def __init__(self, model: Transformer, base: Activations, kept: Bool[np.ndarray, "src channel position"],
                 live: Live, start: int, read: slice, cells: Cells) -> None:
        self.model, self.base, self.kept, self.live, self.start, self.read = model, base, kept, live, start, read
        self.cells = cells
        self.graph = model.graph()
        self.everywhere = slice(None)

    def allocate(self, batch: int, window: int, given: set[int]) -> None:
        """`given`: nodes whose deviation is set from outside and not computed."""
        srcs = np.nonzero(self.live.src)[0].tolist()
        self.row = {src: i for i, src in enumerate(srcs)}
        self.computed = set(srcs) - given
        self.batch, self.window = batch, window
        self.deviations = self.base.input.new_zeros(len(srcs), batch, window, self.base.input.shape[-1])

    def impose(self, src: int, imposed: Mapping[int, Deviation]) -> None:
        """Overwrites what a node computed at the positions where its value is given."""
        if src in imposed:
            mask = slice(None) if imposed[src].positions is None else imposed[src].positions
            self.deviations[self.row[src]][:, mask] = imposed[src].value[:, mask]

    def slice_of(self, values: Tensor, at: slice) -> Tensor:
        """`values` of the base run at the window's positions `at`, with the batch size of this run."""
        if values.shape[1] > 1:
            values = values[:, self.start :][:, at]
        positions = len(range(self.window)[at])
        return values.expand(self.batch, positions, *values.shape[2:])

    def inputs(self, resid: Tensor, channels: Sequence[int], layer_start: int, at: slice
               ) -> tuple[Float[Tensor, "row batch pos d_model"], list[int]]:
        """What channels read, each distinct input once; and which of them each channel reads."""
        before = [src for src in self.row if src < layer_start]
        kept = self.kept[np.ix_(before, channels)].transpose(1, 0, 2)
        rows, which = np.unique(kept.reshape(len(channels), -1), axis=0, return_inverse=True)
        read = self.deviations.new_tensor(rows).view(len(rows), *kept.shape[1:])
        total = self.slice_of(resid, at) + sum_kept(read, self.deviations[: len(before)][:, :, at], self.cells)
        return total, which.reshape(-1).tolist()

    def heads(self, layer: int, heads: list[int], at: slice) -> None:
        """Computes heads of one layer at the window's positions `at`, keys and values everywhere."""
        if not heads:
            return
        block, index = self.model.blocks[layer], self.graph.layer(layer)
        attention, kv = block.attention, self.model.kv_head
        query_start = self.start + range(self.window)[at][0]
        q = self.projected(layer, heads, "q", at)
        k, v = self.projected(layer, heads, "k", self.everywhere), self.projected(layer, heads, "v", self.everywhere)
        if self.start:
            k = torch.cat([self.base.k[layer][:, : self.start, kv[heads]].expand(self.batch, -1, -1, -1), k], dim=1)
            v = torch.cat([self.base.v[layer][:, : self.start, kv[heads]].expand(self.batch, -1, -1, -1), v], dim=1)
        z = self.model.attend(attention, q, k, v, query_start)
        total = z.new_zeros(())
        if block.attn_post is not None:
            assert len(heads) == self.model.n_heads, heads
            total = attention.output(z)
            z = z * block.attn_post.statistics(total)[1].to(z.dtype)[..., None]
        deviations = written(block, heads, z - self.slice_of(self.base.z[layer], at)[:, :, heads])
        if block.attn_post is not None:
            base_sum = self.slice_of(self.base.mlp_in[layer] - self.base.attn_in[layer], at)
            rest = block.attn_post(total) - base_sum - deviations.sum(0)
            deviations += share_of_rounding(rest, written(block, heads, z))
        rows = [self.row[index.heads.start + h] for h in heads]
        self.deviations[rows, :, at] = deviations

    def projected(self, layer: int, heads: list[int], name: Literal["q", "k", "v"], at: slice
                  ) -> Float[Tensor, "batch pos head d_head"]:
        """q, k or v of some heads, from the base run where nothing that they read deviates."""
        block, index = self.model.blocks[layer], self.graph.layer(layer)
        projection, first = getattr(block.attention, name), getattr(index, name).start
        own = (lambda h: h) if name == "q" else (lambda h: int(self.model.kv_head[h]))
        result = self.slice_of(getattr(self.base, name)[layer], at)[:, :, [own(h) for h in heads]]
        changed = [i for i, h in enumerate(heads) if self.live.channel[first + h]]
        if not changed:
            return result
        channels = [first + heads[i] for i in changed]
        inputs, which = self.inputs(self.base.attn_in[layer], channels, index.heads.start, at)
        weight, bias = projection.weight, projection.bias
        for row, normed in enumerate(block.attn_norm(inputs)):
            places = [i for i, w in zip(changed, which, strict=True) if w == row]
            needed = sorted({own(heads[i]) for i in places})
            values = (normed @ weight[needed].flatten(0, 1).T).unflatten(-1, (len(needed), -1))
            if bias is not None:
                values = values + bias[needed]
            result[:, :, places] = values[:, :, [needed.index(own(heads[i])) for i in places]]
        return result

    def mlp(self, layer: int) -> None:
        block, index = self.model.blocks[layer], self.graph.layer(layer)
        at = self.everywhere if self.live.wide[index.mlp] else self.read
        layer_start = index.heads.start if self.model.parallel else index.mlp
        inputs, _ = self.inputs(self.base.mlp_in[layer], [index.mlp_channel], layer_start, at)
        out = block.mlp_output(inputs[0])
        self.deviations[self.row[index.mlp]][:, at] = out - self.slice_of(self.base.mlp[layer], at)

    def logits(self) -> Logits:
        inputs, _ = self.inputs(self.base.final, [len(self.graph.channels) - 1], len(self.graph.srcs), self.read)
        logits = self.model.logits(inputs[0])
        return logits if self.read == slice(None) else logits[:, 0]

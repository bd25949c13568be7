"""What every node computes now, kept up to date as edges are cut one after the other.

The state is that of one batch: what each channel reads and each node writes with some edges kept and all others
carrying their replacement. A *trial* cuts more edges into one channel, many cumulative cuts at once, and computes only
what lies downstream: the node that reads the channel, and what kept edges lead to from there, at the positions that
the logits depend on. A trial changes nothing until one of its rows is committed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acdc.ablation import Replacement
from acdc.activations import differences, record, share_of_rounding, written
from acdc.architectures.anatomy import Block, Projection
from acdc.live import Live, find_live
from acdc.positions import cells_of, sum_kept
from acdc.task import Batch, position_groups
from acdc.transformer import Transformer

LETTERS: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
ALL = slice(None)
LAST = slice(-1, None)
Srcs = Sequence[int] | np.ndarray
Moves = Float[Tensor, "n row batch pos d_model"]


@dataclass(eq=False)
class Trial:
    """Rows of possible next states: their logits, and what `commit` adds to (`more`) or writes into (`new`) the state.

    Both list (tensor of the state, index into it, its change or new value in every row): rows are the first dimension
    of `new`, the second of `more`.
    """

    logits: Float[Tensor, "row batch vocab"]
    more: list[tuple[Tensor, tuple, Tensor]] = field(default_factory=list)
    new: list[tuple[Tensor, tuple, Tensor]] = field(default_factory=list)


@dataclass(eq=False)
class Cuts:
    """What channels read besides what they read now, whatever nodes do: `reads` says which channel reads which of
    `values`, and at which position."""

    reads: Bool[np.ndarray, "n channel position"]
    values: Moves


class Moved:
    """By how much nodes move, in every row: of `wide` nodes at all positions of the window, of all at the last."""

    def __init__(self, like: Float[Tensor, "src batch pos d_model"], rows: int, n_wide: int, n: int) -> None:
        _, batch, window, d_model = like.shape
        self.srcs: tuple[list[int], list[int]] = ([], [])
        self.by = like.new_empty(n, rows, batch, 1, d_model), like.new_empty(n_wide, rows, batch, window, d_model)

    def add(self, srcs: Sequence[int], by: Moves, at: slice) -> None:
        for where in (LAST, ALL) if at == ALL else (LAST,):
            known, moves = self.srcs[where == ALL], self.by[where == ALL]
            moves[len(known) : len(known) + len(srcs)] = by[..., where, :]
            known += srcs

    def get(self, at: slice) -> tuple[list[int], Moves]:
        return self.srcs[at == ALL], self.by[at == ALL][: len(self.srcs[at == ALL])]


def find_needed(model: Transformer, kept: Bool[np.ndarray, "src channel position"]) -> Live:
    """The nodes from which kept edges lead to the logits."""
    everything = np.ones(len(kept), dtype=bool)
    return find_live(model.graph(), np.asarray(kept.any(-1)), everything, all_differ=True, all_positions=False,
                     post_norm=model.blocks[0].attn_post is not None)


class LiveState:
    """The state of one batch. `needed`: nodes that reach the logits by kept edges; `wide`: those that matter at every
    position, the others only at the last, where the logits are read. `change`: replacement - now, of every src.
    `positions`: what edges are told apart by."""

    def __init__(self, model: Transformer, batch: Batch, replacement: Replacement, positions: tuple[str, ...] = ()
                 ) -> None:
        self.model, self.batch, self.graph = model, batch, model.graph(positions=positions)
        self.start = replacement.start(model, batch)
        self.position = position_groups(batch, positions)[:, self.start :]
        self.cells = cells_of(self.position, self.graph.n_positions)
        self.post_norm = model.blocks[0].attn_post is not None
        self.clean = record(model, batch.clean)
        self.replaced = replacement.activations.expanded(*batch.clean.shape)
        self.clean_change = differences(model, self.clean, self.replaced, self.start, ALL, model.dtype)

    def refresh(self, kept: Bool[np.ndarray, "src channel position"]) -> Float[Tensor, "batch vocab"]:
        """Computes the state for `kept` (over the channels of each query head) from the clean run; its logits."""
        needed = find_needed(self.model, kept)
        self.kept, self.needed, self.wide = kept.copy(), needed.src, needed.wide
        self._start_from_clean()
        trial, moved = self._advance(Cuts(self.graph.exists & ~kept, self.clean_change[:, None]), 0)
        self.commit(trial, 0)
        self.change = self.clean_change.clone()
        for at in (LAST, ALL):
            srcs, by = moved.get(at)
            self.change[srcs, :, at] = self.clean_change[srcs][:, :, at] - by[:, 0]
        return trial.logits[0]

    def trial(self, channels: Sequence[int], srcs: Srcs, at: Srcs | None = None) -> Trial:
        """Row i: the first i + 1 of `srcs`, each at its position `at` (None: there is one), are cut from all of
        `channels`, one head's or those of one KV group."""
        reads = np.zeros((1, len(self.graph.channels), self.graph.n_positions), dtype=bool)
        reads[0, list(channels)] = True
        node = self.graph.channels[channels[0]].node
        first_layer = self.model.n_layers if node.kind == "logits" else node.layer
        places = np.zeros(len(srcs), dtype=int) if at is None else np.array(at)
        change = self.change[list(srcs)]
        if self.graph.n_positions > 1:
            change = change * (self.position.new_tensor(places)[:, None, None] == self.position)[..., None]
        more = change.cumsum(0)
        computed = next(c for c in channels if self.is_computed(c))
        for position, n_kept in enumerate(self.kept[:, channels[0]].sum(0)):
            there = np.nonzero(places == position)[0]
            if 0 < n_kept == len(there):
                only = np.arange(self.graph.n_positions) == position
                more[there[-1] :] = self._where_all_is_cut(more[there[-1] :], computed, ALL, only)
        return self._advance(Cuts(reads, more[None]), first_layer)[0]

    def commit(self, trial: Trial, row: int) -> None:
        """Makes one row of a trial the state."""
        for target, index, by in trial.more:
            target[index] += by[:, row]
        for target, index, values in trial.new:
            target[index] = values[row]

    def cut(self, channels: Sequence[int], srcs: Srcs, at: Srcs | None = None) -> None:
        """Records that edges are cut, as a committed row has it."""
        for channel in channels:
            self.kept[srcs, channel, [0] * len(srcs) if at is None else at] = False

    def row_bytes(self, channel: int) -> int:
        """About how much memory a row of a trial of this channel takes."""
        node, (batch, _, d_model) = self.graph.channels[channel].node, self.clean.input.shape
        after = len(self.graph.srcs) if node.kind == "logits" else self.graph.layer(node.layer).heads.start
        n_wide, n = int(self.wide[after:].sum()), int(self.needed[after:].sum())
        window = self.clean_change.shape[2]
        tokens = n + window * (n_wide + 6 * self.model.n_heads)  # and what the channels of a layer read, twice
        vocab = self.model.hf.get_output_embeddings().weight.shape[0]
        return batch * self.clean_change.element_size() * (tokens * d_model + 4 * vocab)

    def _start_from_clean(self) -> None:
        run, start, heads, kv = self.clean, self.start, 3 * self.model.n_heads, self.model.kv_head

        def at_window(values: list[Tensor]) -> list[Tensor]:
            return [x[:, start:].clone() for x in values]

        self.heads_in = [x[None, :, start:].repeat(heads if self._attends(layer) else 0, 1, 1, 1)
                         for layer, x in enumerate(run.attn_in)]
        self.mlp_in, self.mlp, self.z = (at_window(values) for values in (run.mlp_in, run.mlp, run.z))
        self.final = run.final[:, LAST].clone()
        self.heads = {"q": at_window(run.q), "k": [x[:, :, kv] for x in run.k], "v": [x[:, :, kv] for x in run.v]}
        self.attended = [m[:, start:] - a[:, start:] for m, a in zip(run.mlp_in, run.attn_in, strict=True)
                         ] if self.post_norm else []

    def is_computed(self, channel: int) -> bool:
        """Whether the state says what this channel reads: only of needed nodes it is kept up to date."""
        node = self.graph.channels[channel].node
        return node.kind == "logits" or bool(self.needed[self.graph.src_index[node.name]])

    def _attends(self, layer: int) -> bool:
        return bool(self.needed[self.graph.layer(layer).heads].any())

    def _advance(self, cuts: Cuts, first_layer: int) -> tuple[Trial, Moved]:
        """What follows from `cuts` into channels of `first_layer` or later, row by row."""
        after, rows = 1 + first_layer * (self.model.n_heads + 1), cuts.values.shape[1]
        moved = Moved(self.clean_change, rows, int(self.wide[after:].sum()), int(self.needed[after:].sum()))
        trial = Trial(self.final.new_empty(rows, len(self.batch), 0))
        for layer in range(first_layer, self.model.n_layers):
            if self._attends(layer):
                self._advance_heads(layer, cuts, trial, moved)
            if self.needed[self.graph.layer(layer).mlp]:
                self._advance_mlp(layer, cuts, trial, moved)
        places, more = self._read_more([len(self.graph.channels) - 1], LAST, cuts, moved)
        final = self.final.expand(rows, -1, -1, -1)
        if places:
            trial.more.append((self.final[None], (ALL,), more))
            final = final + more[0]
        trial.logits = self.model.logits(final[:, :, -1])
        return trial, moved

    def _read_more(self, channels: Sequence[int], at: slice, cuts: Cuts, moved: Moved) -> tuple[list[int], Moves]:
        """Which of `channels` (by place) read something else than now, and by how much."""
        srcs, by = moved.get(at)
        if not srcs and not cuts.reads[:, channels].any():
            return [], by
        kept, cut = self.kept[np.ix_(srcs, channels)], cuts.reads[:, channels]
        places = np.nonzero(kept.any((0, 2)) | cut.any((0, 2)))[0].tolist()
        if not places:
            return [], by
        more, *rest = (sum_kept(values.new_tensor(reads.transpose(1, 0, 2)), values, self.cells)
                       for reads, values in ((kept[:, places], by), (cut[:, places], cuts.values[..., at, :]))
                       if reads.any())
        if rest:
            more = more + rest[0]
        gone = ~np.asarray(self.kept[:, [channels[place] for place in places]].any(0))
        for i in np.nonzero(gone.any(1))[0].tolist():
            more[i] = self._where_all_is_cut(more[i], channels[places[i]], at, gone[i])
        return places, more

    def _where_all_is_cut(self, more: Float[Tensor, "row batch pos d_model"], channel: int, at: slice,
                          gone: Bool[np.ndarray, " position"]) -> Float[Tensor, "row batch pos d_model"]:
        """`more`, at positions where a channel's edges are all cut without the rounding of a sum of cuts."""
        exactly = self._when_all_is_cut(channel, at)
        if gone.all():
            return exactly.expand_as(more)
        where = torch.from_numpy(gone).to(self.position.device)[self.position[:, at]]
        return torch.where(where[..., None], exactly, more)

    def _when_all_is_cut(self, channel: int, at: slice) -> Float[Tensor, "batch pos d_model"]:
        """How much more than now a channel reads with all its edges cut, without the rounding of a sum of cuts: where
        the replacements are 0, a norm would make much of it."""
        node, letter = self.graph.channels[channel].node, self.graph.channels[channel].letter
        if node.kind == "logits":
            return self.replaced.final[:, LAST] - self.final
        if node.kind == "mlp":
            replaced, now = self.replaced.mlp_in, self.mlp_in[node.layer]
        else:
            replaced = self.replaced.attn_in
            now = self.heads_in[node.layer][LETTERS.index(letter) * self.model.n_heads + node.index]
        return replaced[node.layer][:, self.start :][:, at] - now[:, at]

    def _advance_heads(self, layer: int, cuts: Cuts, trial: Trial, moved: Moved) -> None:
        first = self.graph.layer(layer).heads.start
        needed = [h for h in range(self.model.n_heads) if self.needed[first + h]]
        new = {letter: self._project(layer, letter, needed, ALL, cuts, trial, moved) for letter in ("k", "v")}
        for at in (ALL, LAST):
            heads = [h for h in needed if self.wide[first + h] == (at == ALL)]
            if not heads:
                continue
            new["q"] = self._project(layer, "q", heads, at, cuts, trial, moved)
            changed = {h for letter in LETTERS for h in new[letter]}
            dirty = [h for h in heads if h in changed or (self.post_norm and changed)]
            if dirty:
                moved.add([first + h for h in dirty], self._attend(layer, dirty, at, new, trial), at)

    def _project(self, layer: int, letter: Literal["q", "k", "v"], heads: list[int], at: slice, cuts: Cuts,
                 trial: Trial, moved: Moved) -> dict[int, Float[Tensor, "row batch pos d_head"]]:
        """q, k or v of those heads that read something else than now."""
        first = getattr(self.graph.layer(layer), letter).start
        places, more = self._read_more([first + h for h in heads], at, cuts, moved)
        changed = [heads[place] for place in places]
        if not changed:
            return {}
        where = ([LETTERS.index(letter) * self.model.n_heads + h for h in changed], ALL, at)
        trial.more.append((self.heads_in[layer], where, more))
        reads = self.heads_in[layer][where][:, None] + more
        block = self.model.blocks[layer]
        of = changed if letter == "q" else self.model.kv_head[changed].tolist()
        values = project(block, getattr(block.attention, letter), of, reads)
        positions = at if letter == "q" else slice(self.start, None)
        trial.new.append((self.heads[letter][layer], (ALL, positions, changed), values.permute(1, 2, 3, 0, 4)))
        return dict(zip(changed, values, strict=True))

    def _attend(self, layer: int, heads: list[int], at: slice, new: dict[str, dict[int, Tensor]], trial: Trial
                ) -> Moves:
        """By how much heads move when some of them have new q, k or v."""
        block, rows = self.model.blocks[layer], len(trial.logits)
        now: dict[str, Tensor] = {}
        for letter in LETTERS:
            values = self.heads[letter][layer][:, at if letter == "q" else ALL]
            now[letter] = values[:, :, heads].repeat(rows, 1, 1, 1, 1)
            for place, head in enumerate(heads):
                if head in new[letter]:
                    now[letter][:, :, -new[letter][head].shape[2] :, place] = new[letter][head]
        query_start = self.start if at == ALL else self.clean.input.shape[1] - 1
        q, k, v = (now[letter].flatten(0, 1) for letter in LETTERS)
        z = self.model.attend(block.attention, q, k, v, query_start)
        total = z.new_zeros(())
        if block.attn_post is not None:
            assert len(heads) == self.model.n_heads, heads
            total = block.attention.output(z)
            z = z * block.attn_post.statistics(total)[1].to(z.dtype)[..., None]
        z = z.unflatten(0, (rows, -1))
        by = written(block, heads, z - self.z[layer][:, at][:, :, heads])
        trial.new.append((self.z[layer], (ALL, at, heads), z))
        if block.attn_post is not None:
            attended = block.attn_post(total).unflatten(0, (rows, -1))
            rest = attended - self.attended[layer][:, at] - by.sum(0)
            by += share_of_rounding(rest, written(block, heads, z))
            trial.new.append((self.attended[layer], (ALL, at), attended))
        return by

    def _advance_mlp(self, layer: int, cuts: Cuts, trial: Trial, moved: Moved) -> None:
        index, block = self.graph.layer(layer), self.model.blocks[layer]
        at = ALL if self.wide[index.mlp] else LAST
        places, more = self._read_more([index.mlp_channel], at, cuts, moved)
        if not places:
            return
        trial.more.append((self.mlp_in[layer][None], (ALL, ALL, at), more))
        out = block.mlp_output((self.mlp_in[layer][:, at] + more[0]).flatten(0, 1)).unflatten(0, more.shape[1:3])
        trial.new.append((self.mlp[layer], (ALL, at), out))
        moved.add([index.mlp], (out - self.mlp[layer][:, at])[None], at)


def project(block: Block, projection: Projection, heads: list[int], reads: Moves
            ) -> Float[Tensor, "n row batch pos d_head"]:
    """The projection of each head of what it alone reads, norm included."""
    weight, bias, norm = projection.weight[heads], projection.bias, block.attn_norm
    if norm.eps is None or norm.centered or reads.dtype != torch.float32:
        projected = norm(reads).flatten(1, 3) @ weight.mT
    else:  # the norm's scale after the product: one pass over what is read, instead of five
        scale = torch.linalg.vector_norm(reads, dim=-1).pow(2).div(reads.shape[-1]).add(norm.eps).rsqrt()
        gained = weight if norm.gain is None else weight * norm.gain
        projected = (reads.flatten(1, 3) @ gained.mT) * scale.flatten(1)[..., None]
    if bias is not None:
        projected = projected + bias[heads][:, None]
    return projected.unflatten(1, reads.shape[1:4])

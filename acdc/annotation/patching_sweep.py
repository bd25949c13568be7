"""What each place does to the task: activation patching of every layer and position, or every head.

Noising: the clean run, with what is at one place as in the corrupted run; denoising the other way round. Places are
the residual stream that each block reads (and the final norm, the last row), what each attention or MLP adds, each at
one position or role of tokens; or what each head adds, at all positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from acdc.activations import Activations, contribution, record
from acdc.annotation.sites import read
from acdc.errors import AcdcError, unknown_name
from acdc.fitting import Halving
from acdc.metrics import METRICS, Metric
from acdc.pieces import piece
from acdc.resume import resume
from acdc.task import Batch, position_groups, position_names
from acdc.transformer import Transformer, frozen

PLACES = ("residual", "attention", "mlp", "head")
DIRECTIONS = ("noising", "denoising")
TOKENS_PER_PASS = 4096


@dataclass(frozen=True, eq=False)
class Sweep:
    """The mean metric with each place patched. `rows`: sites by layer; `columns`: positions, roles or heads.

    `clean` and `corrupted` are the mean metric of the two runs.
    """

    place: str
    direction: str
    metric: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Float[np.ndarray, "row column"]
    clean: float
    corrupted: float

    @property
    def share(self) -> Float[np.ndarray, "row column"]:
        """Of clean - corrupted: what noising a place loses, or denoising it restores. 0: it does nothing; 1: all."""
        gap = self.clean - self.corrupted
        if gap == 0:
            raise AcdcError(f"{self.metric} is {self.clean} on clean and corrupted prompts alike, so no share of their "
                            "difference can be told; give a task that the model does")
        base = self.clean if self.direction == "noising" else self.corrupted
        return (self.values - base) / (gap if self.direction == "denoising" else -gap)


def sweep(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    place: str = "residual",
    direction: str = "denoising",
    positions: str = "each",
    progress: bool = False,
) -> Sweep:
    """Patches every place of a kind (`PLACES`), one at a time.

    `positions`: "each", a column a token, for prompts of one length, or "roles", a column a role of tokens, all of
    whose tokens are patched at once; heads are patched at all positions. Cost: two forward passes a batch, and for each
    place a pass of the layers above it at the positions that can differ. It equals `acdc.patching.patch_nodes`. It
    misleads as to shared work: two places that each suffice are each not needed, and the other way round.
    Raises `AcdcError` for unknown options, and what `acdc.task.position_names` raises.
    Source: Meng et al. 2022 (arXiv 2202.05262); Heimersheim & Nanda 2024 (arXiv 2404.15255).
    """
    for kind, given, known in (("place", place, PLACES), ("direction", direction, DIRECTIONS),
                               ("positions", positions, ("each", "roles"))):
        if given not in known:
            raise unknown_name(kind, given, known)
    if not batches:
        raise AcdcError("no prompts given: the list of batches is empty")
    columns = (tuple(f"h{h}" for h in range(model.n_heads)) if place == "head"
               else position_names(batches, positions))
    rows = _rows(model, place)
    total, ends, fits = np.zeros((len(rows), len(columns))), np.zeros(2), Halving()
    n = sum(map(len, batches))
    with torch.no_grad(), frozen(model), tqdm(total=len(rows) * len(batches), desc=f"patching, {place}", unit="layer",
                                              disable=not progress) as bar:

        def summed(batch: Batch) -> np.ndarray:
            """A row a layer, and one of the two ends."""
            runs, found = _Runs.of(model, batch, place, direction), np.zeros((len(rows) + 1, max(2, len(columns))))
            reference = model.logits(runs.clean.final[:, -1])
            masks = None if place == "head" else _masks(batch, columns)
            for row in range(len(rows)):
                values = [float(metric(one, batch, reference).sum())
                          for logits in _patched(model, runs, place, row, masks, batch)
                          for one in logits.split(len(batch))]
                found[row, : len(values)] = values
                bar.update()
            found[-1, :2] = [float(metric(model.logits(run.final[:, -1]), batch, reference).sum())
                             for run in (runs.clean, runs.corrupted)]
            return found

        for batch in batches:
            found = piece("patches of a batch", lambda batch=batch: {
                "sums": np.sum(fits.parts(batch, summed), axis=0)})["sums"]
            total += found[:-1, : len(columns)]
            ends += found[-1, :2]
    return Sweep(place, direction, metric.name, rows, columns, total / n, *(ends / n).tolist())


def _rows(model: Transformer, place: str) -> tuple[str, ...]:
    letter = {"residual": "resid", "mlp": "m"}.get(place, "a")
    return tuple(f"{letter}{layer}" for layer in range(model.n_layers + (place == "residual")))


def _masks(batch: Batch, columns: Sequence[str]) -> Bool[Tensor, "column batch pos"]:
    groups = position_groups(batch, columns)
    return torch.stack([groups == column for column in range(len(columns))])


@dataclass(frozen=True, eq=False)
class _Runs:
    """Both runs, which of them is patched (`base`) with what of the other, and what attention adds in both."""

    clean: Activations
    corrupted: Activations
    base: Activations
    other: Activations
    attention: tuple[dict[str, Tensor], dict[str, Tensor]]

    @staticmethod
    def of(model: Transformer, batch: Batch, place: str, direction: str) -> "_Runs":
        tokens = [batch.clean, batch.corrupted]
        clean, corrupted = (record(model, one) for one in tokens)
        flip = direction == "denoising"
        names = _rows(model, place) if place == "attention" else ()
        base, other = (read(model, one, names) if names else {} for one in (tokens[::-1] if flip else tokens))
        runs = (corrupted, clean) if flip else (clean, corrupted)
        return _Runs(clean, corrupted, *runs, (base, other))

    def change(self, model: Transformer, place: str, layer: int) -> Float[Tensor, "change batch pos d_model"]:
        """other - base of what is patched in a layer: one change, or one a head."""
        if place == "residual":
            return (stream(self.other, layer) - stream(self.base, layer))[None]
        if place == "mlp":
            return (self.other.mlp[layer] - self.base.mlp[layer])[None]
        if place == "attention":
            base, other = self.attention
            return (other[f"a{layer}"] - base[f"a{layer}"])[None]
        heads = range(model.graph().layer(layer).heads.start, model.graph().layer(layer).heads.stop)
        return torch.stack([contribution(model, self.other, src) - contribution(model, self.base, src)
                            for src in heads])


def stream(run: Activations, layer: int) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream that a block reads, or, after the last, the final norm."""
    return run.attn_in[layer] if layer < len(run.attn_in) else run.final


def _patched(model: Transformer, runs: _Runs, place: str, layer: int, masks: Tensor | None, batch: Batch
             ) -> Iterator[Float[Tensor, "rows vocab"]]:
    """For each chunk of columns, in order, the logits of all prompts for each of its columns."""
    at_mlp = place in ("attention", "head") and not model.parallel
    reads = layer if place == "residual" or at_mlp else layer + 1
    resid = runs.base.mlp_in[layer] if at_mlp else stream(runs.base, reads)
    change = runs.change(model, place, layer)
    n = len(change) if masks is None else len(masks)
    length, least = batch.clean.shape[1], batch.first_difference if model.causal else 0
    first = 0
    while first < n:
        start = least
        if masks is not None and model.causal:
            start = max(least, _first_place(masks[first:]))
        per_pass = max(1, TOKENS_PER_PASS // (len(batch) * (length - start)))
        end = min(n, first + per_pass)
        if masks is None:
            moved = change[first:end]
        else:  # where, so that what is not finite elsewhere does not come in
            moved = torch.where(masks[first:end, :, :, None], change, torch.zeros_like(change))
        rows = (resid + moved)[:, :, start:].flatten(0, 1).contiguous()
        yield resume(model, runs.base, reads, rows, start, at_mlp=at_mlp)
        first = end


def _first_place(masks: Bool[Tensor, "column batch pos"]) -> int:
    """The first position that any mask holds; the last, if none holds one."""
    places = masks.any(0).any(0).nonzero()
    return int(places[0]) if len(places) else masks.shape[-1] - 1

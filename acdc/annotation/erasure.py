"""Whether a model uses what a probe can read: erase it from an activation, and see what the task loses.

The eraser is LEACE: the least change (in mean square) after which no linear probe finds the labels. With X the centred
activations, X = U S V^T, and Q an orthonormal basis of U^T Z for the labels' indicators Z,

    x' = x - V S Q Q^T S^-1 V^T (x - mean).

What the task loses is compared with moving each activation as far, in as many directions, at random among those in
which activations still vary after the erasure. Labels dealt out at random would be no fair comparison: their classes
hardly differ, so that erasing them hardly moves anything.

Source: Belrose et al. 2023 (arXiv 2306.03819).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from acdc.activations import Activations, record
from acdc.annotation.effects import read_first, residual
from acdc.annotation.probes import against, usable
from acdc.annotation.sites import site
from acdc.annotation.variables import Labels, gather
from acdc.errors import AcdcError
from acdc.metrics import Metric
from acdc.resume import resume
from acdc.task import Batch
from acdc.transformer import Transformer, frozen


@dataclass(frozen=True, eq=False)
class Eraser:
    """x -> x - write (read (x - mean))."""

    mean: Float[Tensor, " width"]
    read: Float[Tensor, "rank width"]
    write: Float[Tensor, "width rank"]

    def __call__(self, x: Float[Tensor, "*where width"]) -> Float[Tensor, "*where width"]:
        return x - (x - self.mean) @ self.read.T @ self.write.T


@dataclass(frozen=True)
class Erased:
    """`effect`: mean loss increase over prompts; positive where the task loses by the erasure. `null`: the mean of
    those of random directions, `z` and one-sided `p` against them."""

    effect: float
    null: float
    z: float
    p: float
    rank: int

    def __str__(self) -> str:
        return f"erased (rank {self.rank}): loss {self.effect:+.3f}, at random {self.null:+.3f} (p {self.p:.2g})"


def eraser(x: Float[Tensor, "row width"], values: Shaped[np.ndarray, " row"]) -> Eraser:
    """The eraser of labels (classes, or numbers) from activations, as above; in float64."""
    x = x.double()
    mean = x.mean(0)
    u, s, v = torch.linalg.svd(x - mean, full_matrices=False)
    kept = s > 1e-9 * s.max().clamp(min=1e-300)
    u, s, v = u[:, kept], s[kept], v[kept]
    if values.dtype.kind == "f":
        z = torch.from_numpy(values)[:, None]
    else:
        names, own = np.unique(values, return_inverse=True)
        z = torch.nn.functional.one_hot(torch.from_numpy(own), len(names)).double()
    q, size, _ = torch.linalg.svd(u.T @ (z - z.mean(0)), full_matrices=False)
    q = q[:, size > 1e-9 * len(x) ** 0.5]
    return Eraser(mean, (v.T / s @ q).T, v.T * s @ q)


def random_moves(x: Float[Tensor, "row width"], erase: Eraser, n_draws: int, rng: np.random.Generator
                 ) -> Float[Tensor, "draw row width"]:
    """What the erasure adds to each row, turned into random directions: the same lengths and angles between rows.

    The directions are drawn as activations vary once erased, or evenly where fewer are left than needed.
    """
    moved, rank = erase(x) - x, erase.read.shape[0]
    u, s, _ = torch.linalg.svd(moved, full_matrices=False)
    left = moved + x - erase.mean
    if int(torch.linalg.matrix_rank(left, rtol=1e-9)) < rank or float(left.norm()) <= 1e-9 * float(moved.norm()):
        left = torch.eye(x.shape[1], dtype=x.dtype)
    drawn = torch.from_numpy(rng.standard_normal((n_draws, rank, len(left)))) @ left
    return u[:, :rank] * s[:rank] @ torch.linalg.qr(drawn.mT)[0].mT


def erasable(model: Transformer, name: str) -> bool:
    """Whether what is at a site adds to the residual stream, so that its erasure can be followed."""
    at = site(model, name)
    return at.part in (None, "mid") and not (at.kind == "a" and at.head is None)


def erasure(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric,
    name: str,
    labels: Labels,
    *,
    x: Float[Tensor, "row width"] | None = None,
    runs: Sequence[Activations] | None = None,
    n_draws: int = 19,
    seed: int = 0,
) -> Erased:
    """What the task loses when labels are erased from a site, at the rows' positions in the clean prompts.

    `name`: a node or a place of the residual stream. `x`: what is there in each row, and `runs`: the clean run of each
    batch (`clean_run`), if at hand. The eraser is fitted on all rows. Cost a batch: a forward pass, and 1 + `n_draws`
    passes of what lies after the site, at positions from the first row's. With fewer rows than dimensions the eraser
    moves the class means together and little else, so an effect of nothing does not show that the model does not use
    the labels. Raises `AcdcError` for other sites.
    """
    if not erasable(model, name):
        raise AcdcError(f"what is erased at {name} cannot be followed; give a node (a5.h1, m5) or resid5, resid5.mid")
    kept = usable(labels)
    chosen = labels.of(kept)
    x = (gather(model, batches, [name], labels)[name] if x is None else x)[torch.from_numpy(kept)]
    rng = np.random.default_rng(seed)
    erase = eraser(x, chosen.values)
    rank = erase.read.shape[0]
    moves = torch.cat([(erase(x) - x)[None], random_moves(x, erase, n_draws, rng)])
    rows = np.nonzero(~chosen.corrupted)[0]
    changes = moves[:, torch.from_numpy(rows)]
    recorded = (clean_run(model, batch) for batch in batches) if runs is None else runs
    effects = _effects(model, zip(batches, recorded, strict=True), metric, name, chosen.prompt[rows],
                       chosen.position[rows], changes)
    z, p = against(float(effects[0]), effects[1:])
    return Erased(float(effects[0]), float(effects[1:].mean()), z, p, rank)


def clean_run(model: Transformer, batch: Batch) -> Activations:
    """What the clean prompts of a batch compute, from which erasures go on. Cost: a forward pass."""
    with torch.no_grad(), frozen(model):
        return record(model, batch.clean)


def _effects(model: Transformer, runs: Iterable[tuple[Batch, Activations]], metric: Metric, name: str,
             prompt: np.ndarray, position: np.ndarray, changes: Float[Tensor, "draw row width"]
             ) -> Float[np.ndarray, " draw"]:
    """Mean loss increase over prompts with each draw's changes added at the rows' places."""
    layer, at_mlp = _place(model, name)
    total, first = torch.zeros(len(changes), dtype=torch.float64), 0
    with torch.no_grad(), frozen(model):
        for batch, clean in runs:
            own = np.nonzero((prompt >= first) & (prompt < first + len(batch)))[0]
            if len(own):
                reference = model.logits(clean.final[:, -1])
                start = int(position[own].min()) if model.causal else 0
                resid = residual(model, clean, layer, at_mlp)[:, start:]
                changed = resid.repeat(len(changes), 1, 1, 1)
                at = torch.from_numpy(prompt[own] - first), torch.from_numpy(position[own] - start)
                changed[:, at[0], at[1]] += changes[:, own].to(changed)
                logits = resume(model, clean, layer, changed.flatten(0, 1), start, at_mlp=at_mlp)
                base = metric.loss(reference, batch, reference).sum()
                for draw, of_draw in enumerate(logits.unflatten(0, (len(changes), len(batch)))):
                    total[draw] += float(metric.loss(of_draw, batch, reference).sum() - base)
            first += len(batch)
    return (total / first).numpy()


def _place(model: Transformer, name: str) -> tuple[int, bool]:
    """The layer that reads the site's part of the residual stream first, and whether its MLP does."""
    at = site(model, name)
    if at.kind == "resid":
        return at.layer, at.part == "mid"
    return read_first(model, name)

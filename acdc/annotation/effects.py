"""What the task loses when a node alone takes its corrupted value: the exact effect of each node, with an interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from acdc.activations import Activations, contribution, record
from acdc.errors import unknown_name
from acdc.evaluation.significance import draw_weights, holm, interval, p_above, p_below
from acdc.fitting import Halving, over_batches
from acdc.metrics import Metric
from acdc.patching import patch_nodes
from acdc.pieces import piece
from acdc.resume import resume
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

TOKENS_PER_PASS = 4096


@dataclass(frozen=True)
class Effect:
    """Mean loss increase over prompts, its interval at 95%, and the two-sided p of no effect, by Holm for all nodes.

    Positive: the node helps the task. `share`: of what the metric loses when all is corrupted.
    """

    value: float
    low: float
    high: float
    p: float
    share: float | None


def node_effects(model: Transformer, batches: Sequence[Batch], metric: Metric, nodes: Sequence[str], *, seed: int = 0,
                 progress: bool = False) -> dict[str, Effect]:
    """The effect of noising each node: the clean run with that node's output, at all positions, of the corrupted one.

    It equals `acdc.patching.patch_nodes` a node at a time, with many nodes to a pass. Cost: two passes a batch, and for
    each node a pass of the layers above it at the positions that can differ. It misleads where others step in for a
    node (backup heads): then each alone seems to matter little. Raises `AcdcError` for an unknown node, and for a
    single prompt, which has no spread.
    """
    if not nodes:
        return {}
    with torch.no_grad(), frozen(model), tqdm(total=len(nodes) * len(batches), desc="patching nodes", unit="node",
                                              disable=not progress) as bar:
        found, fits = [], Halving()
        for batch in batches:
            of_part = partial(_of_part, model, metric, nodes)
            found.append(piece("effects of nodes on a batch", lambda batch=batch, of_part=of_part: {
                "rows": np.concatenate(fits.parts(batch, of_part), axis=1)})["rows"])
            bar.update(len(nodes))
    *losses, gaps = np.concatenate(found, axis=1)
    return _summed_up(nodes, np.stack(losses), float(gaps.mean()), seed)


def joint_effects(model: Transformer, batches: Sequence[Batch], metric: Metric, sets: Mapping[str, Sequence[str]], *,
                  seed: int = 0) -> dict[str, Effect]:
    """The effect of noising all nodes of a set at once, for each named set, as `node_effects`.

    Where it is far above the sum of the effects of its nodes, they stand in for each other. Cost: three passes a set
    and batch.
    """
    if not sets:
        return {}

    def rows(batch: Batch) -> Float[np.ndarray, "row prompt"]:
        reference = model.logits(record(model, batch.clean).final[:, -1])
        base = metric.loss(reference, batch, reference)
        losses = [metric.loss(patch_nodes(model, batch, nodes), batch, reference) - base
                  for nodes in (*sets.values(), ["input"])]
        return torch.stack(losses).cpu().double().numpy()

    with torch.no_grad(), frozen(model):
        *losses, gaps = np.concatenate([found for _, found in over_batches(batches, rows)], axis=1)
    return _summed_up(list(sets), np.stack(losses), float(gaps.mean()), seed)


def _summed_up(names: Sequence[str], values: Float[np.ndarray, "name prompt"], gap: float, seed: int
               ) -> dict[str, Effect]:
    weights = draw_weights(values.shape[1], 2000, seed)
    none = np.zeros(values.shape[1])
    p = holm([min(1.0, 2 * min(p_above(row, none, 0.0), p_below(row, none, 0.0))) for row in values])
    ends = interval(values @ weights.T, values.shape[1])
    return {name: Effect(float(values[i].mean()), float(ends[i, 0]), float(ends[i, 1]), p[i],
                         float(values[i].mean()) / gap if gap > 0 else None) for i, name in enumerate(names)}


def _of_part(model: Transformer, metric: Metric, nodes: Sequence[str], batch: Batch) -> Float[np.ndarray, "row prompt"]:
    """Loss increases with each node corrupted, and with everything as the last row."""
    clean, corrupted = record(model, batch.clean), record(model, batch.corrupted)
    reference = model.logits(clean.final[:, -1])
    base = metric.loss(reference, batch, reference)
    start, size = batch.first_difference if model.causal else 0, len(batch)
    found = torch.zeros(len(nodes), size, dtype=base.dtype)
    fits = Halving("nodes", max(1, TOKENS_PER_PASS // (size * batch.clean.shape[1])))
    by_place: dict[tuple[int, bool], list[int]] = {}
    for i, node in enumerate(nodes):
        by_place.setdefault(read_first(model, node), []).append(i)
    for (layer, at_mlp), rows in by_place.items():
        def losses(part: slice, layer: int = layer, at_mlp: bool = at_mlp, rows: list[int] = rows) -> Tensor:
            resid = residual(model, clean, layer, at_mlp)[:, start:]
            changed = torch.cat([resid + _change(model, clean, corrupted, nodes[i])[:, start:] for i in rows[part]])
            logits = resume(model, clean, layer, changed, start, at_mlp=at_mlp).unflatten(0, (-1, size))
            return torch.stack([metric.loss(one, batch, reference) - base for one in logits]).cpu()

        for part, of_part in fits.over(len(rows), losses):
            found[rows[part]] = of_part
    gap = metric.loss(model.logits(corrupted.final[:, -1]), batch, reference) - base
    return torch.cat([found.double(), gap.cpu().double()[None]]).numpy()


def read_first(model: Transformer, node: str) -> tuple[int, bool]:
    """The layer that reads a node first, and whether its MLP does."""
    index = model.graph().src_index
    if node not in index:
        raise unknown_name("node", node, index)
    at = model.graph().srcs[index[node]]
    if at.kind == "input":
        return 0, False
    return (at.layer, True) if at.kind == "head" and not model.parallel else (at.layer + 1, False)


def residual(model: Transformer, run: Activations, layer: int, at_mlp: bool) -> Tensor:
    if at_mlp:
        return run.mlp_in[layer]
    return run.attn_in[layer] if layer < model.n_layers else run.final


def _change(model: Transformer, clean: Activations, corrupted: Activations, node: str) -> Tensor:
    src = model.graph().src_index[node]
    return contribution(model, corrupted, src) - contribution(model, clean, src)

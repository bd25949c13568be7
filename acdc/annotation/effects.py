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
    losses, gaps = [], []
    with torch.no_grad(), frozen(model), tqdm(total=len(nodes) * len(batches), desc="patching nodes", unit="node",
                                              disable=not progress) as bar:
        for batch in batches:
            found = piece("effects of nodes on a batch", partial(_of_batch, model, batch, metric, nodes))
            losses.append(found["losses"])
            gaps.append(found["gaps"])
            bar.update(len(nodes))
    return _summed_up(nodes, np.concatenate(losses, axis=1), float(np.concatenate(gaps).mean()), seed)


def joint_effects(model: Transformer, batches: Sequence[Batch], metric: Metric, sets: Mapping[str, Sequence[str]], *,
                  seed: int = 0) -> dict[str, Effect]:
    """The effect of noising all nodes of a set at once, for each named set, as `node_effects`.

    Where it is far above the sum of the effects of its nodes, they stand in for each other. Cost: three passes a set
    and batch.
    """
    if not sets:
        return {}
    losses, gaps = [], []
    with torch.no_grad(), frozen(model):
        for batch in batches:
            reference = model.logits(record(model, batch.clean).final[:, -1])
            runs = [patch_nodes(model, batch, nodes) for nodes in (*sets.values(), ["input"])]
            base = metric.loss(reference, batch, reference)
            *rows, gap = (metric.loss(run, batch, reference) - base for run in runs)
            losses.append(torch.stack(rows).cpu().double().numpy())
            gaps.append(gap.cpu().double().numpy())
    return _summed_up(list(sets), np.concatenate(losses, axis=1), float(np.concatenate(gaps).mean()), seed)


def _summed_up(names: Sequence[str], values: Float[np.ndarray, "name prompt"], gap: float, seed: int
               ) -> dict[str, Effect]:
    weights = draw_weights(values.shape[1], 2000, seed)
    none = np.zeros(values.shape[1])
    p = holm([min(1.0, 2 * min(p_above(row, none, 0.0), p_below(row, none, 0.0))) for row in values])
    ends = interval(values @ weights.T, values.shape[1])
    return {name: Effect(float(values[i].mean()), float(ends[i, 0]), float(ends[i, 1]), p[i],
                         float(values[i].mean()) / gap if gap > 0 else None) for i, name in enumerate(names)}


def _of_batch(model: Transformer, batch: Batch, metric: Metric, nodes: Sequence[str]) -> dict[str, np.ndarray]:
    """Loss increases with each node corrupted (node, prompt), and with everything (prompt)."""
    clean, corrupted = record(model, batch.clean), record(model, batch.corrupted)
    reference = model.logits(clean.final[:, -1])
    base = metric.loss(reference, batch, reference)
    start, size = batch.first_difference if model.causal else 0, len(batch)
    found = torch.zeros(len(nodes), size, dtype=base.dtype)
    per_pass = max(1, TOKENS_PER_PASS // (size * batch.clean.shape[1]))
    by_place: dict[tuple[int, bool], list[int]] = {}
    for i, node in enumerate(nodes):
        by_place.setdefault(read_first(model, node), []).append(i)
    for (layer, at_mlp), rows in by_place.items():
        for first in range(0, len(rows), per_pass):
            some = rows[first : first + per_pass]
            resid = residual(model, clean, layer, at_mlp)[:, start:]
            changed = torch.cat([resid + _change(model, clean, corrupted, nodes[i])[:, start:] for i in some])
            logits = resume(model, clean, layer, changed, start, at_mlp=at_mlp).unflatten(0, (len(some), size))
            found[some] = torch.stack([metric.loss(one, batch, reference) - base for one in logits]).cpu()
    gap = metric.loss(model.logits(corrupted.final[:, -1]), batch, reference) - base
    return {"losses": found.double().numpy(), "gaps": gap.cpu().double().numpy()}


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

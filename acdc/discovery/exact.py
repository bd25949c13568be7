"""The exact effect of each edge: corrupt it alone, run what lies downstream, measure the loss.

Phases: one clean run and one replacement run a batch; then, channel by channel from the last, the srcs that it reads
are swapped in, many to a pass; only the node that reads the edge and the layers above it are computed, at the positions
from the first that differs.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from acdc.ablation import Ablation, Replacement, prepare_ablation
from acdc.activations import Activations, differences, record
from acdc.circuit import EdgeScores
from acdc.cluster import Shared, over
from acdc.errors import AcdcError
from acdc.fitting import Halving
from acdc.graph import KV, Channel, Graph
from acdc.metrics import METRICS, Metric
from acdc.resume import resume
from acdc.task import Batch, position_groups, position_names
from acdc.transformer import Transformer, frozen

TOKENS_PER_PASS = 4096
LEAST_PASSES = 10  # that a piece of the work is worth


def exact(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    per_prompt: bool = False,
    progress: bool = False,
) -> EdgeScores:
    """s(edge) = mean over prompts of L(the edge alone carries its replacement) - L(clean).

    L is the metric as a loss, in its units; positive = the edge helps. This is what EAP and EAP-IG estimate, also known
    as edge activation patching. It sees one edge at a time: redundant edges (backup heads) all score low. Cost: for
    each edge a forward pass of the layers above it, at the positions that can differ; about a third
    of a pass an edge.
    """
    graph = model.graph(kv, position_names(batches, positions))
    values, n_prompts = np.zeros(graph.n_edges), sum(len(batch) for batch in batches)
    alone = np.zeros((n_prompts, graph.n_edges), dtype=np.float32) if per_prompt else None
    for rows, prompts, effects in _patch_edges(model, batches, metric, np.arange(graph.n_edges), graph=graph,
                                               ablation=ablation, progress=progress):
        values[rows] += effects.sum(1) / n_prompts
        if alone is not None:
            alone[prompts, rows] = effects.T
    provenance = {"method": "exact", "method_options": {}, "metric": metric.name, "ablation": ablation}
    return EdgeScores(graph, values, provenance, alone)


def exact_effects(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric,
    edges: Int[np.ndarray, " edge"],
    *,
    ablation: str | Ablation = "resample",
    graph: Graph | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "edge prompt"]:
    """L(the edge alone carries its replacement) - L(clean) for the edges of these numbers, prompt by prompt.

    Edges are numbered by `graph`, by default the model's with a k and v channel for each head. Prompts are in the order
    of the batches; the mean over them is `exact`'s score. Cost: as `exact`, for these edges.
    """
    graph = model.graph() if graph is None else graph
    outside = edges[(edges < 0) | (edges >= graph.n_edges)]
    if len(outside):
        raise AcdcError(f"no edge {outside[0]}: the graph's {graph.n_edges:,} edges are numbered from 0")
    values = np.zeros((len(edges), sum(len(batch) for batch in batches)))
    for rows, prompts, effects in _patch_edges(model, batches, metric, edges, graph=graph, ablation=ablation,
                                               progress=progress):
        values[rows, prompts] = effects
    return values


Reads = Sequence[tuple[int, np.ndarray]]  # channels, with the places of their edges among those that are patched


def _patch_edges(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric,
    edges: Int[np.ndarray, " edge"],
    *,
    graph: Graph,
    ablation: str | Ablation,
    progress: bool,
) -> Iterator[tuple[np.ndarray, slice, Float[np.ndarray, "row prompt"]]]:
    """Patches each edge alone; a batch and some channels at a time: places in `edges`, a range of prompts, the effects.
    """
    of_item = partial(_of_item, model, metric, edges, graph, prepare_ablation(model, batches, ablation), Halving(),
                      Shared())
    order = np.argsort(edges, kind="stable")  # edges are numbered channel by channel
    channels, first_places = np.unique(graph.edge_channel[edges[order]], return_index=True)
    places = np.split(order, first_places[1:])
    parts = _parts(graph, list(zip(channels.tolist(), places, strict=True))[::-1]) if len(edges) else []
    ends = np.cumsum([len(batch) for batch in batches])
    items = [(slice(int(end) - len(batch), int(end)), batch, part) for batch, end in zip(batches, ends, strict=True)
             for part in parts]
    found = over(model, of_item, items, "effects of edges")
    with tqdm(total=len(edges) * len(batches), desc="patching edges", unit="edge", disable=not progress) as bar:
        for (prompts, _, part), one in zip(items, found, strict=True):
            yield np.concatenate([of_channel for _, of_channel in part]), prompts, one["effects"]
            bar.update(len(one["effects"]))


def _of_item(
    model: Transformer, metric: Metric, edges: Int[np.ndarray, " edge"], graph: Graph, replace: Ablation, fits: Halving,
    shared: Shared, item: tuple[slice, Batch, Reads],
) -> dict[str, np.ndarray]:
    """The effects of the edges of some channels on the prompts of one batch, many edges to a pass."""
    prompts, batch, reads = item

    def effects(rows: slice) -> np.ndarray:
        part = batch.rows(rows)
        patch = shared.of((prompts, rows), lambda: _EdgePatch(model, part, metric, replace(part), graph))
        found = [of_some for c, places in reads for _, of_some in patch.srcs.over(
            len(places), lambda some, c=c, places=places: patch.effects(graph.channels[c], edges[places[some]]))]
        return torch.cat(found).double().cpu().numpy()

    with torch.no_grad(), frozen(model):
        return {"effects": np.concatenate([found for _, found in fits.over(len(batch), effects)], axis=1)}


def _parts(graph: Graph, reads: Reads) -> list[Reads]:
    """Stretches of the channels, of about the same cost, each worth the two forward passes that a worker that has not
    had the batch before takes for it."""
    nodes = [graph.channels[c].node for c, _ in reads]
    # An edge takes the layers above it.
    costs = [len(places) * (1 if node.kind == "logits" else graph.n_layers - node.layer)
             for node, (_, places) in zip(nodes, reads, strict=True)]
    n = max(1, sum(costs) // (graph.n_layers * LEAST_PASSES))
    cuts = np.searchsorted(np.cumsum(costs), sum(costs) * np.arange(1, n) / n) + 1
    ends = sorted({0, *(int(cut) for cut in cuts), len(reads)})
    return [reads[first:end] for first, end in zip(ends, ends[1:], strict=False)]


class _EdgePatch:
    """One batch's clean run and replacement differences, to patch edges into."""

    def __init__(
        self, model: Transformer, batch: Batch, metric: Metric, replacement: Replacement, graph: Graph
    ) -> None:
        self.model, self.batch, self.metric, self.graph = model, batch, metric, graph
        self.start = replacement.start(model, batch)
        self.clean = record(model, batch.clean)
        replaced = replacement.activations.expanded(*batch.clean.shape)
        self.change = differences(model, self.clean, replaced, self.start, slice(None), model.dtype)
        self.reference = model.logits(self.clean.final[:, -1])
        self.clean_loss = metric.loss(self.reference, batch, self.reference)
        self.window = batch.clean.shape[1] - self.start
        self.position = position_groups(batch, graph.positions)[:, self.start :]
        # Each row holds keys of the whole length, and logits.
        vocab, d_model = self.reference.shape[-1], self.clean.final.shape[-1]
        tokens = len(batch) * (batch.clean.shape[1] + vocab // (16 * d_model))
        self.srcs = Halving("edges", max(1, TOKENS_PER_PASS // tokens))

    def effects(self, channel: Channel, edges: Int[np.ndarray, " edge"]) -> Float[Tensor, "edge batch"]:
        """Loss increase when the channel reads the replacement along each of these edges of its own in turn."""
        layer, change, n = channel.node.layer, self.change[torch.from_numpy(self.graph.edge_src[edges])], len(edges)
        if self.graph.n_positions > 1:
            at = self.position.new_tensor(self.graph.edge_position[edges])[:, None, None]
            change = change * (at == self.position)[..., None]
        if channel.node.kind == "logits":
            return self.losses(self.model.logits((self.clean.final[:, -1] + change[:, :, -1]).flatten(0, 1)), n)
        block = self.model.blocks[layer]
        if channel.node.kind == "mlp":
            reads = self.at_window(self.clean.mlp_in[layer]) + change
            written = block.mlp_output(reads) - self.at_window(self.clean.mlp[layer])
        else:
            written = self.attention_change(channel, self.at_window(self.clean.attn_in[layer]) + change)
        at_mlp = channel.node.kind != "mlp" and not self.model.parallel
        if at_mlp:
            resid = self.clean.mlp_in[layer]
        else:
            resid = self.clean.attn_in[layer + 1] if layer + 1 < self.model.n_layers else self.clean.final
        resid = (self.at_window(resid) + written).flatten(0, 1)
        logits = resume(self.model, self.clean, layer if at_mlp else layer + 1, resid, self.start, at_mlp=at_mlp)
        return self.losses(logits, n)

    def attention_change(self, channel: Channel, reads: Float[Tensor, "src batch pos d_model"]) -> Tensor:
        """What attention adds to the residual stream, patched - clean, when one q, k or v channel reads `reads`."""
        layer, letter = channel.node.layer, channel.letter
        block, run = self.model.blocks[layer], self.clean
        attention, n = block.attention, len(reads)
        heads = [h for h in range(self.model.n_heads) if self.graph.feeds(channel, layer, h)]
        own = heads[0] if letter == "q" else int(self.model.kv_head[heads[0]])
        projection = getattr(attention, letter)
        patched = block.attn_norm(reads.flatten(0, 1)) @ projection.weight[own].T
        if projection.bias is not None:
            patched = patched + projection.bias[own]
        kv = self.model.kv_head[heads]
        values = {
            "q": run.q[layer][:, self.start :, heads].repeat(n, 1, 1, 1),
            "k": run.k[layer][:, :, kv].repeat(n, 1, 1, 1),
            "v": run.v[layer][:, :, kv].repeat(n, 1, 1, 1),
        }
        values[letter][:, -self.window :] = patched[:, :, None]
        z = self.model.attend(attention, values["q"], values["k"], values["v"], self.start)
        clean_z = raw_z(run, layer)[:, self.start :]
        moved = (z - clean_z[:, :, heads].repeat(n, 1, 1, 1)).permute(2, 0, 1, 3).flatten(1, 2)
        change = (moved @ attention.out_weight[heads]).sum(0).view(n, *reads.shape[1:])
        if block.attn_post is None:
            return change
        total = attention.output(clean_z)
        return block.attn_post(total + change) - block.attn_post(total)

    def at_window(self, resid: Tensor) -> Tensor:
        return resid[:, self.start :]

    def losses(self, logits: Float[Tensor, "rows vocab"], n: int) -> Float[Tensor, "src batch"]:
        rows = logits.unflatten(0, (n, len(self.batch)))
        return torch.stack([self.metric.loss(row, self.batch, self.reference) - self.clean_loss for row in rows])


def raw_z(run: Activations, layer: int) -> Tensor:
    """z as the attention computed it, without the scale of a post-norm."""
    scale = run.attn_scale[layer]
    return run.z[layer] if scale is None else run.z[layer] / scale[..., None]

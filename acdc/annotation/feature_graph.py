"""Which features act on which: a circuit's edges between features of its nodes, by gradients.

A node that a coder rebuilds is split into its strongest features and the rest (all other features and the coder's
error). An edge splits in both of its ends, and exactly: with g the gradient at what the dst writes, g is shared out
over the dst's features j as d_j . g, carried back through the coder's encoder and the dst itself (norm, attention or
MLP) to the channel's input, and multiplied there with what each feature i of the src changes by,

    w(i -> j) = (f'_i - f_i) d_i . grad_input [ f_j(input) (d_j . g) ],

so that the sum over all parts of both ends is the edge's score by `eap`. What lies between is one edge of the graph:
nothing passes through other nodes.

Source: Marks et al. 2024 (arXiv 2403.19647), whose edges stop gradients at the nodes between.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from acdc.ablation import prepare_ablation
from acdc.activations import Activations, contribution, out_weight
from acdc.annotation.features import (
    Change,
    Coder,
    NodeFeatures,
    all_gradients,
    change_of,
    coder_of_node,
    decoder_of_node,
    edge_features,
    value_at,
)
from acdc.annotation.sites import site
from acdc.circuit import Circuit
from acdc.discovery.gradients import gradients_at_points
from acdc.errors import AcdcError
from acdc.graph import Node
from acdc.metrics import METRICS, Metric
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

Part = tuple[str, int | None]
"""A node and one of its features; None: the rest of the node, or all of one that no coder rebuilds."""


@dataclass(frozen=True, eq=False)
class FeatureGraph:
    """Edges between parts of nodes, each (src part, dst part, channel, score), and how the nodes are shared out."""

    edges: tuple[tuple[Part, Part, str, float], ...]
    nodes: tuple[NodeFeatures, ...]

    def to_networkx(self) -> nx.MultiDiGraph:
        """Nodes are named `m5`, `m5/f123` and `m5/rest`; edges have `channel` and `score`."""
        graph, split = nx.MultiDiGraph(), {one.node for one in self.nodes}

        def name(part: Part) -> str:
            return f"{part[0]}/f{part[1]}" if part[1] is not None else part[0] + "/rest" * (part[0] in split)

        for src, dst, channel, score in self.edges:
            for part in (src, dst):
                graph.add_node(name(part), node=part[0], **({} if part[1] is None else {"feature": part[1]}))
            graph.add_edge(name(src), name(dst), channel=channel, score=score)
        return graph


def feature_graph(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    circuit: Circuit,
    coders: Sequence[Coder],
    n_features: int = 5,
    ablation: str = "resample",
    progress: bool = False,
) -> FeatureGraph:
    """The circuit's edges with each node that a coder rebuilds split into `n_features` features and the rest.

    Scores are means over prompts in the unit of the metric as a loss, positive where the edge helps. Cost: that of
    `edge_features` with the clean gradient; and a batch, for each feature kept a backward pass through its node. It
    misleads where the loss saturates, as `eap`, and where the rest of a node scores more than its features. Raises
    `AcdcError` for a circuit by position or with grouped k and v, for fewer than one feature, and where
    `edge_features` does.
    """
    graph = circuit.graph
    if graph.positions or graph.kv != "head":
        raise AcdcError("features are joined in circuits of all positions together with k and v of each head; discover "
                        "one with --positions all --kv head")
    if n_features < 1:
        raise AcdcError(f"n_features={n_features}: give at least 1")
    shared = edge_features(model, batches, metric, circuit=circuit, coders=coders, steps=None, ablation=ablation,
                           progress=progress)
    chosen = {one.node: one.strongest(n_features) for one in shared}
    coder_of = coder_of_node(model, circuit, coders)
    replace = prepare_ablation(model, batches, ablation)
    sums: dict[tuple[str, str], np.ndarray] = {}
    with frozen(model):
        for batch in tqdm(batches, desc="joining features", unit="batch", disable=not progress):
            replacement = replace(batch)
            start = replacement.start(model, batch)
            replaced = replacement.activations.expanded(*batch.clean.shape)
            clean, layers, at_logits = gradients_at_points(model, batch, metric, replaced, [1.0], start)
            gradients = {c: g for channels, all_of in all_gradients(model, layers, at_logits)
                         for c, g in zip(channels, all_of, strict=True)}
            parts = {src: _parts_of_change(model, coder_of.get(src), chosen.get(src, []), src, clean, replaced, start)
                     for src in {graph.srcs[s].name for s in graph.edge_src[circuit.kept]}}
            for channel, gradient in _split_channels(model, circuit, coder_of, chosen, clean, gradients, start).items():
                for edge in np.nonzero(circuit.kept & (graph.edge_channel == graph.channel_index[channel]))[0]:
                    src = graph.srcs[graph.edge_src[edge]].name
                    weight = torch.einsum("ibpd,jbpd->ij", parts[src], gradient).double().cpu().numpy()
                    key = (src, channel)
                    sums[key] = sums.get(key, 0) + weight
    n = sum(len(batch) for batch in batches)
    edges = []
    for (src, channel), weight in sums.items():
        dst = graph.channels[graph.channel_index[channel]]
        for i, of_src in enumerate([*chosen.get(src, []), None]):
            for j, of_dst in enumerate([*chosen.get(dst.node.name, []), None]):
                edges.append(((src, of_src), (dst.node.name, of_dst), dst.letter or "", float(weight[i, j] / n)))
    return FeatureGraph(tuple(edges), tuple(shared))


def _parts_of_change(model: Transformer, coder: Coder | None, features: list[int], src: str, clean: Activations,
                     replaced: Activations, start: int) -> Float[Tensor, "part batch pos d_model"]:
    """What each chosen feature of a node changes by, and last what the rest of it does."""
    if coder is None:
        index = model.graph().src_index[src]
        return (contribution(model, replaced, index) - contribution(model, clean, index))[None, :, start:]
    change: Change = change_of(model, coder, src, clean, replaced, start)
    place = {int(feature): i for i, feature in enumerate(change.active.tolist())}
    rows = []
    for feature in features:
        i = place.get(feature)
        rows.append(torch.zeros_like(change.whole) if i is None else change.features[..., i, None] * change.decoder[i])
    return torch.stack([*rows, change.whole - sum(rows, torch.zeros_like(change.whole))])


def _split_channels(
    model: Transformer, circuit: Circuit, coder_of: dict[str, Coder], chosen: dict[str, list[int]],
    clean: Activations, gradients: dict[int, Tensor], start: int,
) -> dict[str, Float[Tensor, "part batch pos d_model"]]:
    """For each channel that a kept edge leads into, the gradient there through each part of its node, the rest last."""
    graph, found = circuit.graph, {}
    wanted = sorted({int(c) for c in graph.edge_channel[circuit.kept]})
    by_node: dict[Node, list[int]] = {}
    for c in wanted:
        by_node.setdefault(graph.channels[c].node, []).append(c)
    for node, channels in by_node.items():
        features = chosen.get(node.name, [])
        through = {}
        if features:
            reading = np.nonzero(graph.n_srcs_read > graph.src_index[node.name])[0].tolist()
            downstream = torch.stack([gradients[c] for c in reading]).sum(0)
            through = _through_features(model, coder_of[node.name], node, features, clean, downstream, start)
        for c in channels:
            name, letter = graph.channels[c].name, graph.channels[c].letter or ""
            whole = gradients[c]
            own = through[letter].to(whole.dtype) if features else whole.new_zeros(0, *whole.shape)
            found[name] = torch.cat([own, (whole - own.sum(0))[None]])
    return found


def _through_features(model: Transformer, coder: Coder, node: Node, features: list[int], clean: Activations,
                      downstream: Float[Tensor, "batch pos d_model"], start: int
                      ) -> dict[str, Float[Tensor, "feature batch pos d_model"]]:
    """For each channel's letter, grad_input [ f_j(input) (d_j . g) ] summed over tokens, j over `features`.

    It is 0 for features that a cross-layer transcoder reads in earlier layers: nothing passes through other nodes."""
    rows = decoder_of_node(model, coder, node.name)[features]
    worth = downstream.to(rows.dtype) @ rows.T
    with torch.enable_grad():
        if node.kind == "mlp":
            reads = {"": clean.mlp_in[node.layer][:, start:].detach().contiguous().requires_grad_()}
            f = coder.encode(*(_of_mlp(model, clean, name, node.layer, reads[""], start) for name in coder.reads))
        else:
            read = clean.attn_in[node.layer].detach()
            reads = {letter: read.clone().requires_grad_() for letter in ("q", "k", "v")}
            f = coder.encode(_of_head(model, coder, node, clean, reads, start))
        if not f.requires_grad:  # read elsewhere
            f = f + 0 * sum(read.sum() for read in reads.values())
        parts = (f[..., features].to(worth.dtype) * worth).flatten(0, 1).sum(0)
        by_feature = [torch.autograd.grad(part, list(reads.values()), retain_graph=True, allow_unused=True,
                                          materialize_grads=True) for part in parts]
    window = downstream.shape[1]
    return {letter: torch.stack([one[i][:, -window:] for one in by_feature]) for i, letter in enumerate(reads)}


def _of_mlp(model: Transformer, clean: Activations, name: str, layer: int, reads: Tensor, start: int) -> Tensor:
    """What is at a site, as a function of what the MLP of a layer reads; what does not depend on it is constant."""
    block, at = model.blocks[layer], site(model, name)
    if at.kind == "m" and at.layer == layer and at.part != "neurons":
        if at.part == "norm":
            return block.mlp_norm.statistics(reads)[0].to(reads.dtype)
        return block.mlp_norm(reads) if at.part == "in" else block.mlp_output(reads)
    is_input = at.kind == "resid" and at.layer == layer and (at.part == "mid" or (model.parallel and at.part is None))
    return reads if is_input else value_at(model, clean, at)[:, start:].detach()


def _of_head(model: Transformer, coder: Coder, node: Node, clean: Activations, reads: dict[str, Tensor], start: int
             ) -> Tensor:
    """What the coder reads, at positions from `start`, as a function of what the head's three channels read."""
    block = model.blocks[node.layer]
    attention, head = block.attention, node.index
    values = []
    for letter, read in reads.items():
        projection = getattr(attention, letter)
        own = head if letter == "q" else int(model.kv_head[head])
        value = block.attn_norm(read) @ projection.weight[own].T
        values.append((value if projection.bias is None else value + projection.bias[own])[:, :, None])
    z = model.attend(attention, values[0][:, start:], values[1], values[2], start)[:, :, 0]
    at, scale = site(model, coder.site), clean.attn_scale[node.layer]
    if (at.kind, at.layer) != ("a", node.layer) or at.head not in (head, None) or (at.head, at.part) == (None, None):
        raise AcdcError(f"a coder that rebuilds {node.name} from {coder.site}: features are joined where they are read "
                        f"from what the head itself makes, as {node.name} or {node.name}.z")
    if at.part == "z":
        if at.head is not None:
            return z
        others = clean.z[node.layer][:, start:]
        return torch.stack([z if i == head else others[:, :, i] for i in range(model.n_heads)], dim=2).flatten(2)
    z = z if scale is None else z * scale[:, start:]
    return z @ out_weight(block)[head]

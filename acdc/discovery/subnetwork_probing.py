"""Subnetwork probing: a mask for every node, learned by gradient descent, and lifted to edges.

Phases: as in `edge_pruning`, but all edges of one src share its mask; then an edge scores what the lesser of its two
ends does.
Source: Cao, Sanh & Rush 2021 (arXiv 2104.03514); with corrupted activations, as in Conmy et al. 2023 (arXiv
2304.14997). There the number of open masks is a part of the loss, here they are trained within a budget.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acdc.circuit import EdgeScores
from acdc.discovery.checkpoint import open_checkpoint
from acdc.discovery.masks import EdgeMatrix, Training, first_masks, train_masks
from acdc.graph import KV, Graph
from acdc.learning import check_metric, prepare_prompts
from acdc.metrics import METRICS, Metric
from acdc.task import Batch, position_names
from acdc.transformer import Transformer, frozen


def subnetwork_probing(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["kl_divergence"],
    *,
    sparsity: float = 0.8,
    steps: int = 200,
    learning_rate: float = 0.3,
    prompts_per_step: int = 8,
    warmup: float = 0.5,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    progress: bool = False,
) -> EdgeScores:
    """s(edge) = min of p(src) and p(dst), with p(node) = P(more than half of what it writes is kept), as learned.

    An edge into the logits scores p(src); one into a KV node, which writes nothing itself, takes the largest p of the
    query heads that it feeds; a key or value counts at all positions. A closed node carries its replacement to all that
    read it. `sparsity` is the share of *nodes* that is closed in the end; with `positions`, each node has a mask at
    each position.

    Else as `edge_pruning`: objective, options, cost, checkpoint. It misleads as a ranking of edges: those between two
    nodes that are kept tie, or nearly, however little some carry; so a small circuit keeps many edges for nothing.
    """
    training = Training(steps, sparsity, learning_rate, prompts_per_step, seed, warmup)
    check_metric(metric)
    graph = model.graph(kv, position_names(batches, positions))
    record = {"method": "subnetwork_probing", "method_options": asdict(training), "metric": metric.name,
              "ablation": ablation}
    saved = open_checkpoint(checkpoint, model, batches, {**record, "kv": kv, "positions": positions})
    with frozen(model):
        groups = prepare_prompts(model, batches, ablation, graph.positions)
        mask = torch.from_numpy(graph.edge_src * graph.n_positions + graph.edge_position).to(model.device)
        matrix = EdgeMatrix(graph, model.device)
        start = first_masks(model, len(graph.srcs) * graph.n_positions, training)
        state = train_masks(groups, metric, training, start, lambda masks: matrix(masks[mask]), saved, progress)
    return EdgeScores(graph, _of_edges(graph, state.log_alpha.double().sigmoid()), {**record, "history": state.history})


def _of_edges(graph: Graph, kept: Float[Tensor, " mask"]) -> Float[np.ndarray, " edge"]:
    """The lesser of an edge's two ends, at its position."""
    of_src = kept.cpu().numpy().reshape(len(graph.srcs), graph.n_positions)
    of_channel = np.zeros((len(graph.channels), graph.n_positions))
    for per_head, channel in zip(graph.per_head.channels, graph.channel_of_per_head, strict=True):
        node = per_head.node
        reads = np.ones(graph.n_positions) if node.kind == "logits" else of_src[graph.src_index[node.name]]
        reads = np.full_like(reads, reads.max()) if per_head.letter in ("k", "v") else reads
        of_channel[channel] = np.maximum(of_channel[channel], reads)
    edge = graph.edge_src, graph.edge_channel, graph.edge_position
    return np.minimum(of_src[edge[0], edge[2]], of_channel[edge[1], edge[2]])

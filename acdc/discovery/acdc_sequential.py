"""ACDC, plain and sequential: try to remove each edge, from the logits back; keep it if the loss rises too much.

This is the algorithm of the paper with one full circuit run for every edge tried: the readable reference that `acdc` is
checked against. Phases: start from the full graph; visit channels in reverse order of the forward pass and, per
channel, srcs from the latest; remove an edge for good iff the loss rises by less than the threshold.
Source: Conmy et al. 2023 (arXiv 2304.14997).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from acdc.ablation import prepare_ablation
from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.fitting import Halving, over_batches
from acdc.graph import KV, Graph
from acdc.metrics import METRICS, Metric
from acdc.patching import run_circuit
from acdc.pieces import piece
from acdc.task import Batch, position_names
from acdc.transformer import Transformer


def acdc_sequential(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["kl_divergence"],
    *,
    threshold: float = 0.01,
    shortlist: Circuit | None = None,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    progress: bool = False,
) -> EdgeScores:
    """s(edge) = L(without it) - L(with it), mean over prompts, at the moment when ACDC tries the edge.

    The circuit is `scores.above(threshold, by="signed")`: an edge is kept iff s >= threshold (the paper removes iff the
    loss rises by *less*), and a kept score equal to the threshold is nudged up by one ulp. Edges whose dst no kept edge
    reads (where a norm follows attention: no edge from any head of its layer) are never tried and score -inf. L is the
    metric as a loss, in its units. Channels go in reverse order of the forward pass, logits first (heads of a layer: v,
    k, q, each from the last head); srcs from the latest to the input, positions from the last. `shortlist`: only its
    edges are tried, all others are removed at the start. Cost: one circuit run for each edge tried and batch: hours for
    a real model.
    """
    if not np.isfinite(threshold):
        raise AcdcError(f"threshold {threshold}: it must be a finite number, in units of the metric {metric.name!r}")
    graph = model.graph(kv, position_names(batches, positions))
    replace = prepare_ablation(model, batches, ablation)
    kept = np.ones(graph.n_edges, dtype=bool) if shortlist is None else shortlist.kept.copy()
    everything = Circuit(graph, np.ones(graph.n_edges, dtype=bool))
    runs, fits = list(over_batches(batches, replace)), Halving()

    def logits(circuit: Circuit) -> list[Float[Tensor, "batch vocab"]]:
        return [torch.cat([found for _, found in fits.over(len(batch), lambda rows, batch=batch, of=replacement: (
            run_circuit(model, batch.rows(rows), circuit, of.rows(rows))))]) for batch, replacement in runs]

    references = logits(everything)

    def loss(kept: Bool[np.ndarray, " edge"]) -> float:
        return float(piece("loss of a circuit", lambda: {"loss": np.array(loss_of(Circuit(graph, kept)))})["loss"])

    def loss_of(circuit: Circuit) -> float:
        values = [metric.loss(found, batch, reference) for found, (batch, _), reference in zip(
            logits(circuit), runs, references, strict=True)]
        return float(torch.cat(values).double().mean())

    scores = np.full(graph.n_edges, -np.inf)
    current = loss(kept)
    with tqdm(total=graph.n_edges, desc="trying edges", unit="edge", disable=not progress) as bar:
        for c in reversed(range(len(graph.channels))):
            edges = np.nonzero((graph.edge_channel == c) & kept)[0][::-1]
            if not is_read(model, graph, kept, c):
                kept[edges] = False
                bar.update(len(edges))
                continue
            for edge in edges:
                kept[edge] = False
                without = loss(kept)
                scores[edge] = without - current
                if without - current < threshold:
                    current = without
                else:
                    kept[edge] = True
                    scores[edge] = max(scores[edge], np.nextafter(threshold, np.inf))
                bar.update()
                bar.set_postfix(kept=int(kept.sum()), loss=f"{current:.4g}")
    options = {"threshold": threshold, "shortlist": None if shortlist is None else assumed(shortlist)}
    provenance = {"method": "acdc_sequential", "method_options": options, "metric": metric.name, "ablation": ablation}
    return EdgeScores(graph, scores, provenance)


def is_read(model: Transformer, graph: Graph, kept: Bool[np.ndarray, " edge"], channel: int) -> bool:
    """Whether any kept edge reads what a channel has a part in: what its node (for a KV group: any of its heads)
    writes or, where a norm follows attention, what any head of the layer writes, as they share its scale."""
    target = graph.channels[channel]
    if target.node.kind == "logits":
        return True
    if target.node.kind == "mlp":
        srcs = [graph.src_index[target.node.name]]
    else:
        heads, shared = graph.layer(target.node.layer).heads, model.blocks[0].attn_post is not None
        srcs = [heads.start + h for h in range(graph.n_heads)
                if shared or graph.feeds(target, target.node.layer, h)]
    return bool(np.isin(graph.edge_src[kept], srcs).any())


def assumed(shortlist: Circuit) -> str:
    """What a search of a shortlist takes for granted, in words."""
    by = ", ".join(str(shortlist.provenance[key]) for key in ("method", "selection") if key in shortlist.provenance)
    left_out = shortlist.graph.n_edges - shortlist.n_edges
    return f"{shortlist.n_edges:,} edges tried{f' ({by})' if by else ''}, the other {left_out:,} removed untested"

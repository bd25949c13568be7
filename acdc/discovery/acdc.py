"""ACDC, plain and sequential: try to remove each edge, from the logits back; keep it if the loss rises too much.

This is the algorithm of the paper with one full circuit run for every edge tried: the reference that faster versions
are checked against. Phases: start from the full graph; visit channels in reverse order of the forward pass and, per
channel, srcs from the latest; remove an edge for good iff the loss rises by less than the threshold.
Source: Conmy et al. 2023 (arXiv 2304.14997).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from tqdm import tqdm

from acdc.ablation import prepare_ablation
from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.graph import KV, Graph
from acdc.metrics import METRICS, Metric
from acdc.patching import run_circuit
from acdc.task import Batch
from acdc.transformer import Transformer


def acdc(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["kl_divergence"],
    *,
    threshold: float = 0.01,
    ablation: str = "resample",
    kv: KV = "head",
    progress: bool = False,
) -> EdgeScores:
    """s(edge) = L(without it) - L(with it), mean over prompts, at the moment when ACDC tries the edge.

    The circuit is `scores.above(threshold, by="signed")` up to ties: an edge is kept iff s >= threshold (the paper
    removes iff the loss rises by *less*), so a kept score equal to the threshold is nudged up by one ulp. Edges whose
    dst no kept edge reads are never tried and score -inf. L is the metric as a loss, in its units. Channels go in
    reverse order of the forward pass, logits first (heads of a layer: v, k, q, each from the last head); srcs from the
    latest to the input. Cost: one circuit run for each edge tried and batch: hours for a real model.
    """
    if not np.isfinite(threshold):
        raise AcdcError(f"threshold {threshold}: it must be a finite number, in units of the metric {metric.name!r}")
    graph = model.graph(kv)
    replace = prepare_ablation(model, batches, ablation)
    kept = np.ones(graph.n_edges, dtype=bool)
    runs = [(batch, replace(batch)) for batch in batches]
    references = [run_circuit(model, batch, Circuit(graph, kept), replacement) for batch, replacement in runs]

    def loss(kept: Bool[np.ndarray, " edge"]) -> float:
        circuit = Circuit(graph, kept)
        values = [
            metric.loss(run_circuit(model, batch, circuit, replacement), batch, reference)
            for (batch, replacement), reference in zip(runs, references, strict=True)
        ]
        return float(torch.cat(values).double().mean())

    scores = np.full(graph.n_edges, -np.inf)
    current = loss(kept)
    with tqdm(total=graph.n_edges, desc="trying edges", unit="edge", disable=not progress) as bar:
        for c in reversed(range(len(graph.channels))):
            edges = np.nonzero(graph.edge_channel == c)[0][::-1]
            if not _is_read(graph, kept, c):
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
    provenance = {"method": "acdc", "method_options": {"threshold": threshold}, "metric": metric.name,
                  "ablation": ablation}
    return EdgeScores(graph, scores, provenance)


def _is_read(graph: Graph, kept: Bool[np.ndarray, " edge"], channel: int) -> bool:
    """Whether any kept edge reads what the node (for a KV group: any of its heads) of this channel writes."""
    target = graph.channels[channel]
    if target.node.kind == "logits":
        return True
    if target.node.kind == "mlp":
        srcs = [graph.src_index[target.node.name]]
    else:
        heads = graph.layer(target.node.layer).heads
        srcs = [heads.start + h for h in range(graph.n_heads) if graph.feeds(target, target.node.layer, h)]
    return bool(np.isin(graph.edge_src[kept], srcs).any())

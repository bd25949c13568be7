"""Information flow routes: how much of what a channel reads comes from each src. No loss, no replacement, no gradient.

Phases: one clean run; what each node wrote; then for each place where the residual stream is read, how much closer
each src brings it, as a share.

Source: Ferrando & Voita 2024 (arXiv 2403.00824); from all srcs to all reads as in MIB (arXiv 2504.13151).
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from acdc.ablation import check_ablation
from acdc.activations import Activations, Resid, contribution, record
from acdc.circuit import EdgeScores
from acdc.cluster import over
from acdc.fitting import Halving
from acdc.graph import KV, Graph
from acdc.metrics import METRICS, Metric
from acdc.task import Batch, position_groups, position_names
from acdc.transformer import Transformer, frozen

CHUNK_BYTES = 64 * 2**20  # what the nodes wrote is expanded for as many prompts as fit in this


def ifr(
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
    """s(u -> c) = mean over prompts and tokens of p(a_u, x_c) / sum over srcs u' that c reads of p(a_u', x_c),

    p(a, x) = max(0, |x|_1 - |x - a|_1), with a_u what u writes and x_c what c reads, before its norm, on the clean run.
    For the logits, the last token alone. With `positions`, the tokens are those at the edge's position.

    Scores are shares: between 0 and 1, of sum 1 over the srcs of a channel. They say where what is read comes from, not
    whether the task needs it: `metric` and `ablation` are recorded and not used, signed and magnitude rankings are the
    same, and the q, k and v channels of a layer score alike. Meant for `scores.greedy(n, by="signed")`, which follows
    the flow back from the logits. Cost a batch: one forward pass, and 4 * prompts * tokens * d_model operations for
    each src of each place that is read. It misleads as an effect: early layers read few srcs, each with a large share,
    and the corrupted prompts are not looked at. What no node owns (attention biases) is read, but has no share.
    """
    check_ablation(batches, ablation)
    graph = model.graph(kv, position_names(batches, positions))
    total, alone = np.zeros(graph.n_edges), []
    found = over(model, partial(_of_batch, model, graph, per_prompt, Halving()), batches, "shares of a batch")
    for one in tqdm(found, desc="following the flow", unit="batch", total=len(batches), disable=not progress):
        total += one["scores"].sum(0)
        if per_prompt:
            alone.append(one["scores"].astype(np.float32))
    provenance = {"method": "ifr", "method_options": {}, "metric": metric.name, "ablation": ablation}
    return EdgeScores(graph, total / sum(len(batch) for batch in batches), provenance,
                      np.concatenate(alone) if per_prompt else None)


def _of_batch(model: Transformer, graph: Graph, per_prompt: bool, fits: Halving, batch: Batch) -> dict[str, np.ndarray]:
    """The scores of every prompt, or their sum as one row."""
    read_of_channel = [_place(graph, c) for c in range(len(graph.channels))]

    def scores(part: Batch) -> Float[np.ndarray, "prompt edge"]:
        run, weights, found = record(model, part.clean), _weights(part, graph), []
        for rows in _chunks(part, graph, run):
            shares = _shares(model, run.map(lambda x, rows=rows: x[rows]), weights[rows]).cpu().numpy()
            of_rows = np.stack([graph.from_matrix(of_prompt[:, read_of_channel]) for of_prompt in shares])
            found.append(of_rows if per_prompt else of_rows.sum(0, keepdims=True))
        return np.concatenate(found)

    with torch.no_grad(), frozen(model):
        found = np.concatenate(fits.parts(batch, scores))
    return {"scores": found if per_prompt else found.sum(0, keepdims=True)}


def _place(graph: Graph, channel: int) -> int:
    """Which place of the residual stream a channel reads: 2l before attention of layer l, 2l + 1 before its MLP."""
    node = graph.channels[channel].node
    if node.kind == "logits":
        return 2 * graph.n_layers
    return 2 * node.layer + (node.kind == "mlp")


def _weights(batch: Batch, graph: Graph) -> Float[Tensor, "batch pos position"]:
    """1 / the number of tokens that count as a position, for these tokens; else 0."""
    groups = position_groups(batch, graph.positions)
    member = torch.nn.functional.one_hot(groups, graph.n_positions).double()
    return member / member.sum(1, keepdim=True).clamp(min=1)


def _chunks(batch: Batch, graph: Graph, run: Activations) -> list[slice]:
    bytes_per_prompt = len(graph.srcs) * run.input[0].numel() * 4
    size = max(1, CHUNK_BYTES // bytes_per_prompt)
    return [slice(i, i + size) for i in range(0, len(batch), size)]


def _shares(model: Transformer, run: Activations, weights: Float[Tensor, "batch pos position"]
            ) -> Float[Tensor, "batch src read position"]:
    """Each src's share of what is read at each place of the residual stream, averaged over tokens with `weights`."""
    graph = model.graph()
    wide = torch.promote_types(model.dtype, torch.float32)
    wrote = torch.stack([contribution(model, run, src).to(wide) for src in range(len(graph.srcs))])
    reads = [x.to(wide) for pair in zip(run.attn_in, run.mlp_in, strict=True) for x in pair]
    n_read = [int(graph.n_srcs_read[channel]) for layer in range(model.n_layers)
              for channel in (graph.layer(layer).q.start, graph.layer(layer).mlp_channel)]
    shares = weights.new_zeros(len(weights), len(graph.srcs), len(reads) + 1, weights.shape[-1])
    for place, (x, n) in enumerate(zip(reads, n_read, strict=True)):
        shares[:, :n, place] = torch.einsum("sbt,btp->bsp", _share(wrote[:n], x).double(), weights)
    shares[:, :, -1, -1] = _share(wrote[:, :, -1:], run.final[:, -1:].to(wide))[:, :, 0].T.double()
    return shares


def _share(wrote: Float[Tensor, "src batch pos d_model"], x: Resid) -> Float[Tensor, "src batch pos"]:
    """p(a, x) over its sum; 0 where the sum is. Subtracted before it is summed: large coordinates of x, in which a src
    has no part, then leave no rounding behind, and a src that writes nothing has exactly 0."""
    proximity = (wrote - x).abs_().sub_(x.abs()).sum(-1).neg_().clamp_(min=0)
    total = proximity.sum(0)
    return torch.where(total > 0, proximity / total, 0)

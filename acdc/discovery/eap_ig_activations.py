"""Edge attribution patching with integrated gradients over activations: each sublayer's output moves on a line.

Phases: the clean run; then for the input, and for each layer's attention and MLP, runs in which what it writes lies
between replacement and clean and everything after it is computed again; gradients at the channels are averaged.

Source: `EAP-IG-activations` in the reference implementation of Hanna, Pezzelle & Belinkov 2024 (arXiv 2403.17806), as
in MIB (arXiv 2504.13151); `gradients="own"` is ours.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from acdc.ablation import Replacement
from acdc.activations import record
from acdc.circuit import EdgeScores
from acdc.discovery.gradients import LayerGradient, attribute, products_with
from acdc.discovery.moved import change_of, gradients_after, gradients_around, n_sublayers, srcs_of
from acdc.errors import AcdcError, unknown_name
from acdc.graph import KV
from acdc.metrics import METRICS, Metric
from acdc.positions import Cells
from acdc.task import Batch
from acdc.transformer import Transformer

GRADIENTS = ("own", "all")


def eap_ig_activations(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    steps: int = 5,
    gradients: str = "own",
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    per_prompt: bool = False,
    progress: bool = False,
) -> EdgeScores:
    """s(src -> channel) = mean over prompts of (src_replacement - src_clean) . (1/m) sum_k dL/d(channel input)_k,

    k = 1 .. m, m = `steps`. There the sublayer of src (the input, all heads of a layer, or an MLP) writes replacement +
    (k/m) (clean - replacement), and what lies after it is computed from that: the clean run is among the points, the
    replacement never. As m grows, the scores of all edges out of a sublayer sum to the effect of patching
    it, exactly: L(it writes its replacement) - L(clean). L is the metric as a loss; positive = the edge helps.

    `gradients`: "own" takes for an edge the runs of its own src's sublayer, as above. "all" averages its gradient over
    the runs of all 2 * layers + 1 sublayers, whichever was moved, as the reference implementation does; that is no
    integral along any path, and the scores sum to nothing, but they compare with published ones.

    Cost a batch: for each sublayer m - 1 forward and backward passes over what lies after it ("all": m over the whole
    model), at the positions that can differ; a forward pass for the clean run, one for the replacement, a backward
    pass. It misleads where srcs of different sublayers act together: each moves with the others at their clean values.
    Raises `AcdcError` for metrics without gradient, and for `kl_divergence` with one step, which is the clean run.
    """
    if gradients not in GRADIENTS:
        raise unknown_name("gradients", gradients, GRADIENTS)
    if steps < 1:
        raise AcdcError(f"steps={steps}: integrated gradients need at least 1 step")
    if metric.reads_reference and steps == 1:
        raise AcdcError(
            f"metric {metric.name!r} is at its minimum on the clean run, the only point of 1 step: every score would "
            "be 0. Take more steps"
        )
    products = partial(_own if gradients == "own" else _all, steps=steps, progress=progress)
    return attribute(model, batches, metric, products=products, kv=kv, positions=positions, ablation=ablation,
                     per_prompt=per_prompt, progress=progress,
                     provenance={"method": "eap_ig_activations",
                                 "method_options": {"steps": steps, "gradients": gradients}})


def _own(model: Transformer, batch: Batch, metric: Metric, replacement: Replacement, parts: Cells, *, steps: int,
         progress: bool) -> Float[Tensor, "part src channel"]:
    """Each src with the gradients of its own sublayer's runs. The clean run, the last of all of them, is made once."""
    start = replacement.start(model, batch)
    clean, replaced = record(model, batch.clean), replacement.activations.expanded(*batch.clean.shape)
    loss = partial(_loss, metric, batch, model.logits(clean.final[:, -1]))
    at_clean = gradients_after(model, clean, loss, start, 0, torch.zeros_like(clean.input[:, start:]))
    total = products_with(model, clean, replaced, *at_clean, start, parts)
    for sublayer in tqdm(range(n_sublayers(model)) if steps > 1 else (), desc="sublayers", leave=False,
                         disable=not progress):
        change = change_of(model, clean, replaced, sublayer, start)
        runs = (gradients_after(model, clean, loss, start, sublayer, (1 - k / steps) * change) for k in range(1, steps))
        total += products_with(model, clean, replaced, *_sum(runs), start, parts, srcs=srcs_of(model, sublayer),
                               first_layer=(sublayer + 1) // 2)
    return total / steps


def _all(model: Transformer, batch: Batch, metric: Metric, replacement: Replacement, parts: Cells, *, steps: int,
         progress: bool) -> Float[Tensor, "part src channel"]:
    """Every src with the gradients of the runs of every sublayer."""
    start = replacement.start(model, batch)
    clean, replaced = record(model, batch.clean), replacement.activations.expanded(*batch.clean.shape)
    loss = partial(_loss, metric, batch, model.logits(clean.final[:, -1]))
    found = []
    for sublayer in tqdm(range(n_sublayers(model)), desc="sublayers", leave=False, disable=not progress):
        change = change_of(model, clean, replaced, sublayer, start)
        runs = (gradients_around(model, clean, loss, start, sublayer, (1 - k / steps) * change)
                for k in range(1, steps + 1))
        found.append(products_with(model, clean, replaced, *_sum(runs), start, parts))
    return torch.stack(found).mean(0) / steps


def _loss(metric: Metric, batch: Batch, reference: Tensor, logits: Tensor) -> Tensor:
    return metric.loss(logits, batch, reference)


def _sum(runs: Iterator[tuple[list[LayerGradient], Tensor]]) -> tuple[list[LayerGradient], Tensor]:
    """The gradients of several runs, added up."""
    layers, at_logits = next(runs)
    for more, at_more in runs:
        at_logits = at_logits + at_more
        for layer, other in zip(layers, more, strict=True):
            layer.u.add_(other.u)
            layer.mlp.add_(other.mlp)
            layer.steps.extend(other.steps)
    return layers, at_logits

"""Edge attribution patching: one gradient, taken on the clean run.

Source: Syed, Rager & Conmy 2023 (arXiv 2310.10348); sign and clean-run gradient as in EAP-IG (arXiv 2403.17806).
"""

from collections.abc import Sequence

from acdc.circuit import EdgeScores
from acdc.discovery.gradients import attribute, check_clean_gradient
from acdc.graph import KV
from acdc.metrics import METRICS, Metric
from acdc.task import Batch
from acdc.transformer import Transformer


def eap(
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
    """s(src -> channel) = mean over prompts of (src_corrupted - src_clean) . dL/d(channel input) on the clean run.

    L is the metric as a loss, in its units; positive = the edge helps. It is the first-order estimate of what
    corrupting the edge alone does to the loss. Cost a batch: two forward passes, one backward. It misleads where the
    loss saturates: the gradient vanishes though the edge matters (then use `eap_ig`).
    """
    check_clean_gradient(metric, "EAP", "Use eap_ig with this metric, or EAP with logit_difference")
    return attribute(model, batches, metric, points=[1.0], kv=kv, positions=positions, ablation=ablation,
                     per_prompt=per_prompt, progress=progress, provenance={"method": "eap", "method_options": {}})

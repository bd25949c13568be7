"""Edge attribution patching with two gradients: one on the clean run, one on the corrupted run.

Source: `clean-corrupted` in the reference implementation of Hanna, Pezzelle & Belinkov 2024 (arXiv 2403.17806).
"""

from collections.abc import Sequence

from acdc.circuit import EdgeScores
from acdc.discovery.gradients import attribute, check_start
from acdc.graph import KV
from acdc.metrics import METRICS, Metric
from acdc.task import Batch
from acdc.transformer import Transformer


def eap_clean_corrupted(
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
    """s(src -> channel) = mean over prompts of (src_corrupted - src_clean) . (g_clean + g_corrupted) / 2,

    where g is dL/d(channel input), on the clean run and on the run whose first block reads the replaced input (the
    corrupted run). L is the metric as a loss, on both runs of the clean prompt's answers and reference; positive = the
    edge helps. It is the trapezoid rule with two points where `eap_ig` is a left-hand sum. Cost a batch: two forward
    and backward passes, and a corrupted forward pass. It misleads where the loss is steep between the two runs, which
    neither gradient sees; with `kl_divergence` g_clean is 0, and the scores are half those of `eap_ig` with one step.
    Raises `AcdcError` for zero ablation in a model with norms, where a run would start at an input of 0.
    """
    check_start("eap_clean_corrupted", model, ablation)
    return attribute(model, batches, metric, points=[1.0, 0.0], kv=kv, positions=positions, ablation=ablation,
                     per_prompt=per_prompt, progress=progress,
                     provenance={"method": "eap_clean_corrupted", "method_options": {}})

"""Edge attribution patching with integrated gradients over the inputs.

Source: Hanna, Pezzelle & Belinkov 2024 (arXiv 2403.17806); the points are those of its reference implementation.
"""

from collections.abc import Sequence

from acdc.circuit import EdgeScores
from acdc.discovery.gradients import attribute, check_start
from acdc.errors import AcdcError
from acdc.graph import KV
from acdc.metrics import METRICS, Metric
from acdc.task import Batch
from acdc.transformer import Transformer


def eap_ig(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    steps: int = 5,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    per_prompt: bool = False,
    progress: bool = False,
) -> EdgeScores:
    """s(src -> channel) = mean over prompts of (src_corrupted - src_clean) . (1/m) sum_k dL/d(channel input) at x_k,

    where the first block reads x_k = corrupted + (k/m) (clean - corrupted), k = 0 .. m-1, m = `steps`: the corrupted
    input is among the points, the clean one never. L is the metric as a loss; positive = the edge helps. Cost a batch:
    m forward and backward passes, and a clean and a corrupted forward pass. Only the input moves along a straight line;
    the scores of the edges into one channel do not sum to the effect of patching it whole. Raises `AcdcError` for zero
    ablation in a model with norms, where the path would start at an input of 0.
    """
    check_start("eap_ig", model, ablation)
    if steps < 1:
        raise AcdcError(f"steps={steps}: integrated gradients need at least 1 step")
    points = [k / steps for k in range(steps)]
    return attribute(model, batches, metric, points=points, kv=kv, positions=positions, ablation=ablation,
                     per_prompt=per_prompt, progress=progress,
                     provenance={"method": "eap_ig", "method_options": {"steps": steps}})

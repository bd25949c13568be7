"""Gradient interaction modifications: edge attribution patching whose gradient accounts for self-repair.

Source: Edin et al. 2025 (arXiv 2505.17630); the numbers are the defaults of its reference implementation.
"""

import math
from collections.abc import Sequence
from functools import partial

from acdc.circuit import EdgeScores
from acdc.discovery.gradients import attribute, check_clean_gradient
from acdc.discovery.rules import Rules, backward, check_rules
from acdc.errors import AcdcError
from acdc.graph import KV
from acdc.metrics import METRICS, Metric
from acdc.task import Batch
from acdc.transformer import Transformer


def gim(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    temperature: float = 2.0,
    gate: float = 0.5,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    per_prompt: bool = False,
    progress: bool = False,
) -> EdgeScores:
    """s(src -> channel) = mean over prompts of (src_replacement - src_clean) . g_c on the clean run,

    where g_c is the gradient of the loss at what channel c reads, except that going back

    - the scale of every norm is a constant, also of those after attention and MLP and of q and k;
    - the gradient at attention's scores is P (g - P . g), with P = softmax(scores / `temperature`) and g the gradient
      at the pattern: a saturated softmax, whose derivative vanishes, still passes something on;
    - the gradient is shared out where factors are multiplied: pattern and v take half each, q and k half of the
      pattern's half each (so 1/4 at q and k, 1/2 at v); in a gated MLP the product passes on `gate` times the
      derivative, 1/2 for the same reason. `gate=1` leaves MLPs alone.

    L is the metric as a loss; scores are in its units, but are no first-order estimate of the effect: that is `eap`.
    Positive = the edge helps. Cost a batch: three forward passes, one backward. It misleads as a size: paths through
    many heads and gates are damped at each, against those along the residual stream. Raises `AcdcError` for metrics
    without gradient on the clean run, and a temperature that is not positive.
    """
    check_clean_gradient(metric, "GIM", "Use eap_ig with this metric, or GIM with logit_difference")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise AcdcError(f"temperature={temperature}: it must be a positive number; 1 is the softmax's own gradient")
    if not math.isfinite(gate):
        raise AcdcError(f"gate={gate}: it must be a finite number; 1 leaves the gradient as it is")
    rules = Rules(constant_scale=True, gate=gate, temperature=temperature, q=0.25, k=0.25, v=0.5)
    check_rules("gim", model, rules)
    return attribute(model, batches, metric, points=[1.0], kv=kv, positions=positions, ablation=ablation,
                     per_prompt=per_prompt, progress=progress,
                     provenance={"method": "gim", "method_options": {"temperature": temperature, "gate": gate}},
                     backward=partial(backward, rules=rules))

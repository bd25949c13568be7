"""Relevance patching: edge attribution patching whose gradient follows the rules of layer-wise relevance propagation.

Source: Rezaei Jafari, Eberle, Khakzar & Nanda 2025 (arXiv 2508.21258). The rules are those of its reference
implementation: LN-rule, identity rule, half-rule; its AH-rule, for attention, is an option there as here.
"""

from collections.abc import Sequence
from functools import partial

from acdc.circuit import EdgeScores
from acdc.discovery.gradients import attribute, check_clean_gradient
from acdc.discovery.rules import Rules, backward, check_rules
from acdc.errors import unknown_name
from acdc.graph import KV
from acdc.metrics import METRICS, Metric
from acdc.task import Batch
from acdc.transformer import Transformer

PATTERN = ("derivative", "constant")


def relp(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    pattern: str = "derivative",
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    per_prompt: bool = False,
    progress: bool = False,
) -> EdgeScores:
    """s(src -> channel) = mean over prompts of (src_replacement - src_clean) . g_c on the clean run,

    where g_c is the gradient of the loss at what channel c reads, except that going back

    - the scale of every norm is a constant (LN-rule), also of those after attention and MLP and of q and k;
    - an activation function f passes gradients on times f(x) / x, at x = 0 times f'(0) (identity rule);
    - the product in a gated MLP passes on half of the derivative, since both factors get it (half-rule).

    `pattern="derivative"`: attention is differentiated. `pattern="constant"`: attention patterns are constants
    (AH-rule), so that every edge into a q or k channel scores 0. With it, in a model without biases, relevance is
    conserved under `zero` ablation: the edges into an MLP or a head's v channel score, in sum, what those out of the
    node do, and the edges out of `input` what the loss rises by when all are cut, if it is linear in the logits.

    L is the metric as a loss; scores are in its units, but are no first-order estimate of the effect: that is `eap`.
    Positive = the edge helps. Cost a batch: three forward passes, one backward. It misleads where the replacement is
    far from 0: f(x) / x is the mean slope between 0 and x, not between the replaced x and x. Raises `AcdcError` for
    metrics without gradient on the clean run, and for activation functions that are not 0 at 0.
    """
    check_clean_gradient(metric, "RelP", "Use eap_ig with this metric, or RelP with logit_difference")
    if pattern not in PATTERN:
        raise unknown_name("pattern", pattern, PATTERN)
    rules = Rules(constant_scale=True, identity_act=True, gate=0.5, constant_pattern=pattern == "constant")
    check_rules("relp", model, rules)
    return attribute(model, batches, metric, points=[1.0], kv=kv, positions=positions, ablation=ablation,
                     per_prompt=per_prompt, progress=progress,
                     provenance={"method": "relp", "method_options": {"pattern": pattern}},
                     backward=partial(backward, rules=rules))

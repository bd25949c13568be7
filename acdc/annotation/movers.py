"""Which heads move the answer to the end of the prompt, and which steer them: roles that a task defines.

A mover attends from the last token to the answer's earlier occurrence and writes it (name mover) or against it
(negative mover); an S-inhibition head attends to the wrong answer's last occurrence, and keeps movers away from it.
Roles ask for prompts in which answer and wrong answer both occur. Source: Wang et al. 2022 (arXiv 2211.00593).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from acdc.activations import Activations, contribution, out_weight, record
from acdc.annotation.attention import patterns
from acdc.annotation.head_roles import Heads, Measured, RoleScore, p_mean_above, scores_of, unembedding
from acdc.fitting import over_batches
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

LEAST_PROMPTS = 4
LEAST_ATTENTION = 0.1  # above the baseline
LEAST_SHARE = 0.02  # of the logit difference, directly; or of movers' attention to the answer
PerHead = Float[np.ndarray, "head prompt"]


@dataclass(frozen=True, eq=False)
class AtEnd:
    """What heads do at the last token of each prompt: attention to all occurrences of the answer, of the wrong answer,
    and to the wrong answer's last one; the direct effect on logit(answer) - logit(wrong), and that of the value at the
    answer alone; `even`: 1 / tokens; `difference`: the logit difference of the model without its bias."""

    to_answer: PerHead
    to_wrong: PerHead
    to_last_wrong: PerHead
    direct: PerHead
    copied: PerHead
    even: PerHead
    difference: Float[np.ndarray, "1 prompt"]


def movers_and_inhibitors(model: Transformer, batches: Sequence[Batch], heads: Heads) -> list[RoleScore]:
    """The scores of each (layer, head) as name mover, negative mover and S-inhibition head; none where less than four
    prompts hold answer and wrong answer.

    Name mover: score and baseline are the attention from the end to the answer and to the wrong answer; p is the
    largest of three t-tests over prompts: that difference, the direct effect on logit(answer) - logit(wrong) with the
    final norm's scale frozen, and what OV writes of the answer alone. Negative mover: both effects below 0. The direct
    effect must be 2% of the logit difference at least. S-inhibition: attention to the wrong answer's last occurrence
    against an even spread; and its corrupted value, in the queries of the movers found alone, lowers their attention
    to answer minus wrong, by 2% of it at least. Cost: four forward passes a batch, and for each mover a query for each
    head below it.
    """
    eligible = [_with_both(batch) for batch in batches]
    eligible = [batch for batch in eligible if len(batch)]
    if not heads or sum(len(batch) for batch in eligible) < LEAST_PROMPTS:
        return []
    with torch.no_grad(), frozen(model):
        at_end = _joined([found for _, found in over_batches(eligible, lambda b: _at_end(model, b, heads))])
        scores = [*_movers(at_end, heads, 1), *_movers(at_end, heads, -1)]
        movers = [(score.layer, score.head) for score in scores if score.found]
        if movers:
            found = over_batches(eligible, lambda batch: _lowered(model, batch, heads, movers))
            lowered, attention = zip(*(of_part for _, of_part in found), strict=True)
            scores += _inhibitors(at_end, heads, np.concatenate(lowered, 1), np.concatenate(attention))
    return scores


def _with_both(batch: Batch) -> Batch:
    """The prompts in which answer and wrong answer occur."""
    both = _occurs(batch, batch.answer).any(1) & _occurs(batch, batch.wrong).any(1)
    examples = tuple(example for example, yes in zip(batch.examples, both.cpu().tolist(), strict=True) if yes)
    return Batch(batch.clean[both], batch.corrupted[both], batch.answer[both], batch.wrong[both], examples)


def _occurs(batch: Batch, token: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
    return batch.clean == token[:, None]


def _last(where: Bool[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    return where.shape[1] - 1 - where.int().flip(1).argmax(1)


def _joined(parts: Sequence[AtEnd]) -> AtEnd:
    return AtEnd(**{f.name: np.concatenate([getattr(part, f.name) for part in parts], axis=1) for f in fields(AtEnd)})


def _at_end(model: Transformer, batch: Batch, heads: Heads) -> AtEnd:
    run, rows = record(model, batch.clean), torch.arange(len(batch), device=batch.clean.device)
    rstd = model.anatomy.final_norm.statistics(run.final[:, -1])[1]
    direction = (unembedding(model, batch.answer) - unembedding(model, batch.wrong)) * rstd
    answer, wrong = _occurs(batch, batch.answer), _occurs(batch, batch.wrong)
    found: dict[str, list[Tensor]] = {f.name: [] for f in fields(AtEnd) if f.name not in ("even", "difference")}
    for layer, head in heads:
        pattern = patterns(model, run, layer, [head])[:, 0, -1]
        weight = out_weight(model.blocks[layer])[head]
        value = run.v[layer][rows, _last(answer), int(model.kv_head[head])]
        for name, result in (
            ("to_answer", (pattern * answer).sum(1)),
            ("to_wrong", (pattern * wrong).sum(1)),
            ("to_last_wrong", pattern[rows, _last(wrong)]),
            ("direct", (run.z[layer][:, -1, head] @ weight * direction).sum(1)),
            ("copied", (value @ weight * direction).sum(1)),
        ):
            found[name].append(result.double().cpu())
    even = np.full((len(heads), len(batch)), 1 / batch.clean.shape[1])
    difference = (run.final[:, -1] * direction).sum(1).double().cpu().numpy()[None]
    return AtEnd(**{name: torch.stack(values).numpy() for name, values in found.items()}, even=even,
                 difference=difference)


def _movers(at: AtEnd, heads: Heads, sign: int) -> list[RoleScore]:
    excess = at.to_answer - at.to_wrong
    p = np.array([max(p_mean_above(excess[h]), p_mean_above(sign * at.direct[h]), p_mean_above(sign * at.copied[h]))
                  for h in range(len(heads))])
    too_small = np.abs(at.direct.mean(1)) < LEAST_SHARE * np.abs(at.difference).mean()
    measured = Measured(at.to_answer.mean(1), at.to_wrong.mean(1), np.where(too_small, 1.0, p))
    return scores_of("name mover" if sign > 0 else "negative mover", heads, measured, LEAST_ATTENTION)


def _inhibitors(at: AtEnd, heads: Heads, lowered: PerHead, attention: Float[np.ndarray, " prompt"]) -> list[RoleScore]:
    excess = at.to_last_wrong - at.even
    p = np.array([max(p_mean_above(excess[h]), p_mean_above(lowered[h])) for h in range(len(heads))])
    too_small = lowered.mean(1) < LEAST_SHARE * np.abs(attention.mean())
    measured = Measured(at.to_last_wrong.mean(1), at.even.mean(1), np.where(too_small, 1.0, p))
    return scores_of("S-inhibition", heads, measured, LEAST_ATTENTION)


def _lowered(model: Transformer, batch: Batch, heads: Heads, movers: Heads
             ) -> tuple[PerHead, Float[np.ndarray, " prompt"]]:
    """By how much each head's corrupted value in movers' queries lowers their attention to answer - wrong, and that
    attention; means over movers."""
    clean, corrupted = record(model, batch.clean), record(model, batch.corrupted)
    sides = _occurs(batch, batch.answer).float() - _occurs(batch, batch.wrong).float()
    lowered, attention = torch.zeros(len(heads), len(batch)), torch.zeros(len(batch))
    for layer, head in movers:
        own = (patterns(model, clean, layer, [head])[:, 0, -1].float() * sides).sum(1)
        attention += own.cpu() / len(movers)
        below = [i for i, (of, _) in enumerate(heads) if of < layer]
        if below:
            change = torch.stack([_change(model, clean, corrupted, *heads[i]) for i in below])
            moved = (_moved_pattern(model, clean, layer, head, change).float() * sides[:, None]).sum(-1)
            lowered[below] += (own[:, None] - moved).T.cpu() / len(movers)
    return lowered.double().numpy(), attention.double().numpy()


def _change(model: Transformer, clean: Activations, corrupted: Activations, layer: int, head: int
            ) -> Float[Tensor, "batch d_model"]:
    src = model.graph().src_index[f"a{layer}.h{head}"]
    return (contribution(model, corrupted, src) - contribution(model, clean, src))[:, -1]


def _moved_pattern(model: Transformer, run: Activations, layer: int, head: int,
                   change: Float[Tensor, "src batch d_model"]) -> Float[Tensor, "batch src key"]:
    """The head's attention from the last token when its query there reads the residual stream changed by each src."""
    block, group = model.blocks[layer], int(model.kv_head[head])
    projection = block.attention.q
    q = block.attn_norm(run.attn_in[layer][:, -1] + change) @ projection.weight[head].T
    if projection.bias is not None:
        q = q + projection.bias[head]
    k, v = (x[layer][:, :, [group]].expand(-1, -1, len(change), -1) for x in (run.k, run.v))
    seen: list[Tensor] = []

    def keep(scores):  # without shapes: it would be checked anew at every call
        seen.append(scores.softmax(-1))
        return seen[0]

    model.attend(block.attention, q.transpose(0, 1)[:, None], k, v, k.shape[1] - 1, softmax=keep)
    return seen[0][:, :, 0]

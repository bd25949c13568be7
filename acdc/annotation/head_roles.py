"""Which roles a head has wherever it is shown random text: what it attends to, and what it copies.

Every statistic is a score with a baseline that a head without the role would have, and a p-value, corrected by Holm for
the heads tested. A head has the role if p is at most 5% and the score is above the baseline by a least amount
(`SEQUENCE_ROLES`): with enough tokens a head that hardly has a role has a small p, too.

Sources: Olsson et al. 2022 (arXiv 2209.11895) on previous-token and induction heads; Wang et al. 2022 (arXiv
2211.00593) on duplicate-token heads; Gould et al. 2023 (arXiv 2312.09230) on successor heads; Xiao et al. 2023 (arXiv
2309.17453) on attention sinks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.activations import out_weight, record
from acdc.annotation.attention import patterns
from acdc.annotation.sequences import Sequences, ordinal_classes, prefix, random_sequences
from acdc.evaluation.significance import ALPHA, binomial_tail, holm, p_above
from acdc.transformer import Transformer, frozen

Heads = Sequence[tuple[int, int]]
OTHER_OFFSETS = (0, 2, 3, 4)
SEQUENCES_PER_PASS = 8
TOP = 0.05  # of the tokens: a copied one is among them
POOL = 500  # tokens that a copied one is ranked among


@dataclass(frozen=True, eq=False)
class Measured:
    """A statistic of each head: score, baseline and p, not yet corrected."""

    score: Float[np.ndarray, " head"]
    baseline: Float[np.ndarray, " head"]
    p: Float[np.ndarray, " head"]


@dataclass(frozen=True)
class RoleScore:
    """One head's score for one role. `p` is corrected for the heads tested; `least`: what score - baseline must be."""

    layer: int
    head: int
    role: str
    score: float
    baseline: float
    p: float
    least: float

    @property
    def node(self) -> str:
        return f"a{self.layer}.h{self.head}"

    @property
    def found(self) -> bool:
        return self.p <= ALPHA and self.score - self.baseline >= self.least


@dataclass(frozen=True, eq=False)
class OnSequences:
    """What heads do on random sequences: their patterns, and what they write of what they read at each token."""

    model: Transformer
    heads: Heads
    sequences: Sequences
    control: Float[np.ndarray, "head sequence query key"]
    repeated: Float[np.ndarray, "head sequence query key"]
    v: Float[Tensor, "head sequence pos d_head"]

    @property
    def second_half(self) -> Int[np.ndarray, " row"]:
        return np.arange(1 + self.sequences.half, self.control.shape[-1])


def run_sequences(model: Transformer, heads: Heads, sequences: Sequences) -> OnSequences:
    """Cost: two forward passes of the sequences. Memory: two patterns of up to 49 x 49 a head and sequence."""
    shape = (len(heads), len(sequences), sequences.control.shape[1], sequences.control.shape[1])
    found = {name: np.zeros(shape, dtype=np.float32) for name in ("control", "repeated")}
    v = torch.zeros(*shape[:3], model.blocks[0].attention.v.d_head)
    with torch.no_grad(), frozen(model):
        for first in range(0, len(sequences), SEQUENCES_PER_PASS):
            rows = slice(first, first + SEQUENCES_PER_PASS)
            for name in ("control", "repeated"):
                run = record(model, getattr(sequences, name)[rows])
                for layer in sorted({layer for layer, _ in heads}):
                    places = [i for i, (of, _) in enumerate(heads) if of == layer]
                    own = [heads[i][1] for i in places]
                    seen = patterns(model, run, layer, own).transpose(0, 1)
                    found[name][places, rows] = seen.float().cpu().numpy()
                    if name == "control":
                        v[places, rows] = run.v[layer][:, :, model.kv_head[own]].permute(2, 0, 1, 3).float().cpu()
    return OnSequences(model, heads, sequences, found["control"], found["repeated"], v)


def previous_token(on: OnSequences) -> Measured:
    """Mean of A[t, t-1] against the largest of the means of A[t, t-o], o = 0, 2, 3, 4."""
    rows = np.arange(1 + max(OTHER_OFFSETS), on.control.shape[-1])
    own, *others = (on.control[:, :, rows, rows - offset] for offset in (1, *OTHER_OFFSETS))
    return _paired(own, _largest(np.stack(others)))


def duplicate_token(on: OnSequences) -> Measured:
    """Mean of A[t, t-half] in the second half of repeated sequences against the same where it is other tokens."""
    rows = on.second_half
    return _paired(*(on_these[:, :, rows, rows - on.sequences.half] for on_these in (on.repeated, on.control)))


def induction(on: OnSequences) -> Measured:
    """Mean of A[t, t-half+1], the token after the earlier occurrence, as `duplicate_token`.

    Only the second half counts: in the first no token has occurred. An ideal head scores 1.
    """
    rows = on.second_half
    return _paired(*(on_these[:, :, rows, rows - on.sequences.half + 1] for on_these in (on.repeated, on.control)))


def attention_sink(on: OnSequences) -> Measured:
    """Mean of A[t, 0] in the second half against 1 / (t + 1) and the most attended of the keys 1 to half."""
    rows = on.second_half
    own = on.control[:, :, rows, 0]
    uniform = np.broadcast_to(1 / (rows + 1), own.shape)
    others = on.control[:, :, rows, 1 : 1 + on.sequences.half]
    either = [_paired(own, base) for base in (uniform, _largest(np.moveaxis(others, -1, 0)))]
    return Measured(either[0].score, np.maximum(*(m.baseline for m in either)), np.maximum(*(m.p for m in either)))


def positional(on: OnSequences) -> Measured:
    """The share of a pattern's variance over random sequences that position explains, against 1/2.

    D_s = the pattern of sequence s but for key 0, minus its even spread over keys 1 to t; share = mean_s <D_s, the mean
    D of the other sequences> / mean_s ||D_s||^2, which is 0 in expectation where sequences have nothing in common. A
    pattern that is within 0.1 of even (half the sum of |D|, a row) counts as having none. p: of share <= 1/2.
    """
    pattern = on.control[:, :, 2:, 1:].astype(np.float64)  # rows that see at least two keys but 0
    n_keys = np.arange(2, on.control.shape[-1])
    visible = np.arange(pattern.shape[-1]) < n_keys[:, None]
    mass = pattern.sum(-1, keepdims=True)
    deviation = np.where(visible, pattern - mass / n_keys[:, None], 0)
    own = (deviation**2).sum((2, 3))
    shared = ((deviation * deviation.sum(1, keepdims=True)).sum((2, 3)) - own) / (deviation.shape[1] - 1)
    uneven = np.abs(deviation).sum(-1).mean((1, 2)) / 2 >= 0.1
    share = np.where(uneven, shared.mean(1) / np.maximum(own.mean(1), 1e-30), 0)
    p = [p_above(shared[h], own[h], 0.5) if uneven[h] else 1.0 for h in range(len(share))]
    return Measured(share, np.full(len(share), 0.5), np.array(p))


def copying(on: OnSequences) -> Measured:
    """How often what OV writes of a token puts the token's own logit among the top 5% of up to 500 tokens.

    OV reads what the head reads at random tokens, its norm and the layers before included. The tokens are those of the
    sequences, each once, and a head that writes regardless of the token has 5% of them at the top; binomial test.
    """
    tokens, v = on.sequences.control[:, 1:].flatten(), on.v[:, :, 1:].flatten(1, 2)
    _, first = np.unique(tokens.cpu().numpy(), return_index=True)
    chosen = np.sort(first)[:POOL]
    pool = tokens[chosen]
    n_top, shares = max(1, int(TOP * len(pool))), []
    for (layer, head), values in zip(on.heads, v[:, chosen], strict=True):
        logits = direct_logits(on.model, layer, head, values, pool)
        not_below = (logits >= logits.diagonal()[:, None]).sum(1)  # itself too; a head that writes nothing ties all
        shares.append(int((not_below <= n_top).sum()))
    chance, n = n_top / len(pool), len(pool)
    p = [binomial_tail(k, n, chance, above=True) for k in shares]
    return Measured(np.array(shares) / n, np.full(len(shares), chance), np.array(p))


def successor(on: OnSequences) -> Measured | None:
    """How often, of a word with an order (days, digits, ...), OV writes its successor more than any other of its class.

    OV reads the word after one other token. p: the larger of two: a binomial test against chance, 1 / (words - 1), and
    a sign test against the predecessor, since a head that writes similar words writes both. None where the tokenizer
    has too few of these words.
    """
    classes = ordinal_classes(on.model.tokenizer)
    if not classes:
        return None
    hits, before, chances = (np.zeros((len(on.heads), 0)) for _ in range(3))
    for words in classes:
        known = [i for i, token in enumerate(words) if token is not None]
        tokens = torch.tensor([words[i] for i in known], device=on.model.device)
        best = _top_other(on, tokens)
        inner = [j for j, i in enumerate(known) if {i - 1, i + 1} <= set(known)]
        hits = np.concatenate([hits, best[:, inner] == np.array(inner) + 1], axis=1)
        before = np.concatenate([before, best[:, inner] == np.array(inner) - 1], axis=1)
        chances = np.concatenate([chances, np.full((len(on.heads), len(inner)), 1 / (len(known) - 1))], axis=1)
    chance, n = float(chances.mean()), hits.shape[1]
    p = [max(binomial_tail(int(yes), n, chance, above=True), binomial_tail(int(yes), int(yes + no), 0.5, above=True))
         for yes, no in zip(hits.sum(1), before.sum(1), strict=True)]
    return Measured(hits.mean(1), np.maximum(chance, before.mean(1)), np.array(p))


def _top_other(on: OnSequences, tokens: Int[Tensor, " word"]) -> Int[np.ndarray, "head word"]:
    """For each head and word, the other word of the class that OV writes most, read after one other token; -9 where
    two tie."""
    first = prefix(on.model.tokenizer)[:1] or [int(on.sequences.control[0, 0])]
    prompts = torch.stack([torch.full_like(tokens, first[0]), tokens], dim=1)
    with torch.no_grad(), frozen(on.model):
        run = record(on.model, prompts)
        best = []
        for layer, head in on.heads:
            logits = direct_logits(on.model, layer, head, run.v[layer][:, 1, int(on.model.kv_head[head])], tokens)
            largest, which = logits.fill_diagonal_(-torch.inf).topk(2, dim=1)
            best.append(which[:, 0].where(largest[:, 0] > largest[:, 1], -9).cpu().numpy())
    return np.stack(best)


def direct_logits(model: Transformer, layer: int, head: int, z: Float[Tensor, "row d_head"],
                  tokens: Int[Tensor, " token"]) -> Float[Tensor, "row token"]:
    """What a head's z adds to the logits of some tokens directly, up to the positive scales of norms."""
    with torch.no_grad():
        weight = out_weight(model.blocks[layer])[head]
        return (z.to(weight) @ weight @ unembedding(model, tokens).T).float()


def unembedding(model: Transformer, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """The directions of the residual stream that tokens' logits are read by, but for the final norm's scale."""
    weight, norm = model.unembedding[tokens], model.anatomy.final_norm
    weight = weight if norm.gain is None else weight * norm.gain
    return weight - weight.mean(-1, keepdim=True) if norm.centered else weight


def _paired(own: Float[np.ndarray, "head sequence row"], base: Float[np.ndarray, "head sequence row"]) -> Measured:
    """p of H0: no larger, by t-tests over sequences and over rows; the larger of the two, so that neither a few places
    nor a few sequences make a role."""
    excess = (own - base).astype(np.float64)
    p = [max(p_mean_above(one.mean(1)), p_mean_above(one.mean(0))) for one in excess]
    score, baseline = (x.mean((1, 2), dtype=np.float64) for x in (own, base))
    return Measured(score, baseline, np.array(p))


def p_mean_above(values: Float[np.ndarray, " n"], bound: float = 0.0) -> float:
    """p of H0: the mean is at most `bound`, by a t-test."""
    return p_above(values, np.ones(len(values)), bound)


def _largest(candidates: Float[np.ndarray, "candidate head sequence row"]) -> Float[np.ndarray, "head sequence row"]:
    """For each head the candidate of largest mean."""
    best = candidates.mean((2, 3)).argmax(0)
    return candidates[best, np.arange(len(best))]


SEQUENCE_ROLES: dict[str, tuple[Callable[[OnSequences], Measured | None], float]] = {
    "induction": (induction, 0.1),
    "duplicate token": (duplicate_token, 0.1),
    "previous token": (previous_token, 0.1),
    "successor": (successor, 0.2),
    "copying": (copying, 0.2),
    "positional": (positional, 0.3),
    "attention sink": (attention_sink, 0.3),
}
"""How each role is measured, and by how much the score must be above its baseline; the most telling first."""


def sequence_roles(model: Transformer, heads: Heads, *, n_sequences: int = 32, seed: int = 0) -> list[RoleScore]:
    """The score of each (layer, head) for each role of `SEQUENCE_ROLES` that this model can be tested for.

    Cost: two forward passes of 32 sequences of 49 tokens; no task is needed. Attention is not explanation: see
    `acdc.annotation.effects` for whether a head matters. A head may have several roles. Raises `AcdcError` where the
    vocabulary or the context is too small. None for a model of images: tokens in any order are none.
    """
    if not heads or model.anatomy.probe is not None:
        return []
    on = run_sequences(model, heads, random_sequences(model, n_sequences, seed))
    scores = []
    for role, (measure, least) in SEQUENCE_ROLES.items():
        measured = measure(on)
        if measured is not None:
            scores += scores_of(role, heads, measured, least)
    return scores


def scores_of(role: str, heads: Heads, measured: Measured, least: float) -> list[RoleScore]:
    adjusted = holm(measured.p.tolist())
    return [RoleScore(layer, head, role, float(measured.score[i]), float(measured.baseline[i]), adjusted[i], least)
            for i, (layer, head) in enumerate(heads)]

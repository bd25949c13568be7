"""Changing one fact in one weight matrix: ROME, a rank-one edit of an MLP's last weights W.

Phases: k, what W reads at the subject's last token, mean over prefixes; v, what it should return there so that the
prompt is completed by the target, found by Adam; then W += (v - W k) (C^-1 k)^T / (k . C^-1 k), C = E[k k^T] on text.
Of all W' with W' k = v it is the one that changes what other text reads least.
Source: Meng et al. 2022 (arXiv 2202.05262).
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from acdc.activations import hooks
from acdc.annotation.sites import read, site, width
from acdc.errors import AcdcError
from acdc.intervention.generation import generate
from acdc.task import answer_token
from acdc.transformer import Transformer, frozen

STARTS = ("The", "Therefore", "Because", "I", "You")
WEIGHT_DECAY = 0.5
GOOD_ENOUGH = 0.05  # the loss at which the search for v ends
RIDGE = 1e-4  # of C's mean diagonal, so that it can be inverted


@dataclass(frozen=True)
class Fact:
    """`prompt` has {} where the subject stands: Fact("The capital of {} is", "France", true=" Paris", target=" Rome").
    """

    prompt: str
    subject: str
    true: str
    target: str

    @property
    def text(self) -> str:
        return self.prompt.format(self.subject)


@dataclass(frozen=True, eq=False)
class Edit:
    """`model` is a copy with the changed weights; W' `key` = `value`, bias aside. `losses`: of the search for v."""

    model: Transformer
    layer: int
    key: Float[Tensor, " neurons"]
    value: Float[Tensor, " d_model"]
    losses: tuple[float, ...]


def second_moment(model: Transformer, layer: int, windows: Int[Tensor, "window pos"]
                  ) -> Float[Tensor, "neurons neurons"]:
    """C = E[k k^T] of what the MLP's last weights read, over text; give it several times more tokens than neurons.

    Cost: one pass over the text. Raises `AcdcError` for an MLP without neurons.
    """
    name = f"m{layer}.neurons"
    n = width(model, name)
    total = torch.zeros(n, n, dtype=torch.float64, device=model.device)
    for tokens in windows.split(4):
        k = read(model, tokens, [name])[name].flatten(0, 1).double()
        total += k.T @ k
    return total / windows.numel()


def sampled_prefixes(model: Transformer, n: int = 10, length: int = 8, seed: int = 0) -> list[str]:
    """Texts to put before the prompt, so that k is the subject's and not one sentence's: sampled from the model."""
    found = []
    for i in range(n):
        start = torch.tensor([model.tokenizer(STARTS[i % len(STARTS)])["input_ids"]], device=model.device)
        new = generate(model, start, length, temperature=1.0, seed=seed + i)
        found.append(model.tokenizer.decode(torch.cat([start, new], dim=1)[0].tolist()) + ". ")
    return found


def rome(
    model: Transformer,
    fact: Fact,
    layer: int,
    moment: Float[Tensor, "neurons neurons"],
    *,
    prefixes: Sequence[str] = (),
    steps: int = 20,
    lr: float = 0.5,
    kl: float = 0.0625,
    clamp: float = 4.0,
) -> Edit:
    """The fact's target in place of what is true, in a copy of the model; the model given is not changed.

    v = W k + delta, delta minimising over the prompts (bare and after each prefix) -log p(target) + kl * KL(before ||
    after the change, of what follows "{subject} is a") + 0.5 |delta| / |W k|^2, |delta| at most `clamp` |W k|.
    Cost: `steps` forward and backward passes over the prompts, and a copy of the model in memory. It misleads where the
    edit's success is taken for a place of the fact: editing works at layers that tracing does not point to (Hase et al.
    2023, arXiv 2301.04213). Raises `AcdcError` for an answer that is not one token, a subject that is not a whole
    number of tokens, an MLP without neurons or with a norm after it, and a moment of another width.
    """
    site(model, f"m{layer}.neurons")
    if model.blocks[layer].mlp_post is not None:
        raise AcdcError(f"{model.name} has a norm after its MLPs, which rescales what one matrix writes; ROME is "
                        "not defined there")
    copy = replace(model, hf=deepcopy(model.hf))
    prompts = _prompts(copy, fact, ["", *prefixes])
    with frozen(copy):
        key = _key(copy, layer, prompts)
        if moment.shape != (len(key), len(key)):
            raise AcdcError(f"the second moment is {' x '.join(map(str, moment.shape))}, m{layer} has {len(key):,} "
                            "neurons; compute it for this layer")
        matrix, transposed = _last_weights(copy, layer)
        before = (matrix.T if transposed else matrix).detach() @ key
        delta, losses = _search(copy, fact, layer, prompts, before, steps=steps, lr=lr, kl=kl, clamp=clamp)
        wide = moment.double().to(key.device)
        wide = wide + RIDGE * wide.diagonal().mean() * torch.eye(len(key), dtype=wide.dtype, device=key.device)
        u = torch.linalg.solve(wide, key.double())
        change = torch.outer(delta.double(), u / (key.double() @ u)).to(matrix.dtype)
        with torch.no_grad():
            matrix += change.T if transposed else change
    return Edit(copy, layer, key, before + delta, tuple(losses))


@dataclass(frozen=True, eq=False)
class _Prompt:
    tokens: Int[Tensor, "1 pos"]
    subject_end: int
    target: int


def _prompts(model: Transformer, fact: Fact, prefixes: Sequence[str]) -> list[_Prompt]:
    if fact.prompt.count("{}") != 1:
        raise AcdcError(f"the prompt {fact.prompt!r} must have {{}} once, where the subject stands")
    found = []
    for prefix in prefixes:
        text = prefix + fact.text
        until = prefix + fact.prompt.partition("{}")[0] + fact.subject
        ids, head = (model.tokenizer(part)["input_ids"] for part in (text, until))
        if ids[: len(head)] != head:
            raise AcdcError(f"the subject {fact.subject!r} does not end a token in {text!r}; write it so that it does")
        target = answer_token(model.tokenizer, text, ids, fact.target)
        found.append(_Prompt(torch.tensor([ids], device=model.device), len(head) - 1, target))
    return found


def _key(model: Transformer, layer: int, prompts: Sequence[_Prompt]) -> Float[Tensor, " neurons"]:
    name = f"m{layer}.neurons"
    return torch.stack([read(model, p.tokens, [name])[name][0, p.subject_end] for p in prompts]).mean(0)


def _last_weights(model: Transformer, layer: int) -> tuple[Any, bool]:
    """The last matrix of an MLP, and whether it is stored as (in, out), as in a Conv1D."""
    module = _last_module(model, layer)
    return module.weight, not isinstance(module, torch.nn.Linear)


def _last_module(model: Transformer, layer: int) -> Any:
    block = model.blocks[layer]
    if block.gated_down is not None:
        return block.gated_down
    return [module for module in block.mlp.modules() if getattr(module, "weight", None) is not None
            and module.weight.dim() == 2][-1]


def _search(model: Transformer, fact: Fact, layer: int, prompts: Sequence[_Prompt], before: Tensor, *, steps: int,
            lr: float, kl: float, clamp: float) -> tuple[Float[Tensor, " d_model"], list[float]]:
    """delta = v - W k, and the loss before each step."""
    size = before.norm()
    essence = _prompts(model, Fact("{} is a", fact.subject, fact.true, fact.target), [""])[0]
    with torch.no_grad():
        usual = _log_probabilities(model, layer, essence, None)
    delta = torch.zeros_like(before, requires_grad=True)
    optimiser, losses = torch.optim.Adam([delta], lr=lr), []
    with torch.enable_grad():
        for _ in range(steps):
            runs = [_log_probabilities(model, layer, prompt, delta) for prompt in prompts]
            missed = -torch.stack([run[p.target] for run, p in zip(runs, prompts, strict=True)]).mean()
            drift = F.kl_div(_log_probabilities(model, layer, essence, delta), usual, log_target=True, reduction="sum")
            loss = missed + kl * drift + WEIGHT_DECAY * torch.linalg.vector_norm(delta) / size**2
            losses.append(float(loss.detach()))
            if losses[-1] < GOOD_ENOUGH:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                delta *= min(1.0, clamp * float(size) / max(float(delta.norm()), 1e-30))
    return delta.detach(), losses


def _log_probabilities(model: Transformer, layer: int, prompt: _Prompt, delta: Tensor | None
                       ) -> Float[Tensor, " vocab"]:
    """Of the next token, with delta added to what the MLP writes at the subject's last token."""
    def add_delta(module: Any, args: tuple, out: Tensor) -> Tensor:
        if delta is None:
            return out
        here = F.one_hot(torch.tensor(prompt.subject_end), out.shape[1]).to(out)
        return out + here[None, :, None] * delta

    with hooks() as add:
        add(_last_module(model, layer).register_forward_hook(add_delta))
        logits = model.hf(input_ids=prompt.tokens, use_cache=False).logits[0, -1]
    return logits.float().log_softmax(-1)


@dataclass(frozen=True)
class Scores:
    """`success`: the share of prompts where the better answer wins; `magnitude`: the mean difference of probabilities.

    Better is the target over the true answer for `efficacy` and `paraphrase`; the neighbour's own true answer over the
    target for `neighbourhood`. Each is (success, magnitude).
    """

    efficacy: tuple[float, float]
    paraphrase: tuple[float, float]
    neighbourhood: tuple[float, float]


def edit_scores(model: Transformer, fact: Fact, paraphrases: Sequence[str], neighbours: Sequence[tuple[str, str]]
                ) -> Scores:
    """How well a model holds the fact's target. Source: Meng et al. 2022, CounterFact.

    `paraphrases`: prompts with {}. `neighbours`: (subject, its true answer), asked with the fact's own prompt. Cost:
    one pass a prompt. Raises `AcdcError` for answers that are not one token.
    """
    if not paraphrases or not neighbours:
        raise AcdcError("edits are scored on paraphrases and neighbours; give at least one of each")
    own = [(fact.text, fact.target, fact.true)]
    others = [(prompt.format(fact.subject), fact.target, fact.true) for prompt in paraphrases]
    near = [(fact.prompt.format(subject), true, fact.target) for subject, true in neighbours]
    return Scores(*(_score(model, rows) for rows in (own, others, near)))


def _score(model: Transformer, rows: Sequence[tuple[str, str, str]]) -> tuple[float, float]:
    gaps = []
    for text, better, worse in rows:
        ids = model.tokenizer(text)["input_ids"]
        first, second = (answer_token(model.tokenizer, text, ids, answer) for answer in (better, worse))
        with torch.no_grad(), frozen(model):
            tokens = torch.tensor([ids], device=model.device)
            p = model.hf(input_ids=tokens, use_cache=False).logits[0, -1].float().softmax(-1)
        gaps.append(float(p[first] - p[second]))
    return sum(gap > 0 for gap in gaps) / len(gaps), sum(gaps) / len(gaps)

"""What a circuit is found for: pairs of clean and corrupted prompts, an answer and a wrong answer.

Every prompt ends where the answer begins, so a metric always reads the logits at the last position. Batches hold
prompts of one length; nothing is ever padded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from acdc.errors import AcdcError


@dataclass(frozen=True)
class Example:
    """One pair of prompts. `answer` and `wrong` continue the clean prompt, leading space included: `" Mary"`.

    `roles` names token positions of the clean prompt: `{"IO": 2, "S1": 4, "end": 13}`. `template` groups examples
    that share a wording.
    """

    clean: str
    corrupted: str
    answer: str
    wrong: str
    template: str = ""
    roles: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one length as token ids."""

    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    answer: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"]
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return self.clean.shape[0]

    @cached_property
    def first_difference(self) -> int:
        """The first position at which any corrupted prompt differs from its clean one; a causal model computes the
        same before it. The last position, if none differs."""
        differs = (self.clean != self.corrupted).any(dim=0).nonzero()
        return int(differs[0]) if len(differs) else self.clean.shape[1] - 1


@dataclass(frozen=True)
class Task:
    """Examples with a name, the metric they are meant for, and where they come from."""

    name: str
    examples: tuple[Example, ...]
    metric: str = "logit_difference"
    description: str = ""
    source: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.examples:
            raise AcdcError(f"task {self.name!r} has no examples; at least one is needed")

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, tokenizer: "Tokenizer", *, batch_size: int = 32,
                device: torch.device | str = "cpu") -> list[Batch]:
        """The examples as token batches, grouped by length (in order of first appearance).

        The tokenizer adds what it adds by default (SmolLM2's and GPT-2's nothing, Llama's and Gemma's a BOS). Raises
        `AcdcError`, naming the prompt, where clean and corrupted differ in length, where they are the same, or where
        an answer is not exactly one token after its prompt.
        """
        if batch_size < 1:
            raise AcdcError(f"batch size {batch_size}: it must be at least 1")
        groups: dict[int, list[tuple[Example, list[int], list[int], int, int]]] = {}
        for example in self.examples:
            clean, corrupted = tokenizer(example.clean)["input_ids"], tokenizer(example.corrupted)["input_ids"]
            if len(clean) != len(corrupted):
                raise AcdcError(
                    f"clean and corrupted prompt differ in length: {example.clean!r} has {len(clean)} tokens, "
                    f"{example.corrupted!r} has {len(corrupted)}. Activations are swapped position by position, so "
                    "both must have the same number of tokens"
                )
            if clean == corrupted:
                raise AcdcError(
                    f"clean and corrupted prompt are the same: {example.clean!r}. Nothing can be traced; change the "
                    "corrupted prompt"
                )
            answer = answer_token(tokenizer, example.clean, clean, example.answer)
            wrong = answer_token(tokenizer, example.clean, clean, example.wrong)
            if answer == wrong:
                raise AcdcError(f"answer and wrong answer are the same, {example.answer!r}, for {example.clean!r}")
            groups.setdefault(len(clean), []).append((example, clean, corrupted, answer, wrong))
        batches = []
        for rows in groups.values():
            for start in range(0, len(rows), batch_size):
                examples, clean, corrupted, answer, wrong = zip(*rows[start : start + batch_size], strict=True)
                tensors = (torch.tensor(ids, device=device) for ids in (clean, corrupted, answer, wrong))
                batches.append(Batch(*tensors, examples=tuple(examples)))
        return batches


@runtime_checkable  # so that the shape checker of the tests can check it
class Tokenizer(Protocol):
    """The part of a HuggingFace tokenizer that tasks use."""

    def __call__(self, text: str) -> Mapping[str, list[int]]: ...
    def decode(self, token_ids: list[int]) -> str: ...


def answer_token(tokenizer: "Tokenizer", prompt: str, prompt_ids: list[int], answer: str) -> int:
    """The one token that `answer` adds after `prompt`, or an error that shows how it was split."""
    ids = tokenizer(prompt + answer)["input_ids"]
    if ids[: len(prompt_ids)] != prompt_ids or len(ids) != len(prompt_ids) + 1:
        pieces = [tokenizer.decode([i]) for i in tokenizer(prompt + answer)["input_ids"][len(prompt_ids) - 1 :]]
        raise AcdcError(
            f"answer {answer!r} is not one token after the prompt {prompt!r}: from the prompt's last token on, the "
            f"text is split into {pieces}. Answers must be single tokens; mind the leading space"
        )
    return ids[-1]

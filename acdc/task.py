"""What a circuit is found for: pairs of clean and corrupted prompts, an answer and a wrong answer.

Every prompt ends where the answer begins, so a metric always reads the logits at the last position. Batches hold
prompts of one length; nothing is ever padded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from acdc.errors import AcdcError, unknown_name


@dataclass(frozen=True)
class Example:
    """One pair of prompts. `answer` and `wrong` continue the clean prompt, leading space included: `" Mary"`.

    `roles` names token positions of the clean prompt: `{"IO": 2, "S1": 4, "end": 13}`. `template` groups examples
    that share a wording. The role of the last token is always `end`, whatever it is called here.
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

    def rows(self, which: slice) -> "Batch":
        """Some of the prompts."""
        if which == slice(0, len(self)):
            return self
        tensors = (self.clean[which], self.corrupted[which], self.answer[which], self.wrong[which])
        return Batch(*tensors, examples=self.examples[which])

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


POSITIONS = ("all", "each", "roles")
END, OTHER = "end", "other"


def position_names(batches: Sequence[Batch], positions: str) -> tuple[str, ...]:
    """What edges are told apart by: nothing (`all`), each place in the prompt (`each`) or roles of tokens (`roles`).

    `each`: "0", "1", ...; all prompts must have one length. `roles`: those that the examples label, in the order of
    their mean place; "other" for all tokens without a role, if there are any; "end", the last token. Raises `AcdcError`
    where prompts differ in length, where no example labels a token before the last, and where two roles share one.
    """
    if positions not in POSITIONS:
        raise unknown_name("positions", positions, POSITIONS)
    if positions == "all":
        return ()
    if not batches:
        raise AcdcError("no prompts given: the list of batches is empty")
    lengths = sorted({batch.clean.shape[1] for batch in batches})
    if positions == "each":
        if len(lengths) != 1:
            raise AcdcError(
                f"positions 'each' for prompts of {', '.join(map(str, lengths))} tokens: a place means the same in all "
                "prompts only where they have one length. Use such prompts, or positions='roles'"
            )
        return tuple(map(str, range(lengths[0])))
    places: dict[str, list[int]] = {}
    unlabelled = False
    for batch in batches:
        for example in batch.examples:
            labels = _labels(example, batch.clean.shape[1])
            unlabelled |= None in labels
            for place, label in enumerate(labels):
                if label not in (None, END):
                    places.setdefault(label, []).append(place)
    if not places:
        raise AcdcError(
            "positions 'roles': no example says which role its tokens have. Use positions='each', or give `roles`, "
            'such as {"subject": 2}, with the prompts'
        )
    ordered = sorted(places, key=lambda role: (sum(places[role]) / len(places[role]), role))
    return (*ordered, *([OTHER] if unlabelled else []), END)


def position_groups(batch: Batch, names: Sequence[str]) -> Int[Tensor, "batch pos"]:
    """For each token, the place in `names` (made by `position_names`) of the position that it counts as."""
    n, length = batch.clean.shape
    if not names:
        groups = [[0] * length] * n
    elif tuple(names) == tuple(map(str, range(len(names)))):
        if length != len(names):
            raise AcdcError(f"prompts of {length} tokens, but the circuit's edges are at places 0 to {len(names) - 1}")
        groups = [list(range(length))] * n
    else:
        place = {name: i for i, name in enumerate(names)}
        groups = []
        for example in batch.examples:
            labels = [label or OTHER for label in _labels(example, length)]
            for label in labels:
                if label not in place:
                    raise AcdcError(
                        f"{example.clean!r} has a token of role {label!r}, but the circuit's edges are at "
                        f"{', '.join(names)} only. Use prompts with these roles"
                    )
            groups.append([place[label] for label in labels])
    return torch.tensor(groups, device=batch.clean.device)


def _labels(example: Example, length: int) -> list[str | None]:
    """The role of each token; the last is `end`."""
    labels: list[str | None] = [None] * length
    for role, given in example.roles.items():
        if not -length <= given < length:
            raise AcdcError(f"role {role!r} is at token {given} of {example.clean!r}, which has {length} tokens")
        place = given % length
        if place == length - 1:
            continue
        if role in (END, OTHER) or not role:
            raise AcdcError(f"role {role!r} of {example.clean!r} at token {place}: that name is taken; choose another")
        if labels[place] is not None:
            raise AcdcError(f"{example.clean!r}: token {place} has two roles, {labels[place]!r} and {role!r}; give one")
        labels[place] = role
    labels[-1] = END
    return labels


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

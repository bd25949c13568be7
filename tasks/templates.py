"""How a task is made from templates: texts with slots, which words fill so that all prompts of one have one length.

A task says which words may fill which slots (`Rows`, `Different`), and, for each filling, how the corrupted prompt
differs and what completes the clean one (`Pair`). `draw` takes distinct fillings by a seed, checks every prompt against
the tokenizer, labels token positions by role, and remembers what was used and what was dropped, and why.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import perm
from typing import Any

from acdc.errors import AcdcError
from acdc.task import Example, Task, Tokenizer

from .words import Words, token_ids, token_position

SLOT = re.compile(r"\{(\w+)\}")
ROLE = re.compile(r"(\w+)([+-]\d+)?")
MOST_SAMPLED = 2**62  # the length of a range that random.sample takes


@dataclass(frozen=True)
class Rows:
    """Slots that are filled together: each row has a word for each slot. A template need not hold all of them."""

    slots: tuple[str, ...]
    rows: Sequence[Sequence[str]]

    def count(self) -> int:
        return len(self.rows)

    def fill(self, number: int) -> dict[str, str]:
        return dict(zip(self.slots, self.rows[number], strict=True))


@dataclass(frozen=True)
class Different:
    """Slots that are filled with different words of one list, in every order.

    A word may bring others with it: then it is a row, and each slot stands for as many, such as a word and its initial.
    """

    slots: tuple[str | tuple[str, ...], ...]
    words: Sequence[str | tuple[str, ...]]

    def count(self) -> int:
        return perm(len(self.words), len(self.slots))

    def fill(self, number: int) -> dict[str, str]:
        places: list[int] = []
        for left in range(len(self.words) - len(self.slots) + 1, len(self.words) + 1):
            number, place = divmod(number, left)
            places.insert(0, place)
        words = list(self.words)
        fill: dict[str, str] = {}
        for slots, place in zip(self.slots, places, strict=True):
            fill |= zip(_row(slots), _row(words.pop(place)), strict=True)
        return fill


def _row(words: str | tuple[str, ...]) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else words


@dataclass(frozen=True)
class Pair:
    """What completes a clean prompt, and what is otherwise in the corrupted one.

    `changed`: the word by slot, or, for a slot S that occurs more than once, by occurrence: S1, S2, ...
    `answer`, `wrong`: with the space before them, where there is one.
    """

    changed: Mapping[str, str]
    answer: str
    wrong: str


Fill = Mapping[str, str]
Complete = Callable[[Fill, random.Random], Pair]


@dataclass(frozen=True)
class Design:
    """What a task is, whatever the tokenizer, the seed and the templates.

    `choices`: what may fill the slots; all combinations are possible. `roles`: the occurrences whose tokens have a
    role, or, where a role is called otherwise, {role: occurrence}; "S1+1" is the token after S1, "S1-1" the one before.
    The last token always has the role `end`. `options`: what the builder was asked for, for the provenance.
    """

    name: str
    description: str
    source: str
    roles: Sequence[str] | Mapping[str, str]
    choices: Sequence[Rows | Different]
    complete: Complete
    metric: str = "logit_difference"
    options: Mapping[str, Any] = field(default_factory=dict)


def draw(design: Design, templates: Sequence[str | tuple[str, ...]], words: Words, *, n: int, seed: int,
         same_length: bool = True) -> Task:
    """`n` examples with distinct clean prompts; the same seed gives the same.

    Templates take turns until they run out; those of a tuple (orders of one wording) follow each other. With
    `same_length`, only the templates of the commonest length are used (the shortest of a tie).
    """
    tokenizer = words.tokenizer
    if not templates:
        raise AcdcError(f"{design.name} needs at least one template; none given")
    groups = [tuple(Template(tokenizer, text, design) for text in ((given,) if isinstance(given, str) else given))
              for given in dict.fromkeys(templates)]
    usable = _commonest_length(groups) if same_length else groups
    used = words.held_out.of_templates(usable)
    rng = random.Random(seed)
    turns = [template for group in rng.sample(used, len(used)) for template in group]
    possible = sum(template.n_prompts for template in turns)
    if not 1 <= n <= possible:
        remedy = "; same_length=False uses templates of all lengths" if len(usable) < len(groups) and n >= 1 else ""
        raise AcdcError(f"cannot make {n:,} different {design.name} examples: ask for 1 to {possible:,}{remedy}")
    drawn = _take_turns(turns, n, rng)
    examples = tuple(template.example(tokenizer, number, rng) for template, number in drawn)
    lengths = sorted({template.length for template in turns})
    return Task(
        name=design.name,
        examples=examples,
        metric=design.metric,
        description="; ".join([design.description, f"{' or '.join(map(str, lengths))} tokens a prompt",
                               *(f"{len(words.kept[kind])} of {words.given[kind]} {kind} are used"
                                 for kind in words.kept)]),
        source=design.source,
        provenance={
            "builder": design.name, "n": n, "seed": seed, "same_length": same_length, **design.options,
            **words.held_out.provenance, "possible": possible,
            "templates": [group[0].text for group in used], **words.kept,
            "dropped": {**words.dropped, "templates": [group[0].text for group in groups if group not in usable]},
        },
    )


class Template:
    """One text with slots, for one tokenizer: where its words stand, and its prompts, numbered."""

    def __init__(self, tokenizer: Tokenizer, text: str, design: Design) -> None:
        self.text, self.design = text, design
        slots = SLOT.findall(text)
        self.slots = {slot if slots.count(slot) == 1 else f"{slot}{slots[: i + 1].count(slot)}": slot
                      for i, slot in enumerate(slots)}  # by occurrence
        # A choice that fills no slot of this template has one filling.
        self.counts = [choice.count() if {name for slot in choice.slots for name in _row(slot)} & set(slots) else 1
                       for choice in design.choices]
        self.n_prompts = 1
        for count in self.counts:
            self.n_prompts *= count
        if not self.n_prompts:
            raise AcdcError(f"{design.name}: too few words for the template {text!r}")
        fill = self._fill(0)
        prompt, starts = self._render(fill, {})
        self.length = len(token_ids(tokenizer, prompt))
        self.positions = {occurrence: token_position(tokenizer, prompt, starts[occurrence], fill[slot])
                          for occurrence, slot in self.slots.items()}
        roles = design.roles if isinstance(design.roles, Mapping) else {role: role for role in design.roles}
        places = {role: self._place(occurrence) for role, occurrence in roles.items()}
        self.roles = {**{role: place for role, place in places.items() if place is not None}, "end": self.length - 1}

    def example(self, tokenizer: Tokenizer, number: int, rng: random.Random) -> Example:
        """The example with clean prompt `number`; what else is in the corrupted one may be drawn."""
        fill = self._fill(number)
        pair = self.design.complete(fill, rng)
        clean, corrupted = (self._prompt(tokenizer, fill, changed) for changed in ({}, pair.changed))
        return Example(clean, corrupted, pair.answer, pair.wrong, self.text, dict(self.roles))

    def _place(self, role: str) -> int | None:
        """Where a token is, such as S1+1; None if this template lacks it."""
        match = ROLE.fullmatch(role)
        assert match is not None, role
        return self.positions[match[1]] + int(match[2] or 0) if match[1] in self.positions else None

    def _fill(self, number: int) -> dict[str, str]:
        fill: dict[str, str] = {}
        for choice, count in zip(reversed(self.design.choices), reversed(self.counts), strict=True):
            number, own = divmod(number, count)
            fill |= choice.fill(own)
        return fill

    def _render(self, fill: Fill, changed: Fill) -> tuple[str, dict[str, int]]:
        """The prompt, and the character at which each of its words begins."""
        prompt, *texts = SLOT.split(self.text)[::2]
        starts = {}
        for occurrence, text in zip(self.slots, texts, strict=True):
            starts[occurrence] = len(prompt)
            prompt += self._word(occurrence, fill, changed) + text
        return prompt, starts

    def _word(self, occurrence: str, fill: Fill, changed: Fill) -> str:
        slot = self.slots[occurrence]
        return changed.get(occurrence, changed.get(slot, fill[slot]))

    def _prompt(self, tokenizer: Tokenizer, fill: Fill, changed: Fill) -> str:
        """The prompt, checked to be as long as its template's others and to have its words where the roles say."""
        prompt, _ = self._render(fill, changed)
        ids = token_ids(tokenizer, prompt)
        expected = {self.positions[occurrence]: self._word(occurrence, fill, changed) for occurrence in self.slots}
        if len(ids) != self.length or any(tokenizer.decode([ids[at]]).strip() != word for at, word in expected.items()):
            raise AcdcError(
                f"this tokenizer splits {prompt!r} otherwise than the other prompts of its template: into "
                f"{[tokenizer.decode([i]) for i in ids]}, where {self.length} tokens are expected and, by position, "
                f"{expected}. Leave out that template or those words"
            )
        return prompt


def _commonest_length(groups: Sequence[tuple[Template, ...]]) -> list[tuple[Template, ...]]:
    by_length: dict[int, list[tuple[Template, ...]]] = {}
    for group in groups:
        by_length.setdefault(group[0].length, []).append(group)
    return by_length[min(by_length, key=lambda length: (-len(by_length[length]), length))]


def _take_turns(templates: Sequence[Template], n: int, rng: random.Random) -> list[tuple[Template, int]]:
    """`n` distinct prompts as (template, number): templates take turns until they run out."""
    used = [0] * len(templates)
    turns: list[int] = []
    while len(turns) < n:
        free = [i for i, template in enumerate(templates) if used[i] < template.n_prompts][: n - len(turns)]
        for i in free:
            used[i] += 1
        turns += free
    numbers = [iter(_distinct(rng, template.n_prompts, k)) for template, k in zip(templates, used, strict=True)]
    return [(templates[i], next(numbers[i])) for i in turns]


def _distinct(rng: random.Random, count: int, k: int) -> list[int]:
    """`k` distinct numbers below `count`."""
    if count <= MOST_SAMPLED:
        return rng.sample(range(count), k)
    numbers: dict[int, None] = {}
    while len(numbers) < k:
        numbers[rng.randrange(count)] = None
    return list(numbers)

"""What can be asked of an activation: labels of places in prompts, from the task itself or from a user's file.

A row is one token position of one prompt. Beside its label it has a `word`, the type by which a control task draws
labels, and a `group`: rows of one group are never on both sides of a fit.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from acdc.annotation.sites import read
from acdc.errors import AcdcError, unknown_name
from acdc.input_file import read_text
from acdc.task import END, Batch, Example
from acdc.transformer import Transformer

VARIABLES = ("answer", "wrong", "order", "template", "corrupted", "role")
GROUPS = ("prompt", "word", "template")


@dataclass(frozen=True, eq=False)
class Labels:
    """Rows with their labels: text (classes), or numbers. `prompt` counts the prompts of the batches in their order."""

    name: str
    prompt: Int[np.ndarray, " row"]
    position: Int[np.ndarray, " row"]
    corrupted: Bool[np.ndarray, " row"]
    values: Shaped[np.ndarray, " row"]
    word: Shaped[np.ndarray, " row"]
    group: Shaped[np.ndarray, " row"]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def numeric(self) -> bool:
        return self.values.dtype.kind == "f"

    @property
    def classes(self) -> list[str]:
        return [] if self.numeric else np.unique(self.values).tolist()

    def of(self, rows: Bool[np.ndarray, " row"]) -> "Labels":
        """Some of the rows."""
        return Labels(self.name, self.prompt[rows], self.position[rows], self.corrupted[rows], self.values[rows],
                      self.word[rows], self.group[rows])


@dataclass(frozen=True)
class Row:
    prompt: int
    position: int
    value: Any
    corrupted: bool = False
    word: str | None = None


def variable(batches: Sequence[Batch], name: str, position: str = END, *, words: str | None = None,
             group: str = "prompt") -> Labels:
    """The labels of a variable of the task, at one position of each prompt: a role, `end` or a place such as "3".

    `answer`, `wrong`: that token's text. `order`: which of the two comes first in the prompt. `template`. `corrupted`:
    whether the prompt is the clean or the corrupted one. `role`: the role itself, at all positions that have one.
    `words`: the role at which the word type of a row stands (default: the position itself); where that is one word in
    all prompts, each prompt is a type of its own. `group`: what a probe must never see both in fitting and testing:
    "prompt", "word" (type) or "template". Raises `AcdcError` for a name or position that is none, and where `order`
    is asked of prompts without the two words.
    """
    if name not in VARIABLES:
        raise unknown_name("variable", name, VARIABLES)
    rows, prompt = [], 0
    for batch in batches:
        for i, example in enumerate(batch.examples):
            if name == "role":
                length = batch.clean.shape[1]
                at = {place % length: role for role, place in example.roles.items()} | {length - 1: END}
                rows += [Row(prompt, place, role) for place, role in sorted(at.items())]
            else:
                place = place_of(example, batch.clean.shape[1], position)
                rows.append(Row(prompt, place, _value(name, batch, i)))
                if name == "corrupted":
                    rows.append(Row(prompt, place, "corrupted", corrupted=True))
            prompt += 1
    return labelled(name, batches, rows, words=words, group=group)


def has_order(batches: Sequence[Batch]) -> bool:
    """Whether all prompts hold both the answer and the wrong answer."""
    return all(bool((batch.clean == tokens[:, None]).any(1).all())
               for batch in batches for tokens in (batch.answer, batch.wrong))


def _value(name: str, batch: Batch, i: int) -> str:
    example = batch.examples[i]
    if name == "order":
        answer, wrong = ((batch.clean[i] == tokens[i]).nonzero() for tokens in (batch.answer, batch.wrong))
        if not len(answer) or not len(wrong):
            raise AcdcError(f"order: {example.clean!r} does not hold both {example.answer!r} and {example.wrong!r}; "
                            "ask for another variable")
        return "answer first" if int(answer[0]) < int(wrong[0]) else "wrong first"
    return {"answer": example.answer, "wrong": example.wrong, "template": example.template, "corrupted": "clean"}[name]


def place_of(example: Example, length: int, position: str) -> int:
    """The token that a role, `end` or a number (from the end, where negative) means."""
    if position == END:
        return length - 1
    if position in example.roles:
        return example.roles[position] % length
    try:
        place = int(position)
    except ValueError:
        raise AcdcError(f"{example.clean!r} has no position {position!r}; it has the roles "
                        f"{', '.join([*example.roles, END])}, or give a number") from None
    if not -length <= place < length:
        raise AcdcError(f"position {place} of {example.clean!r}: it has {length} tokens")
    return place % length


def labelled(name: str, batches: Sequence[Batch], rows: Sequence[Row], *, words: str | None = None,
             group: str = "prompt") -> Labels:
    """The rows with their word types and groups; arguments as those of `variable`."""
    if group not in GROUPS:
        raise unknown_name("group", group, GROUPS)
    if not rows:
        raise AcdcError(f"{name}: no prompt has a label")
    examples = [example for batch in batches for example in batch.examples]
    texts = [pair for batch in batches
             for pair in zip(batch.clean.cpu().tolist(), batch.corrupted.cpu().tolist(), strict=True)]

    def word(row: Row) -> str:
        tokens = texts[row.prompt][row.corrupted]
        place = row.position if words is None else place_of(examples[row.prompt], len(tokens), words)
        return str(tokens[place])

    types = [word(row) if row.word is None else row.word for row in rows]
    if len(set(types)) == 1:
        types = [str(texts[row.prompt][row.corrupted]) for row in rows]
    groups = {"prompt": [str(texts[row.prompt][False]) for row in rows], "word": types,
              "template": [examples[row.prompt].template for row in rows]}[group]
    numeric = all(isinstance(row.value, float) for row in rows)
    return Labels(name, np.array([row.prompt for row in rows]), np.array([row.position for row in rows]),
                  np.array([row.corrupted for row in rows]),
                  np.array([row.value for row in rows], dtype=float if numeric else str), np.array(types),
                  np.array(groups))


def read_labels(path: str | Path, examples: Sequence[Example], batches: Sequence[Batch], *, position: str = END,
                numeric: bool = False, words: str | None = None, group: str = "prompt") -> Labels:
    """The labels in a file: .csv with a header, or .json with a list of objects, a row a label.

    Each has `label`; `example`, the number of an example from 0, or `prompt`, the text of clean ones; and may have
    `position` (a place or a role; else the argument's) and `word` (its type; else as `variable` says). `numeric`: the
    labels are numbers, else classes. Raises `AcdcError`, naming file and row, for whatever does not fit.
    """
    path = Path(path)
    flat = [example for batch in batches for example in batch.examples]
    number = {id(example): i for i, example in enumerate(examples)}
    order = {number[id(example)]: place for place, example in enumerate(flat) if id(example) in number}
    by_text: dict[str, list[int]] = {}
    for place, example in enumerate(flat):
        by_text.setdefault(example.clean, []).append(place)
    lengths = [batch.clean.shape[1] for batch in batches for _ in range(len(batch))]
    rows = []
    for where, record in _records(path):
        try:
            value = float(record["label"]) if numeric else str(record["label"])
        except (KeyError, ValueError, TypeError, OverflowError):
            wanted = "number" if numeric else "text"
            raise AcdcError(f"{where}: no label that is a {wanted}; got {record.get('label')!r}") from None
        if numeric and not np.isfinite(value):
            raise AcdcError(f"{where}: the label {value} is not a finite number")
        at, word = record.get("position", ""), record.get("word", "")
        for prompt in _prompts(where, record, order, by_text, len(examples)):
            place = place_of(flat[prompt], lengths[prompt], position if at in ("", None) else str(at))
            rows.append(Row(prompt, place, value, word=None if word in ("", None) else str(word)))
    return labelled(path.stem, batches, rows, words=words, group=group)


def _prompts(where: str, record: dict[str, Any], order: dict[int, int], by_text: dict[str, list[int]], n: int
             ) -> list[int]:
    """The prompts that a row of a file is about."""
    if record.get("example") not in (None, ""):
        try:
            return [order[int(record["example"])]]
        except (KeyError, ValueError, TypeError, OverflowError):
            raise AcdcError(f"{where}: there is no example {record['example']!r}; the task has 0 to {n - 1}") from None
    if isinstance(record.get("prompt"), str) and record["prompt"] in by_text:
        return by_text[record["prompt"]]
    raise AcdcError(f"{where}: {record.get('prompt')!r} is no clean prompt of the task; give `prompt` as it is there "
                    f"or `example`, a number from 0 to {n - 1}")


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        text = read_text(path, encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            found: Any = json.loads(text)
        elif path.suffix.lower() == ".csv":
            found = list(csv.DictReader(io.StringIO(text)))
        else:
            raise AcdcError(f"label file {path}: its name must end in .csv or .json")
    except OSError as error:
        raise AcdcError(f"label file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise AcdcError(f"label file {path} is not UTF-8 text") from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise AcdcError(f"label file {path} is not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(found, list) or not found or not all(
        isinstance(record, dict) and None not in record for record in found
    ):
        raise AcdcError(f"label file {path}: a list of objects with label and example or prompt is expected")
    return [(f"label file {path}, row {i + 1}", record) for i, record in enumerate(found)]


def gather(model: Transformer, batches: Sequence[Batch], sites: Sequence[str], labels: Labels
           ) -> dict[str, Float[Tensor, "row width"]]:
    """What is at the sites in each row, in float64 on the CPU. Cost: a pass a batch, two with corrupted rows."""
    found: dict[str, list[Tensor]] = {name: [] for name in sites}
    order, start = [], 0
    for batch in batches:
        inside = (labels.prompt >= start) & (labels.prompt < start + len(batch))
        for corrupted, tokens in ((False, batch.clean), (True, batch.corrupted)):
            rows = np.nonzero(inside & (labels.corrupted == corrupted))[0]
            if len(rows):
                order += rows.tolist()
                seen = read(model, tokens, sites)
                for name in sites:
                    found[name].append(seen[name][labels.prompt[rows] - start, labels.position[rows]].double().cpu())
        start += len(batch)
    back = torch.tensor(order).argsort()
    return {name: torch.cat(parts)[back] for name, parts in found.items()}

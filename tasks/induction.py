"""Induction: in "... A B ... A", what followed A before follows it again -> B."""

import random
import re
from collections.abc import Sequence
from math import perm
from typing import Protocol, runtime_checkable

from acdc.errors import AcdcError
from acdc.task import Example, Task, Tokenizer

from .held_out import HeldOut
from .words import check_prompts_extend, single_tokens, token_ids

WORD = re.compile(r"([Ġ▁ ]?)([a-z]{4,})")  # how byte-level (Ġ) and SentencePiece (▁) vocabularies write " word"
MIN_LENGTH = 6  # with fewer words there may be none left to be the wrong answer


@runtime_checkable
class VocabularyTokenizer(Tokenizer, Protocol):
    """A tokenizer that lists its tokens, as HuggingFace ones do."""

    def get_vocab(self) -> dict[str, int]: ...


def induction(tokenizer: VocabularyTokenizer, *, n: int = 32, seed: int = 0, split: str | None = None,
              by: str | None = None, length: int = 12, n_words: int = 1000) -> Task:
    """Induction: in "... A B ... A", what followed A before follows it again -> B.

    A prompt is `length` random words, all different but for A, which is the last word too: nothing but the earlier
    "A B" speaks for B. In the corrupted prompt the first A is a word that the prompt does not hold. The wrong
    answer is another word of the prompt, which occurs once in both prompts and is drawn from the same positions as
    B: copying just any word gains nothing on the metric, only looking up what followed A does.

    Words are the first `n_words` of the vocabulary (the most frequent ones, in BPE vocabularies) that are single
    tokens after a space, of four or more letters a to z; the last ones may be beginnings of words. Each prompt is
    checked to give exactly the tokens drawn. Without templates, its parts can only be split by word.

    Roles: A1 (the first A, the only position where clean and corrupted differ), B, end (the second A).

    Misleads where a model guesses from meaning: words are drawn at random, but some follow others more often.
    Source: Elhage et al. 2021, transformer-circuits.pub/2021/framework; Olsson et al. 2022, arXiv 2209.11895.

        task = induction(tokenizer, n=100, length=30)
    """
    check_prompts_extend(tokenizer)
    if length < MIN_LENGTH:
        raise AcdcError(f"induction prompts of {length} words: at least {MIN_LENGTH} are needed")
    held_out = HeldOut(split, by or "word")
    if held_out.by != "word":
        raise AcdcError("induction has no templates, so it can only be split by word")
    tokens = dict(held_out.of_words(list(_ordinary_words(tokenizer, n_words).items())))
    if len(tokens) < length:
        raise AcdcError(
            f"induction prompts of {length} words need as many different words that are single tokens; there are "
            f"{len(tokens)}, of {n_words:,} asked for. Ask for shorter prompts (length={MIN_LENGTH} or more) or, "
            "unless the vocabulary has no more, for more n_words"
        )
    possible = perm(len(tokens), length - 1) * (length - 3)
    if not 1 <= n <= possible:
        raise AcdcError(f"cannot make {n:,} different induction examples: ask for 1 to {possible:,}")
    opening, before = _opening(tokenizer, tokens)
    words, rng = list(tokens), random.Random(seed)
    examples: dict[str, Example] = {}
    while len(examples) < n:
        example = _example(rng, words, length, opening, len(before))
        for prompt in (example.clean, example.corrupted):
            _check(tokenizer, prompt, before + [tokens[word] for word in prompt.split()])
        examples.setdefault(example.clean, example)
    return Task(
        name="induction",
        examples=tuple(examples.values()),
        description=f"Induction: {length} random words, the last of which occurred before; what followed it then?",
        source="Elhage et al. 2021, transformer-circuits.pub/2021/framework; Olsson et al. 2022, arXiv 2209.11895",
        provenance={"builder": "induction", "n": n, "seed": seed, "length": length, "n_words": n_words,
                    **held_out.provenance, "possible": possible},
    )


def _example(rng: random.Random, words: Sequence[str], length: int, opening: str, shift: int) -> Example:
    *prompt, other = rng.sample(words, length)
    a1 = rng.randrange(1, length - 2)  # not first: models treat the first position apart
    wrong = rng.choice([i for i in range(2, length - 1) if i not in (a1, a1 + 1)])
    prompt.append(prompt[a1])
    corrupted = [*prompt[:a1], other, *prompt[a1 + 1 :]]
    return Example(
        clean=opening + " ".join(prompt),
        corrupted=opening + " ".join(corrupted),
        answer=f" {prompt[a1 + 1]}",
        wrong=f" {prompt[wrong]}",
        roles={"A1": shift + a1, "B": shift + a1 + 1, "end": shift + length - 1},
    )


def _ordinary_words(tokenizer: VocabularyTokenizer, n_words: int) -> dict[str, int]:
    """The first words of the vocabulary that are single tokens. Words with an s-form in it too (state, states) go
    first: those without are often beginnings of words (caus, signific)."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    matches = [match for token, _ in vocabulary if (match := WORD.fullmatch(token))]
    spaced = dict.fromkeys(match[2] for match in matches if match[1])
    words = spaced or dict.fromkeys(match[2] for match in matches)  # toy vocabularies may not mark spaces
    candidates = sorted(words, key=lambda word: f"{word}s" not in words)
    tokens: dict[str, int] = {}
    for start in range(0, len(candidates), 100):  # in pieces: a vocabulary holds far more than are needed
        if len(tokens) < n_words:
            tokens |= single_tokens(tokenizer, candidates[start : start + 100])
    return dict(list(tokens.items())[:n_words])


def _opening(tokenizer: Tokenizer, tokens: dict[str, int]) -> tuple[str, list[int]]:
    """What to put before the first word so that it is the token that it is elsewhere, and the ids before it (BOS)."""
    first, second = list(tokens)[:2]
    for opening in (" ", ""):  # byte-level vocabularies need the space; SentencePiece ones add it themselves
        ids = token_ids(tokenizer, f"{opening}{first} {second}")
        if ids[-2:] == [tokens[first], tokens[second]] and ids[:-2] == token_ids(tokenizer, ""):
            return opening, ids[:-2]
    raise AcdcError(
        "this tokenizer splits a word at the beginning of a text otherwise than inside, with and without a space: "
        f"'{first} {second}' gives the ids {ids}, where {tokens[first]} and {tokens[second]} are expected. Give the "
        "prompts as a file"
    )


def _check(tokenizer: Tokenizer, prompt: str, expected: list[int]) -> None:
    ids = token_ids(tokenizer, prompt)
    if ids != expected:
        raise AcdcError(
            f"this tokenizer gives {prompt!r} the ids {ids}, where {expected} are expected. Give the prompts as a file"
        )

"""Which words are one token for a tokenizer, and at which position of a prompt a word stands."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from acdc.errors import AcdcError
from acdc.task import Tokenizer

from .held_out import HeldOut


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def check_prompts_extend(tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer that ends every prompt with a token of its own: no answer could follow it."""
    prompt, longer = token_ids(tokenizer, "to"), token_ids(tokenizer, "to and")
    if longer[: len(prompt)] != prompt:
        raise AcdcError(
            f"this tokenizer does not continue a prompt where it ends: 'to' gives the ids {prompt}, 'to and' "
            f"gives {longer}. A token it adds at the end, such as EOS, must be turned off (add_eos_token=False)"
        )


def continues(tokenizer: Tokenizer, text: str, word: str) -> bool:
    """Whether `word`, right after `text`, is one token."""
    before, ids = token_ids(tokenizer, text), token_ids(tokenizer, text + word)
    return ids[:-1] == before and tokenizer.decode(ids[-1:]).strip() == word.strip()


def single_tokens(tokenizer: Tokenizer, words: Iterable[str]) -> dict[str, int]:
    """The token of each word that is one token between other words; split and unknown words are left out."""
    start = token_ids(tokenizer, "to")
    tokens = {}
    for word in words:
        ids = token_ids(tokenizer, f"to {word}")
        if (
            ids[:-1] == start
            and tokenizer.decode(ids[-1:]).strip() == word
            and token_ids(tokenizer, f"to {word} and")[: len(ids)] == ids
        ):
            tokens[word] = ids[-1]
    return tokens


def token_position(tokenizer: Tokenizer, prompt: str, start: int, word: str) -> int:
    """The position of the one token that is `word`, which begins at character `start` of `prompt`.

    It is the last token of the text up to the end of the word. That the whole prompt is split at the same places, and
    that the token decodes to the word and nothing else but a space, is checked.
    """
    ids = token_ids(tokenizer, prompt)
    through = token_ids(tokenizer, prompt[: start + len(word)])
    if ids[: len(through)] != through or tokenizer.decode(through[-1:]).strip() != word:
        pieces = [tokenizer.decode([i]) for i in ids]
        raise AcdcError(
            f"{word!r} is not one token in {prompt!r}, which is split into {pieces}. Choose other words or "
            "another wording, or give the prompts as a file"
        )
    return len(through) - 1


@dataclass(frozen=True)
class Words:
    """The words of a task that a tokenizer has as single tokens, in the part asked for, as the task takes them.

    `kept`, `dropped` and `given` (how many there were) fill up, by kind: the task's provenance.
    """

    task: str
    tokenizer: Tokenizer
    held_out: HeldOut = HeldOut()
    kept: dict[str, list[Any]] = field(default_factory=dict)
    dropped: dict[str, list[Any]] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_prompts_extend(self.tokenizer)

    def take(self, kind: str, words: Sequence[str], *, at_least: int = 1, option: str = "") -> list[str]:
        """Those that are single tokens after a space. `option`: the argument by which a user passes others."""
        tokens = single_tokens(self.tokenizer, words)
        return self.keep(kind, words, [word for word in dict.fromkeys(words) if word in tokens], at_least, option)

    def take_rows(self, kind: str, rows: Sequence[tuple[str, ...]], *, at_least: int = 1,
                  option: str = "") -> list[tuple[str, ...]]:
        """Rows of words that belong together, such as a country and its capital: those with single tokens only."""
        tokens = single_tokens(self.tokenizer, dict.fromkeys(word for row in rows for word in row))
        usable = [row for row in dict.fromkeys(rows) if all(word in tokens for word in row)]
        return self.keep(kind, rows, usable, at_least, option)

    def keep(self, kind: str, given: Sequence[Any], usable: Sequence[Any], at_least: int = 1,
             option: str = "") -> list[Any]:
        """The part asked for of the `usable` ones, words or rows, out of all those `given`."""
        given = list(dict.fromkeys(given))
        split = [word for word in given if word not in usable]
        kept = self.held_out.of_words(usable)
        if len(kept) < at_least:
            shown = [word if isinstance(word, str) else "/".join(word) for word in split]
            but = f" (not {', '.join(shown[:9])}{', ...' if len(shown) > 9 else ''})" if shown else ""
            part = f", {len(kept)} of them in the part {self.held_out.part!r}" if len(kept) < len(usable) else ""
            raise AcdcError(
                f"{self.task} needs {at_least} or more {kind} that are single tokens after a space; this tokenizer "
                f"has {len(usable)} of {len(given)}{but}{part}. "
                f"{f'Pass other {option}, or give' if option else 'Give'} the prompts as a file"
            )
        self.kept[kind] = [word if isinstance(word, str) else list(word) for word in kept]
        self.dropped[kind] = [word if isinstance(word, str) else list(word) for word in split]
        self.given[kind] = len(given)
        return kept

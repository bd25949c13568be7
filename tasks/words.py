"""Which words are one token for a tokenizer, and at which position of a prompt a word stands."""

from collections.abc import Iterable

from acdc.errors import AcdcError
from acdc.task import Tokenizer


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

    It is the number of tokens of what comes before the word and its space. That the whole prompt is split at the
    same places, and that the token there decodes to the word, is checked.
    """
    ids = token_ids(tokenizer, prompt)
    before = token_ids(tokenizer, prompt[: start - 1])
    position = len(before)
    through = token_ids(tokenizer, prompt[: start + len(word)])
    found = tokenizer.decode(through[-1:]).strip()
    if ids[:position] != before or ids[: position + 1] != through or found != word:
        pieces = [tokenizer.decode([i]) for i in ids]
        raise AcdcError(
            f"{word!r} is not one token in {prompt!r}, which is split into {pieces}. Choose other words or "
            "another wording, or give the prompts as a file"
        )
    return position

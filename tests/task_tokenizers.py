"""Tokenizers on which every built-in task can be made: small BPEs, trained on the tasks' own prompts.

`WholeWords` knows every word there is; the prompts it makes are what the BPEs learn from. As they see some of the words
only, they split others, which tasks must then drop.
"""

import re
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from acdc import tasks
from acdc.tasks.ioi import OBJECTS, PLACES

TASKS = {name: builder for name, builder in tasks.TASKS.items() if name != "digits"}  # those of text
PIECES = re.compile(r"'t| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+|\d")


class WholeWords:
    """Every word with the space before it, every digit and every run of other characters is a token."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.pieces: list[str] = []

    def __call__(self, text: str) -> dict[str, list[int]]:
        for piece in PIECES.findall(text):
            if piece not in self.ids:
                self.ids[piece] = len(self.pieces)
                self.pieces.append(piece)
        return {"input_ids": [self.ids[piece] for piece in PIECES.findall(text)]}

    def decode(self, token_ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in token_ids)

    def get_vocab(self) -> dict[str, int]:
        return {f"Ġ{word}": i for i, word in enumerate((*PLACES, *OBJECTS))}


class Remembered:
    """A tokenizer that reads each text once: tasks ask the same of it again and again."""

    def __init__(self, tokenizer: Any) -> None:
        self.get_vocab = tokenizer.get_vocab
        self.read = cache(lambda text: tokenizer(text)["input_ids"])
        self.written = cache(lambda ids: tokenizer.decode(list(ids)))

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(self.read(text))}

    def decode(self, token_ids: list[int]) -> str:
        return self.written(tuple(token_ids))


@cache
def texts() -> list[str]:
    whole = WholeWords()
    return [text for name, builder in TASKS.items() for example in builder(whole, n=40, seed=9).examples
            for text in (example.clean + example.answer, example.corrupted + example.wrong)]


def bpe(kind: str) -> PreTrainedTokenizerFast:
    """`digits`: as SmolLM2's, a digit a token. `pairs`: as GPT-2's, years are 17|32. `bos`: as `digits`, with <s>
    before each text. `metaspace`: as Llama 2's, ▁ for spaces, a digit a token, with <s>."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d{1,2}" if kind == "pairs" else r"\d"), "isolated")
    trained: Any = {"vocab_size": 4000, "show_progress": False, "special_tokens": ["<s>"], "min_frequency": 1}
    if kind == "metaspace":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.Split(Regex(r"▁?\p{L}+|▁+|[^▁\p{L}\d]"), "isolated")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    else:
        space = pre_tokenizers.Split(Regex(r" ?\d{1,2}(?!\d)| ?\d{2}"), "isolated") if kind == "pairs" else digits
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([space, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.decoder = decoders.ByteLevel()
        trained["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    years = [f" 17{year:02} 17{year:02}" for year in range(100)] * 3 if kind == "pairs" else []
    tokenizer.train_from_iterator([*texts(), *years], trainers.BpeTrainer(**trained))
    if kind in ("bos", "metaspace"):
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


KINDS = ("digits", "pairs", "bos", "metaspace")

"""A tokenizer of a few hundred whole words, built in memory: what tests of tasks and tiny models read text with.

It covers the templates, places and objects of `ioi` and its first 40 names, and so words enough for `induction`.
"""

import re
from typing import Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from acdc.tasks.ioi import NAMES, OBJECTS, PLACES, SLOT, TEMPLATES


def tiny_tokenizer(*, bos: bool = False, n_names: int = 40,
                   style: Literal["byte_level", "sentencepiece"] = "byte_level") -> PreTrainedTokenizerFast:
    """Words are tokens with the space before them. `byte_level` writes the space as GPT-2 does and splits the first
    word of a text off without one; `sentencepiece` puts a space before every text, as Llama 2 does. `bos`: every text
    begins with <s>."""
    texts = SLOT.sub("", " ".join(TEMPLATES))
    words = [*re.findall(r"\w+", texts), *NAMES[:n_names], *PLACES, *OBJECTS]
    space = "Ġ" if style == "byte_level" else "▁"
    firsts = [template.split()[0].rstrip(",") for template in TEMPLATES]
    tokens = ["<unk>", "<s>", ",", ".", *firsts, *(f"{space}{word}" for word in words)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    if style == "byte_level":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(",", "isolated"), pre_tokenizers.Split(".", "isolated"),
            pre_tokenizers.Split("▁", "merged_with_next"),
        ])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")

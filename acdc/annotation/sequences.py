"""What heads are shown to find their roles: random tokens, repeated or not, and words that have an order."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from acdc.errors import AcdcError
from acdc.transformer import Transformer

HALF, LEAST_HALF = 24, 6  # tokens that are repeated
ORDINALS = {
    "digits": "1 2 3 4 5 6 7 8 9",
    "numbers": "one two three four five six seven eight nine ten eleven twelve thirteen",
    "ordinals": "first second third fourth fifth sixth seventh eighth ninth tenth",
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "months": "January February March April May June July August September October November December",
    "letters": "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
}


@dataclass(frozen=True, eq=False)
class Sequences:
    """One token, then `half` distinct random tokens, then the same again (`repeated`) or other ones (`control`).

    The first token is what the tokenizer puts before a text, else a random one: heads that rest there do so alike in
    both.
    """

    repeated: Int[Tensor, "sequence pos"]
    control: Int[Tensor, "sequence pos"]
    half: int

    def __len__(self) -> int:
        return len(self.control)


def random_sequences(model: Transformer, n: int = 32, seed: int = 0) -> Sequences:
    """`n` pairs of sequences from the vocabulary without special tokens, as long as the model allows, up to 49 tokens.

    Raises `AcdcError` where the vocabulary or the context is too small for halves of 6 tokens.
    """
    known = ordinary_tokens(model)
    longest = getattr(model.hf.config, "max_position_embeddings", None) or 1 + 2 * HALF
    half = min(HALF, (len(known) - 1) // 2, (longest - 1) // 2)
    if half < LEAST_HALF:
        raise AcdcError(f"{model.name} has {len(known)} tokens and a context of {longest}: too few for random "
                        f"sequences of {1 + 2 * LEAST_HALF} distinct tokens, by which roles are found. Leave roles out")
    generator = torch.Generator().manual_seed(seed)
    drawn = known[torch.stack([torch.randperm(len(known), generator=generator)[: 1 + 2 * half] for _ in range(n)])]
    first = prefix(model.tokenizer)
    if first:
        drawn[:, 0] = first[0]
    control = drawn.to(model.device)
    return Sequences(torch.cat([control[:, : 1 + half], control[:, 1 : 1 + half]], dim=1), control, half)


def prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text."""
    return [] if tokenizer is None else list(tokenizer("")["input_ids"])


def ordinary_tokens(model: Transformer) -> Int[Tensor, " token"]:
    n = model.hf.get_input_embeddings().num_embeddings
    if model.tokenizer is None:
        return torch.arange(n)
    special = set(getattr(model.tokenizer, "all_special_ids", ()))
    return torch.tensor([token for token in range(min(n, len(model.tokenizer))) if token not in special])


def ordinal_classes(tokenizer: Any) -> list[list[int | None]]:
    """The words of each class in their order, as tokens; None for a word that is not one token, with or without a
    space before it. Classes with less than three neighbours that are both known are left out."""
    if tokenizer is None:
        return []
    unknown, before = getattr(tokenizer, "unk_token_id", None), len(prefix(tokenizer))

    def token(word: str) -> int | None:
        for text in (" " + word, word):
            ids = tokenizer(text)["input_ids"][before:]
            if len(ids) == 1 and ids[0] != unknown:
                return ids[0]
        return None

    classes = [[token(word) for word in words.split()] for words in ORDINALS.values()]
    return [words for words in classes if sum(None not in pair for pair in zip(words, words[1:], strict=False)) >= 3]

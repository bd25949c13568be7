"""Handwritten digits: an image of one digit -> which, against the nearest image of another."""

import random
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from acdc.errors import AcdcError
from acdc.task import Example, Task, Tokenizer

from .held_out import HeldOut

LEVELS = 16  # of grey, besides 0
HELD_OUT = 599  # images that the packaged model is not trained on: a third
Images = Float[np.ndarray, "image row column"]


@runtime_checkable
class ImageTokenizer(Tokenizer, Protocol):
    """What writes images as prompts: `acdc.patches.PatchTable`."""

    def text(self, images: Any) -> list[str]: ...
    def place_names(self) -> list[str]: ...


def images_and_labels(*, held_out: bool) -> tuple[Images, Int[np.ndarray, " image"]]:
    """scikit-learn's digits, 8 x 8 pixels between 0 and 1: those that a model is trained on, or the others."""
    from sklearn.datasets import load_digits  # slow to import: not before it is needed

    data: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    chosen = order[:HELD_OUT] if held_out else order[HELD_OUT:]
    return data.images[chosen].astype(np.float32) / LEVELS, data.target[chosen]


def digits(tokenizer: Any, *, n: int = 32, seed: int = 0, split: str | None = None, by: str | None = None,
           pair: tuple[int, int] = (3, 8)) -> Task:
    """Handwritten digits: an image of a 3 or an 8 -> which of them, against the nearest image of the other.

    Clean is an image of one digit of `pair`, corrupted that image of the other one which is nearest (Euclidean, over
    pixels), so that few patches differ. Answer and wrong answer are their digits. Prompts take turns between the two
    digits. All images are of those that the shipped model was not trained on; none is clean twice. The corrupted ones
    of a part (`split`) are of that part, too. An image is this task's word, so it can only be split by word.

    Roles: patch r1 c1, patch r1 c2, ... (row and column, from the upper left); end is the CLS position.

    Needs a model of such images: `digits_vit`, or one with a `PatchTable` that holds their patches.
    Source: scikit-learn's digits, from Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits.

        task = digits(model.tokenizer, n=32, pair=(4, 9))
    """
    if not isinstance(tokenizer, ImageTokenizer):
        raise AcdcError("digits needs a model that reads images, such as digits_vit; this one reads text")
    held_out = HeldOut(split, by or "word")
    if held_out.by != "word":
        raise AcdcError("digits has no templates, so it can only be split by word: an image is one")
    if len(set(pair)) != 2 or not set(pair) <= set(range(10)):
        raise AcdcError(f"digits {pair[0]} and {pair[1]}: give two different ones, of 0 to 9")
    images, labels = images_and_labels(held_out=True)
    of_digit = [images[held_out.of_words(np.nonzero(labels == digit)[0].tolist())] for digit in pair]
    possible = 2 * min(map(len, of_digit))
    if not 1 <= n <= possible:
        raise AcdcError(f"cannot make {n:,} different digits examples: ask for 1 to {possible:,}")
    rng = random.Random(seed)
    orders = [rng.sample(range(len(own)), len(own)) for own in of_digit]
    examples = []
    for i in range(n):
        side = i % 2
        clean, others = of_digit[side][orders[side][i // 2]], of_digit[1 - side]
        nearest = others[((others - clean) ** 2).sum((1, 2)).argmin()]
        examples.append(_example(tokenizer, clean, nearest, pair[side], pair[1 - side]))
    return Task(
        name="digits",
        examples=tuple(examples),
        description=f"Handwritten digits: is it a {pair[0]} or a {pair[1]}? Corrupted: the nearest image of the other",
        source="scikit-learn's digits; Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits",
        provenance={"builder": "digits", "n": n, "seed": seed, "pair": list(pair), **held_out.provenance,
                    "possible": possible},
    )


def _example(tokenizer: Any, clean: np.ndarray, corrupted: np.ndarray, answer: int, wrong: int) -> Example:
    import torch  # tasks of text do without

    texts = tokenizer.text(torch.from_numpy(np.stack([clean, corrupted]))[:, None])
    roles = {name: place for place, name in enumerate(tokenizer.place_names())}
    return Example(texts[0], texts[1], f" {answer}", f" {wrong}", roles={**roles, "end": len(roles)})

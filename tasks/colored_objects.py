"""Coloured objects: "I have a white pen and a red hat. My hat is" -> " red"."""

import random

from acdc.task import Task, Tokenizer

from .held_out import HeldOut
from .templates import Design, Different, Fill, Pair, Rows, draw
from .words import Words

TEMPLATES = (
    "I have a {color1} {object1} and a {color2} {object2}. My {asked} is",
    "He has a {color1} {object1} and a {color2} {object2}. His {asked} is",
    "She has a {color1} {object1} and a {color2} {object2}. Her {asked} is",
    "I bought a {color1} {object1} and a {color2} {object2}. My {asked} is",
    "I see a {color1} {object1} and a {color2} {object2}. The {asked} is",
    "There is a {color1} {object1} and a {color2} {object2}. The {asked} is",
)
COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "purple", "gray", "silver", "golden")
OBJECTS = (
    "pen", "cup", "ball", "box", "hat", "book", "ring", "bag", "car", "key", "shirt", "dress", "coat", "chair",
    "table", "door", "bike", "boat", "truck", "lamp", "phone", "bowl", "plate", "bottle", "jacket", "scarf",
    "pencil", "blanket", "cat", "dog", "horse", "bird", "house", "card", "mug", "watch", "candle", "kite", "tent",
    "rug",
)


def colored_objects(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None,
                    by: str | None = None, same_length: bool = True) -> Task:
    """Coloured objects: "I have a white pen and a red hat. My hat is" -> " red"; the other object when corrupted.

    Two objects of two colours, one of which is asked for; the wrong answer is the colour of the other, for which the
    corrupted prompt asks. Half of the fillings ask for the first.

    Roles: color1, object1, color2, object2, asked, end.

    Differs from the paper and from BIG-bench: two objects instead of three, and no question and answer around them,
    because small models fail at those.
    Source: Merullo et al. 2024, arXiv 2310.08744; Srivastava et al. 2022, arXiv 2206.04615 (reasoning about colored
    objects).

        task = colored_objects(tokenizer, n=64)
    """
    words = Words("colored_objects", tokenizer, HeldOut(split, by))
    colors = words.take("colors", COLORS, at_least=2)
    objects = words.take("objects", OBJECTS, at_least=2)
    pairs = [(first, second, asked) for first in objects for second in objects if first != second
             for asked in (first, second)]

    def complete(fill: Fill, rng: random.Random) -> Pair:
        first = fill["asked"] == fill["object1"]
        answer, wrong = (fill["color1"], fill["color2"])[:: 1 if first else -1]
        return Pair({"asked": fill["object2"] if first else fill["object1"]}, answer=f" {answer}", wrong=f" {wrong}")

    design = Design(
        name="colored_objects",
        description="The colour of one of two objects, the other object in the corrupted prompt",
        source="Merullo et al. 2024, arXiv 2310.08744",
        roles=("color1", "object1", "color2", "object2", "asked"),
        choices=(Different(("color1", "color2"), colors), Rows(("object1", "object2", "asked"), pairs)),
        complete=complete,
    )
    return draw(design, TEMPLATES, words, n=n, seed=seed, same_length=same_length)

"""Multiple choice: "The cup is red. What color is it? A. red B. blue Answer:" -> " A"; the answer is to be copied."""

import random

from acdc.task import Task, Tokenizer

from .held_out import HeldOut
from .templates import Design, Fill, Pair, Rows, draw
from .words import Words

TEMPLATES = tuple(
    f"The cup is blue. {question} cup?\nA. blue\nB. red\nAnswer: A\n\n"
    f"The cap is green. {question} cap?\nA. white\nB. green\nAnswer: B\n\n"
    f"The {{object}} is {{color}}. {question} {{object}}?\nA. {{choiceA}}\nB. {{choiceB}}\nAnswer:"
    for question in ("What color is the", "What color has the", "Which color is the", "Which color has the")
)
COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "purple", "orange", "gray")
OBJECTS = ("pen", "ball", "box", "hat", "book", "ring", "bag", "car", "key", "shirt", "coat", "chair", "table", "door",
           "bike", "boat", "truck", "lamp", "phone", "bowl", "plate", "bottle", "jacket", "house")


def mcqa(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None, by: str | None = None,
         same_length: bool = True) -> Task:
    """Multiple choice: "The pen is red. What color is the pen? A. red B. blue Answer:" -> " A".

    The prompt says the colour, after two worked questions; the model has only to find the letter that stands before it.
    In the corrupted prompt the object has the colour of the other choice, so that the other letter is right. Half of
    the fillings have the answer A.

    Roles: color, choiceA, choiceB, end.

    Misleads in small models, which answer with one letter whatever is asked: read the accuracy first.
    Source: Wiegreffe et al. 2024, arXiv 2407.15018 (colours to be copied); Mueller et al. 2025, arXiv 2504.13151;
    there with four choices.

        task = mcqa(tokenizer, n=64)
    """
    words = Words("mcqa", tokenizer, HeldOut(split, by))
    colors = words.take("colors", COLORS, at_least=2)
    rows = [(first, second, color) for first in colors for second in colors if first != second
            for color in (first, second)]

    def complete(fill: Fill, rng: random.Random) -> Pair:
        answer, wrong, other = ("A", "B", "choiceB") if fill["color"] == fill["choiceA"] else ("B", "A", "choiceA")
        return Pair({"color": fill[other]}, answer=f" {answer}", wrong=f" {wrong}")

    design = Design(
        name="mcqa",
        description="The letter of the colour that the prompt says, the other colour in the corrupted prompt",
        source="Wiegreffe et al. 2024, arXiv 2407.15018; Mueller et al. 2025, arXiv 2504.13151",
        roles=("color", "choiceA", "choiceB"),
        choices=(Rows(("object",), [(thing,) for thing in words.take("objects", OBJECTS)]),
                 Rows(("choiceA", "choiceB", "color"), rows)),
        complete=complete,
    )
    return draw(design, TEMPLATES, words, n=n, seed=seed, same_length=same_length)

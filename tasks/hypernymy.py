"""Hypernymy: "A hammer is a kind of" -> " tool"; what something is a kind of."""

import random

from acdc.task import Task, Tokenizer

from .held_out import HeldOut
from .templates import Design, Fill, Pair, Rows, draw
from .words import Words

TEMPLATES = (
    "The {thing} is a type of", "The {thing} is a kind of", "Any {thing} is a kind of", "Any {thing} is a type of",
    "This {thing} is a kind of", "That {thing} is a type of",
)
KINDS = {
    "bird": ("crow", "duck", "goose", "hawk", "owl", "parrot", "pigeon", "robin", "sparrow", "swan", "falcon", "raven"),
    "fish": ("salmon", "trout", "tuna", "cod", "shark", "carp", "bass"),
    "tree": ("oak", "pine", "maple", "cedar", "birch", "willow", "elm"),
    "flower": ("rose", "lily", "daisy", "tulip", "orchid", "sunflower"),
    "fruit": ("banana", "lemon", "peach", "pear", "cherry", "mango", "grape", "apple", "strawberry"),
    "vegetable": ("carrot", "potato", "cabbage", "spinach", "onion", "tomato", "lettuce"),
    "tool": ("hammer", "wrench", "drill", "saw", "knife", "axe"),
    "vehicle": ("car", "truck", "bus", "van", "taxi", "motorcycle", "tractor"),
    "metal": ("silver", "copper", "zinc", "steel", "iron", "gold"),
    "insect": ("beetle", "butterfly", "moth", "bee", "ant", "mosquito", "wasp"),
    "dog": ("poodle", "terrier", "retriever", "puppy"),
    "dance": ("waltz", "tango", "ballet", "salsa"),
    "weapon": ("gun", "sword", "rifle", "spear", "pistol"),
    "disease": ("flu", "cancer", "malaria", "diabetes", "cholera", "tuberculosis"),
    "sport": ("tennis", "football", "soccer", "hockey", "basketball", "baseball", "golf"),
    "drink": ("tea", "coffee", "beer", "wine", "juice"),
    "furniture": ("chair", "table", "sofa", "desk", "bed", "couch"),
    "fabric": ("silk", "cotton", "wool", "linen", "velvet"),
}


def hypernymy(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None, by: str | None = None,
              same_length: bool = True) -> Task:
    """Hypernymy: "The hammer is a kind of" -> " tool"; a thing of another kind in the corrupted prompt.

    Things whose name and whose kind are single tokens, of several kinds; the wrong answer is the kind of the corrupted
    prompt's thing. `by="word"`: both parts have things of the same kinds, and no thing in common.

    Roles: thing, end.

    Misleads where a thing is of two kinds (a saw, a bass): words were chosen that have a foremost one.
    Source: Hanna et al. 2024, arXiv 2403.17806, there with the plural ("salmons and other" -> " fish") and all right
    answers; things of Battig and Montague's categories.

        task = hypernymy(tokenizer, n=64)
    """
    words = Words("hypernymy", tokenizer, HeldOut(split, by))
    things = words.take_rows("things", [(thing, kind) for kind, own in KINDS.items() for thing in own], at_least=2)

    def complete(fill: Fill, rng: random.Random) -> Pair:
        other, kind = rng.choice([row for row in things if row[1] != fill["kind"]])
        return Pair({"thing": other}, answer=f" {fill['kind']}", wrong=f" {kind}")

    design = Design(
        name="hypernymy",
        description="What a thing is a kind of, a thing of another kind in the corrupted prompt",
        source="Hanna et al. 2024, arXiv 2403.17806",
        roles=("thing",),
        choices=(Rows(("thing", "kind"), things),),
        complete=complete,
    )
    return draw(design, TEMPLATES, words, n=n, seed=seed, same_length=same_length)

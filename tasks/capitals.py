"""Capitals: "The capital of France is" -> " Paris"; factual recall."""

import random

from acdc.task import Task, Tokenizer

from .held_out import HeldOut
from .templates import Design, Fill, Pair, Rows, draw
from .words import Words

TEMPLATES = (
    "The capital city of {country} is",
    "In {country}, the capital is",
    "The capital of {country} is called",
    "The capital of {country} is named",
    "The capital of {country} is",
)
CAPITALS = (
    ("Afghanistan", "Kabul"), ("Argentina", "Buenos"), ("Austria", "Vienna"), ("Bangladesh", "Dhaka"),
    ("Belgium", "Brussels"), ("Bulgaria", "Sofia"), ("Canada", "Ottawa"), ("Chile", "Santiago"), ("China", "Beijing"),
    ("Cuba", "Havana"), ("Denmark", "Copenhagen"), ("Egypt", "Cairo"), ("England", "London"), ("Finland", "Helsinki"),
    ("France", "Paris"), ("Germany", "Berlin"), ("Greece", "Athens"), ("Hungary", "Budapest"), ("Iran", "Tehran"),
    ("Iraq", "Baghdad"), ("Ireland", "Dublin"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Kenya", "Nairobi"),
    ("Lebanon", "Beirut"), ("Libya", "Tripoli"), ("Norway", "Oslo"), ("Peru", "Lima"), ("Philippines", "Manila"),
    ("Poland", "Warsaw"), ("Portugal", "Lisbon"), ("Qatar", "Doha"), ("Romania", "Bucharest"), ("Russia", "Moscow"),
    ("Scotland", "Edinburgh"), ("Serbia", "Belgrade"), ("Spain", "Madrid"), ("Sweden", "Stockholm"),
    ("Switzerland", "Bern"), ("Syria", "Damascus"), ("Taiwan", "Taipei"), ("Thailand", "Bangkok"),
    ("Turkey", "Ankara"), ("Ukraine", "Kyiv"), ("Vietnam", "Hanoi"), ("Wales", "Cardiff"),
)


def capitals(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None, by: str | None = None,
             same_length: bool = True) -> Task:
    """Capitals: "The capital of France is" -> " Paris"; in the corrupted prompt it is another country.

    The model must know the fact: nothing in the prompt tells it. The wrong answer is the capital of the corrupted
    prompt's country, so that the metric turns round where the model takes that country for the one asked about.
    Countries are used whose name and capital are single tokens. (For Argentina the answer is " Buenos".)

    Roles: country, end.

    Misleads where a circuit is found on few countries: a fact has places of its own, and the circuit is that of the
    facts in the prompts. Hold words out (`by="word"`) to see what carries over to others.
    Source: Hanna et al. 2024, arXiv 2403.17806 (Country-Capital), there with wordings of its own.

        task = capitals(tokenizer, n=64)
    """
    words = Words("capitals", tokenizer, HeldOut(split, by))
    countries = words.take_rows("countries", CAPITALS, at_least=2)

    def complete(fill: Fill, rng: random.Random) -> Pair:
        other, capital = rng.choice([row for row in countries if row[0] != fill["country"]])
        return Pair({"country": other}, answer=f" {fill['capital']}", wrong=f" {capital}")

    design = Design(
        name="capitals",
        description="Factual recall: the capital of a country, another country in the corrupted prompt",
        source="Hanna et al. 2024, arXiv 2403.17806",
        roles=("country",),
        choices=(Rows(("country", "capital"), countries),),
        complete=complete,
    )
    return draw(design, TEMPLATES, words, n=n, seed=seed, same_length=same_length)

"""Greater-than: "The war lasted from the year 1732 to the year 17" -> a number above 32."""

import random
from dataclasses import dataclass

from acdc.errors import AcdcError
from acdc.task import Task, Tokenizer

from .held_out import HeldOut
from .templates import Design, Fill, Pair, Rows, draw
from .words import Words, continues, token_ids

TEMPLATES = (
    "The {event} lasted from the year {start} to the year {century}",
    "The {event} went on from the year {start} to {century}",
    "The {event} started in the year {start} and ended in {century}",
    "The {event} began in the year {start} and ended in {century}",
    "The {event} started in the year {start} and finished in {century}",
    "The {event} ran from the year {start} to the year {century}",
)
EVENTS = (
    "war", "trip", "project", "reign", "trial", "journey", "study", "campaign", "program", "contest", "conflict",
    "mission", "siege", "strike", "revolt", "rebellion", "crisis", "debate", "exhibition", "investigation", "movement",
    "plague", "famine", "tour", "voyage", "revolution", "occupation", "construction", "expedition", "dispute",
)


@dataclass(frozen=True)
class Form:
    """How a tokenizer splits years: after `century`, a token of so many `digits` decides."""

    century: str
    digits: int
    start: str
    least: int
    most: int

    def number(self, value: int) -> str:
        return f"{value:0{self.digits}}"

    def splits(self, tokenizer: Tokenizer, decade: str, year: str) -> bool:
        """Whether the year is split so."""
        before = f"year {self.century}"
        return continues(tokenizer, before, decade) and (not year or continues(tokenizer, before + decade, year))


FORMS = (Form("17", 1, "{decade}{year}", 0, 9), Form("17", 2, "{decade}", 1, 98), Form("173", 1, "{decade}", 0, 9))


def greater_than(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None, by: str | None = None,
                 same_length: bool = True) -> Task:
    """Greater-than: "The war lasted from the year 1732 to the year 17" -> "4", not "2": it ends after it began.

    Tokenizers split years otherwise; the prompt ends before the token that decides: two digits where a year is split
    into 17|32 (GPT-2), the third digit where each digit is a token (SmolLM2, Llama 2), the fourth where the first three
    are one (Llama 3). The answer is drawn from the numbers above that of the first year, the wrong answer from those
    below it (where the third digit decides, the same one may be either, and is neither). In the corrupted prompt
    that token of the first year is 0, 01 or 0, so that nearly all years are possible.

    Roles: event, decade (the token of the first year that decides), year (the digit after it, if it is a token of its
    own), end.

    Differs from the paper: its metric is the probability of all years above minus that of all others; ours compares
    one of each, drawn anew for each prompt, so that over many prompts it is an unbiased mean of the logit differences.
    Misleads with few prompts, for that reason.
    Source: Hanna et al. 2023, arXiv 2305.00586.

        task = greater_than(tokenizer, n=64)
    """
    words = Words("greater_than", tokenizer, HeldOut(split, by))
    form = _form(tokenizer)
    century, least, most = form.century, form.number(form.least), form.most
    last_digits = [str(year) for year in range(10)] if "{year}" in form.start else [""]
    given = [(form.number(decade), year) for decade in range(form.least + 2, most) for year in last_digits]
    years = words.keep("years", given, [row for row in given if form.splits(tokenizer, *row)])
    ends = [value for value in range(form.least, most + 1)
            if continues(tokenizer, f"year {century}", form.number(value))]

    def complete(fill: Fill, rng: random.Random) -> Pair:
        decade = int(fill["decade"])
        above, below = ([value for value in ends if value > decade], [value for value in ends if value < decade])
        return Pair({"decade": least}, answer=form.number(rng.choice(above)), wrong=form.number(rng.choice(below)))

    design = Design(
        name="greater_than",
        description="A period ends after it began; in the corrupted prompt it began as early as can be",
        source="Hanna et al. 2023, arXiv 2305.00586",
        roles=("event", "decade", "year"),
        choices=(Rows(("event",), [(event,) for event in words.take("events", EVENTS)]),
                 Rows(("decade", "year"), years)),
        complete=complete,
    )
    templates = [text.replace("{start}", f"{century}{form.start}").replace("{century}", century) for text in TEMPLATES]
    return draw(design, templates, words, n=n, seed=seed, same_length=same_length)


def _form(tokenizer: Tokenizer) -> Form:
    for form in FORMS:
        year = "4" if "{year}" in form.start else ""
        if all(form.splits(tokenizer, form.number(value), year) for value in (2, 5)):
            return form
    pieces = [tokenizer.decode([i]) for i in token_ids(tokenizer, "the year 1732")]
    raise AcdcError(
        f"greater_than needs a tokenizer that splits years into 1|7|3|2, 17|32 or 173|2; this one splits 'the year "
        f"1732' into {pieces}. Give the prompts as a file"
    )

"""Docstrings: the parameter that a Python function's docstring describes next."""

import random

from acdc.task import Task, Tokenizer

from .held_out import HeldOut
from .templates import Design, Different, Fill, Pair, draw
from .words import Words

TEMPLATES = tuple(
    f"def {{name}}(self, {{arg1}}, {{arg2}}, {{arg3}}, {{arg4}}):\n"
    f'    """{title} {{title}}\n\n'
    f"    {mark} {{arg1}}: {{about1}}\n    {mark} {{arg2}}: {{about2}}\n    {mark}"
    for title in ("The", "A", "Some") for mark in (":param", "@param")
)
WORDS = (
    "load", "size", "file", "last", "port", "name", "value", "index", "path", "key", "data", "list", "time", "text",
    "line", "page", "user", "node", "code", "type", "test", "item", "form", "state", "color", "image", "field",
    "table", "group", "model", "level", "rate", "count", "date", "host", "mode", "order", "point", "range",
    "result", "role", "root", "rule", "score", "shape", "sign", "source", "start", "step", "string", "style",
    "target", "title", "token", "total", "unit", "update", "version", "view", "width", "word", "address", "area",
    "base", "block", "board", "body", "box", "branch", "case", "cell", "chain", "channel", "check", "city", "class",
    "client", "content", "cost",
)


def docstring(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None, by: str | None = None,
              same_length: bool = True) -> Task:
    '''Docstring: "def load(self, size, file, path, key): ... :param size: ... :param file: ... :param" -> " path".

    A function with four parameters, of which the docstring describes the first two; the third must follow. In the
    corrupted prompt the third and the fourth have changed places. All names are nouns drawn by chance, each used once.

    Roles: arg1, arg2, arg3, arg4 (in the definition), doc1, doc2 (in the docstring), end.

    Differs from the paper, where the names in the corrupted prompt are others and all wrong names are compared with:
    here both prompts hold answer and wrong answer, the fourth name, so that copying just any name gains nothing and
    only its place tells.
    Source: Heimersheim and Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only transformer".

        task = docstring(tokenizer, n=64)
    '''
    words = Words("docstring", tokenizer, HeldOut(split, by))
    slots = ("name", "arg1", "arg2", "arg3", "arg4", "title", "about1", "about2")

    def complete(fill: Fill, rng: random.Random) -> Pair:
        third, fourth = fill["arg3"], fill["arg4"]
        return Pair({"arg3": fourth, "arg4": third}, answer=f" {third}", wrong=f" {fourth}")

    design = Design(
        name="docstring",
        description="The parameter that a docstring describes next; it has changed places in the corrupted prompt",
        source="Heimersheim and Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer",
        roles={"arg1": "arg11", "arg2": "arg21", "arg3": "arg3", "arg4": "arg4", "doc1": "arg12", "doc2": "arg22"},
        choices=(Different(slots, words.take("nouns", WORDS, at_least=len(slots))),),
        complete=complete,
    )
    return draw(design, TEMPLATES, words, n=n, seed=seed, same_length=same_length)

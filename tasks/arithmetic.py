"""Arithmetic: "3 + 4 = " -> "7", after two worked examples."""

import random

from acdc.errors import AcdcError
from acdc.task import Task, Tokenizer

from .held_out import HeldOut
from .templates import Design, Fill, Pair, Rows, draw
from .words import Words, continues

EXAMPLES = ((2, 3, 4, 4), (5, 2, 3, 3), (1, 4, 6, 2), (7, 1, 2, 2), (3, 5, 1, 1), (4, 2, 1, 5))
TEMPLATES = tuple(f"{a} + {b} = {a + b}, {c} + {d} = {c + d}, {{a}} {{operator}} {{b}} =" for a, b, c, d in EXAMPLES)
SHOWN = {(a, b) for row in EXAMPLES for a, b in (row[:2], row[2:])}


def arithmetic(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None, by: str | None = None,
               same_length: bool = True) -> Task:
    """Arithmetic: "2 + 3 = 5, 4 + 4 = 8, 3 + 6 = " -> "9"; the first operand is another in the corrupted prompt.

    Sums of two digits from 1 to 8 that are one digit, after two worked sums, which are never the ones asked for. The
    wrong answer is the sum of the corrupted prompt. Where a tokenizer has digits as tokens of their own, the prompt
    ends with a space and the answer is "9"; else it ends with "=" and the answer is " 9".

    Roles: a, operator, b, end. `by="word"` splits the sums: both parts have the same digits, and no sum in common.

    Misleads where it is read as more than one-digit addition: there are few sums, and they may be remembered.
    Source: Stolfo et al. 2023, arXiv 2305.15054; Nikankin et al. 2024, arXiv 2410.21272; there with more digits.

        task = arithmetic(tokenizer, n=40)
    """
    words = Words("arithmetic", tokenizer, HeldOut(split, by))
    before = "4 + 4 ="
    space = next((space for space in (" ", "") if continues(tokenizer, before + space, "8" if space else " 8")), None)
    if space is None:
        raise AcdcError(f"arithmetic needs digits that are tokens; after {before!r} this tokenizer has no token for 8. "
                        "Give the prompts as a file")
    gap = "" if space else " "
    sums = [(str(a), str(b)) for a in range(1, 9) for b in range(1, 9) if a + b <= 9 and (a, b) not in SHOWN]
    usable = [row for row in sums
              if all(continues(tokenizer, before + space, f"{gap}{digit}") for digit in (*row, _sum(row)))]
    kept = words.keep("sums", sums, usable, at_least=2)
    others = {row: [other for other in kept if other[1] == row[1] and other != row] for row in kept}

    def complete(fill: Fill, rng: random.Random) -> Pair:
        row = fill["a"], fill["b"]
        other = rng.choice(others[row])
        return Pair({"a": other[0]}, answer=f"{gap}{_sum(row)}", wrong=f"{gap}{_sum(other)}")

    design = Design(
        name="arithmetic",
        description="One-digit sums after two worked ones, another first operand in the corrupted prompt",
        source="Stolfo et al. 2023, arXiv 2305.15054; Nikankin et al. 2024, arXiv 2410.21272",
        roles=("a", "operator", "b"),
        choices=(Rows(("operator",), [("+",)]), Rows(("a", "b"), [row for row in kept if others[row]]),),
        complete=complete,
    )
    return draw(design, [template + space for template in TEMPLATES], words, n=n, seed=seed, same_length=same_length)


def _sum(row: tuple[str, ...]) -> str:
    return str(sum(map(int, row)))

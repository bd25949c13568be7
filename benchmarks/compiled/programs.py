"""What is compiled: programs in RASP, and the prompts that each is run on. Needs tracr, and is run by `generate`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RASP = ("RASP (Weiss et al. 2021, arXiv 2106.06981), as tracr's library writes it (Lindner et al. 2023, arXiv "
        "2301.05062)")
INTERPBENCH = "InterpBench (Gupta et al. 2024, arXiv 2407.14494), case {}"
Draw = Callable[[np.random.Generator, int], list[Any]]


@dataclass(frozen=True)
class Program:
    """What is compiled. `draw`: a random prompt of a length; `lengths` are without BOS; `source`: whose program it is.
    """

    text: str
    sop: Any
    vocabulary: Sequence[Any]
    max_length: int
    causal: bool
    lengths: Sequence[int]
    draw: Draw
    source: str

    def __call__(self, prompt: list[Any]) -> list[Any]:
        """What the program itself says, at every position."""
        from tracr.rasp import causal_eval, rasp  # pyright: ignore[reportMissingImports]

        return (causal_eval if self.causal else rasp).evaluate(self.sop, prompt)

    def differ(self, one: list[Any], other: list[Any]) -> bool:
        """Whether it says different things of two prompts: last, or anywhere where it says nothing last."""
        says = self(one), self(other)
        last = [values[-1] for values in says]
        return says[0] != says[1] if last == [None, None] else last[0] != last[1]


def any_of(values: Sequence[Any]) -> Draw:
    return lambda rng, length: [values[i] for i in rng.integers(len(values), size=length)]


def distinct(values: Sequence[Any]) -> Draw:
    return lambda rng, length: [values[i] for i in rng.permutation(len(values))[:length]]


def induction_prompt(rng: np.random.Generator, length: int) -> list[str]:
    """Different tokens, the last of which stands earlier too."""
    tokens = distinct("abcdef")(rng, length - 1)
    return [*tokens, tokens[rng.integers(length - 1)]]


def brackets(pairs: Sequence[str]) -> Draw:
    """Half of the prompts are balanced; the others are any brackets, of which few happen to be."""
    def draw(rng: np.random.Generator, length: int) -> list[str]:
        if rng.integers(2):
            return any_of("".join(pairs))(rng, length)
        prompt: list[str] = [""] * length
        free = list(range(length))
        while free:
            pair, opens = pairs[int(rng.integers(len(pairs)))], free.pop(0)
            prompt[opens], prompt[free.pop(rng.integers(len(free)))] = pair
        return prompt
    return draw


def programs() -> dict[str, Program]:
    """Each by its name. Prompts are drawn with the place in this table as seed: new programs come last."""
    return {**first_programs(), **sorting_programs(), **bracket_programs(), **neighbour_programs()}


def first_programs() -> dict[str, Program]:
    from tracr.compiler import lib  # pyright: ignore[reportMissingImports]
    from tracr.rasp import rasp  # pyright: ignore[reportMissingImports]

    tokens, letters, digits = rasp.tokens, "abcd", (1, 2, 3, 4, 5, 6)
    # EQ would refuse the None that stands before the first token.
    after_same = rasp.Select(lib.shift_by(1, tokens), tokens, lambda before, here: before == here)
    is_x, parts = tokens == "x", "()ab"
    return {
        "reverse": Program("the tokens in reverse order", lib.make_reverse(tokens), (1, 2, 3), 5, False, (4, 5),
                           any_of((1, 2, 3)), RASP),
        "proportion": Program("the fraction of x among the tokens up to here", lib.make_frac_prevs(is_x), "wxyz", 5,
                              False, (4, 5), any_of("wxyz"), RASP),
        "pair_balance": Program("the fraction of ( minus the fraction of ) among the tokens up to here",
                                lib.make_pair_balance(tokens, "(", ")"), parts, 6, True, (5, 6), any_of(parts),
                                INTERPBENCH.format(4)),
        "hist": Program("how often the token here occurs", lib.make_hist(), letters, 6, False, (5, 6),
                        any_of(letters), RASP),
        "sort_unique": Program("the tokens, all different, in rising order", lib.make_sort_unique(tokens, tokens),
                               digits, 5, False, (4, 5), distinct(digits), RASP),
        "induction": Program("the token that came after the earlier occurrence of the token here",
                             rasp.Aggregate(after_same, tokens), "abcdef", 6, True, (5, 6), induction_prompt,
                             "written for this collection"),
        "frac_prevs": Program("the fraction of x among the tokens up to here", lib.make_frac_prevs(is_x), "abcx", 4,
                              True, (3, 4), any_of("abcx"), INTERPBENCH.format(3)),
    }


def sorting_programs() -> dict[str, Program]:
    from tracr.compiler import lib  # pyright: ignore[reportMissingImports]
    from tracr.rasp import rasp  # pyright: ignore[reportMissingImports]

    tokens, digits, letters = rasp.tokens, (1, 2, 3, 4), "abc"
    return {
        "sort": Program("the tokens in rising order", lib.make_sort(tokens, tokens, max_seq_len=5, min_key=1), digits,
                        5, False, (4, 5), any_of(digits), RASP),
        "sort_freq": Program("the tokens, the most frequent first, those equally frequent as they stand",
                             lib.make_sort_freq(5), letters, 5, False, (4, 5), any_of(letters), RASP),
    }


def bracket_programs() -> dict[str, Program]:
    from tracr.compiler import lib  # pyright: ignore[reportMissingImports]

    text = "whether the brackets are balanced, each kind by itself"
    one, two = ("()",), ("()", "{}")
    return {
        "shuffle_dyck1": Program(text, lib.make_shuffle_dyck(list(one)), "()", 6, False, (4, 6), brackets(one), RASP),
        "shuffle_dyck2": Program(text, lib.make_shuffle_dyck(list(two)), "(){}", 5, False, (2, 4), brackets(two),
                                 RASP),
    }


def neighbour_programs() -> dict[str, Program]:
    from tracr.compiler import lib  # pyright: ignore[reportMissingImports]
    from tracr.rasp import rasp  # pyright: ignore[reportMissingImports]

    tokens, digits, letters = rasp.tokens, (0, 1, 2), "abc"
    before, after = lib.shift_by(1, tokens), lib.shift_by(-1, tokens)
    trend = rasp.SequenceMap(lambda here, then: "constant" if here == then else "rising" if here < then else "falling",
                             tokens, after)
    how_often = rasp.SequenceMap(
        lambda count, length: "frequent" if count > length / 2 else "common" if count > length / 4 else "rare",
        lib.make_hist(), lib.make_length(),
    )
    no_repeat = rasp.SequenceMap(lambda here, previous: here if here != previous else None, tokens, before)
    alternating = rasp.SequenceMap(
        lambda one, other: one and other,
        rasp.SequenceMap(lambda previous, here: previous != here, before, tokens).named("differs_from_previous"),
        rasp.SequenceMap(lambda here, then: here != then, tokens, after).named("differs_from_next"),
    )
    return {
        "trend": Program("whether the next token is greater, less or the same", trend, digits, 4, False, (3, 4),
                         any_of(digits), INTERPBENCH.format(13)),
        "frequency_class": Program(
            "whether the token here is more than half (frequent), more than a quarter (common) or less of all tokens",
            how_often, "abcde", 5, False, (4, 5), any_of("abcde"), INTERPBENCH.format(18)),
        "drop_repeats": Program("the token here, unless it is the one before", no_repeat, letters, 5, True, (4, 5),
                                any_of(letters), INTERPBENCH.format(19)),
        "alternation": Program("whether the token here differs from both its neighbours", alternating, letters, 5,
                               False, (4, 5), any_of(letters), INTERPBENCH.format(38)),
        "detect_ab": Program("whether an a and then a b end here", lib.detect_pattern(tokens, "ab"), letters, 6, True,
                             (5, 6), any_of(letters), "tracr's library (Lindner et al. 2023, arXiv 2301.05062)"),
    }

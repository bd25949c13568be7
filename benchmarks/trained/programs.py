"""What the networks are trained to compute, and how: programs of named variables, each meant for one node.

A prompt is BOS, then random tokens. Every variable has one value a position; what it is at BOS does not count. All
attention is causal. Two of the programs are compiled too: `frac_prevs` (as `proportion`, there attending both ways) and
`pair_balance`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.errors import unknown_name

Values = Float[Tensor, "batch pos"]


@dataclass(frozen=True)
class Variable:
    """`compute`: its values from those of the variables (or the `tokens`) that it reads. `node`: where the network is
    to hold it; `through`: the channels by which that node reads them, of a head."""

    node: str
    reads: tuple[str, ...]
    compute: Callable[..., Values]
    through: str = ""


@dataclass(frozen=True)
class Program:
    """`tokens`: what prompts are made of, besides BOS, whose id is 0. The last variable is what is to be given: a
    number (`classes` 0), or one of so many classes. `length`: of a prompt, with BOS."""

    computes: str
    tokens: str
    length: int
    classes: int
    variables: Mapping[str, Variable]

    @property
    def output(self) -> str:
        return list(self.variables)[-1]

    @property
    def vocabulary(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(["BOS", *self.tokens])}

    @property
    def labels(self) -> list[str]:
        return [str(i) for i in range(self.classes)] if self.classes else ["value"]

    @property
    def edges(self) -> list[str]:
        """What resample ablation can show of the program: which node reads which, and the output."""
        nodes = {"tokens": "input", **{name: variable.node for name, variable in self.variables.items()}}
        found = [f"{nodes[read]}->{v.node}{f'<{x}>' if x else ''}"
                 for v in self.variables.values() for read in v.reads for x in v.through or ("",)]
        return [*found, f"{nodes[self.output]}->logits"]

    def run(self, tokens: Int[Tensor, "batch pos"], swapped: Mapping[str, Values] | None = None) -> dict[str, Values]:
        """The values of all variables; those in `swapped` have the values given there, whatever they read."""
        values = {"tokens": tokens.float()}
        for name, variable in self.variables.items():
            given = (swapped or {}).get(name)
            values[name] = variable.compute(*(values[read] for read in variable.reads)) if given is None else given
        return values

    def draw(self, n: int, generator: torch.Generator, *, held_out: bool) -> Int[Tensor, "n pos"]:
        """Random prompts, of the tenth that training never sees, or of the others."""
        found: list[Tensor] = []
        while sum(map(len, found)) < n:
            size = (4 * n if held_out else n, self.length)
            tokens = torch.randint(1, 1 + len(self.tokens), size, generator=generator)
            tokens[:, 0] = 0
            place = 7 ** torch.arange(self.length)
            found.append(tokens[((tokens * place).sum(1) % 10 == 3) == held_out])
        return torch.cat(found)[:n]


def fraction(flags: Values) -> Values:
    """The mean of the flags up to here, BOS not counted."""
    flags = torch.cat([torch.zeros_like(flags[:, :1]), flags[:, 1:]], dim=1)
    return flags.cumsum(1) / torch.arange(flags.shape[1]).clamp(min=1)


def before(tokens: Values) -> Values:
    """The token before; BOS has itself before it."""
    return torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)


PROGRAMS = {
    "frac_prevs": Program(
        "the fraction of x among the tokens up to here", "xyzw", 6, 0, {
            "is_x": Variable("m0", ("tokens",), lambda tokens: (tokens == 1).float()),
            "fraction": Variable("a1.h2", ("is_x",), fraction, "v"),
        }),
    "pair_balance": Program(
        "the fraction of ( minus the fraction of ) among the tokens up to here", "()ab", 6, 0, {
            "bracket": Variable("m0", ("tokens",), lambda tokens: (tokens == 1).float() - (tokens == 2).float()),
            "opened": Variable("a1.h0", ("bracket",), lambda bracket: fraction((bracket == 1).float()), "v"),
            "closed": Variable("a1.h1", ("bracket",), lambda bracket: fraction((bracket == -1).float()), "v"),
            "balance": Variable("m1", ("opened", "closed"), lambda opened, closed: opened - closed),
        }),
    "detect_ab": Program(
        "1 if a b has come right after an a, up to here, else 0", "abc", 6, 2, {
            "before": Variable("a0.h1", ("tokens",), before, "v"),
            "ab": Variable("m0", ("before", "tokens"), lambda before, tokens: ((before == 1) & (tokens == 2)).float()),
            "seen": Variable("a1.h2", ("ab",), lambda ab: ab.cummax(1).values, "v"),
        }),
}


def program(name: str) -> Program:
    if name not in PROGRAMS:
        raise unknown_name("program", name, PROGRAMS)
    return PROGRAMS[name]

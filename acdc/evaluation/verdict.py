"""What a test says of a circuit: pass, fail or undecided, with the numbers and the reason in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from acdc.evaluation.significance import Estimate, plain

Verdict = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True)
class TestResult:
    """`reason`: why, in words. `numbers`: what it rests on, as JSON holds it. `decides`: whether it counts in the
    verdict on the circuit; the others inform."""

    __test__ = False  # to pytest: no test of ours

    name: str
    verdict: Verdict
    reason: str
    numbers: Mapping[str, Any]
    decides: bool = True


def near(estimate: Estimate, target: float, tolerance: float) -> Verdict:
    """pass: the whole interval lies within target +- tolerance. fail: all of it lies outside. Else undecided."""
    low, high = target - tolerance, target + tolerance
    if low <= estimate.low and estimate.high <= high:
        return "pass"
    return "fail" if estimate.high < low or estimate.low > high else "undecided"


NEAR_WORDS = {"pass": "lies within", "fail": "lies outside", "undecided": "reaches over a bound of"}


def near_reason(what: str, estimate: Estimate, target: float, tolerance: float) -> str:
    """`near` in words."""
    words = NEAR_WORDS[near(estimate, target, tolerance)]
    interval = f"{plain(estimate.low)} to {plain(estimate.high)}"
    return f"{what} {plain(estimate.value)}: its interval {interval} {words} {target:g} ± {tolerance:g}"


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """fail if any fails, pass if all pass, else undecided."""
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts and all(verdict == "pass" for verdict in verdicts) else "undecided"


@dataclass(frozen=True)
class Battery:
    """What the tests said of a circuit of `n_edges` edges, of `n_edges_of_graph`, on `n_prompts` prompts."""

    results: tuple[TestResult, ...]
    n_edges: int
    n_edges_of_graph: int
    n_prompts: int
    metric: str
    settings: Mapping[str, Any]

    @property
    def verdict(self) -> Verdict:
        """Of the tests that decide: fail if one fails, pass if all pass, else undecided."""
        return together([result.verdict for result in self.results if result.decides])

    def summary(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        names = ("verdict", "n_edges", "n_edges_of_graph", "n_prompts", "metric")
        return {**{name: getattr(self, name) for name in names}, "settings": dict(self.settings),
                "tests": [vars(result) for result in self.results]}

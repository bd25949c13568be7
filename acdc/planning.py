"""What a run will take, and how many prompts it runs at once: passes, seconds and peak memory, before it begins.

Phases: each stage of the run, or a small part of it, is run on two prompts, then on twice as many, for a second or two;
seconds grow with the prompts, memory with the prompts that are run at once; as many of these are taken as the budget
holds. What is measured is the stage itself on this machine, so that no formula has to know what it does.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from acdc.activations import record
from acdc.errors import AcdcError
from acdc.fitting import most_at_once
from acdc.live_bytes import peak_bytes
from acdc.machine import free_memory, memory_now
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

SECONDS, QUICK = 2.0, 0.25  # a stage is measured on more prompts until so much has passed
MARGIN = 1.1  # of what a stage takes: allocators keep some of what is freed
GIB = 2**30


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    `sample`: runs some of it on a few prompts, and returns how many times as long all of it takes for these. `of_all`:
    its memory grows with all prompts, not with those at once. `more`: bytes that the sample has not, given how many
    prompts there are in all and at once. `per_prompt`: whether the time grows with the prompts.
    """

    name: str
    sample: Callable[[Sequence[Batch]], float]
    of_all: bool = False
    more: Callable[[int, int], float] = lambda n, at_once: 0.0
    per_prompt: bool = True


@dataclass(frozen=True)
class Cost:
    """Of one stage: `seconds` of all of it; its peak is `fixed` + `slope` * the prompts that count, in bytes."""

    stage: Stage
    seconds: float
    fixed: float
    slope: float

    def peak(self, n: int, at_once: int) -> float:
        """GiB beside what is there before."""
        prompts = n if self.stage.of_all else at_once
        return MARGIN * (self.fixed + self.slope * prompts + self.stage.more(n, at_once)) / GIB


@dataclass(frozen=True)
class Plan:
    """`before`: GiB in use when the run begins, the model's and Python's. `pass_seconds`: of one forward pass of all
    prompts. `at_once`: how many prompts are run at once."""

    costs: tuple[Cost, ...]
    before: float
    pass_seconds: float
    n_prompts: int
    at_once: int

    @property
    def seconds(self) -> float:
        return sum(cost.seconds for cost in self.costs)

    @property
    def passes(self) -> float:
        """In forward passes of all prompts that take as long."""
        return self.seconds / self.pass_seconds

    def peak(self, cost: Cost | None = None) -> float:
        """GiB, of a stage or of the whole run."""
        return self.before + max(c.peak(self.n_prompts, self.at_once) for c in (self.costs if cost is None else [cost]))

    def line(self) -> str:
        return (f"plan: about {duration(self.seconds)}, as long as {self.passes:,.0f} forward passes; peak memory "
                f"{self.peak():.2f} GiB, {self.before:.2f} of them in use now; {self.at_once} prompts at once")


def duration(seconds: int | float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "a second"


def make_plan(model: Transformer, batches: Sequence[Batch], stages: Sequence[Stage], *,
              memory: int | float | None = None, quick: bool = False, pass_seconds: float | None = None) -> Plan:
    """Measures the stages and picks how many prompts are run at once: as many as the largest batch has, or half of
    them, or a quarter, and so on, so that a run that is started again has the same batches.

    `memory`: GiB that the run may have in use at most, what is there before included, as `acdc.machine.peak_memory`
    counts; None: what is free. `quick`: a stage is measured on eight prompts if that takes long enough, all memory is
    put down to them, so that the peak is rather too high, and what would not fit then is measured with more care.
    `pass_seconds`: what `seconds_of_pass` says, if at hand. Cost: some seconds a stage; quick, a second or two.
    Seconds are those of this machine as busy as it is now; of a search, whose cost depends on what it finds, they are a
    guess. Raises `AcdcError` where not even one prompt at a time fits.
    """
    longest = _longest(batches)
    tokens = sum(batch.clean.numel() for batch in batches)
    n, most = sum(map(len, batches)), most_at_once(batches)
    pass_seconds = seconds_of_pass(model, batches) if pass_seconds is None else pass_seconds
    costs = tuple(_cost(model, longest, stage, tokens, most, quick) for stage in stages)
    before = memory_now(model.device)
    budget = before + free_memory(model.device) if memory is None else memory
    plans = [Plan(costs, before, pass_seconds, n, at_once) for at_once in _halves(most)]
    fits = next((plan for plan in plans if plan.peak() <= budget), None)
    if quick and fits is not plans[0]:
        return make_plan(model, batches, stages, memory=memory, pass_seconds=pass_seconds)
    if fits is None:
        least = plans[-1]
        worst = max(least.costs, key=least.peak)
        all_at_once = f", of all {n} prompts" if worst.stage.of_all else ", even with one prompt at a time"
        fewer = "fewer --prompts, " if worst.stage.of_all or n > 1 and worst.stage.more(n, 1) else ""
        raise AcdcError(
            f"{worst.stage.name} would take {least.peak():.2f} GiB{all_at_once}, {before:.2f} of them in use now; "
            f"{'--memory allows' if memory is not None else 'there are'} {budget:.2f}. Allow that much, or give {fewer}"
            "shorter prompts, --dtype bfloat16, a smaller model, or --device-map auto")
    return fits


def seconds_of_pass(model: Transformer, batches: Sequence[Batch]) -> float:
    """Of one forward pass of all prompts, from a few of the longest."""
    longest = _longest(batches)
    few = longest.rows(slice(0, min(len(longest), 8)))
    with torch.no_grad(), frozen(model):
        record(model, few.clean)
        start = time.perf_counter()
        record(model, few.clean)
    return (time.perf_counter() - start) * sum(batch.clean.numel() for batch in batches) / few.clean.numel()


def _halves(n: int) -> list[int]:
    return [n] if n == 1 else [n, *_halves((n + 1) // 2)]


def _longest(batches: Sequence[Batch]) -> Batch:
    return max(batches, key=lambda batch: (batch.clean.shape[1], len(batch)))


def _cost(model: Transformer, longest: Batch, stage: Stage, tokens: int, most: int, quick: bool) -> Cost:
    """Measures a stage on more and more of the longest prompts."""
    known = [*model.hf.parameters(), *model.hf.buffers()]
    spent, points, n = 0.0, [], min(8 if quick else 2, len(longest))
    while n <= min(most, len(longest)):
        few = longest.rows(slice(0, n))
        start = time.perf_counter()
        if not points:
            stage.sample([few])  # once to warm up
        first = time.perf_counter()
        times = stage.sample([few])
        seconds = time.perf_counter() - first
        scale = tokens / few.clean.numel() if stage.per_prompt else 1.0
        peak = peak_bytes(lambda few=few: stage.sample([few]), model.device, known)
        points.append((n, peak, times * scale * seconds))
        spent += time.perf_counter() - start
        if spent > (QUICK if quick else SECONDS) and (quick or len(points) > 1):  # two tell apart what does not grow
            break
        n *= 2
    n, peak, seconds = points[-1]
    if len(points) == 1:
        return Cost(stage, seconds, 0.0, peak / n)
    slope = max(0.0, (peak - points[-2][1]) / (n - points[-2][0]))
    return Cost(stage, seconds, max(0.0, peak - slope * n), slope)


def rebatched(batches: Sequence[Batch], at_once: int) -> list[Batch]:
    """The same prompts in the same order, no more than so many a batch."""
    return [batch.rows(slice(first, min(len(batch), first + at_once)))
            for batch in batches for first in range(0, len(batch), at_once)]


def gib(text: str) -> float:
    """How many GiB `8GiB`, `500MiB`, `8GB` or `8` means."""
    units = {"gib": 1.0, "mib": 2**-10, "gb": 1e9 / GIB, "mb": 1e6 / GIB, "": 1.0}
    number = text.strip().lower().rstrip("bgim")
    unit = text.strip().lower()[len(number) :]
    try:
        size = float(number) * units[unit]
    except (ValueError, KeyError):
        size = -1.0
    if not 0 < size < float("inf"):
        raise AcdcError(f"memory {text!r} is no size above 0; write it as 8GiB, 500MiB or 8GB (8 alone means GiB)")
    return size


def described(plan: Plan) -> list[tuple[str, Any, Any, Any]]:
    """A row a stage: name, passes, seconds, peak in GiB."""
    return [(cost.stage.name, cost.seconds / plan.pass_seconds, cost.seconds, plan.peak(cost)) for cost in plan.costs]

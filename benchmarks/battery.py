"""How often the tests of circuits say what is so: on random models whose circuit is planted.

    python -m acdc.benchmarks.battery [--models 60] [--results benchmarks/results]

In each model six circuits are tested, on 32 random prompts: the planted one; one in a model whose nodes leak into each
other; two random ones of its size, matched and connected; the planted one without one of its edges; and with ten more.
What removing that edge does for good is measured on 1,024 other prompts, as is whether the interval of faithfulness
contains the value there.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from acdc.benchmarks.planted import Planted, draw_prompts, plant  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.record import write_table  # pyright: ignore[reportMissingImports]
from acdc.circuit import Circuit
from acdc.evaluation.battery import Settings, run_battery
from acdc.evaluation.bench import prepare_bench
from acdc.evaluation.faithfulness import faithfulness
from acdc.evaluation.random_circuits import draw
from acdc.evaluation.significance import share_interval
from acdc.evaluation.verdict import Battery
from acdc.metrics import METRICS

DECIDING = ("sufficiency", "necessity", "completeness", "minimality_edges", "minimality_nodes", "random")
LEAK, N_ADDED, N_PROMPTS, N_POPULATION = 1e-3, 10, 32, 1024
QUICK = Settings(random=20, subsets=4)
METRIC = METRICS["logit_difference"]


@dataclass
class Tally:
    """What the battery said of circuits of one kind. `expected`: what it ought to say."""

    kind: str
    expected: str
    verdicts: Counter = field(default_factory=Counter)
    failed: Counter = field(default_factory=Counter)  # which tests fail

    def add(self, battery: Battery) -> None:
        self.verdicts[battery.verdict] += 1
        self.failed.update(result.name for result in battery.results if result.verdict == "fail")

    def cells(self) -> list[str]:
        n, right = sum(self.verdicts.values()), self.verdicts[self.expected]
        low, high = share_interval(right, n) if n else (0, 1)
        failed = ", ".join(f"{name} {count}" for name, count in self.failed.most_common()) or "none"
        return [self.kind, str(n), *(str(self.verdicts[v]) for v in ("pass", "fail", "undecided")),
                f"{self.expected}: {right / max(1, n):.1%} ({low:.1%} to {high:.1%})", failed]


COLUMNS = ("circuit", "tested", "pass", "fail", "undecided", "as it ought to be (95%)", "tests that fail")


def variants(planted: Planted, seed: int) -> Iterator[tuple[str, Circuit]]:
    """The circuits tested in one model, by kind."""
    circuit, rng = planted.circuit, np.random.default_rng([seed, 1])
    yield "planted", circuit
    for kind in ("matched", "connected"):
        yield f"random, {kind}", draw(circuit, kind, 1, seed + 10_000)[0]
    kept, others = np.nonzero(circuit.kept)[0], np.nonzero(~circuit.kept)[0]
    fewer, more = circuit.kept.copy(), circuit.kept.copy()
    fewer[rng.choice(kept)] = False
    more[rng.choice(others, N_ADDED, replace=False)] = True
    yield "without an edge", Circuit(circuit.graph, fewer)
    yield "with ten more", Circuit(circuit.graph, more)


def verdicts_on(planted: Planted, circuit: Circuit, seed: int, settings: Settings = QUICK) -> Battery:
    """The tests that decide, on 32 prompts of this seed."""
    batch = draw_prompts(planted.model, N_PROMPTS, seed)
    bench = prepare_bench(planted.model, [batch], METRIC, seed=seed)
    return run_battery(bench, circuit, settings, only=DECIDING)


def effect_class(distance: float) -> str:
    """How far from 1 the faithfulness of a circuit without an edge is, on the population of prompts."""
    return f"without an edge, |1 - f| {'above 0.2' if distance > 0.2 else '0.1 to 0.2' if distance > 0.1 else 'to 0.1'}"


def tallies() -> dict[str, Tally]:
    kinds = ["planted", "planted, leaking", "random, matched", "random, connected",
             *(effect_class(distance) for distance in (0.3, 0.15, 0.0)), "with ten more"]
    return {kind: Tally(kind, "pass" if kind.startswith("planted") else "fail") for kind in kinds}


def simulate(n_models: int, seed: int = 0) -> tuple[dict[str, Tally], int, int]:
    """The tallies; of how many intervals of faithfulness with a width the value on the population lies within, of how
    many."""
    found, inside, n_intervals = tallies(), 0, 0
    for model in range(seed, seed + n_models):
        planted = plant(model)
        population = draw_prompts(planted.model, N_POPULATION, model + 1_000_000)
        for kind, circuit in variants(planted, model):
            battery = verdicts_on(planted, circuit, model)
            value = faithfulness(planted.model, circuit, [population], METRIC).faithfulness
            low, high = (battery.results[0].numbers[end] for end in ("low", "high"))
            if high - low > 1e-6:
                n_intervals, inside = n_intervals + 1, inside + (low <= value <= high)
            found[effect_class(abs(1 - value)) if kind == "without an edge" else kind].add(battery)
        leaking = plant(model, LEAK)
        found["planted, leaking"].add(verdicts_on(leaking, leaking.circuit, model))
    return found, inside, n_intervals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="write the table to battery.json in this folder, and its page")
    arguments = parser.parse_args()
    start = time.perf_counter()
    found, inside, n_intervals = simulate(arguments.models, arguments.seed)
    rows = [tally.cells() for tally in found.values()]
    for row in (list(COLUMNS), *rows):
        print(" | ".join(row))
    low, high = share_interval(inside, n_intervals)
    coverage = (f"{inside} of {n_intervals} intervals of faithfulness at 95% that have a width contain the value on "
                f"{N_POPULATION:,} other prompts: {inside / n_intervals:.1%} ({low:.1%} to {high:.1%}).")
    print(coverage)
    if arguments.results:
        about = ("Random GPT-2s of 3 layers of 3 heads (172 edges) in which 4 to 25 edges are planted and no other "
                 f"carries anything; 32 random prompts, logit difference, resample ablation, the tests that decide, "
                 f"tolerance 0.1. A leak: nodes of the circuit read {LEAK:g} of what they should not. Circuits without "
                 "an edge are sorted by their faithfulness f on 1,024 other prompts: where f stays within the "
                 "tolerance, only idle edges that the removed one led to or from can give them away. " + coverage)
        write_table(arguments.results, "battery", title="Tests of planted circuits", about=about,
                    command=f"python -m acdc.benchmarks.battery --models {arguments.models}",
                    parameters={"models": arguments.models, "seed": arguments.seed, "settings": vars(QUICK),
                                "intervals": n_intervals, "inside": inside,
                                "seconds": time.perf_counter() - start,
                                "tallies": {kind: {"verdicts": dict(t.verdicts), "failed": dict(t.failed)}
                                            for kind, t in found.items()}},
                    columns=COLUMNS, rows=rows)


if __name__ == "__main__":
    main()

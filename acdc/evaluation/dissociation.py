"""Is the circuit this task's, or any task's?"""

from dataclasses import asdict

import numpy as np

from acdc.circuit import Circuit
from acdc.evaluation.bench import Bench, Gains
from acdc.evaluation.random_circuits import draw
from acdc.evaluation.significance import Estimate, interval
from acdc.evaluation.verdict import TestResult, Verdict, together


def on_another_task(bench: Bench, other: Bench, circuit: Circuit, gains: Gains, *, name: str, n_random: int = 20,
                    tolerance: float = 0.1) -> TestResult:
    """Is the circuit less faithful on another task's prompts than on its own?

    f(own task) - f(other task), each over its own draws of prompts. pass: the interval lies above `tolerance`; fail:
    below it. The share of `n_random` matched random circuits that reach the circuit's f there is told beside it. Tasks
    that share mechanisms fail rightly. Cost: 1 + `n_random` circuit runs on the other prompts.
    """
    there = other.gains([circuit, *draw(circuit, "matched", n_random, bench.seed)])
    on_other = other.estimates(there[:1])[0]
    draws = bench.draws(gains) - other.draws(there[:1])
    low, high = interval(draws, min(bench.n_prompts, other.n_prompts))[0]
    less = Estimate(float(bench.values(gains)[0]) - on_other.value, float(low), float(high))
    values = other.values(there)
    n_reach = int((values[1:] >= values[0]).sum())
    reason = (f"faithfulness {bench.values(gains)[0]:.3f} here, {on_other.value:.3f} on {name}: less by {less}, "
              f"against {tolerance:g}; {n_reach} of {n_random} matched random circuits reach it there")
    numbers = {"task": name, "on_other": asdict(on_other), "less": asdict(less), "n_random": n_random,
               "n_reach": n_reach}
    return TestResult(f"dissociation from {name}", _above(less, tolerance), reason, numbers, decides=False)


def of_another_circuit(bench: Bench, circuit: Circuit, other: Circuit, gains: Gains, *, tolerance: float = 0.1
                       ) -> TestResult:
    """Does this task need its own circuit more than another task's?

    Two differences, over the same draws of prompts: f(circuit) - f(other circuit), and
    f(complement of the other circuit) - f(complement of the circuit). pass: both lie above `tolerance`; fail: one lies
    below it. Source of the second: Li & Subramani 2026 (arXiv 2605.08348), who find that cutting another task's circuit
    hurts as much. Cost: three circuit runs, two of them of nearly all edges.
    """
    others = bench.gains([other, other.complement(), circuit.complement()])
    differences = np.stack([gains[0] - others[0], others[1] - others[2]])
    kept, cut = bench.estimates(differences)
    n_shared = int((circuit.kept & other.kept).sum())
    reason = (f"kept alone, the circuit does more than the other by {kept}; cut, it takes more by {cut}; against "
              f"{tolerance:g}. They share {n_shared:,} of {circuit.n_edges:,} and {other.n_edges:,} edges")
    numbers = {"kept": asdict(kept), "cut": asdict(cut), "n_shared": n_shared, "n_edges_other": other.n_edges}
    return TestResult("dissociation from another circuit",
                      together([_above(kept, tolerance), _above(cut, tolerance)]), reason, numbers, decides=False)


def _above(estimate: Estimate, bound: float) -> Verdict:
    return "pass" if estimate.low > bound else "fail" if estimate.high < bound else "undecided"

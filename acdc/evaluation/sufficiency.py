"""Does the circuit alone do what the model does, and does the rest of the model no longer do it?"""

from dataclasses import asdict

from acdc.circuit import Circuit
from acdc.evaluation.bench import Bench, Gains
from acdc.evaluation.verdict import TestResult, near, near_reason


def sufficiency(bench: Bench, gains: Gains, *, tolerance: float = 0.1) -> TestResult:
    """Faithfulness is 1: pass if its interval lies within 1 +- `tolerance`, fail if outside, else undecided.

    `gains`: the circuit's own. An interval at 95% within the bounds rejects both "below" and "above" them at 2.5%.
    """
    estimate = bench.estimates(gains)[0]
    return TestResult("sufficiency", near(estimate, 1.0, tolerance),
                      near_reason("faithfulness", estimate, 1.0, tolerance), asdict(estimate))


def necessity(bench: Bench, circuit: Circuit, *, tolerance: float = 0.1) -> TestResult:
    """The complement's faithfulness is 0, by the same rule. Cost: one run of all edges but the circuit's.

    Backups fail it: what takes over where the circuit is cut was no part of it.
    """
    estimate = bench.estimates(bench.gains([circuit.complement()]))[0]
    return TestResult("necessity", near(estimate, 0.0, tolerance),
                      near_reason("faithfulness of all other edges", estimate, 0.0, tolerance), asdict(estimate))

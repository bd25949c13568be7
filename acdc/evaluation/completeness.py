"""Does the circuit have all that matters: with the same edges cut, does it still do what the model does?

For a set K of the circuit's edges, the gap of completeness is

    d(K) = f(circuit without K) - f(model without K)

with f the faithfulness, so that f(model) = 1. K = nothing gives sufficiency, K = the circuit necessity. What is missing
shows where the circuit's edges that it backs up are cut. Sets are drawn at random, and chosen to make d large.
Source: Wang et al. 2022 (arXiv 2211.00593, section 4), who take nodes; here edges, and the edges out of drawn nodes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from acdc.circuit import Circuit
from acdc.discovery.exact import exact_effects
from acdc.evaluation.bench import Bench
from acdc.evaluation.knock_outs import nodes_that_write, out_of
from acdc.evaluation.minimality import EdgesCut
from acdc.evaluation.significance import ALPHA, Estimate, holm, p_above, p_below
from acdc.evaluation.verdict import TestResult, Verdict, near, together

GROWTH = 4  # sizes of the chosen sets: 4, 16, 64, ...


@dataclass(frozen=True, eq=False)
class Cut:
    """A set K: how it was made, and its edges."""

    how: str
    edges: Bool[np.ndarray, " edge"]

    @property
    def label(self) -> str:
        n = int(self.edges.sum())
        return f"{self.how}, {n:,} edge{'s' * (n != 1)}"


def completeness(bench: Bench, circuit: Circuit, cut: EdgesCut, *, n_random: int = 6, tolerance: float = 0.1
                 ) -> TestResult:
    """d(K) = 0 for `n_random` random sets, for each edge of `cut` alone, and for sets chosen against the circuit.

    Chosen sets: the edges of `cut` with the largest d({edge}), positive and negative ones, 4, 16, 64, ... together;
    they are chosen on every other prompt, and their p-values are of the others.
    pass: the intervals of d at 95% lie within +- `tolerance` for all K. fail: for some K, |d| > `tolerance` by
    a t-test (`p_above`), corrected by Holm for all K. Cost a set: a circuit run, and one of nearly all edges; for each
    edge alone about a third of a forward pass.
    """
    singles = cut.gains - _gains_of_model_without(bench, circuit, cut)
    chooser = np.arange(bench.n_prompts) % 2 == 0
    random, chosen = _random_cuts(bench, circuit, n_random), _chosen_cuts(circuit, cut, singles[:, chooser])
    cuts = random + chosen
    gaps = _gaps(bench, circuit, cuts) if cuts else np.zeros((0, bench.n_prompts))
    names = [circuit.graph.edge_name(edge) for edge in cut.edges.tolist()]
    labels = [f"{name} alone" for name in names] + [one.label for one in cuts]
    everything = np.concatenate([singles, gaps])
    if not len(everything):
        return TestResult("completeness", "undecided", "the circuit has no edges to cut", {"n_sets": 0})
    held_out = np.repeat([False, True], [len(singles) + len(random), len(chosen)])
    p_values = holm([_p_beyond(bench, values, tolerance, ~chooser if half else chooser | ~chooser)
                     for values, half in zip(everything, held_out, strict=True)])
    estimates = bench.estimates(everything)
    verdicts: list[Verdict] = ["fail" if p <= ALPHA else "pass" if near(e, 0.0, tolerance) == "pass" else "undecided"
                               for e, p in zip(estimates, p_values, strict=True)]
    largest = int(np.argmax([abs(estimate.value) for estimate in estimates]))
    rows = [_row(*row) for row in zip(labels, estimates, p_values, strict=True)]
    numbers = {"n_sets": len(rows), "n_single": len(singles), "n_random": len(random), "n_chosen": len(chosen),
               "n_beyond": verdicts.count("fail"), "sets": rows}
    return TestResult("completeness", together(verdicts), _reason(numbers, labels[largest], estimates[largest],
                                                                  p_values[largest], tolerance), numbers)


def _reason(numbers: dict[str, Any], label: str, largest: Estimate, p: float, tolerance: float) -> str:
    return (f"of {numbers['n_sets']:,} sets of edges cut in circuit and model alike ({numbers['n_single']:,} single, "
            f"{numbers['n_random']:,} random, {numbers['n_chosen']:,} chosen against it), {numbers['n_beyond']:,} "
            f"leave them apart by more than {tolerance:g}; most: {largest} (p {p:.2g} by Holm), {label}")


def _row(label: str, estimate: Estimate, p: float) -> dict[str, Any]:
    return {"set": label, **asdict(estimate), "p": p}


def _p_beyond(bench: Bench, values: Float[np.ndarray, " prompt"], tolerance: float, where: np.ndarray) -> float:
    """Two-sided p of H0: |d| <= tolerance, on some of the prompts."""
    values, gap = values[where], bench.gap[where]
    if len(values) < 2:
        return 1.0
    return min(1.0, 2 * min(p_above(values, gap, tolerance), p_below(values, gap, -tolerance)))


def _gains_of_model_without(bench: Bench, circuit: Circuit, cut: EdgesCut) -> Float[np.ndarray, "edge prompt"]:
    """What the model gains with each edge alone cut."""
    effects = exact_effects(bench.model, bench.batches, bench.metric, cut.edges, ablation=bench.ablation,
                            graph=circuit.graph, progress=bench.progress)
    return bench.gap - effects


def _random_cuts(bench: Bench, circuit: Circuit, n: int) -> list[Cut]:
    """Alternately random edges, and all edges out of random nodes; sizes are drawn evenly on a logarithmic scale."""
    rng = np.random.default_rng([bench.seed, 12])
    edges, nodes = np.nonzero(circuit.kept)[0], nodes_that_write(circuit)
    cuts = []
    for i in range(n if len(edges) > 1 else 0):
        cut = np.zeros(circuit.graph.n_edges, dtype=bool)
        if i % 2 and len(nodes) > 1:
            for place in rng.choice(len(nodes), _size(len(nodes), rng), replace=False):
                cut |= circuit.kept & out_of(circuit, nodes[place])
            cuts.append(Cut("random nodes", cut))
        else:
            cut[rng.choice(edges, _size(len(edges), rng), replace=False)] = True
            cuts.append(Cut("random edges", cut))
    return cuts


def _size(n: int, rng: np.random.Generator) -> int:
    """1 to n - 1."""
    return min(n - 1, int(n ** rng.random()))


def _chosen_cuts(circuit: Circuit, cut: EdgesCut, singles: Float[np.ndarray, "edge prompt"]) -> list[Cut]:
    """The edges that alone set circuit and model most apart, in one direction and the other."""
    cuts, mean = [], singles.mean(1)
    for how, order in (("chosen to favour the circuit", np.argsort(-mean, kind="stable")),
                       ("chosen to favour the model", np.argsort(mean, kind="stable"))):
        n, most = GROWTH, int((mean > 0).sum() if how.endswith("circuit") else (mean < 0).sum())
        while n <= most and n < circuit.n_edges:
            edges = np.zeros(circuit.graph.n_edges, dtype=bool)
            edges[cut.edges[order[:n]]] = True
            cuts.append(Cut(how, edges))
            n *= GROWTH
    return cuts


def _gaps(bench: Bench, circuit: Circuit, cuts: Sequence[Cut]) -> Float[np.ndarray, "cut prompt"]:
    """d(K), prompt by prompt, times the mean gap."""
    everything = np.ones(circuit.graph.n_edges, dtype=bool)
    of_circuit, of_model = (bench.gains([Circuit(circuit.graph, kept & ~cut.edges) for cut in cuts])
                            for kept in (circuit.kept, everything))
    return of_circuit - of_model

"""Does the circuit need each of its edges, and each of its nodes?

The change of an edge is the mean over prompts of |gain(circuit) - gain(circuit without it)| / mean gap: of its size, as
changes of both signs would cancel. An edge counts as idle below floor = tolerance / (edges of the circuit): were all as
idle, they would make up the tolerance together. For each edge there are two tests, of change <= floor and of
change >= floor (`p_above` and `p_below`), each corrected for all edges tested by Holm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from acdc.circuit import Circuit
from acdc.evaluation.bench import Bench
from acdc.evaluation.knock_outs import nodes_that_write, without_each_edge, without_each_node
from acdc.evaluation.significance import ALPHA, Estimate, holm, p_above, p_below, share_interval
from acdc.evaluation.verdict import TestResult

SHOWN = 5


@dataclass(frozen=True, eq=False)
class EdgesCut:
    """Edges of a circuit, and what it gains without each of them alone. `own`: what it gains itself."""

    edges: Int[np.ndarray, " edge"]
    own: Float[np.ndarray, " prompt"]
    gains: Float[np.ndarray, "edge prompt"]


def cut_edges(bench: Bench, circuit: Circuit, n: int) -> EdgesCut:
    """`n` edges of the circuit, drawn at random, or all where there are fewer."""
    edges = np.nonzero(circuit.kept)[0]
    if len(edges) > n:
        edges = np.sort(np.random.default_rng([bench.seed, 10]).choice(edges, n, replace=False))
    return EdgesCut(edges, *without_each_edge(bench, circuit, edges))


def minimality_of_edges(bench: Bench, circuit: Circuit, cut: EdgesCut, *, tolerance: float = 0.1) -> TestResult:
    """pass: every edge tested is needed. fail: at least one is idle. Else undecided.

    Where edges were drawn, so is the verdict: of those drawn.
    """
    names = [circuit.graph.edge_name(edge) for edge in cut.edges.tolist()]
    return _minimality(bench, "edges", names, circuit.n_edges, np.abs(cut.own - cut.gains), tolerance)


def minimality_of_nodes(bench: Bench, circuit: Circuit, own: Float[np.ndarray, " prompt"], *, n: int = 50,
                        tolerance: float = 0.1) -> TestResult:
    """The same for nodes, of which all edges out are cut at once; the floor is tolerance / (nodes of the circuit).

    Cost: a circuit run a node.
    """
    nodes = nodes_that_write(circuit)
    n_nodes = len(nodes)
    if n_nodes > n:
        chosen = np.sort(np.random.default_rng([bench.seed, 11]).choice(n_nodes, n, replace=False))
        nodes = [nodes[i] for i in chosen]
    changes = np.abs(own - without_each_node(bench, circuit, nodes))
    return _minimality(bench, "nodes", [node.name for node in nodes], n_nodes, changes, tolerance)


def _minimality(bench: Bench, kind: str, names: Sequence[str], n_all: int, changes: Float[np.ndarray, "part prompt"],
                tolerance: float) -> TestResult:
    name = f"minimality of {kind}"
    if not names:
        return TestResult(name, "undecided", f"the circuit has no {kind} to cut", {"n": 0, "n_tested": 0})
    floor = tolerance / n_all
    needed = np.array(holm([p_above(change, bench.gap, floor) for change in changes])) <= ALPHA
    idle = np.array(holm([p_below(change, bench.gap, floor) for change in changes])) <= ALPHA
    estimates = bench.estimates(changes)
    low, high = share_interval(int(idle.sum()), len(names))
    numbers = {
        "n": n_all, "n_tested": len(names), "n_needed": int(needed.sum()), "n_idle": int(idle.sum()), "floor": floor,
        "share_idle_low": low, "share_idle_high": high,
        kind: [_row(*row) for row in zip(names, estimates, needed, idle, strict=True)],
    }
    verdict = "fail" if idle.any() else "pass" if needed.all() else "undecided"
    of = f"{len(names):,}" if len(names) == n_all else f"{len(names):,} drawn of {n_all:,}"
    reason = f"of {of} {kind}, cutting {int(needed.sum()):,} changes the metric by more than {floor:.2g} of the gap"
    if idle.any():
        order: list[int] = np.argsort(changes.mean(1), kind="stable").tolist()
        worst = [names[i] for i in order if idle[i]]
        reason += f", cutting {len(worst):,} by less: {first_few(worst)}"
    n_open = len(names) - int(needed.sum()) - int(idle.sum())
    reason += f", of {n_open:,} it is open" if n_open else ""
    if len(names) < n_all:
        reason += f" (idle: {low:.1%} to {high:.1%} of all, by those drawn)"
    return TestResult(name, verdict, reason + "; each corrected by Holm", numbers)


def first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def _row(name: str, change: Estimate, needed: np.bool_, idle: np.bool_) -> dict[str, Any]:
    return {"name": name, "change": change.value, "low": change.low, "high": change.high, "needed": bool(needed),
            "idle": bool(idle)}

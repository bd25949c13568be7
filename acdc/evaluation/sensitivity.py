"""Does the verdict on faithfulness survive other choices: of ablation, of edges or nodes, of the ratio?

Mean of ratios: the mean over prompts of gain / gap, where the ratio of means is mean(gain) / mean(gap). A prompt with a
small gap counts much in it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.evaluation.bench import TIE, Bench, prepare_bench
from acdc.evaluation.significance import Estimate, interval
from acdc.evaluation.verdict import TestResult, Verdict, near

ABLATIONS = ("resample", "mean", "zero")


def node_circuit(circuit: Circuit) -> Circuit:
    """All edges among the nodes at either end of the circuit's edges."""
    graph, nodes = circuit.graph, set(circuit.nodes)
    if graph.kv == "group":  # a KV node stands for the heads that compute with it
        nodes |= {node for kv in circuit.nodes if kv.kind == "kv" for node in graph.srcs
                  if node.kind == "head" and node.layer == kv.layer
                  and node.index // (graph.n_heads // graph.n_kv_heads) == kv.index}
    src = np.array([node in nodes for node in graph.srcs])
    dst = np.array([_reads(circuit, nodes, c) for c in range(len(graph.channels))])
    return Circuit(graph, src[graph.edge_src] & dst[graph.edge_channel])


def _reads(circuit: Circuit, nodes: set, channel: int) -> bool:
    graph, node = circuit.graph, circuit.graph.channels[channel].node
    if node.kind != "kv":
        return node in nodes
    return node in nodes or any(graph.feeds(graph.channels[channel], node.layer, head.index)
                                for head in nodes if head.kind == "head" and head.layer == node.layer)


def sensitivity(bench: Bench, circuit: Circuit, *, tolerance: float = 0.1) -> TestResult:
    """Faithfulness by ablation, for the circuit and its node circuit, as ratio of means and as mean of ratios.

    pass: all cells say the same, all that the circuit is faithful or all that it is not; fail: some say one and some
    the other; else undecided. An ablation that cannot be had for these prompts, or that leaves the metric as it was,
    has cells without numbers, with the reason. Cost: an empty circuit, a circuit and a node circuit run for each
    ablation.
    """
    circuits = {"edges": circuit, "nodes": node_circuit(circuit)}
    cells: list[dict[str, Any]] = []
    for ablation in ABLATIONS:
        try:
            there = prepare_bench(bench.model, bench.batches, bench.metric, ablation=ablation,
                                  n_resamples=bench.n_resamples, seed=bench.seed, progress=bench.progress)
            gains = there.gains(list(circuits.values()))
        except AcdcError as error:  # told in the table
            cells += [{"ablation": ablation, "of": of, "ratio": ratio, "verdict": None, "why": str(error)}
                      for of in circuits for ratio in ("of means", "mean of")]
            continue
        for of, row in zip(circuits, gains, strict=True):
            both = {"of means": there.estimates(row[None])[0], "mean of": mean_of_ratios(there, row)}
            for ratio, estimate in both.items():
                cells.append({"ablation": ablation, "of": of, "ratio": ratio, **asdict(estimate),
                              "verdict": near(estimate, 1.0, tolerance)})
    numbers = {"n_edges": {of: one.n_edges for of, one in circuits.items()}, "cells": cells}
    return TestResult("sensitivity", *_conclude(cells), numbers, decides=False)


def mean_of_ratios(bench: Bench, gains: Float[np.ndarray, " prompt"]) -> Estimate:
    """The mean over prompts of gain / gap, with its bootstrap interval; prompts without a gap are left out."""
    there = np.abs(bench.gap) > TIE * bench.gap.mean()
    ratios, weights = gains[there] / bench.gap[there], bench.weights[:, there]
    counted = weights.sum(1) > 0
    draws = weights[counted] @ ratios / weights[counted].sum(1)
    low, high = interval(draws[None], bench.n_prompts)[0]
    return Estimate(float(ratios.mean()), float(low), float(high))


def _conclude(cells: Sequence[dict[str, Any]]) -> tuple[Verdict, str]:
    verdicts = [cell["verdict"] for cell in cells if cell["verdict"] is not None]
    counts = {name: verdicts.count(name) for name in ("pass", "fail", "undecided")}
    n_none = len(cells) - len(verdicts)
    reason = (f"of {len(verdicts)} ways to measure faithfulness, {counts['pass']} lie within the tolerance of 1, "
              f"{counts['fail']} outside, {counts['undecided']} reach over")
    reason += f"; {n_none} could not be measured" if n_none else ""
    if counts["pass"] and counts["fail"]:
        return "fail", f"the verdict depends on how it is measured: {reason}"
    same = len(verdicts) == len(cells) and max(counts["pass"], counts["fail"]) == len(cells)
    return ("pass" if same else "undecided"), reason

"""Incremental ACDC against the ACDC of auto-circuit 1.0.1: one model, the same prompts, metric and threshold.

    python -m acdc.benchmarks.peers.decisions --peer-python peer/bin/python --results benchmarks/results

`ENVIRONMENT` says how to make the peer's environment; it takes 2.4 GB. Without `--results` the numbers are only
printed. What is compared, and what is not, is said in `ABOUT`, which goes into the record.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc.ablation import prepare_ablation
from acdc.benchmarks.acdc_speed import random_gpt2  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.peers.side import ask  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.record import row, write_record  # pyright: ignore[reportMissingImports]
from acdc.circuit import Circuit, EdgeScores
from acdc.discovery.acdc import acdc
from acdc.discovery.acdc_sequential import acdc_sequential
from acdc.metrics import METRICS
from acdc.patching import run_circuit
from acdc.task import Batch
from acdc.transformer import Transformer

# auto-circuit imports attrs, which it does not declare, and TransformerLens from before 4.0, with which an older
# transformers and typeguard go. 1.19 computes what heads write by a matrix product; 2.16 takes about twice as long.
ENVIRONMENT = """python3.11 -m venv peer
peer/bin/pip install torch==2.13.0 auto-circuit==1.0.1 transformer-lens==1.19.0 transformers==4.56.2 \\
    typeguard==2.13.3 attrs==26.1.0 pyarrow==22.0.0"""
ABOUT = """The model is a GPT-2 with random weights, stored by us and loaded by both; the peer converts it to
TransformerLens and stops if a logit differs by 1e-4. The 16 prompts are 12 random tokens, of which the corrupted prompt
has another at one position. Both minimise KL to the clean run at the last position, give edges that are cut the value
of the corrupted run at all positions, and cut an edge iff KL rises by less than the threshold. It is chosen so
that we keep about 2% of the edges; in the last comparison 5%, where we have to try all edges. Both graphs have the same
edges. The algorithms differ in three things:

- Order. auto-circuit goes by layers from the last and, within a layer, in the order of a Python set: here a shuffle. It
runs in our order too, where it should find our circuit. Plain circuit runs of ours repeat its first shuffle, edge by
edge.
- auto-circuit tries every edge; we cut those into nodes that no kept edge reads untried.
- auto-circuit runs from the block of the edge to the logits, at all positions, one edge at a time. We leave out
positions before the first at which prompts differ (there are none where that is position 0), and what nothing reads.

The sides run one after the other, on as many threads; loading is not timed. Effects in random weights are small and
diffuse, so this says nothing of which circuit is better."""


def run_peer(python: str, model: Transformer, batch: Batch, orders: list[list[str]], threshold: float) -> Any:
    """What auto-circuit answers: one run for each order of the edges."""
    return ask(python, "auto_circuit_side.py", model, batch, orders=orders, threshold=threshold)


def decide_in_order(model: Transformer, batch: Batch, order: Sequence[str], threshold: float) -> tuple[Circuit, float]:
    """Plain ACDC by one circuit run an edge, in any order: what it keeps, and how near the threshold a decision was."""
    graph, metric = model.graph(), METRICS["kl_divergence"]
    replacement = prepare_ablation(model, [batch])(batch)
    kept = np.ones(graph.n_edges, dtype=bool)
    reference = run_circuit(model, batch, Circuit(graph, kept), replacement)
    current, nearest = 0.0, np.inf
    for edge in (graph.edge(name) for name in order):
        kept[edge] = False
        logits = run_circuit(model, batch, Circuit(graph, kept), replacement)
        loss = float(metric.loss(logits, batch, reference).double().mean())
        nearest = min(nearest, abs(loss - current - threshold))
        if loss - current < threshold:
            current = loss
        else:
            kept[edge] = True
    return Circuit(graph, kept), nearest


def timed(function: Callable[[], EdgeScores]) -> tuple[float, EdgeScores]:
    start = time.perf_counter()
    scores = function()
    return time.perf_counter() - start, scores


def jaccard(a: Circuit, b: Circuit) -> float:
    either = int((a.kept | b.kept).sum())
    return float((a.kept & b.kept).sum() / either) if either else 1.0


@dataclass(frozen=True)
class Ours:
    """What our side measured: seconds of each run, and the circuit."""

    incremental: list[float]
    sequential: float
    same: bool
    circuit: Circuit
    tried: int


def run_ours(model: Transformer, batches: list[Batch], threshold: float, repeats: int) -> Ours:
    runs = [timed(lambda: acdc(model, batches, threshold=threshold)) for _ in range(repeats)]
    sequential, plain = timed(lambda: acdc_sequential(model, batches, threshold=threshold))
    circuit = runs[0][1].above(threshold, by="signed")
    same = bool((plain.above(threshold, by="signed").kept == circuit.kept).all())
    return Ours([seconds for seconds, _ in runs], sequential, same, circuit, int(np.isfinite(runs[0][1].values).sum()))


def compare(arguments: argparse.Namespace, difference: int, threshold: float) -> list[dict[str, Any]]:
    """The rows of one setting."""
    model, batches = random_gpt2(arguments.layers, arguments.heads, arguments.width, difference)
    ours = run_ours(model, batches, threshold, arguments.repeats)
    latest = list(reversed(model.graph().edge_names))
    shuffles = [random.Random(seed).sample(latest, len(latest)) for seed in range(arguments.shuffles)]
    peer = run_peer(arguments.peer_python, model, batches[0], [latest, *shuffles], threshold)
    found = [Circuit.from_edges(model.graph(), run["kept"]) for run in peer["runs"]]
    where = f"differing at position {difference}, threshold {threshold:g}"
    rows = [*rows_of_time(ours, peer, where), *rows_of_circuits(ours, found)]
    if shuffles:
        replayed, nearest = decide_in_order(model, batches[0], peer["runs"][1]["tried"], threshold)
        rows.append(row("its other decisions in its order", int((found[1].kept != replayed.kept).sum()), "edges",
                        "than our plain circuit runs make in that order, one edge at a time; the nearest decision was "
                        f"{nearest:.1g} nats from the threshold"))
    for r in rows:
        print(f"{r['what']}: {r['value']:.4g} {r['unit']} ({r['meaning']})", flush=True)
    return rows


def rows_of_time(ours: Ours, peer: Any, where: str) -> list[dict[str, Any]]:
    incremental, peers = statistics.median(ours.incremental), [run["seconds"] for run in peer["runs"]]
    seconds = statistics.median(peers)
    versions = ", ".join(f"{name} {version}" for name, version in peer["versions"].items())
    return [
        row(f"auto-circuit ({where})", seconds, "s", f"median of {len(peers)} orders ({listed(peers)}); {versions}; "
            f"logits within {peer['logits_difference']:.1g} of HuggingFace's"),
        row("`acdc`", incremental, "s", f"median of {len(ours.incremental)} runs ({listed(ours.incremental)})"),
        row("`acdc_sequential`", ours.sequential, "s", f"one run; same decisions as `acdc`: {ours.same}"),
        row("auto-circuit / `acdc`", seconds / incremental, "times", "how many times faster `acdc` was"),
        row("auto-circuit / `acdc_sequential`", seconds / ours.sequential, "times", "the same for the plain version"),
    ]


def rows_of_circuits(ours: Ours, found: list[Circuit]) -> list[dict[str, Any]]:
    """`found`: auto-circuit's circuits, the first in our order."""
    n_edges, kept, shuffles = ours.circuit.graph.n_edges, ours.circuit.n_edges, found[1:]
    rows = [
        row("edges", n_edges, "", "of either graph; auto-circuit tries all"),
        row("edges tried by us", ours.tried, "", "the others lead into nodes that no kept edge reads"),
        row("edges kept by us", kept, "", f"{kept / n_edges:.1%} of the edges"),
        row("edges kept by auto-circuit", found[0].n_edges, "", "in our order; in shuffles "
            + (", ".join(f"{c.n_edges:,}" for c in shuffles) or "not run")),
        row("its other decisions in our order", int((found[0].kept != ours.circuit.kept).sum()), "edges",
            "kept by one side and cut by the other"),
    ]
    if shuffles:
        overlaps = [jaccard(ours.circuit, c) for c in shuffles]
        rows.append(row("overlap with its shuffles", statistics.mean(overlaps), "", "mean Jaccard index of the edges "
                        f"kept ({listed(overlaps)}): what order does"))
    pairs = [jaccard(a, b) for i, a in enumerate(shuffles) for b in shuffles[:i]]
    if pairs:
        rows.append(row("overlap among its shuffles", statistics.mean(pairs), "", "mean Jaccard index, without us"))
    return rows


def listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description="Incremental ACDC against auto-circuit's.")
    parser.add_argument("--peer-python", required=True, help="the Python of an environment that holds auto-circuit")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--differences", type=int, nargs="+", default=[6, 0, 0],
                        help="the position of 12 at which prompts differ; each is a comparison of its own")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.003, 0.0048, 0.0025],
                        help="one for each difference")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shuffles", type=int, default=2, help="runs of the peer in an order of its own")
    parser.add_argument("--results", type=Path, help="where to write peer_acdc.json and the page README.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for difference, threshold in zip(arguments.differences, arguments.thresholds, strict=True):
        rows += compare(arguments, difference, threshold)
    if arguments.results:
        parameters = {key: value for key, value in vars(arguments).items() if key not in ("results", "peer_python")}
        options = " ".join(f"--{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
                           for key, value in parameters.items() if value != parser.get_default(key))
        command = (f"{ENVIRONMENT}\npython -m acdc.benchmarks.peers.decisions --peer-python peer/bin/python "
                   f"{options}").strip()
        write_record(arguments.results, "peer_acdc", title="ACDC against auto-circuit's", about=ABOUT, command=command,
                     parameters=parameters, rows=rows)


if __name__ == "__main__":
    main()

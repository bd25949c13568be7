"""What one cell of the grid measures: a method finds edges on some prompts, its circuits are measured on others."""

import datetime
import time
from collections.abc import Sequence
from typing import Any

from acdc.arguments import size_of
from acdc.circuit import Circuit, EdgeScores, Rank
from acdc.discovery import METHODS
from acdc.evaluation.curve import MIB_FRACTIONS
from acdc.evaluation.held_out import HeldOut, Resampled, areas, faithfulness_of, interval
from acdc.grid.method_run import MethodRun
from acdc.machine import machine, peak_memory, reset_peak_memory
from acdc.metrics import METRICS
from acdc.task import Batch
from acdc.transformer import Transformer

SOUGHT = (0.0025, 0.0075, 0.0125, 0.015, 0.03, 0.04, 0.06, 0.08)  # beside MIB's sizes, for the smallest circuit
RANKS: tuple[Rank, Rank] = ("signed", "magnitude")
NEAR = 0.1  # |1 - f| of a circuit that does what the model does


def run_cell(model: Transformer, run: MethodRun, batches: Sequence[Batch], held_out: HeldOut, *, seed: int,
             ablation: str, kv: str, progress: bool = False) -> dict[str, Any]:
    """The numbers of one cell, as JSON can hold them; docs/benchmark.md says what each is."""
    device = str(model.device)
    own_peak = reset_peak_memory(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    scores = discover(model, run, batches, held_out, seed=seed, ablation=ablation, kv=kv, progress=progress)
    found, cpu_seconds = time.perf_counter(), time.process_time() - cpu_start
    peak = peak_memory(device) if own_peak else None
    numbers = evaluate(scores, run, held_out)
    return {
        "loss": run.loss or held_out.metric.name, "metric": held_out.metric.name, "by": run.by,
        "n_prompts": sum(map(len, batches)), "n_test_prompts": len(held_out.full), "n_edges": scores.graph.n_edges,
        "full": float(held_out.full.mean()), "empty": float(held_out.empty.mean()), **numbers,
        "seconds": found - start, "cpu_seconds": cpu_seconds,
        "evaluation_seconds": time.perf_counter() - found,
        "peak_gib": peak, "machine": machine(), "date": datetime.date.today().isoformat(),
    }


def discover(model: Transformer, run: MethodRun, batches: Sequence[Batch], held_out: HeldOut, *, seed: int,
             ablation: str, kv: str, progress: bool) -> EdgeScores:
    scoring: dict[str, Any] = {"ablation": ablation, "kv": kv, "progress": progress}
    options = dict(run.options)
    if run.shortlist is not None:
        candidates = METHODS["eap_ig"](model, batches, held_out.metric, **scoring)
        options["shortlist"] = candidates.top(size_of(run.shortlist, candidates.graph.n_edges), by="magnitude")
    if run.takes_seed:
        options["seed"] = seed
    return run.function(model, batches, METRICS[run.loss] if run.loss else held_out.metric, **options, **scoring)


def evaluate(scores: EdgeScores, run: MethodRun, held_out: HeldOut) -> dict[str, Any]:
    """Curves by both rankings; of a search with a threshold, which ranks nothing, the circuit that it stops at."""
    options = scores.provenance["method_options"]
    if "threshold" in options:
        by: Rank = "magnitude" if options.get("effect") == "absolute" else "signed"
        circuit = scores.above(options["threshold"], by=by)
        own = {"fraction": None, **_points([circuit], faithfulness_of(held_out.metrics([circuit]), held_out))[0]}
        return {"curves": {}, "cpr": None, "cmd": None, "own": own,
                "smallest": own if abs(1 - own["f"]) <= NEAR else None}
    sizes = {"signed": list(MIB_FRACTIONS), "magnitude": list(MIB_FRACTIONS)}
    sizes[run.by] += SOUGHT
    asked: list[tuple[Rank, float]] = [(rank, fraction) for rank in RANKS for fraction in sizes[rank]]
    n_edges = scores.graph.n_edges
    circuits = [scores.top(int(fraction * n_edges), by=by) for by, fraction in asked]
    resampled = faithfulness_of(held_out.metrics(circuits), held_out)
    points = {key: {"fraction": key[1], **point}
              for key, point in zip(asked, _points(circuits, resampled), strict=True)}
    curves = {}
    for by in RANKS:
        places = [asked.index((by, fraction)) for fraction in MIB_FRACTIONS]
        value = areas(MIB_FRACTIONS, resampled.values[None, places])
        drawn = areas(MIB_FRACTIONS, resampled.draws[:, places])
        curves[by] = {"points": [points[by, fraction] for fraction in MIB_FRACTIONS],
                      **{name: {"value": float(value[name][0]), "interval": interval(drawn[name])} for name in value}}
    near = [points[run.by, fraction] for fraction in sorted(sizes[run.by])
            if fraction < 1 and abs(1 - points[run.by, fraction]["f"]) <= NEAR]
    return {"curves": curves, "cpr": curves["signed"]["cpr"], "cmd": curves["magnitude"]["cmd"], "own": None,
            "smallest": near[0] if near else None}


def _points(circuits: Sequence[Circuit], resampled: Resampled) -> list[dict[str, Any]]:
    return [{"n_edges": circuit.n_edges, "f": float(f), "interval": resampled.interval(i)}
            for i, (circuit, f) in enumerate(zip(circuits, resampled.values, strict=True))]

"""What one cell of the grid measures: a method finds edges on some prompts, its circuits are measured on others."""

import datetime
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from acdc.arguments import size_of
from acdc.circuit import Circuit, EdgeScores, Rank
from acdc.discovery import METHODS
from acdc.evaluation.bench import Bench
from acdc.evaluation.curve import MIB_FRACTIONS, area
from acdc.evaluation.significance import interval
from acdc.grid.method_run import MethodRun
from acdc.machine import machine, peak_memory, reset_peak_memory
from acdc.metrics import METRICS
from acdc.task import Batch
from acdc.transformer import Transformer

SOUGHT = (0.0025, 0.0075, 0.0125, 0.015, 0.03, 0.04, 0.06, 0.08)  # beside MIB's sizes, for the smallest circuit
RANKS: tuple[Rank, Rank] = ("signed", "magnitude")
NEAR = 0.1  # |1 - f| of a circuit that does what the model does


def run_cell(model: Transformer, run: MethodRun, batches: Sequence[Batch], bench: Bench, *, seed: int,
             ablation: str, kv: str, progress: bool = False) -> dict[str, Any]:
    """The numbers of one cell, as JSON can hold them; docs/benchmark.md says what each is."""
    device = str(model.device)
    own_peak = reset_peak_memory(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    scores = discover(model, run, batches, bench, seed=seed, ablation=ablation, kv=kv, progress=progress)
    found, cpu_seconds = time.perf_counter(), time.process_time() - cpu_start
    peak = peak_memory(device) if own_peak else None
    numbers = evaluate(scores, run, bench)
    return {
        "loss": run.loss or bench.metric.name, "metric": bench.metric.name, "by": run.by,
        "n_prompts": sum(map(len, batches)), "n_test_prompts": bench.n_prompts, "n_edges": scores.graph.n_edges,
        "full": bench.sign * float(bench.full.mean()), "empty": bench.sign * float(bench.empty.mean()), **numbers,
        "seconds": found - start, "cpu_seconds": cpu_seconds,
        "evaluation_seconds": time.perf_counter() - found,
        "peak_gib": peak, "machine": machine(), "date": datetime.date.today().isoformat(),
    }


def discover(model: Transformer, run: MethodRun, batches: Sequence[Batch], bench: Bench, *, seed: int,
             ablation: str, kv: str, progress: bool) -> EdgeScores:
    scoring: dict[str, Any] = {"ablation": ablation, "kv": kv, "progress": progress}
    options = dict(run.options)
    if run.shortlist is not None:
        candidates = METHODS["eap_ig"](model, batches, bench.metric, **scoring)
        options["shortlist"] = candidates.top(size_of(run.shortlist, candidates.graph.n_edges), by="magnitude")
    if run.takes_seed:
        options["seed"] = seed
    return run.function(model, batches, METRICS[run.loss] if run.loss else bench.metric, **options, **scoring)


def evaluate(scores: EdgeScores, run: MethodRun, bench: Bench) -> dict[str, Any]:
    """Curves by both rankings; of a search with a threshold, which ranks nothing, the circuit that it stops at."""
    options = scores.provenance["method_options"]
    if "threshold" in options:
        by: Rank = "magnitude" if options.get("effect") == "absolute" else "signed"
        found, _ = _measured([scores.above(options["threshold"], by=by)], bench)
        own = {"fraction": None, **found[0]}
        return {"curves": {}, "cpr": None, "cmd": None, "own": own,
                "smallest": own if abs(1 - own["f"]) <= NEAR else None}
    sizes = {"signed": list(MIB_FRACTIONS), "magnitude": list(MIB_FRACTIONS)}
    sizes[run.by] += SOUGHT
    asked: list[tuple[Rank, float]] = [(rank, fraction) for rank in RANKS for fraction in sizes[rank]]
    n_edges = scores.graph.n_edges
    found, draws = _measured([scores.top(int(fraction * n_edges), by=by) for by, fraction in asked], bench)
    points = {key: {"fraction": key[1], **point} for key, point in zip(asked, found, strict=True)}
    curves = {}
    for by in RANKS:
        places = [asked.index((by, fraction)) for fraction in MIB_FRACTIONS]
        own_points = [points[by, fraction] for fraction in MIB_FRACTIONS]
        value, drawn = areas(np.array([[point["f"]] for point in own_points])), areas(draws[places])
        curves[by] = {"points": own_points,
                      **{name: {"value": float(value[name][0]), "interval": _ends(drawn[name], bench)}
                         for name in value}}
    near = [points[run.by, fraction] for fraction in sorted(sizes[run.by])
            if fraction < 1 and abs(1 - points[run.by, fraction]["f"]) <= NEAR]
    return {"curves": curves, "cpr": curves["signed"]["cpr"], "cmd": curves["magnitude"]["cmd"], "own": None,
            "smallest": near[0] if near else None}


def areas(f: Float[np.ndarray, "size draw"]) -> dict[str, Float[np.ndarray, " draw"]]:
    """CPR and CMD of every draw: areas under f and |1 - f| over MIB's fractions."""
    return {"cpr": area(MIB_FRACTIONS, list(f)), "cmd": area(MIB_FRACTIONS, list(np.abs(1 - f)))}


def _measured(circuits: Sequence[Circuit], bench: Bench
              ) -> tuple[list[dict[str, Any]], Float[np.ndarray, "circuit draw"]]:
    """f of each circuit, with its interval; and f in each draw of the prompts."""
    gains = bench.gains(circuits)
    draws = bench.draws(gains)
    return [{"n_edges": circuit.n_edges, "f": float(f), "interval": _ends(drawn, bench)}
            for circuit, f, drawn in zip(circuits, bench.values(gains), draws, strict=True)], draws


def _ends(draws: Float[np.ndarray, " draw"], bench: Bench) -> tuple[float | None, float | None]:
    """The interval; none where in some draw the full model gains nothing, so that f has no value."""
    if not np.isfinite(draws).all():
        return None, None
    low, high = interval(draws[None], bench.n_prompts)[0]
    return float(low), float(high)

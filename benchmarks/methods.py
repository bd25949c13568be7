"""How good the circuits of each method are on prompts that it has not seen, and what they cost.

    python -m acdc.benchmarks.methods [--only "eap;eap_ig"] [--results benchmarks/results]

The model is SmolLM2, the task IOI. Each method runs in a process of its own, so that its peak memory is its own. Its
circuits are measured on held-out prompts by logit difference, under resample ablation. Rows that the folder of results
holds already stay, unless they are measured anew.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from acdc.benchmarks.record import write_table  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.speed import peak_memory  # pyright: ignore[reportMissingImports]
from acdc.circuit import EdgeScores, Rank
from acdc.discovery import METHODS
from acdc.evaluation.faithfulness import faithfulness, faithfulness_curve
from acdc.metrics import METRICS
from acdc.models import load_model
from acdc.task import Batch
from acdc.tasks import load_task  # pyright: ignore[reportMissingImports]

MIB_RANKINGS: tuple[Rank, Rank] = ("signed", "magnitude")  # of CPR, of CMD
N_EDGES = 123_211  # of SmolLM2
SHOWN = (0.005, 0.01, 0.02, 0.05)
SOUGHT = (0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)


@dataclass(frozen=True)
class Run:
    """One row: a method, its options, on how many prompts, with which loss. `by`: how its edges are ranked."""

    method: str
    prompts: int = 128
    loss: str = "logit_difference"
    by: Rank = "magnitude"
    options: dict[str, Any] = field(default_factory=dict)
    shortlist: float | None = None  # of the edges, by |eap_ig score| for the logit difference
    start: bool = False  # from eap_ig's scores for the logit difference


MASKS: dict[str, Any] = {"loss": "kl_divergence", "by": "signed"}
RUNS = {
    "edge_pruning": Run("edge_pruning", **MASKS),
    "edge_pruning to 1%, 300 steps of 16 prompts": Run("edge_pruning", **MASKS, start=True, options={
        "steps": 300, "prompts_per_step": 16, "sparsity": 0.99}),
    "random": Run("random"),
    "eap": Run("eap"),
    "eap_ig": Run("eap_ig"),
    "eap_clean_corrupted": Run("eap_clean_corrupted"),
    "relp": Run("relp"),
    "gim": Run("gim"),
    "node_attribution, 5 steps": Run("node_attribution", options={"steps": 5}),
    "hisp": Run("hisp"),
    "ifr": Run("ifr"),
    "eap_ig_activations": Run("eap_ig_activations", prompts=16),
    "ensemble of eap_ig, relp, gim": Run("ensemble", options={"methods": ["eap_ig", "relp", "gim"]}),
    "ugs": Run("ugs", **MASKS),
    "subnetwork_probing": Run("subnetwork_probing", **MASKS),
    "acdc, shortlist 5%": Run("acdc", prompts=32, **MASKS, shortlist=0.05, options={"threshold": 0.0005}),
}


def prompts(model: Any, n: int, seed: int, avoid: frozenset[str] = frozenset()) -> list[Batch]:
    """n prompts of a seed, none of them among those to avoid."""
    task = load_task("ioi", model.tokenizer, n=n, seed=seed)
    assert not avoid & {example.clean for example in task.examples}, "prompts of both seeds are the same"
    return task.batches(model.tokenizer, batch_size=32)


def measure(name: str, held_out: int) -> dict[str, Any]:
    """One row of the table: what the method found, how well it does, and what it took."""
    run, model = RUNS[name], load_model("smollm2")
    batches = prompts(model, run.prompts, seed=0)
    seen = frozenset(example.clean for batch in batches for example in batch.examples)
    options = dict(run.options)
    start = time.perf_counter()
    if run.shortlist is not None or run.start:
        candidates = METHODS["eap_ig"](model, batches)
        if run.shortlist is None:
            options["start"] = candidates
        else:
            size = int(run.shortlist * candidates.graph.n_edges)
            options["shortlist"] = candidates.top(size, by="magnitude")
    scores = METHODS[run.method](model, batches, METRICS[run.loss], **options)
    seconds = time.perf_counter() - start
    return {"name": name, "prompts": run.prompts, "loss": run.loss, "by": run.by, "seconds": seconds,
            "peak": peak_memory(),
            **faithfulness_of(run, scores, model, prompts(model, held_out, 1, seen))}


def faithfulness_of(run: Run, scores: EdgeScores, model: Any, batches: list[Batch]) -> dict[str, Any]:
    """CPR, CMD and f at several sizes, on prompts not seen. A search that stops by itself has one size: its own."""
    tried = int(np.isfinite(scores.values).sum())
    if tried < scores.graph.n_edges:
        found = faithfulness(model, scores.above(run.options["threshold"], by="signed"), batches)
        own = [found.n_edges, found.faithfulness]
        return {"cpr": None, "cmd": None, "at": {}, "own": own,
                "smallest": own if abs(1 - found.faithfulness) <= 0.1 else None}
    cpr, cmd = (faithfulness_curve(model, scores, batches, by=by) for by in MIB_RANKINGS)
    fine = faithfulness_curve(model, scores, batches, by=run.by, fractions=sorted({*SHOWN, *SOUGHT}))
    best = fine.smallest_faithful()
    return {"cpr": cpr.cpr, "cmd": cmd.cmd, "own": None,
            "at": {str(p.fraction): p.faithfulness for p in fine.points},
            "smallest": None if best is None else [best.n_edges, best.faithfulness]}


COLUMNS = ("method", "prompts", "loss", "ranked by", *(f"f at {fraction:.1%}" for fraction in SHOWN), "CPR", "CMD",
           "smallest within 10% of 1", "seconds", "peak GiB")


def cells(row: dict[str, Any]) -> list[str]:
    """One row as text."""
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    at = [number(row["at"].get(str(fraction))) for fraction in SHOWN]
    if row["own"] is not None:
        size, f = row["own"]
        at = [f"{f:.2f} at {size:,} ({size / N_EDGES:.2%})", *["–"] * (len(SHOWN) - 1)]
    smallest = "none to 10%"
    if row["smallest"] is not None:
        smallest = f"{row['smallest'][0]:,} ({row['smallest'][0] / N_EDGES:.2%}), f {row['smallest'][1]:.2f}"
    elif row["own"] is not None:
        smallest = "–"
    return [row["name"], str(row["prompts"]), row["loss"], row["by"], *at, number(row["cpr"]), number(row["cmd"]),
            smallest, f"{row['seconds']:.0f}", f"{row['peak']:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Every method's circuits on prompts that it has not seen.")
    parser.add_argument("--only", default=";".join(RUNS), help="rows, separated by semicolons")
    parser.add_argument("--held-out", type=int, default=64, help="prompts to measure on")
    parser.add_argument("--results", type=Path, help="also write the table to this folder")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.held_out)))
        return
    names = arguments.only.split(";")
    if unknown := [name for name in names if name not in RUNS]:
        parser.error(f"no row {unknown[0]!r}; rows are {'; '.join(RUNS)}")
    stored = arguments.results and arguments.results / "methods.json"
    rows = json.loads(stored.read_text())["parameters"]["runs"] if stored and stored.exists() else {}
    for name in names:
        command = [sys.executable, "-W", "ignore", "-m", "acdc.benchmarks.methods", "--one", name, "--held-out",
                   str(arguments.held_out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(" | ".join(cells(rows[name])), flush=True)
        if arguments.results:
            write(arguments.results, arguments.held_out, {name: rows[name] for name in RUNS if name in rows})


def write(folder: Path, held_out: int, rows: dict[str, dict[str, Any]]) -> None:
    write_table(
        folder, "methods", title="Every method on prompts that it has not seen",
        about=f"SmolLM2 ({N_EDGES:,} edges), IOI, resample ablation. Circuits are found on prompts of seed 0, measured "
              f"on {held_out} others, of seed 1, by logit difference: f is the faithfulness of the strongest edges by "
              "the ranking named. CPR ranks by signed score, CMD by |score|, on MIB's ten sizes. The smallest circuit "
              "within 10% of 1 is sought at 0.25% to 10% of the edges. Seconds are of discovery; peak memory includes "
              "the model (1 GiB). A search with a threshold has one circuit. A row is one run: other draws of prompts "
              "move f by some 0.05 to 0.1.",
        command="python -m acdc.benchmarks.methods --results benchmarks/results",
        parameters={"held_out": held_out, "runs": rows}, columns=COLUMNS,
        rows=[cells(row) for row in rows.values()],
    )


if __name__ == "__main__":
    main()

"""How well methods find the true edges of compiled models, and whether edges that others published are found again.

    python -m acdc.benchmarks.recovery [--only "sort;hist"] [--results benchmarks/results]

Prompts are read at all positions. Each method gets the same 64 pairs of prompts that the true edges are defined on.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from acdc.benchmarks.compiled.load import COMPILED, load_compiled  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.compiled.published import (  # pyright: ignore[reportMissingImports]
    PUBLISHED,
    found_again,
    prompts_of,
    that_matter_alone,
    weights_of,
)
from acdc.benchmarks.record import row, write_record, write_table  # pyright: ignore[reportMissingImports]
from acdc.circuit import Circuit, EdgeScores
from acdc.discovery import METHODS
from acdc.evaluation.comparison import roc
from acdc.metrics import Metric

THRESHOLD = 1e-3  # of acdc, in the units of the logits
ROUNDING = 1e-9  # of the greatest score: what lies below is rounding, or gradients that vanished
ATTRIBUTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "EAP": ("eap", {}), "EAP-IG 20": ("eap_ig", {"steps": 20}),
}
ABLATIONS = ("resample", "zero")
COMMAND = "python -m acdc.benchmarks.recovery --results benchmarks/results"


def above_rounding(scores: EdgeScores) -> EdgeScores:
    """The scores, those below rounding as 0, so that they tie with the edges that are exactly 0."""
    size = np.abs(scores.values)
    return replace(scores, values=np.where(size > ROUNDING * size.max(), scores.values, 0.0))


def auroc(scores: EdgeScores, truth: Circuit) -> float:
    return roc(scores, truth, by="magnitude").auroc


def a_third(metric: Metric) -> Metric:
    """The metric / 3: the same to a method, but what cancels exactly in the metric's own gradient now does not."""
    return replace(metric, value=lambda logits, batch, reference: metric.value(logits, batch, reference) / 3)


def measure(name: str) -> dict[str, Any]:
    """One row: sizes, what acdc misses and adds, and the AUROC of each attribution."""
    compiled = load_compiled(name)
    model, batches = compiled.model, compiled.batches
    found: dict[str, Any] = {"layers": model.n_layers, "heads": model.n_heads, "edges": model.graph().n_edges,
                             "true": {by: len(edges) for by, edges in compiled.truth.items()}, "acdc": {},
                             "auroc": {}, "auroc_with_rounding": {}}
    for ablation in ABLATIONS:
        truth, start = compiled.circuit(ablation), time.perf_counter()
        kept = METHODS["acdc"](model, batches, compiled.metric, threshold=THRESHOLD, ablation=ablation).above(
            THRESHOLD, by="signed").kept
        found["acdc"][ablation] = {"missed": int((truth.kept & ~kept).sum()), "added": int((kept & ~truth.kept).sum()),
                                   "seconds": time.perf_counter() - start}
        for column, (method, options) in ATTRIBUTIONS.items():
            scores = METHODS[method](model, batches, compiled.metric_of_change, ablation=ablation, **options)
            found["auroc"].setdefault(ablation, {})[column] = auroc(above_rounding(scores), truth)
            if ablation == "resample":
                scores = METHODS[method](model, batches, a_third(compiled.metric_of_change), **options)
                found["auroc_with_rounding"][column] = auroc(scores, truth)
    return found


COLUMNS = ("program", "layers, heads", "edges", "true by weights, zero, resample", "ACDC misses, adds: zero",
           "resample", *(f"{column}, resample" for column in ATTRIBUTIONS),
           *(f"{column}, zero" for column in ATTRIBUTIONS), "rounding counted: EAP, EAP-IG 20, resample")


def cells(name: str, found: dict[str, Any]) -> list[str]:
    """One row as text."""
    sizes = ", ".join(str(found["true"][by]) for by in ("weights", "zero", "resample"))
    acdc = [f"{found['acdc'][by]['missed']}, {found['acdc'][by]['added']}" for by in ("zero", "resample")]
    of_methods = [f"{found['auroc'][by][column]:.3f}" for by in ABLATIONS for column in ATTRIBUTIONS]
    rounding = ", ".join(f"{value:.3f}" for value in found["auroc_with_rounding"].values())
    return [name, f"{found['layers']}, {found['heads']}", f"{found['edges']:,}", sizes, *acdc, *of_methods, rounding]


ABOUT = f"""Models that tracr compiled from programs, so that the true edges are known (`docs/known_circuits.md`): those
that, cut alone, move a logit of the 64 pairs of prompts, which are read at all positions. ACDC minimises the distance
from the clean run, with threshold {THRESHOLD}: how many true edges it misses, and how many others it adds. The others
are scored by AUROC, over all edges, of their |scores| for the distance from the corrupted run: 1 where every true edge
has a greater one than any other edge, 0.5 by chance, a tie a half. In float64; scores below {ROUNDING:g} of the
greatest count as 0. The compiled programs are steps with flat pieces between them, where a gradient is 0 although the
edge matters.

The last column shows why: the same loss, divided by 3, its scores taken as they are. On flat pieces large slopes
cancel; where the loss is divided by 3 they cancel but for rounding, of 1e-16, and that is more than the exact 0 of an
edge whose weights are 0. So an AUROC near 1 that counts it says which weights the compiler left at 0, and nothing of
the method. What the program writes into every channel it reads is seen like that, in any precision."""


def published_rows() -> list[dict[str, Any]]:
    """Each published list, how much of it is found again, and what is with proper prompts."""
    rows = []
    for published in PUBLISHED:
        found = found_again(published)
        nodes = "token and position embedding two nodes" if published.apart else "both embeddings one node"
        rows.append(row(
            f"{published.program}, {published.ablation}", len(found & published.edges),
            f"of {len(published.edges)} edges", f"found again, and {len(found - published.edges)} others; {nodes}; "
            f"{published.source}"))
    proper = that_matter_alone(weights_of("proportion", apart=True), prompts_of("proportion"), "zero")
    rows.append(row("proportion, zero, proper prompts", len(proper), "edges",
                    "with BOS in front and no padding among the tokens; all of them published"))
    return rows


def write(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    write_table(folder, "known_circuits", title="Compiled models, whose true edges are known", about=ABOUT,
                command=COMMAND, parameters={"threshold": THRESHOLD, "rounding": ROUNDING, "runs": results},
                columns=COLUMNS, rows=[cells(name, found) for name, found in results.items()])


def write_published(folder: Path) -> None:
    write_record(
        folder, "known_circuits_published", title="True edges that others published, found again",
        about="Edges that, cut alone, move a logit after the first position by more than 0.001, on the prompts of "
              "those who published them (zero ablation) or on ours (resample), by a forward pass in numpy. ACDC's "
              "authors took their lists from a run of ACDC. Their prompts for proportion have no BOS, and BOS and "
              "padding among the tokens: that adds two edges.",
        command=COMMAND, parameters={}, rows=published_rows())


def main() -> None:
    parser = argparse.ArgumentParser(description="Methods on compiled models, whose true edges are known.")
    parser.add_argument("--only", default=";".join(COMPILED), help="models, separated by semicolons")
    parser.add_argument("--results", type=Path, help="also write the tables to this folder")
    arguments = parser.parse_args()
    names = arguments.only.split(";")
    if unknown := [name for name in names if name not in COMPILED]:
        parser.error(f"no compiled model {unknown[0]!r}; there are {'; '.join(COMPILED)}")
    stored = arguments.results and arguments.results / "known_circuits.json"
    results = json.loads(stored.read_text(encoding="utf-8"))["parameters"]["runs"] if stored and stored.exists() else {}
    for name in names:
        results[name] = measure(name)
        print(" | ".join(cells(name, results[name])), flush=True)
        if arguments.results:
            write(arguments.results, {name: results[name] for name in COMPILED if name in results})
    for line in published_rows():
        print(f"{line['what']}: {line['value']} {line['unit']}, {line['meaning']}")
    if arguments.results:
        write_published(arguments.results)


if __name__ == "__main__":
    main()

"""`acdc calibrate`: compares a saved circuit's scores with exact effects of some edges."""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from acdc.arguments import add_cluster, add_saved, check_calibration, choose
from acdc.errors import AcdcError
from acdc.output_folder import output_file, write_file

from .loading import goes_on, load_again, read_circuit, spread

HELP = "compare a saved circuit's scores with exact effects of some edges"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_saved(parser)
    parser.add_argument("--edges", type=int, default=400, help="how many edges to patch; --seed draws them too")
    add_cluster(parser, "edges are patched")


def run(arguments: argparse.Namespace) -> None:
    from acdc.evaluation.calibration import calibrate
    from acdc.metrics import METRICS

    circuit = read_circuit(arguments.circuit)
    if circuit.scores is None:
        raise AcdcError(f"{arguments.circuit} has no scores, so there is nothing to calibrate")
    check_calibration("--edges", arguments.edges)
    scored = circuit.scores.provenance  # its metric is what discovery worked with: the circuit's "loss"
    known = {**circuit.provenance, **{key: scored[key] for key in ("metric", "ablation") if key in scored}}
    with output_file(arguments.out) as spent, ExitStack() as work:
        model, task, batches = load_again(arguments, circuit, known)
        work.enter_context(goes_on(arguments, arguments.out, spent, model, batches))
        model = work.enter_context(spread(arguments, model))
        metric = choose("metric", arguments.metric, METRICS)
        result = calibrate(model, circuit.scores, batches, metric, n=arguments.edges, size=circuit.n_edges,
                           seed=arguments.seed, ablation=arguments.ablation, progress=sys.stderr.isatty())
        if arguments.out:
            sample, names = result.sample, circuit.graph.edge_name
            edges = [{"edge": names(int(edge)), "score": score, "effect": effect, "error": error, "weight": weight}
                     for edge, score, effect, error, weight in zip(
                         sample.edge, sample.score.tolist(), sample.effect.tolist(),
                         [error if math.isfinite(error) else None for error in sample.error.tolist()],
                         sample.weight.tolist(), strict=True)]
            record = {**result.summary(), "metric": metric.name, "ablation": arguments.ablation, "edges": edges}
            write_file(arguments.out, json.dumps(record, indent=1, allow_nan=False))
    print(f"{metric.name} when an edge alone is cut, measured, against its score"
          f"{' by ' + scored['method'] if 'method' in scored else ''}; {result.n_prompts} prompts of {task.name}, "
          f"seed {arguments.seed}, {arguments.ablation} ablation")
    print("".join(_calibration_lines(result)), end="")
    if arguments.out:
        print(f"written to {arguments.out}")


def _calibration_lines(result: Any) -> Iterator[str]:
    def cell(value: float | None, spec: str) -> str:
        return "-" if value is None else format(value, spec)

    yield f"{'edges into':<10} {'scored':>9} {'patched':>8} {'Pearson':>8} {'Spearman':>9} {'sign agrees':>17} missed\n"
    for row in (*result.kinds, result.overall):
        sign = f"{cell(row.sign_agreement, '.1%')} of {row.n_distinguishable:,}"
        missed = "-" if row.missed is None else f"{row.missed:.1%} ({row.missed_low:.1%} to {row.missed_high:.1%})"
        yield (f"{row.kind:<10} {row.n_edges:>9,} {row.n_sampled:>8,} {cell(row.pearson, '.3f'):>8} "
               f"{cell(row.spearman, '.3f'):>9} {sign:>17} {missed}\n")
    yield "sign agrees: among the patched edges whose effect is distinguishable from 0 over the prompts\n"
    if result.threshold is not None:
        yield (f"missed: of the edges with |effect| >= {result.threshold:.4g}, the share that the top {result.size:,} "
               "by |score| leaves out, with a 95% interval\n")
    if result.n_untried:
        yield f"left out: {result.n_untried:,} edges that were never tried\n"

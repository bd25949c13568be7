"""`acdc compare`: how much of one circuit another has, and how well its scores rank what is in it."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError
from acdc.output_folder import write_file

from .loading import read_circuit
from .printing import say

HELP = "compare a circuit with another, or with a published one: overlap, and AUROC of its scores"
RANKINGS = ("magnitude", "signed")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("circuit", type=Path, help="circuit.json, or the folder that holds it")
    parser.add_argument("truth", help="the circuit to compare it with: a file or folder, or a published circuit: ioi, "
                        "greater_than or docstring")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")


def run(arguments: argparse.Namespace) -> None:
    from acdc.evaluation.comparison import LEVELS, mib_roc, overlap, roc

    circuit = read_circuit(arguments.circuit)
    truth, known = _truth(arguments.truth)
    among = None if known is None else known.exists
    overlaps = [overlap(circuit, truth, level=level, among=among) for level in LEVELS]
    curves, mib = [], []
    if circuit.scores is not None and 0 < overlaps[0].n_truth < overlaps[0].n_all:
        curves = [roc(circuit.scores, truth, by=by, level=found.level, among=among) for by in RANKINGS
                  for found in overlaps if 0 < found.n_truth < found.n_all]
        mib = [mib_roc(circuit.scores, truth, by=by) for by in RANKINGS]
    roles = [] if known is None else _roles(circuit, known)
    if arguments.out:
        record: dict[str, Any] = {
            "circuit": str(arguments.circuit), "truth": arguments.truth,
            "overlap": [found.summary() for found in overlaps], "roc": [curve.summary() for curve in curves],
            "mib_roc": [curve.summary() for curve in mib], "roles": roles}
        if known is not None:
            record |= {"sources": list(known.sources), "disputes": list(known.disputes)}
        write_file(arguments.out, json.dumps(record, indent=1, allow_nan=False))
    print(f"{arguments.circuit}: {circuit.n_edges:,} edges; {arguments.truth}: {truth.n_edges:,}"
          + (f", as published for {known.model_title}" if known else ""))
    print("".join(_overlap_lines(overlaps)), end="")
    print("".join(_roc_lines(curves, mib)), end="")
    print("".join(_role_lines(roles)), end="")
    if arguments.out:
        print(f"written to {arguments.out}")


def _truth(given: str) -> tuple[Any, Any]:
    """The circuit to compare with and, where it is a published one, its record."""
    from acdc.benchmarks.known_circuits.load import (  # pyright: ignore[reportMissingImports]
        KNOWN_CIRCUITS,
        load_known_circuit,
    )

    if given in KNOWN_CIRCUITS and not Path(given).exists():
        known = load_known_circuit(given)
        return known.circuit, known
    if given in KNOWN_CIRCUITS:
        say(f"note: {given} is the file or folder of that name here, not the published circuit")
    if not Path(given).exists():
        raise AcdcError(f"no circuit file {given!r}; give the circuit.json, or the folder, that discover wrote, or a "
                        f"published circuit: {', '.join(KNOWN_CIRCUITS)}")
    return read_circuit(Path(given)), None


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.3f'):>10}"


def _overlap_lines(overlaps: list[Any]) -> Iterator[str]:
    yield (f"\n{'level':<6}{'circuit':>9}{'true':>9}{'both':>9}{'of':>9}{'precision':>10}{'recall':>10}{'F1':>10}"
           f"{'Jaccard':>10}\n")
    for found in overlaps:
        counts = "".join(f"{n:>9,}" for n in (found.n_circuit, found.n_truth, found.n_both, found.n_all))
        shares = "".join(map(_cell, (found.precision, found.recall, found.f1, found.jaccard)))
        yield f"{found.level:<6}{counts}{shares}\n"
    yield "head: edges with q, k and v merged into the head; node: heads and MLPs\n"


def _roc_lines(curves: list[Any], mib: list[Any]) -> Iterator[str]:
    if not curves:
        return
    levels = list(dict.fromkeys(curve.level for curve in curves))
    yield f"\n{'AUROC of its scores':<36}" + "".join(f"{level:>10}" for level in levels) + "\n"
    for by in RANKINGS:
        own = [curve for curve in curves if curve.by == by]
        for name, kind in (("trapezoids, ties half", "auroc"), ("pessimistic steps", "pessimistic_auroc")):
            yield f"{by + ': ' + name:<36}" + "".join(_cell(getattr(curve, kind)) for curve in own) + "\n"
        ten = next(curve for curve in mib if curve.by == by)
        yield f"{by + ': ten greedy circuits (MIB)':<36}{_cell(ten.auroc)}\n"
    untried = max(curve.n_untried for curve in curves if curve.level == "edge")
    if untried:
        yield f"{untried:,} edges were never tried; they rank last, all tied\n"


def _roles(circuit: Any, known: Any) -> list[dict[str, Any]]:
    """Of the nodes of each role, which the circuit has."""
    found = {node.name for node in circuit.nodes}
    return [{"role": role, "found": [node for node in nodes if node in found], "nodes": nodes}
            for role in dict.fromkeys(known.roles.values())
            for nodes in [[node for node, own in known.roles.items() if own == role]]]


def _role_lines(roles: list[dict[str, Any]]) -> Iterator[str]:
    if roles:
        yield f"\n{'role':<24}found\n"
    for row in roles:
        missing = [node for node in row["nodes"] if node not in row["found"]]
        yield (f"{row['role']:<24}{len(row['found'])} of {len(row['nodes'])}"
               f"{'; not ' + ', '.join(missing) if missing else ''}\n")

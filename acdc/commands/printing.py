"""Lines that several commands print."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any


def curve_lines(curves: Sequence[Any]) -> Iterator[str]:
    from acdc.evaluation.curve import exceeds

    if not curves:
        return
    yield f"\n{'edges kept':>20}" + "".join(f"{'f, ' + curve.by:>14}" for curve in curves) + "\n"
    for points in zip(*(curve.points for curve in curves), strict=True):
        kept, total = points[0].n_edges, curves[0].n_graph_edges
        yield f"{kept:>11,} ({kept / total if total else points[0].fraction:>5.1%})" + "".join(
            f"{point.faithfulness:>13.3f}{'*' if exceeds(point.faithfulness) else ' '}" for point in points) + "\n"
    yield from _area_lines(curves)
    if any(curve.stops_short for curve in curves):
        yield ("fewer edges were tried than larger circuits would have; CPR and CMD count the last circuit for those, "
               "the achieved ones end with it\n")
    if any(curve.exceeding for curve in curves):
        yield "* f > 1: the circuit exceeds the full model, because what it leaves out works against the task\n"


def _area_lines(curves: Sequence[Any]) -> Iterator[str]:
    areas = [curve.areas() for curve in curves]
    rows = [("CPR", [a.cpr for a in areas]), ("CMD", [a.cmd for a in areas])]
    if any(curve.stops_short for curve in curves):
        achieved = [curve.areas(achieved=True) for curve in curves]
        rows += [("CPR, achieved", [a.cpr for a in achieved]), ("CMD, achieved", [a.cmd for a in achieved])]
        areas = achieved
    rows += [("mean f, log x", [a.log_f for a in areas]), ("mean |1-f|, log x", [a.log_distance for a in areas]),
             ("mean f, up to 5%", [a.small_f for a in areas]),
             ("mean |1-f|, up to 5%", [a.small_distance for a in areas])]
    for name, values in rows:
        cells = ("-" if value is None else f"{value:.3f}" for value in values)
        yield f"{name:>20}" + "".join(f"{cell:>13} " for cell in cells) + "\n"


def exceeds_text(value: float) -> str:
    from acdc.evaluation.curve import exceeds

    return "  (f > 1: the circuit exceeds the full model)" if exceeds(value) else ""


def say(text: str) -> None:
    print(text, file=sys.stderr)

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
        yield f"{points[0].n_edges:>11,} ({points[0].fraction:>5.1%})" + "".join(
            f"{point.faithfulness:>13.3f}{'*' if exceeds(point.faithfulness) else ' '}" for point in points) + "\n"
    yield f"{'CPR':>20}" + "".join(f"{curve.cpr:>13.3f} " for curve in curves) + "\n"
    yield f"{'CMD':>20}" + "".join(f"{curve.cmd:>13.3f} " for curve in curves) + "\n"
    if any(exceeds(point.faithfulness) for curve in curves for point in curve.points):
        yield "* f > 1: the circuit exceeds the full model, because what it leaves out works against the task\n"


def exceeds_text(value: float) -> str:
    from acdc.evaluation.curve import exceeds

    return "  (f > 1: the circuit exceeds the full model)" if exceeds(value) else ""


def say(text: str) -> None:
    print(text, file=sys.stderr)

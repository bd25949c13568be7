"""How faithfulness grows with the circuit: the curves of one or more rankings on one page."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acdc.errors import AcdcError
from acdc.evaluation.curve import Curve, CurvePoint

STYLES = {"signed": ("#0072B2", "o", "-"), "magnitude": ("#D55E00", "s", "--")}
TEXT: dict[str, Any] = {"family": ["DejaVu Sans", "sans-serif"]}
TICK_DISTANCE = 0.24  # in powers of ten: what keeps the numbers below the axis apart
LINEAR = (-0.5, 1.5)  # shown to scale even where a curve goes far beyond
MAX_RANGE = 5.0  # of faithfulness on a linear axis: the band around 1 stays visible


def curve_figure(curves: Sequence[Curve], *, chosen: CurvePoint | None = None,
                 title: str = "Faithfulness by circuit size") -> Figure:
    """Faithfulness against the fraction of edges kept (log scale), a line a curve.

    A line marks f = 1, the full model, a band f = 0.9 to 1.1, a ring the `chosen` circuit. CPR and CMD in the
    legend are areas over the *linear* fraction asked for; the means over this axis are areas of this picture. Circuits
    smaller than asked for are drawn where they are. Where a curve spans more than 5, the axis is compressed beyond
    -0.5 and 1.5, and says so. Points without a finite faithfulness are left out.
    """
    if not any(curve.points for curve in curves):
        raise AcdcError("there is no point to draw: give at least one curve with one point")
    legends = [_legend(curve) for curve in curves]
    if any(curve.stops_short for curve in curves):
        total = max(curve.n_graph_edges or 0 for curve in curves)
        curves = [replace(curve, points=tuple(_placed(p, total) for p in curve.points)) for curve in curves]
        chosen = None if chosen is None else _placed(chosen, total)
    figure = Figure(figsize=(6.5, 4.4), facecolor="white")
    axes = figure.add_axes((0.12, 0.29, 0.83, 0.59))
    axes.set_xscale("log")
    axes.axhspan(0.9, 1.1, color="#009E73", alpha=0.13, lw=0, label="f = 1 (the full model) ± 10%")
    axes.axhline(1, color="#009E73", lw=1)
    axes.axhline(0, color="#BBBBBB", lw=0.8, zorder=1)
    for curve, legend in zip(curves, legends, strict=True):
        colour, marker, line = STYLES[curve.by]
        drawn = _drawable(curve.points)
        axes.plot([p.fraction for p in drawn], [p.faithfulness for p in drawn], color=colour, marker=marker, ms=4,
                  ls=line, lw=1.6, label=legend)
    if chosen is not None and _drawable([chosen]):
        axes.axvline(chosen.fraction, color="#333333", lw=0.8, ls=":", zorder=1)
        axes.plot([chosen.fraction], [chosen.faithfulness], ls="", marker="o", ms=10, mfc="none", mec="#333333",
                  mew=1.3, label=f"chosen: {_edges(chosen.n_edges)}, f = {chosen.faithfulness:.3g}")
    points = [p for curve in curves for p in curve.points] + ([chosen] if chosen else [])
    _scale_x(axes, [p for p in points if p.fraction > 0])
    _scale_y(axes, [p.faithfulness for p in _drawable(points)])
    _dress(figure, axes, title, curves[0])
    return figure


def _drawable(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Without the empty circuit, which a log scale cannot show (its f is 0), and without undefined faithfulness."""
    return [point for point in points if point.fraction > 0 and np.isfinite(point.faithfulness)]


def _placed(point: CurvePoint, total: int) -> CurvePoint:
    """The point at the share of edges that it keeps."""
    return replace(point, fraction=point.n_edges / total)


def _legend(curve: Curve) -> str:
    areas = f":  CPR {curve.cpr:.3f},  CMD {curve.cmd:.3f}" if len(curve.points) > 1 else ""
    means = curve.areas(achieved=curve.stops_short)
    if means.log_f is not None:
        areas += f"\n    mean over this axis:  f {means.log_f:.3f},  |1 - f| {means.log_distance:.3f}"
    return f"ranked by {'signed score' if curve.by == 'signed' else '|score|'}{areas}"


def _edges(n: int) -> str:
    return f"{n:,} edge{'' if n == 1 else 's'}"


def _scale_x(axes: Axes, points: list[CurvePoint]) -> None:
    """Ticks at the points, from the right, as many as have room: percentage, and number of edges below it."""
    n_edges = {point.fraction: point.n_edges for point in points} or {1.0: 0}
    ticks: list[float] = []
    for fraction in sorted(n_edges, reverse=True):
        if not ticks or np.log10(ticks[-1] / fraction) >= TICK_DISTANCE:
            ticks.append(fraction)
    ticks.reverse()
    axes.set_xticks(ticks, [f"{100 * fraction:.3g}%\n{n_edges[fraction]:,}" for fraction in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(n_edges) / 1.25, max(n_edges) * 1.25)


def _scale_y(axes: Axes, values: list[float]) -> None:
    """From below 0 to above 1.1 at least; compressed beyond `LINEAR` where that would flatten what matters."""
    low, high = min([0.0, *values]), max([1.1, *values])
    if high - low <= MAX_RANGE:
        margin = 0.05 * (high - low)
        axes.set_ylim(low - margin, high + margin)
        axes.set_ylabel("faithfulness f", size=8.5, **TEXT)
        return
    bottom, top = LINEAR

    def squeeze(y: np.ndarray) -> np.ndarray:
        beyond = np.maximum(y - top, 0) + np.maximum(bottom - y, 0)
        return np.clip(y, bottom, top) + np.sign(y - 0.5) * 0.3 * np.log1p(beyond / 0.3)

    def stretch(z: np.ndarray) -> np.ndarray:
        beyond = np.maximum(z - top, 0) + np.maximum(bottom - z, 0)
        return np.clip(z, bottom, top) + np.sign(z - 0.5) * 0.3 * np.expm1(beyond / 0.3)

    axes.set_yscale("function", functions=(squeeze, stretch))
    ends = squeeze(np.array([low, high])) + np.array([-0.15, 0.15])
    axes.set_ylim(*stretch(ends))
    far = [sign * step * 10**power for power in range(7) for step in (2, 5, 10) for sign in (-1, 1)]
    steps = sorted(tick for tick in {bottom, 0, 0.5, 1, top, *far} if low <= tick <= high)
    axes.set_yticks(steps, [f"{tick:g}" for tick in steps])
    axes.set_yticks([], minor=True)
    for edge in LINEAR:
        axes.axhline(edge, color="#BBBBBB", lw=0.6, ls=(0, (1, 3)), zorder=1)
    axes.set_ylabel("faithfulness f\n(compressed beyond -0.5 and 1.5)", size=8.5, **TEXT)


def _dress(figure: Figure, axes: Axes, title: str, curve: Curve) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="#EEEEEE", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7.5, labelfontfamily=TEXT["family"][0])
    axes.set_xlabel("edges kept: share and number", size=8.5, **TEXT)
    figure.text(0.12, 0.96, textwrap.shorten(title, 75, placeholder=" ..."), va="top", size=10.5, weight="bold",
                color="#222222", parse_math=False, **TEXT)
    note = f"{curve.metric}: {curve.full:.4g} full model, {curve.empty:.4g} all edges cut; {curve.n_prompts:,} prompts"
    figure.text(0.95, 0.9, note, va="center", ha="right", size=7.5, color="#5A5A5A", parse_math=False, **TEXT)
    figure.legend(loc="lower center", ncols=2, frameon=False, handlelength=2.6, columnspacing=2,
                  prop={"family": TEXT["family"], "size": 8})

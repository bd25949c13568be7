"""A grid's cells as pictures: faithfulness by circuit size for each task, and all methods and tasks at a glance."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acdc.errors import AcdcError
from acdc.export.benchmark_tables import Cell, groups
from acdc.export.record import readable

TEXT: dict[str, Any] = {"family": ["DejaVu Sans", "sans-serif"], "parse_math": False}  # names may hold a $
SHOWN = (-0.3, 1.6)  # of faithfulness; what lies beyond is cut off
MARKERS = "osD^v<>PX*hd"
MOST_BANDS = 4  # methods whose intervals are drawn
SHARE = 0.01  # of the edges, in the heat map


def faithfulness_figure(cells: Sequence[Cell]) -> Figure:
    """Faithfulness against the fraction of edges kept (log scale), a line a method, the mean over its seeds.

    Each method by the ranking of its headline. A search with a threshold is a point. Intervals over the held-out
    prompts are drawn where there are few methods and one seed. Beyond -0.3 and 1.6 nothing is shown.
    """
    methods: dict[str, list[Cell]] = {}
    for cell in cells:
        methods.setdefault(cell["method"], []).append(cell)
    if not methods:
        raise AcdcError("there is no cell to draw: give at least one that is done")
    figure = Figure(figsize=(8.4, 4.6), facecolor="white")
    axes = figure.add_axes((0.08, 0.13, 0.56, 0.77))
    axes.set_xscale("log")
    axes.axhspan(0.9, 1.1, color="#009E73", alpha=0.13, lw=0)
    axes.axhline(1, color="#009E73", lw=1)
    axes.axhline(0, color="#BBBBBB", lw=0.8, zorder=1)
    colours = mpl.colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    for i, (method, own) in enumerate(methods.items()):
        style = {"color": colours[2 * i % 20 + i // 10 % 2], "marker": MARKERS[i % len(MARKERS)], "ms": 4.5}
        searches, ranked = ([cell for cell in own if bool(cell["own"]) == searched] for searched in (True, False))
        if searches:
            axes.plot([cell["own"]["n_edges"] / cell["n_edges"] for cell in searches],
                      [cell["own"]["f"] for cell in searches], ls="", label=_wrapped(f"{method} (its own size)"),
                      **{**style, "ms": 8})
        if ranked:
            _curve(axes, method, ranked, style, band=len(methods) <= MOST_BANDS and len(own) == 1)
    ticks = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    axes.set_xticks(ticks, [f"{100 * tick:g}%" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(*SHOWN)
    _dress(figure, axes, cells[0])
    return figure


def _curve(axes: Axes, method: str, cells: Sequence[Cell], style: Mapping[str, Any], *, band: bool) -> None:
    by = cells[0]["by"]
    points = [cell["curves"][by]["points"] for cell in cells]
    x = [point["fraction"] for point in points[0]]
    f = np.mean([[point["f"] for point in row] for row in points], axis=0)
    axes.plot(x, f, lw=1.4, label=_wrapped(f"{method}{'' if by == 'signed' else ' |s|'}"), **style)
    low, high = np.array([point["interval"] for point in points[0]], dtype=float).T
    if band and np.isfinite([low, high]).all():
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(readable(label).replace(",", ", ").replace(":", ": "), 36, subsequent_indent="  "))


def _dress(figure: Figure, axes: Axes, cell: Cell) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="#EEEEEE", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7.5, labelfontfamily=TEXT["family"][0])
    axes.set_xlabel("edges kept", size=8.5, **TEXT)
    axes.set_ylabel("faithfulness f on held-out prompts", size=8.5, **TEXT)
    title = f"{Path(cell['task']).stem} in {Path(cell['model']).name}: {cell['n_edges']:,} edges"
    figure.text(0.08, 0.95, readable(title), size=10.5, weight="bold", color="#222222", **TEXT)
    legend = figure.legend(loc="center left", bbox_to_anchor=(0.65, 0.52), frameon=False, handlelength=2.4,
                           prop={"family": TEXT["family"], "size": 7.5})
    for text in legend.get_texts():
        text.set_parse_math(TEXT["parse_math"])


def heat_map(cells: Sequence[Cell]) -> Figure:
    """Methods by tasks: f at 1% of the edges (of a search, of its own circuit), and CMD. Means over seeds."""
    if not cells:
        raise AcdcError("there is no cell to draw: give at least one that is done")
    columns, methods = list(groups(cells)), list(dict.fromkeys(cell["method"] for cell in cells))
    one_model = len({model for model, _ in columns}) == 1
    names = ["\n".join(readable(name) for name in (Path(model).name, Path(task).stem)[one_model:])
             for model, task in columns]
    width, height = 0.5 * max(2, len(columns)), 0.27 * len(methods)
    below = 0.2 + 0.07 * max(len(line) for name in names for line in name.split("\n"))
    figure = Figure(figsize=(3.1 + 2 * width, 0.4 + below + height), facecolor="white")
    whole_width, whole_height = figure.get_size_inches()
    for i, (title, part, colours) in enumerate((
            (f"f at {SHARE:.0%}", _at_share, "viridis"), ("CMD", _cmd, "viridis_r"))):
        left = (2.5 + i * (width + 0.3)) / whole_width
        axes = figure.add_axes((left, below / whole_height, width / whole_width, height / whole_height))
        values = np.array([[_mean(cells, key, method, part) for key in columns] for method in methods])
        axes.imshow(np.clip(values, 0, 1), cmap=colours, vmin=0, vmax=1, aspect="auto")
        for y, x in np.ndindex(*values.shape):
            if np.isfinite(values[y, x]):
                dark = (np.clip(values[y, x], 0, 1) < 0.6) == (colours == "viridis")
                axes.text(x, y, f"{values[y, x]:.2f}", ha="center", va="center", size=6.5,
                          color="white" if dark else "black", **TEXT)
        axes.set_title(title, size=8.5, **TEXT)
        axes.set_xticks(range(len(columns)), names, rotation=90, size=7, **TEXT)
        axes.set_yticks(range(len(methods)), [*map(readable, methods)] if i == 0 else [], size=7, **TEXT)
        axes.tick_params(length=0)
    return figure


def _at_share(cell: Cell) -> float:
    if cell["own"]:
        return cell["own"]["f"]
    return next(point["f"] for point in cell["curves"][cell["by"]]["points"] if point["fraction"] == SHARE)


def _cmd(cell: Cell) -> float:
    return cell["cmd"]["value"] if cell["cmd"] else np.nan


def _mean(cells: Sequence[Cell], key: tuple[str, str], method: str, part: Any) -> float:
    values = [part(cell) for cell in cells if (cell["model"], cell["task"]) == key and cell["method"] == method]
    return float(np.mean(values)) if values else np.nan

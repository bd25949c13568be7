"""Draws the pictures of docs/concepts.md: `python dev/pictures.py` writes them to docs/."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from acdc.circuit import Circuit
from acdc.export.figure import circuit_figure, save_figure
from acdc.graph import Graph

DOCS = Path(__file__).parents[1] / "docs"
GRAPH = Graph(n_layers=1, n_heads=2, n_kv_heads=2)
KEPT = ("input->a0.h1<v>", "a0.h1->m0", "a0.h1->logits", "m0->logits")
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#999999", "#222222"
FONT = {"family": ["DejaVu Sans", "sans-serif"], "color": INK}


def graph() -> Figure:
    """All edges of a model of one layer with two heads."""
    return circuit_figure(Circuit(GRAPH, np.ones(GRAPH.n_edges, bool)), title="Every edge of a model of one layer")


def circuit() -> Figure:
    """A circuit in it."""
    kept = np.isin(GRAPH.edge_names, KEPT)
    return circuit_figure(Circuit(GRAPH, kept), title="A circuit: the edges that are kept")


def cut() -> Figure:
    """Two runs side by side: a kept edge carries what its src computes now, a cut one what it computed before."""
    figure, axes = _page(6.5, 2.9)
    for x, name, prompt, colour in ((1.3, "corrupted run", "... Anna gave a drink to", ORANGE),
                                    (4.6, "clean run, with one edge cut", "... John gave a drink to", BLUE)):
        _box(axes, x, 0.6, prompt, colour, width=2.4)
        _box(axes, x - 0.75, 1.5, "a0.h1", colour)
        _box(axes, x + 0.75, 1.5, "m0", colour)
        _box(axes, x, 2.35, "logits", colour)
        axes.text(x, 0.12, name, ha="center", fontsize=9, **FONT)
        _arrow(axes, (x - 0.6, 0.78), (x - 0.75, 1.32), colour)
        _arrow(axes, (x + 0.6, 0.78), (x + 0.75, 1.32), colour)
    _arrow(axes, (0.65, 1.68), (1.15, 2.17), ORANGE)
    _arrow(axes, (1.95, 1.68), (1.45, 2.17), ORANGE)
    _arrow(axes, (5.25, 1.68), (4.75, 2.17), BLUE, "kept")
    _arrow(axes, (0.95, 1.62), (4.25, 2.2), ORANGE, "cut: carries its replacement", bend=-0.12)
    return figure


def faithfulness() -> Figure:
    """Where the metric of a circuit lies between that of the empty circuit and of the model."""
    figure, axes = _page(6.5, 1.5)
    left, right, empty, full, own = 0.6, 5.9, 0.45, 5.36, 4.87
    axes.plot([left, right], [0.7, 0.7], color=INK, lw=1)
    for value, f, name, colour in ((empty, "f = 0", "all edges cut", ORANGE), (full, "f = 1", "the model", BLUE),
                                   (own, "f = 0.90", "the circuit", GREEN)):
        x = left + (right - left) * (value + 0.3) / 6.2
        axes.plot([x], [0.7], "o", color=colour, ms=8)
        side = {"the model": "left", "the circuit": "right"}.get(name, "center")
        axes.text(x, 0.9, f"{name}\n{f}", ha=side, va="bottom", fontsize=9, **FONT)
        axes.text(x, 0.5, f"{value:.2f}", ha=side, va="top", fontsize=9, **FONT)
    axes.text((left + right) / 2, 0.12, "mean logit difference", ha="center", fontsize=9, **FONT)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "concepts_graph.svg": graph, "concepts_circuit.svg": circuit, "concepts_cut.svg": cut,
    "concepts_faithfulness.svg": faithfulness,
}


def _page(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def _box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 0.8) -> None:
    axes.add_patch(FancyBboxPatch((x - width / 2, y - 0.17), width, 0.34, boxstyle="round,pad=0,rounding_size=0.06",
                                  facecolor="white", edgecolor=colour, lw=1.3))
    axes.text(x, y, text, ha="center", va="center_baseline", fontsize=8.5, **FONT)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, words: str = "",
           bend: float = 0.0) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.5, "shrinkA": 0,
                                              "shrinkB": 0, "connectionstyle": f"arc3,rad={bend}"})
    if words:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(x, y + (0.32 if bend else 0), words, ha="center" if bend else "left", fontsize=8.5, **FONT)


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        save_figure(draw(), DOCS / name)

"""A table of numbers as colours: what lenses, causal tracing and patching sweeps found, by layer and position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from acdc.errors import AcdcError

TEXT: dict[str, Any] = {"family": ["DejaVu Sans", "sans-serif"]}
CELL = (0.22, 0.21)  # inches
MAX_LABELS = 60  # of an axis; of more, some are left out
MAX_WORDS = 14  # characters of what is written into a cell


@dataclass(frozen=True, eq=False)
class Panel:
    """One table. `signed`: white is 0, blue above, red below; else the darker the larger. `words`: what is written into
    the cells, such as tokens; `label`: what the numbers are."""

    title: str
    values: Float[np.ndarray, "row column"]
    rows: Sequence[str]
    columns: Sequence[str]
    label: str
    signed: bool = True
    words: Sequence[Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.rows), len(self.columns)) or not self.values.size:
            raise AcdcError(f"a table of shape {self.values.shape} with {len(self.rows)} names of rows and "
                            f"{len(self.columns)} of columns; each row and column needs a name, and one at least")
        if not np.isfinite(self.values).all():
            raise AcdcError(f"{int((~np.isfinite(self.values)).sum())} numbers of {self.title!r} are not finite; "
                            "leave those out")


def heat_map(panels: Sequence[Panel], title: str = "") -> Figure:
    """The tables one above another, rows from top to bottom, each with a scale of colours of its own."""
    if not panels:
        raise AcdcError("there is nothing to draw: give at least one table")
    cell = [CELL[0] * (4.6 if panel.words else 1) for panel in panels]
    width = max(4.5, 3.0 + max(size * len(panel.columns) for size, panel in zip(cell, panels, strict=True)))
    heights = [0.95 + CELL[1] * len(panel.rows) for panel in panels]
    height = sum(heights) + (0.4 if title else 0.1)
    figure = Figure(figsize=(width, height), facecolor="white")
    top = height - (0.4 if title else 0.1)
    if title:
        figure.text(0.02, 1 - 0.12 / height, _shown(title, 110), va="top", size=10, weight="bold", parse_math=False,
                    **TEXT)
    for panel, size, extent in zip(panels, cell, heights, strict=True):
        drawn = size * len(panel.columns) / width
        axes = figure.add_axes((1.75 / width, (top - extent + 0.55) / height, drawn, (extent - 0.95) / height))
        scale = figure.add_axes((1.75 / width + drawn + 0.12 / width, (top - extent + 0.55) / height, 0.1 / width,
                                 (extent - 0.95) / height))
        _draw(figure, axes, scale, panel)
        top -= extent
    return figure


def _draw(figure: Figure, axes: Any, scale: Any, panel: Panel) -> None:
    if panel.signed:
        most = max(float(np.abs(panel.values).max()), 1e-12)
        look: dict[str, Any] = {"cmap": "RdBu", "norm": TwoSlopeNorm(0, -most, most)}
    else:
        low = min(0.0, float(panel.values.min()))
        look = {"cmap": "Blues", "vmin": low, "vmax": max(float(panel.values.max()), low + 1e-12)}
    image = axes.pcolormesh(panel.values, rasterized=True, **look)
    axes.invert_yaxis()
    for names, set_ticks, turned in ((panel.rows, axes.set_yticks, 0), (panel.columns, axes.set_xticks, 90)):
        step = -(-len(names) // MAX_LABELS)
        short = turned and max(map(len, names)) <= 3
        set_ticks(np.arange(0, len(names), step) + 0.5, [_shown(name, 24) for name in names[::step]],
                  rotation=0 if short or panel.words else turned, size=6.5, **TEXT)
    for label in (*axes.get_yticklabels(), *axes.get_xticklabels()):
        label.set_parse_math(False)
    axes.tick_params(length=0, pad=2)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(_shown(panel.title, 90), size=8, loc="left", pad=4, **TEXT).set_parse_math(False)
    for row, words in enumerate(panel.words or ()):
        for column, word in enumerate(words):
            dark = sum(image.cmap(image.norm(panel.values[row, column]))[:3]) < 1.5
            axes.text(column + 0.5, row + 0.5, _shown(word, MAX_WORDS), ha="center", va="center", size=5.5,
                      color="white" if dark else "#222222", parse_math=False, **TEXT)
    bar = figure.colorbar(image, cax=scale)
    bar.set_label(panel.label, size=6.5, **TEXT)
    bar.ax.tick_params(labelsize=6, length=2)


def _shown(text: str, most: int) -> str:
    """The text on one line, with what cannot be seen written out, and cut where it is long."""
    visible = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    visible = visible if visible.strip() else visible.replace(" ", "␣")
    return visible if len(visible) <= most else visible[: most - 1] + "…"

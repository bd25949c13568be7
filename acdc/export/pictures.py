"""What the nodes of a model of images look for, in one figure: made images, and those of the task that excite most."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from acdc.circuit import Annotation
from acdc.errors import AcdcError

SIDE = 0.95  # inches, of a picture
MARK = "#D55E00"


def pictures_figure(annotations: Sequence[Annotation]) -> Figure:
    """A row for each unit that `annotations` hold pictures of: first the image made to excite it, then those of the
    task, strongest first, with the patch at which it is excited marked (none: at CLS)."""
    rows = [annotation for annotation in annotations if annotation.kind == "picture" and "made" in annotation.data]
    if not rows:
        raise AcdcError("no annotation holds pictures; `acdc annotate` makes them, for models of images")
    columns = 1 + max(len(row.data["top"]) for row in rows)
    figure = Figure(figsize=(2.3 + SIDE * columns, 0.4 + SIDE * len(rows)), facecolor="white")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    left = 2.3 / figure.get_figwidth()
    figure.subplots_adjust(left=left, right=0.99, bottom=0.01, top=1 - 0.35 / figure.get_figheight(), wspace=0.08,
                           hspace=0.08)
    for axes in grid.flat:
        axes.axis("off")
    for cells, row in zip(grid, rows, strict=True):
        _draw(cells[0], row.data["made"], row.data, row.data["place"])
        for axes, picture, place in zip(cells[1:], row.data["top"], row.data["top_places"], strict=False):
            _draw(axes, picture, row.data, place)
        cells[0].text(-0.08, 0.5, _words(row), ha="right", va="center", size=8, transform=cells[0].transAxes)
    grid[0][0].set_title("made", size=8)
    grid[0][1].set_title("images that excite it most", size=8, loc="left")
    return figure


def _words(row: Annotation) -> str:
    data = row.data
    title = f"{row.node}, neuron {data['neuron']}" if "neuron" in data else f"{row.node}, widest direction"
    effect = f"\neffect {data['effect']:+.2f}" if "effect" in data else ""
    return f"{title}\nat {data['place']}\nedge {row.value:.2f} (random {data['baseline']:.2f}){effect}"


def _draw(axes: Axes, picture: Sequence[Sequence[float]], data: Mapping[str, Any], place: str) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    if place.startswith("patch "):
        row, column = (int(part[1:]) - 1 for part in place.split()[1:])
        height, width = len(picture) / data["grid"][0], len(picture[0]) / data["grid"][1]
        corner = (column * width - 0.5, row * height - 0.5)
        axes.add_patch(Rectangle(corner, width, height, fill=False, ec=MARK, lw=1.2))

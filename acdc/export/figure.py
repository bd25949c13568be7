"""How a drawing becomes a file by matplotlib: PDF, SVG or PNG, the same bytes for the same circuit."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline

from acdc.circuit import Circuit
from acdc.errors import AcdcError, unknown_name
from acdc.export.circuit_drawing import circuit_drawing
from acdc.export.drawing import Drawing, Panel, Patch, Stroke, Words
from acdc.export.record import readable
from acdc.output_folder import write_file

TEXT: dict[str, Any] = {"family": ["DejaVu Sans", "sans-serif"], "parse_math": False}
NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}  # the same figure, the same bytes
ALONG = {"top": "top", "middle": "center_baseline", "bottom": "bottom"}
DPI = {"png": 300, "svg": 200, "pdf": 200}


def circuit_figure(circuit: Circuit, *, title: str | None = None, max_edges: int | None = None, width: str = "page",
                   roles: Mapping[str, str] | None = None) -> Figure:
    """The circuit from the input at the bottom to the logits at the top; see `acdc.export.circuit_drawing`."""
    return figure_of(circuit_drawing(circuit, title=title, max_edges=max_edges, width=width, roles=roles))


def figure_of(drawing: Drawing) -> Figure:
    """A drawing as a figure of matplotlib, in which names of edges are ids of their lines (`edge:input->m0`)."""
    figure = Figure(figsize=(drawing.width, drawing.height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, drawing.width), ylim=(0, drawing.height))
    axes.axis("off")
    for depth, shape in enumerate(drawing.painted()):
        _draw(axes, shape, depth)
    return figure


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as svg, png or pdf. PDFs hold their fonts as TrueType, which journals ask for (none of Type 3)."""
    if kind not in NO_DATE:
        raise unknown_name("kind of figure", kind, NO_DATE)
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "acdc", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(file, format=kind, dpi=DPI[kind], metadata=NO_DATE[kind])
    return file.getvalue()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes the figure as the path's suffix says: .svg, .png or .pdf. The same figure gives the same bytes."""
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in NO_DATE:
        raise unknown_name("kind of figure", kind, NO_DATE)
    if not path.parent.is_dir():
        raise AcdcError(f"cannot write {path}: there is no folder {path.parent}. Make it first")
    write_file(path, figure_bytes(figure, kind))


def _draw(axes: Axes, shape: Panel | Stroke | Patch | Words, depth: int) -> None:
    if isinstance(shape, Panel):
        look = {"fc": shape.fill, "ec": shape.line or "none", "lw": shape.line_width, "zorder": depth}
        if shape.radius:
            axes.add_patch(FancyBboxPatch((shape.x, shape.y), shape.width, shape.height,
                                          boxstyle=f"round,pad=0,rounding_size={shape.radius}", **look))
        else:
            axes.add_patch(Rectangle((shape.x, shape.y), shape.width, shape.height, **look))
    elif isinstance(shape, Stroke):
        codes = [Outline.MOVETO] + (len(shape.points) - 1) * [Outline.CURVE4 if shape.curved else Outline.LINETO]
        patch = PathPatch(Outline(shape.points, codes), fc="none", ec=shape.colour, lw=shape.width,
                          alpha=shape.opacity, ls=(0, shape.dashes) if shape.dashes else "-", capstyle="butt",
                          zorder=depth)
        if shape.name:
            patch.set_gid(f"edge:{readable(shape.name)}")
        axes.add_patch(patch)
    elif isinstance(shape, Patch):
        axes.add_patch(Polygon(shape.points, closed=True, fc=shape.fill, lw=0, zorder=depth))
    else:
        axes.text(shape.x, shape.y, shape.text, ha=shape.across, va=ALONG[shape.along], size=shape.size,
                  color=shape.colour, weight="bold" if shape.bold else "normal", zorder=depth, **TEXT)

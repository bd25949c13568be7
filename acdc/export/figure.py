"""How a circuit looks on a page: a layered drawing, edges coloured by channel; a column a position, if told apart.

A circuit of more edges than a person can read is drawn as its backbone, and the figure says so.
"""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Outline

from acdc.circuit import Circuit
from acdc.errors import AcdcError, unknown_name
from acdc.export.columns import NAME_WIDTH, in_columns
from acdc.export.layout import BOX_HEIGHT, LEFT, Box, Layout, Place, label, layered
from acdc.export.paths import Backbone, backbone, edge_strengths
from acdc.export.text import some_names
from acdc.graph import Graph, Node

# Okabe and Ito's palette, told apart with all common forms of colour blindness; grey where a node has one channel.
COLOURS = {"q": "#0072B2", "k": "#D55E00", "v": "#009E73", "": "#5A5A5A"}
CHANNELS = {"q": "into q", "k": "into k", "v": "into v", "": "into MLP or logits"}
SLOTS = {"q": -0.36, "k": 0.0, "v": 0.36, "": 0.0}  # where an edge enters its dst's box, in box widths
BOWS = (0.0, 0.12, -0.12, 0.25, -0.25, 0.45, -0.45, 0.7, -0.7, 1.0, -1.0, 1.4, -1.4)
COLUMN_BOWS = (0.0, 0.08, -0.08, 0.16, -0.16, 0.25, -0.25, 0.35, -0.35, 0.5, -0.5, 0.7, -0.7)
LINK_BOWS = (0.0, 0.2, -0.2, 0.3, -0.3, 0.45, -0.45)  # up or down, of links between columns
LINK = {"color": "#999999", "lw": 0.8, "ls": ":"}
TEXT: dict[str, Any] = {"family": ["DejaVu Sans", "sans-serif"], "parse_math": False}
NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}  # the same figure, the same bytes

Curve = Float[np.ndarray, "4 2"]


def circuit_figure(circuit: Circuit, *, title: str | None = None, max_edges: int = 60) -> Figure:
    """The circuit from the input at the bottom to the logits at the top, on one page.

    Edges run upward and enter a head at its left, middle or right for q, k and v. Width and depth of colour are
    |score|, dashes a negative score: the edge hurts. Of more than `max_edges` kept edges the backbone is drawn
    (see `acdc.export.paths.backbone`). `title` is by default what was found in which model.

    Where edges are told apart by position, each is drawn in the column of its position, and dots lead from where a head
    reads a key or value to where its output is read: it may have come that way, if the head can look there.
    """
    if max_edges < 1:
        raise AcdcError(f"max_edges is {max_edges}: at least one edge must be shown")
    shown = backbone(circuit, max_edges)
    title_lines = textwrap.wrap(default_title(circuit) if title is None else title, 68)
    note_lines = textwrap.wrap(_note(circuit, shown) + _note_on_columns(circuit.graph, shown), 96)
    head_room = 0.22 + 0.2 * len(title_lines) + 0.15 * len(note_lines)
    places = _places(circuit.graph, shown)
    if circuit.graph.positions:
        layout = in_columns(circuit.graph, places, head_room=head_room, foot_room=0.6)
    else:
        layout = layered(circuit.graph, {node for node, _ in places}, head_room=head_room, foot_room=0.6)
    figure = Figure(figsize=(layout.width, layout.height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, layout.width), ylim=(0, layout.height))
    axes.axis("off")
    _draw_bands(axes, layout)
    _draw_columns(axes, circuit.graph, layout)
    if circuit.graph.positions:
        _draw_carried(axes, circuit.graph, shown, layout)
    else:
        _draw_fixed_links(axes, circuit.graph, layout)
    _draw_edges(axes, circuit, shown, layout)
    _draw_nodes(axes, layout)
    y = layout.height - 0.12
    axes.text(0.2, y, "\n".join(title_lines), va="top", size=10.5, weight="bold", color="#222222", **TEXT)
    y -= 0.2 * len(title_lines)
    axes.text(0.2, y, "\n".join(note_lines), va="top", size=7.5, color="#5A5A5A", **TEXT)
    _draw_legend(figure, circuit, shown)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes the figure as the path's suffix says: .svg, .png or .pdf. The same figure gives the same bytes."""
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in NO_DATE:
        raise unknown_name("kind of figure", kind, NO_DATE)
    if not path.parent.is_dir():
        raise AcdcError(f"cannot write {path}: there is no folder {path.parent}. Make it first")
    with mpl.rc_context({"svg.hashsalt": "acdc", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(path, format=kind, dpi=200, metadata=NO_DATE[kind])


def default_title(circuit: Circuit) -> str:
    """`ioi in smollm2 by eap_ig`, as far as the provenance says."""
    record = circuit.provenance
    parts = [f"{word} {record[key]}" for word, key in (("in", "model"), ("by", "method")) if record.get(key)]
    return " ".join([str(record.get("task") or "Circuit"), *parts])


def _note(circuit: Circuit, shown: Backbone) -> str:
    """What the figure shows of what there is."""
    kept, all_edges = circuit.n_edges, f"of the model's {circuit.graph.n_edges:,}"
    if circuit.graph.positions:
        all_edges += f" at {circuit.graph.n_positions:,} positions"
    if len(shown.edges) == kept:
        return f"shown: all {kept:,} kept edges ({all_edges})" if kept else f"no edge is kept ({all_edges})"
    most = "strongest" if circuit.scores is not None else "most direct" if shown.on_paths else "first"
    most += " on a path" if shown.on_paths else ""
    joining = len(shown.edges) - shown.n_strongest
    rest = f" and {joining} that join them to the input and the logits" if joining else ""
    return (
        f"shown: {len(shown.edges)} of {kept:,} kept edges ({all_edges}), the {shown.n_strongest} {most}"
        f"{rest}"
    )


def _note_on_columns(graph: Graph, shown: Backbone) -> str:
    drawn = {*graph.edge_position[shown.edges].tolist(), graph.n_positions - 1}
    hidden = [name for i, name in enumerate(graph.positions) if i not in drawn]
    return f"; none at {some_names(hidden)}" if hidden and len(shown.edges) else ""


def _edge_ends(graph: Graph, edge: int) -> tuple[Place, Place]:
    """Where an edge is drawn from and to; both are at its position."""
    position = int(graph.edge_position[edge])
    return (graph.srcs[graph.edge_src[edge]], position), (graph.channels[graph.edge_channel[edge]].node, position)


def _places(graph: Graph, shown: Backbone) -> set[Place]:
    return {place for edge in shown.edges.tolist() for place in _edge_ends(graph, edge)}


def _draw_bands(axes: Axes, layout: Layout) -> None:
    for layer, (low, high) in layout.bands.items():
        axes.add_patch(Rectangle((LEFT - 0.1, low), layout.width - LEFT, high - low, fc="#F4F4F4", lw=0, zorder=0))
        axes.text(0.2, (low + high) / 2, f"layer {layer}", va="center", size=7, color="#8A8A8A", **TEXT)


def _draw_nodes(axes: Axes, layout: Layout) -> None:
    fills = {"head": "white", "kv": "#FFF1E6", "mlp": "#E4E4E4", "input": "#333333", "logits": "#333333"}
    for (node, _), box in layout.boxes.items():
        ends = node.kind in ("input", "logits")
        axes.add_patch(FancyBboxPatch(
            (box.x - box.width / 2, box.y - BOX_HEIGHT / 2), box.width, BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.06", fc=fills[node.kind], ec="#333333", lw=0.7, zorder=3,
        ))
        axes.text(box.x, box.y, label(node), ha="center", va="center_baseline", size=7.5, zorder=4,
                  color="white" if ends else "#111111", **TEXT)


def _draw_fixed_links(axes: Axes, graph: Graph, layout: Layout) -> None:
    """From each KV node to the query heads that read it: there is nothing to cut, so they are thin and dotted."""
    if graph.kv == "head":
        return
    group_size = graph.n_heads // graph.n_kv_heads
    for (head, position), box in layout.boxes.items():
        kv = layout.boxes.get((Node("kv", head.layer, head.index // group_size), position))
        if head.kind == "head" and kv:
            axes.plot([kv.x, box.x], [kv.y, box.y], **LINK, zorder=1)


def _draw_columns(axes: Axes, graph: Graph, layout: Layout) -> None:
    """Their names below the input, and lines between them."""
    for position, (left, right) in layout.columns.items():
        bottom = layout.boxes[Node("input"), position].y - BOX_HEIGHT / 2
        name = "".join(c if c.isprintable() else " " for c in graph.positions[position])
        room = int((right - left) / NAME_WIDTH)
        name = name if len(name) <= room else name[: room - 1] + "…"
        axes.text((left + right) / 2, bottom - 0.05, name, ha="center", va="top", size=7.5, weight="bold",
                  color="#222222", **TEXT)
        if left > LEFT:
            top = max(box.y for box in layout.boxes.values()) + BOX_HEIGHT / 2
            axes.plot([left, left], [bottom - 0.2, top], color="#DADADA", lw=0.6, zorder=0.5)


def _draw_carried(axes: Axes, graph: Graph, shown: Backbone, layout: Layout) -> None:
    """From where a key or value is read to where the output of the head is: attention carries it, there is no edge.

    Nothing is drawn within one box, and an arrow shows the way between two columns.
    """
    for (src, start), (dst, end) in carried(graph, shown.edges):
        a, b = layout.boxes[src, start], layout.boxes[dst, end]
        to_right = 1 if b.x > a.x else -1
        if start == end:
            axes.plot([a.x, b.x], [a.y, b.y], **LINK, zorder=1)
            continue
        begin = (a.x + to_right * a.width / 2, a.y) if src == dst else (a.x, a.y + BOX_HEIGHT / 2)
        x1 = b.x - to_right * (b.width / 2 + 0.03)
        dx = float(np.clip(0.3 * (x1 - begin[0]), -0.1, 0.1)) if src == dst else 0.0
        curves = [np.array([begin, (begin[0] + dx, b.y + bow), (x1 - to_right * 0.1, b.y + bow), (x1, b.y)])
                  for bow in LINK_BOWS]
        others = [box for place, box in layout.boxes.items() if place not in ((src, start), (dst, end))]
        best = _clearest(curves, [abs(bow) for bow in LINK_BOWS], others)
        axes.add_patch(PathPatch(_outline(best), fc="none", ec=LINK["color"], lw=LINK["lw"], ls=LINK["ls"], zorder=1))
        axes.plot([x1], [b.y], marker=">" if to_right > 0 else "<", ms=2.5, color=LINK["color"], zorder=1)


def carried(graph: Graph, edges: Int[np.ndarray, " shown"]) -> list[tuple[Place, Place]]:
    """The pairs of places between which attention carries what these edges bring: key or value read, output read.

    Within one position there is a pair only for a KV node, which is drawn apart from its heads.
    """
    read: dict[Place, None] = {}
    used: dict[Node, list[int]] = {}
    for edge in edges.tolist():
        (src, position), place = _edge_ends(graph, edge)
        if position not in used.setdefault(src, []):
            used[src].append(position)
        if graph.channels[graph.edge_channel[edge]].letter in ("k", "v"):
            read[place] = None
    size = graph.n_heads // graph.n_kv_heads
    pairs = []
    for node, start in read:
        first = node.index * size
        heads = [node] if node.kind == "head" else [Node("head", node.layer, first + i) for i in range(size)]
        pairs += [((node, start), (head, end)) for head in heads for end in used.get(head, [])
                  if (node, start) != (head, end)]
    return pairs


def _draw_edges(axes: Axes, circuit: Circuit, shown: Backbone, layout: Layout) -> None:
    graph, strengths = circuit.graph, edge_strengths(circuit)
    values = np.zeros(graph.n_edges) if circuit.scores is None else circuit.scores.values
    most = strengths[shown.edges].max(initial=0) or 1
    for edge in shown.edges[np.argsort(strengths[shown.edges], kind="stable")]:
        letter = graph.channels[graph.edge_channel[edge]].letter
        relative = float(np.sqrt(strengths[edge] / most)) if circuit.scores is not None else 0.4
        hurts = -np.inf < values[edge] < 0
        patch = PathPatch(
            _outline(_curve(*_edge_ends(graph, int(edge)), letter, layout)), fc="none",
            ec=COLOURS[letter], lw=_line_width(relative), alpha=0.4 + 0.55 * relative,
            ls=(0, (3, 1.6)) if hurts else "-", capstyle="butt", zorder=2,
        )
        patch.set_gid(f"edge:{graph.edge_name(int(edge))}")
        axes.add_patch(patch)


def _line_width(relative: float) -> float:
    return 0.6 + 2.2 * relative


def _outline(curve: Curve) -> Outline:
    return Outline(curve, [Outline.MOVETO] + 3 * [Outline.CURVE4])


def _curve(src: Place, dst: Place, letter: str, layout: Layout) -> Curve:
    """The least bent of a few curves that goes behind the fewest other boxes; from MLP to MLP, an arc to the right."""
    start, end = layout.boxes[src], layout.boxes[dst]
    x0 = start.x + _towards(start, end.x, src[0].kind == "input")
    x1 = end.x + _towards(end, start.x, dst[0].kind == "logits")
    if dst[0].kind in ("head", "kv"):
        x1 = end.x + SLOTS[letter] * end.width
    y0, y1 = start.y + BOX_HEIGHT / 2, end.y - BOX_HEIGHT / 2
    lift = 0.45 * (y1 - y0)
    bows = COLUMN_BOWS if layout.columns else BOWS
    curves = [np.array([[x0, y0], [x0 + bow, y0 + lift], [x1 + bow, y1 - lift], [x1, y1]]) for bow in bows]
    left, right = layout.columns.get(src[1], (LEFT - 0.05, layout.width - 0.15))
    others = [box for place, box in layout.boxes.items() if place not in (src, dst)]
    return _clearest(curves, [abs(bow) for bow in bows], others, left, right)


def _clearest(curves: list[Curve], bends: list[float], others: list[Box], left: float = -np.inf,
              right: float = np.inf) -> Curve:
    """The least bent of the curves that go behind the fewest boxes, from `left` to `right`."""
    low = np.array([[box.x - box.width / 2, box.y - BOX_HEIGHT / 2] for box in others]).reshape(-1, 2) - 0.03
    high = np.array([[box.x + box.width / 2, box.y + BOX_HEIGHT / 2] for box in others]).reshape(-1, 2) + 0.03
    t = np.linspace(0, 1, 40)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    best, least = np.empty((4, 2)), np.inf
    for points, bend in zip(curves, bends, strict=True):
        along = weights @ points
        behind = ((along[:, None] > low) & (along[:, None] < high)).all(axis=-1).sum()
        outside = ((along[:, 0] < left) | (along[:, 0] > right)).sum()
        cost = behind + 100 * outside + bend
        if cost < least:
            best, least = points, cost
    return best


def _towards(box: Box, x: float, bar: bool) -> float:
    """How far from the middle of its box an edge leaves: on the side it goes to, on a bar right above."""
    room = box.width / 2 - 0.05
    return float(np.clip(x - box.x, -room, room)) if bar else 0.6 * room * float(np.tanh(x - box.x))


def _draw_legend(figure: Figure, circuit: Circuit, shown: Backbone) -> None:
    letters = {circuit.graph.channels[c].letter for c in circuit.graph.edge_channel[shown.edges]}
    entries = [Line2D([], [], color=COLOURS[k], lw=2, label=name) for k, name in CHANNELS.items() if k in letters]
    if circuit.scores is not None and len(shown.edges):
        values = circuit.scores.values[shown.edges]
        if (values[np.isfinite(values)] < 0).any():
            entries.append(Line2D([], [], color="#5A5A5A", lw=1.6, ls=(0, (3, 1.6)), label="score < 0: it hurts"))
        strengths = edge_strengths(circuit)[shown.edges]
        for value in sorted({float(strengths.max()), float(strengths.min())}, reverse=True):
            width = _line_width(float(np.sqrt(value / (strengths.max() or 1))))
            entries.append(Line2D([], [], color="#5A5A5A", lw=width, label=f"|score| {value:.2g}"))
    if circuit.graph.positions and carried(circuit.graph, shown.edges):
        entries.append(Line2D([], [], **LINK, label="attention can carry it there"))
    if entries:
        figure.legend(
            handles=entries, loc="lower center", ncols=4, frameon=False, handlelength=2.4, columnspacing=1.6,
            prop={"family": TEXT["family"], "size": 7.5},
        )

"""How a circuit looks on a page: a layered drawing, edges coloured by channel; a column a position, if told apart.

A circuit of more edges than a person can read is drawn as its backbone, and the figure says so.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.export.classes import Classes, classes_of_roles
from acdc.export.columns import NAME_WIDTH, in_columns
from acdc.export.drawing import Drawing, Panel, Patch, Shape, Stroke, Words
from acdc.export.layout import BOX_HEIGHT, Box, Layout, Page, Place, carried, edge_ends, label, layered, page_of
from acdc.export.legend import LINE, Entry, legend_shapes, n_legend_rows
from acdc.export.palette import CHANNELS, COLOURS
from acdc.export.paths import Backbone, backbone, edge_strengths
from acdc.export.record import readable
from acdc.export.text import some_names
from acdc.graph import Graph, Node

SLOTS = {"q": -0.36, "k": 0.0, "v": 0.36, "": 0.0}  # where an edge enters its dst's box, in box widths
BOWS = (0.0, 0.12, -0.12, 0.25, -0.25, 0.45, -0.45, 0.7, -0.7, 1.0, -1.0, 1.4, -1.4)
COLUMN_BOWS = (0.0, 0.08, -0.08, 0.16, -0.16, 0.25, -0.25, 0.35, -0.35, 0.5, -0.5, 0.7, -0.7)
LIFTS, BEHIND = (0.25, 0.45, 0.75), 3.0  # how steeply a curve starts; the cost of a box before it, in inches of bend
MOST_BOXES = 60  # between the ends of a curve: of more, some are before every curve
LINK_BOWS = (0.0, 0.2, -0.2, 0.3, -0.3, 0.45, -0.45)  # up or down, of links between columns
LINK_COLOUR, LINK_WIDTH, DOTS, DASHES = "#999999", 0.8, (1.0, 1.65), (3.0, 1.6)
FILLS = {"head": "#FFFFFF", "kv": "#FFF1E6", "mlp": "#E4E4E4", "input": "#333333", "logits": "#333333"}
INK, GREY, BAND = "#222222", "#5A5A5A", "#F4F4F4"
HALO = 0.035  # inches around a box in which lines that go behind it are not seen
LAYER_SIZE, SMALLEST = 7.0, 5.0  # points of the smallest letters before they are scaled, and of those that can be read
FEW = 60  # edges that are drawn at full width; more are thinner

Curve = Float[np.ndarray, "4 2"]


class Look(NamedTuple):
    """The colour and the dashes of each edge by its number; the legend, the title and the note, empty for none."""

    line: Callable[[int], tuple[str, tuple[float, float] | None]]
    entries: list[Entry]
    title: str
    note: str


def circuit_drawing(circuit: Circuit, *, title: str | None = None, max_edges: int | None = None, width: str = "page",
                    roles: Mapping[str, str] | None = None) -> Drawing:
    """The circuit from the input at the bottom to the logits at the top, on one page.

    Edges run upward and enter a head at its left, middle or right for q, k and v. Width and depth of colour are
    |score|, dashes a negative score: the edge hurts. Of more than `max_edges` kept edges (by default 60, in a single
    column 30) the backbone is drawn (see `acdc.export.paths.backbone`), and of fewer where letters would be printed at
    less than 5 points. `width`: single (3.3 inches), double (6.9) or
    page (6.5). `title` is by default what was found in which model, and on columns of print, which have a caption,
    none. `roles`: what nodes are said to do; they are tinted and tagged by it, and the legend says what tags mean.

    Where edges are told apart by position, each is drawn in the column of its position, and dots lead from where a head
    reads a key or value to where its output is read: it may have come that way, if the head can look there.
    """
    page, all_classes = page_of(width), classes_of_roles(circuit.graph, roles or {})
    if title is None:
        title = default_title(circuit) if width == "page" else ""

    def draw(shown: Backbone) -> Drawing:
        nodes = {node for edge in shown.edges.tolist() for node, _ in edge_ends(circuit.graph, edge)}
        classes = all_classes.among(nodes)
        note = _note(circuit, shown) + note_on_columns(circuit.graph, shown)
        look = Look(_by_channel(circuit), _legend(circuit, shown, classes), title, note)
        return drawn(circuit, shown, look, page, classes)

    return legible(circuit, max_edges, page, draw)


def legible(circuit: Circuit, max_edges: int | None, page: Page, draw: Callable[[Backbone], Drawing]) -> Drawing:
    """What `draw` makes of all edges or of the backbone of at most `max_edges`, by default what the page can hold.

    Of fewer edges, where letters would be printed smaller than `SMALLEST`.
    """
    n = page.max_edges if max_edges is None else max_edges
    if n < 1:
        raise AcdcError(f"max_edges is {n}: at least one edge must be shown")
    fewer = False
    while True:
        shown = backbone(circuit, n)
        drawing = replace(draw(shown), fewer=fewer)
        if drawing.smallest_text >= SMALLEST or n == 1:
            return drawing
        fewer = True
        n = max(1, min(n - 1, int(len(shown.edges) * min(0.75, drawing.smallest_text / SMALLEST))))


def drawn(circuit: Circuit, shown: Backbone, look: Look, page: Page, classes: Classes | None = None) -> Drawing:
    """The edges `shown`, as wide as |score|, in colours and with words of one's own.

    Without their lines where letters are smaller than `SMALLEST`: that drawing is only measured, and drawn with fewer.
    """
    classes = classes or Classes((), {}, {})
    places = {place for edge in shown.edges.tolist() for place in edge_ends(circuit.graph, edge)}
    page = replace(page, tag=classes.longest_tag + 1 if classes.names else 0)
    head = _head(look.title, look.note, page)
    rooms = {"head_room": 0.1 + sum(height for _, height in head),
             "foot_room": 0.12 + LINE * n_legend_rows(look.entries, page.width)}
    if circuit.graph.positions:
        layout = in_columns(circuit.graph, places, page=page, **rooms)
    else:
        layout = layered(circuit.graph, {node for node, _ in places}, page=page, **rooms)
    legible = LAYER_SIZE * page.printed / layout.width >= SMALLEST or len(shown.edges) == 1
    shapes = [
        *_bands(layout, page), *_columns(circuit.graph, layout, page),
        *(_carried_links if circuit.graph.positions else _fixed_links)(circuit.graph, shown, layout),
        *(_edges(circuit, shown, look, layout, page) if legible else ()),
        *_nodes(layout, classes), *_head_shapes(head, layout),
        *legend_shapes(look.entries, layout.width, page.width),
    ]
    return Drawing(layout.width, layout.height, tuple(shapes)).scaled_to(page.printed)


def _by_channel(circuit: Circuit) -> Callable[[int], tuple[str, tuple[float, float] | None]]:
    graph = circuit.graph
    values = np.zeros(graph.n_edges) if circuit.scores is None else circuit.scores.values

    def line(edge: int) -> tuple[str, tuple[float, float] | None]:
        letter = graph.channels[graph.edge_channel[edge]].letter
        return COLOURS[letter], DASHES if -np.inf < values[edge] < 0 else None

    return line


def default_title(circuit: Circuit) -> str:
    """`ioi in smollm2 by eap_ig`, as far as the provenance says."""
    record = circuit.provenance
    parts = [f"{word} {record[key]}" for word, key in (("in", "model"), ("by", "method")) if record.get(key)]
    return " ".join([str(record.get("task") or "Circuit"), *parts])


def _head(title: str, note: str, page: Page) -> list[tuple[Words, float]]:
    """The lines above the drawing, at no height yet, and the height of each."""
    lines = [(Words(0.2, 0.0, line, 10.5, INK, bold=True, along="top"), 0.2)
             for line in textwrap.wrap(readable(title), int(10.5 * page.width))]
    x = 0.2 if page.left > 0.5 else 0.1
    return lines + [(Words(x, 0.0, line, 7.5, GREY, along="top"), 0.15)
                    for line in textwrap.wrap(readable(note), int(14.5 * (page.width - x)))]


def _head_shapes(head: list[tuple[Words, float]], layout: Layout) -> Iterator[Words]:
    y = layout.height - 0.08
    for words, height in head:
        yield words._replace(y=y)
        y -= height


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


def note_on_columns(graph: Graph, shown: Backbone) -> str:
    drawn = {*graph.edge_position[shown.edges].tolist(), graph.n_positions - 1}
    hidden = [name for i, name in enumerate(graph.positions) if i not in drawn]
    return f"; none at {some_names(hidden)}" if hidden and len(shown.edges) else ""


def _bands(layout: Layout, page: Page) -> Iterator[Shape]:
    for layer, (low, high) in layout.bands.items():
        yield Panel(page.left - 0.1, low, layout.width - page.left, high - low, BAND)
        yield Words(0.2 if page.left > 0.5 else 0.08, (low + high) / 2, page.layer_name.format(layer),
                    LAYER_SIZE, "#777777")


def _nodes(layout: Layout, classes: Classes) -> Iterator[Shape]:
    for (node, _), box in layout.boxes.items():
        tag = classes.tag(node)
        if node.kind not in ("input", "logits"):
            yield halo(box, BAND)
        yield Panel(box.x - box.width / 2, box.y - box.height / 2, box.width, box.height,
                    classes.tint(node) or FILLS[node.kind], "#333333", 0.7, 0.06, depth=3.0)
        yield Words(box.x, box.y, f"{label(node)} {tag}" if tag else label(node), 7.5,
                    "#FFFFFF" if node.kind in ("input", "logits") else "#111111", across="center")


def _fixed_links(graph: Graph, shown: Backbone, layout: Layout) -> Iterator[Shape]:
    """From each KV node to the query heads that read it: there is nothing to cut, so they are thin and dotted."""
    if graph.kv == "group":
        group_size = graph.n_heads // graph.n_kv_heads
        for (head, position), box in layout.boxes.items():
            kv = layout.boxes.get((Node("kv", head.layer, head.index // group_size), position))
            if head.kind == "head" and kv:
                yield _link(np.array([[kv.x, kv.y], [box.x, box.y]]))


def _link(points: Float[np.ndarray, "point 2"], curved: bool = False) -> Stroke:
    return Stroke(points, LINK_COLOUR, LINK_WIDTH, dashes=DOTS, curved=curved, depth=1.0)


def _columns(graph: Graph, layout: Layout, page: Page) -> Iterator[Shape]:
    """Their names below the input, and lines between them."""
    for position, (left, right) in layout.columns.items():
        bottom = layout.boxes[Node("input"), position].y - BOX_HEIGHT / 2
        name = readable(graph.positions[position])
        room = int((right - left) / NAME_WIDTH)
        name = name if len(name) <= room else name[: room - 1] + "…"
        yield Words((left + right) / 2, bottom - 0.05, name, 7.5, INK, bold=True, across="center", along="top")
        if left > page.left:
            top = max(box.y for box in layout.boxes.values()) + BOX_HEIGHT / 2
            yield Stroke(np.array([[left, bottom - 0.2], [left, top]]), "#DADADA", 0.6, depth=0.5)


def _carried_links(graph: Graph, shown: Backbone, layout: Layout) -> Iterator[Shape]:
    """From where a key or value is read to where the output of the head is: attention carries it, there is no edge.

    Nothing is drawn within one box, and an arrow shows the way between two columns.
    """
    for (src, start), (dst, end) in carried(graph, shown.edges):
        a, b = layout.boxes[src, start], layout.boxes[dst, end]
        to_right = 1 if b.x > a.x else -1
        if start == end:
            yield _link(np.array([[a.x, a.y], [b.x, b.y]]))
            continue
        begin = (a.x + to_right * a.width / 2, a.y) if src == dst else (a.x, a.y + BOX_HEIGHT / 2)
        x1 = b.x - to_right * (b.width / 2 + 0.03)
        dx = float(np.clip(0.3 * (x1 - begin[0]), -0.1, 0.1)) if src == dst else 0.0
        curves = [np.array([begin, (begin[0] + dx, b.y + bow), (x1 - to_right * 0.1, b.y + bow), (x1, b.y)])
                  for bow in LINK_BOWS]
        others = [box for place, box in layout.boxes.items() if place not in ((src, start), (dst, end))]
        yield _link(clearest(curves, [abs(bow) for bow in LINK_BOWS], others)[0], curved=True)
        back = x1 - to_right * 0.05
        yield Patch(np.array([[x1, b.y], [back, b.y + 0.022], [back, b.y - 0.022]]), LINK_COLOUR)


def _edges(circuit: Circuit, shown: Backbone, look: Look, layout: Layout, page: Page) -> Iterator[Shape]:
    graph, strengths = circuit.graph, edge_strengths(circuit)
    most = strengths[shown.edges].max(initial=0) or 1
    for edge in shown.edges[np.argsort(strengths[shown.edges], kind="stable")].tolist():
        relative = float(np.sqrt(strengths[edge] / most)) if circuit.scores is not None else 0.4
        letter = graph.channels[graph.edge_channel[edge]].letter
        colour, dashes = look.line(edge)
        yield from touching(Stroke(
            _curve(*edge_ends(graph, edge), letter, layout, page), colour, line_width(relative, len(shown.edges)),
            0.4 + 0.55 * relative, dashes, curved=True, name=graph.edge_name(edge),
        ))


def halo(box: Box, colour: str) -> Panel:
    """What hides a line that goes behind a box a little before it, so that it is not taken for one that ends there."""
    return Panel(box.x - box.width / 2 - HALO, box.y - box.height / 2 - HALO, box.width + 2 * HALO,
                 box.height + 2 * HALO, colour, radius=0.06 + HALO, depth=2.3)


def touching(stroke: Stroke) -> Iterator[Stroke]:
    """A curve, and its two ends once more above the halos of the boxes that it joins, opaque in the colour it has."""
    yield stroke
    shades = zip(bytes.fromhex(stroke.colour[1:]), bytes.fromhex(BAND[1:]), strict=True)
    colour = "#" + "".join(f"{round(stroke.opacity * on + (1 - stroke.opacity) * under):02X}" for on, under in shades)
    for points in (stroke.points, stroke.points[::-1]):
        t = np.linspace(0, 0.5, 60)[:, None]
        along = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]) @ points
        far = (np.abs(along[:, 1] - points[0, 1]) >= HALO) | (np.abs(along[:, 0] - points[0, 0]) >= 6 * HALO)
        cut = float(t[np.argmax(far), 0]) if far.any() else 0.5
        piece, left = [points[0]], points
        for _ in range(3):  # de Casteljau: the curve up to `cut`
            left = left[:-1] + cut * (left[1:] - left[:-1])
            piece.append(left[0])
        yield stroke._replace(points=np.array(piece), colour=colour, opacity=1.0, name="", depth=2.6)


def line_width(relative: float, n_edges: int) -> float:
    """Points of a line whose score is `relative` to the largest, on a square-root scale; thinner where many are."""
    return (0.6 + 2.2 * relative) * min(1.0, (FEW / max(1, n_edges)) ** 0.4)


def _curve(src: Place, dst: Place, letter: str, layout: Layout, page: Page) -> Curve:
    """The least bent of a few curves that goes behind the fewest other boxes; from MLP to MLP, an arc to the right."""
    start, end = layout.boxes[src], layout.boxes[dst]
    x0 = start.x + _towards(start, end.x, src[0].kind == "input")
    x1 = end.x + _towards(end, start.x, dst[0].kind == "logits")
    if dst[0].kind in ("head", "kv"):
        x1 = end.x + SLOTS[letter] * end.width
    bows = COLUMN_BOWS if layout.columns else BOWS
    left, right = layout.columns.get(src[1], (page.left - 0.05, layout.width - 0.15))
    others = [box for place, box in layout.boxes.items() if place not in (src, dst)]
    return upward((x0, start.y + start.height / 2), (x1, end.y - end.height / 2), bows, others, left, right)


def upward(start: tuple[float, float], end: tuple[float, float], bows: tuple[float, ...], others: list[Box],
           left: float, right: float) -> Curve:
    """The clearest curve that leaves `start` and enters `end` from below, sideways by one of the `bows` between.

    Where each of these goes behind a box, curves that bow in one half alone or lean more are tried too.
    """
    others = [box for box in others
              if min(start[1], end[1]) - box.height < box.y < max(start[1], end[1]) + box.height]
    best, cost = clearest(*_curves(start, end, [(bow, bow, 0.45) for bow in bows]), others, left, right)
    if cost < BEHIND or len(others) > MOST_BOXES:
        return best
    turns = [(first, second, lift) for first in bows[::2] for second in bows[::2] for lift in LIFTS]
    other, other_cost = clearest(*_curves(start, end, turns), others, left, right)
    return other if other_cost < cost else best


def _curves(start: tuple[float, float], end: tuple[float, float], turns: list[tuple[float, float, float]]
            ) -> tuple[list[Curve], list[float]]:
    """Curves that bow by so much in their first and second half, starting so steeply; and how bent each is."""
    (x0, y0), (x1, y1) = start, end
    made = [np.array([[x0, y0], [x0 + first, y0 + lift * (y1 - y0)], [x1 + second, y1 - lift * (y1 - y0)], [x1, y1]])
            for first, second, lift in turns]
    return made, [(abs(first) + abs(second)) / 2 + abs(lift - 0.45) for first, second, lift in turns]


def clearest(curves: list[Curve], bends: list[float], others: list[Box], left: float = -np.inf,
             right: float = np.inf) -> tuple[Curve, float]:
    """The least bent of the curves that go behind the fewest boxes, from `left` to `right`; and its cost."""
    half = np.array([[box.width / 2, box.height / 2] for box in others]).reshape(-1, 2) + 0.03
    middle = np.array([[box.x, box.y] for box in others]).reshape(-1, 2)
    low, high = middle - half, middle + half
    t = np.linspace(0, 1, 40)[:, None]
    along = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]) @ np.array(curves)
    x, y = along[..., 0, None], along[..., 1, None]
    within = (x > low[:, 0]) & (x < high[:, 0]) & (y > low[:, 1]) & (y < high[:, 1])
    outside = ((along[..., 0] < left) | (along[..., 0] > right)).sum(axis=1)
    costs = BEHIND * within.any(axis=1).sum(axis=1) + 0.05 * within.sum(axis=(1, 2)) + 100 * outside + np.array(bends)
    best = int(np.argmin(costs))
    return curves[best], float(costs[best])


def _towards(box: Box, x: float, bar: bool) -> float:
    """How far from the middle of its box an edge leaves: on the side it goes to, on a bar right above."""
    room = box.width / 2 - 0.05
    return float(np.clip(x - box.x, -room, room)) if bar else 0.6 * room * float(np.tanh(x - box.x))


def _legend(circuit: Circuit, shown: Backbone, classes: Classes) -> list[Entry]:
    letters = {circuit.graph.channels[c].letter for c in circuit.graph.edge_channel[shown.edges]}
    entries = [Entry(name, COLOURS[letter], 2.0) for letter, name in CHANNELS.items() if letter in letters]
    if circuit.scores is not None and len(shown.edges):
        values = circuit.scores.values[shown.edges]
        if (values[np.isfinite(values)] < 0).any():
            entries.append(Entry("score < 0: it hurts", GREY, 1.6, DASHES))
        strengths = edge_strengths(circuit)[shown.edges]
        for value in sorted({float(strengths.max()), float(strengths.min())}, reverse=True):
            relative = float(np.sqrt(value / (strengths.max() or 1)))
            entries.append(Entry(f"|score| {value:.2g}", GREY, line_width(relative, len(shown.edges))))
    if circuit.graph.positions and carried(circuit.graph, shown.edges):
        entries.append(Entry("attention can carry it there", LINK_COLOUR, LINK_WIDTH, DOTS))
    return entries + [Entry(f"{tag}: {name}", tint=tint) for tag, name, tint in classes.legend()]

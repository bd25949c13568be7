"""How a circuit looks by named classes of its nodes, as in the IOI paper: a box a class, edges summed between them.

Source of the form: Wang et al. 2022 (arXiv 2211.00593), figure 2.
"""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.export.circuit_drawing import BOWS, DASHES, GREY, INK, SLOTS, default_title, line_width, upward
from acdc.export.classes import Classes, classes_of_groups
from acdc.export.drawing import Drawing, Panel, Shape, Stroke, Words
from acdc.export.layout import Box, Page, label, page_of
from acdc.export.legend import LINE, Entry, legend_shapes, n_legend_rows
from acdc.export.palette import CHANNELS, COLOURS
from acdc.export.record import readable
from acdc.graph import Graph, Node

ENDS = ("input", "logits")
ROW_GAP, BOX_GAP, PAD = 0.5, 0.25, 0.07
LETTER, LINE_HEIGHT = 0.066, 0.14  # of a class's name and its nodes
MAX_LETTERS, MAX_LINES = 24, 4
SAME_ROW = 1.0  # layers between the means of classes that stand side by side


@dataclass(frozen=True)
class Bundle:
    """The edges from a class into one channel of another: how many, and the sum of their scores."""

    src: str
    dst: str
    letter: str
    n_edges: int
    total: float


def class_drawing(circuit: Circuit, groups: Mapping[str, list[str]], *, title: str | None = None,
                  width: str = "page") -> Drawing:
    """A box for each group, with its nodes, at the height of its mean layer; the kept edges between groups.

    An arrow is all edges from one class into one channel of another: its width is the size of the summed score, dashes
    a sum below 0. Nodes of no class, edges that touch them and edges within a class are not drawn, but counted in the
    note. `groups`: such as {"name mover": ["a9.h9", "a9.h6"]}; the input and the logits are always there. With
    positions, a class stands in the column where most of what it writes is read.
    """
    page, graph = page_of(width), circuit.graph
    classes = classes_of_groups(graph, groups)
    if not classes.names:
        raise AcdcError("there is no group of nodes to draw; name some, such as {\"name mover\": [\"a9.h9\"]}")
    if set(ENDS) & set(classes.names):
        raise AcdcError("a group cannot be called input or logits: these are always drawn")
    found, n_within, n_outside = bundles(circuit, classes)
    entries = _legend(circuit, found)
    if title is None:
        title = default_title(circuit) if width == "page" else ""
    lines = [(line, 10.5, True) for line in textwrap.wrap(readable(title), int(10.5 * page.width))]
    n_shown = sum(bundle.n_edges for bundle in found)
    note = (f"shown: {n_shown:,} of {circuit.n_edges:,} kept edges, as {len(found)} arrows between classes; hidden: "
            f"{n_within:,} within a class, {n_outside:,} from or to nodes of no class")
    lines += [(line, 7.5, False) for line in textwrap.wrap(note, int(14.5 * (page.width - 0.2)))]
    head = 0.1 + sum(0.2 if bold else 0.15 for _, _, bold in lines)
    foot = 0.12 + LINE * n_legend_rows(entries, page.width)
    boxes, columns, height = _placed(circuit, classes, page, head, foot)
    shapes: list[Shape] = [*_boxes(boxes, classes), *_arrows(circuit, found, boxes, page.width),
                           *_column_names(graph, columns, boxes), *legend_shapes(entries, page.width, page.width)]
    y = height - 0.08
    for line, size, bold in lines:
        shapes.append(Words(0.1, y, line, size, INK if bold else GREY, bold, along="top"))
        y -= 0.2 if bold else 0.15
    return Drawing(page.width, height, tuple(shapes)).scaled_to(page.printed)


def bundles(circuit: Circuit, classes: Classes) -> tuple[list[Bundle], int, int]:
    """The kept edges between classes by channel; how many are within a class, and how many touch no class."""
    graph = circuit.graph
    size = graph.n_heads // graph.n_kv_heads

    def of(node: Node) -> list[str]:
        """The classes of a node; a KV node is in those of the heads that read it, where it is in none itself."""
        if node.kind in ENDS:
            return [node.name]
        own = classes.of(node)
        if own is not None or node.kind != "kv":
            return [own] if own is not None else []
        heads = (classes.of(Node("head", node.layer, node.index * size + i)) for i in range(size))
        return list(dict.fromkeys(name for name in heads if name is not None))

    sums: dict[tuple[str, str, str], list[float]] = {}
    within = outside = 0
    for edge in np.nonzero(circuit.kept)[0].tolist():
        channel = graph.channels[graph.edge_channel[edge]]
        srcs, dsts = of(graph.srcs[graph.edge_src[edge]]), of(channel.node)
        if not srcs or not dsts:
            outside += 1
        elif srcs[0] == dsts[0]:
            within += 1
        else:
            score = 1.0 if circuit.scores is None else float(circuit.scores.values[edge])
            sums.setdefault((srcs[0], dsts[0], channel.letter), []).append(score if np.isfinite(score) else 0.0)
    return [Bundle(*key, len(scores), sum(scores)) for key, scores in sums.items()], within, outside


def _placed(circuit: Circuit, classes: Classes, page: Page, head: float, foot: float
            ) -> tuple[dict[str, Box], dict[int, tuple[float, float]], float]:
    """The box of each class and of both ends; where each column reaches; the height of the page."""
    sizes = {name: _size(classes, name) for name in classes.names}
    mean = {name: float(np.mean([node.layer for node in classes.members[name]])) for name in classes.names}
    column = _column_of(circuit, classes)
    used = sorted({*column.values(), circuit.graph.n_positions - 1})
    share = page.width / len(used)
    columns = {position: (i * share, (i + 1) * share) for i, position in enumerate(used)}
    rows: list[list[str]] = []
    for name in sorted(classes.names, key=lambda name: (mean[name], name)):
        if rows and mean[name] - mean[rows[-1][0]] < SAME_ROW and _fits([*rows[-1], name], sizes, column, share):
            rows[-1].append(name)
        else:
            rows.append([name])
    bottom = foot + (0.25 if circuit.graph.positions else 0.0) + 0.15
    boxes = {"input": Box(page.width / 2, bottom, page.width - 0.4, 0.2)}
    y = bottom + 0.1
    for row in rows:
        tallest = max(sizes[name][1] for name in row)
        for position in used:
            here = [name for name in row if column[name] == position]
            room = share - sum(sizes[name][0] for name in here)
            x = columns[position][0]
            for name in here:
                x += room / (len(here) + 1)
                boxes[name] = Box(x + sizes[name][0] / 2, y + ROW_GAP + tallest / 2, *sizes[name])
                x += sizes[name][0]
        y += ROW_GAP + tallest
    boxes["logits"] = Box(page.width / 2, y + ROW_GAP + 0.1, page.width - 0.4, 0.2)
    if len(rows) > 1 and len(used) == 1:
        boxes = _staggered(boxes, rows, page)
    return boxes, columns if circuit.graph.positions else {}, y + ROW_GAP + 0.3 + head


def _staggered(boxes: dict[str, Box], rows: list[list[str]], page: Page) -> dict[str, Box]:
    """Classes that stand alone in their rows, moved left and right in turn: arrows past them need room."""
    moved, side = dict(boxes), -1
    for row in rows:
        if len(row) == 1:
            box = boxes[row[0]]
            moved[row[0]] = replace(box, x=box.x + side * 0.45 * (page.width / 2 - box.width / 2 - 0.2))
            side = -side
    return moved


def _fits(row: list[str], sizes: Mapping[str, tuple[float, float]], column: Mapping[str, int], share: float) -> bool:
    last = [name for name in row if column[name] == column[row[-1]]]
    return sum(sizes[name][0] + BOX_GAP for name in last) + BOX_GAP <= share


def _column_of(circuit: Circuit, classes: Classes) -> dict[str, int]:
    """Where most of what a class writes is read, by summed |score|; else where most of what it reads lies."""
    graph, kept = circuit.graph, np.nonzero(circuit.kept)[0]
    last = graph.n_positions - 1
    weights = np.ones(graph.n_edges) if circuit.scores is None else np.abs(
        np.where(np.isfinite(circuit.scores.values), circuit.scores.values, 0))
    found = {}
    for name in classes.names:
        written, read = np.zeros(last + 1), np.zeros(last + 1)
        for edge in kept.tolist():
            if graph.srcs[graph.edge_src[edge]] in classes.members[name]:
                written[graph.edge_position[edge]] += weights[edge]
            if graph.channels[graph.edge_channel[edge]].node in classes.members[name]:
                read[graph.edge_position[edge]] += weights[edge]
        total = written if written.any() else read
        found[name] = int(np.argmax(total)) if total.any() else last
    return found


def _lines(classes: Classes, name: str) -> list[str]:
    """The class's name and its nodes, each line of few letters; what does not fit is counted."""
    nodes = sorted(classes.members[name], key=lambda node: (node.layer, node.kind, node.index))
    lines = textwrap.wrap(", ".join(label(node) for node in nodes), MAX_LETTERS)
    if len(lines) > MAX_LINES:
        n_shown = sum(len(line.split()) for line in lines[: MAX_LINES - 1])
        lines = [*lines[: MAX_LINES - 1], f"and {len(nodes) - n_shown} more"]
    return [*textwrap.wrap(name, MAX_LETTERS), *lines]


def _size(classes: Classes, name: str) -> tuple[float, float]:
    lines = _lines(classes, name)
    return max(map(len, lines)) * LETTER + 2 * PAD, len(lines) * LINE_HEIGHT + 2 * PAD


def _boxes(boxes: Mapping[str, Box], classes: Classes) -> Iterator[Shape]:
    for name, box in boxes.items():
        ends = name in ENDS
        fill = "#333333" if ends else classes.tint(next(iter(classes.members[name])))
        yield Panel(box.x - box.width / 2, box.y - box.height / 2, box.width, box.height, fill, "#333333", 0.7, 0.06,
                    depth=3.0)
        if ends:
            yield Words(box.x, box.y, name, 7.5, "#FFFFFF", across="center")
            continue
        n_title = len(textwrap.wrap(name, MAX_LETTERS))
        for i, line in enumerate(_lines(classes, name)):
            y = box.y + box.height / 2 - PAD - LINE_HEIGHT * (i + 0.5)
            yield Words(box.x, y, line, 7.5, "#111111", bold=i < n_title, across="center")


def _arrows(circuit: Circuit, found: list[Bundle], boxes: Mapping[str, Box], width: float) -> Iterator[Shape]:
    most = max((abs(bundle.total) for bundle in found), default=0.0) or 1.0
    for bundle in sorted(found, key=lambda bundle: abs(bundle.total)):
        src, dst = boxes[bundle.src], boxes[bundle.dst]
        relative = float(np.sqrt(abs(bundle.total) / most))
        others = [box for name, box in boxes.items() if name not in (bundle.src, bundle.dst)]
        x0 = _near(src, dst.x) if bundle.src == "input" else src.x + _lean(src, dst)
        x1 = _near(dst, src.x) if bundle.dst == "logits" else dst.x + SLOTS[bundle.letter] * dst.width * 0.8
        up = dst.y >= src.y
        start, end = src.y + (1 if up else -1) * src.height / 2, dst.y - (1 if up else -1) * dst.height / 2
        curve = upward((x0, start), (x1, end), BOWS, others, 0.1, width - 0.1)
        yield Stroke(curve, COLOURS[bundle.letter], line_width(relative, len(found)), 0.5 + 0.45 * relative,
                     DASHES if bundle.total < 0 else None, curved=True,
                     name=f"{bundle.src}->{bundle.dst}<{bundle.letter}>")


def _near(bar: Box, x: float) -> float:
    return float(np.clip(x, bar.x - bar.width / 2 + 0.1, bar.x + bar.width / 2 - 0.1))


def _lean(src: Box, dst: Box) -> float:
    return 0.35 * src.width * float(np.tanh(dst.x - src.x))


def _column_names(graph: Graph, columns: Mapping[int, tuple[float, float]], boxes: Mapping[str, Box]
                  ) -> Iterator[Shape]:
    bottom = boxes["input"].y - 0.1
    for position, (left, right) in columns.items():
        name = readable(graph.positions[position])
        room = max(1, int((right - left) / 0.075))
        name = name if len(name) <= room else name[: room - 1] + "…"
        yield Words((left + right) / 2, bottom - 0.05, name, 7.5, INK, True, "center", "top")
        if left > 0:
            yield Stroke(np.array([[left, bottom - 0.2], [left, boxes["logits"].y - 0.1]]), "#DADADA", 0.6, depth=0.5)


def _legend(circuit: Circuit, found: list[Bundle]) -> list[Entry]:
    letters = {bundle.letter for bundle in found}
    entries = [Entry(name, COLOURS[letter], 2.0) for letter, name in CHANNELS.items() if letter in letters]
    if circuit.scores is not None and found:
        if any(bundle.total < 0 for bundle in found):
            entries.append(Entry("sum < 0: it hurts", GREY, 1.6, DASHES))
        sizes = [abs(bundle.total) for bundle in found]
        entries += [Entry(f"|summed score| {value:.2g}", GREY,
                          line_width(float(np.sqrt(value / (max(sizes) or 1))), len(found)))
                    for value in sorted({max(sizes), min(sizes)}, reverse=True)]
    return entries

"""Where each node of a drawn circuit goes: inches on a page, layers upward, heads side by side, MLPs in a column."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from acdc.errors import unknown_name
from acdc.graph import Graph, Node

BOX_HEIGHT, GAP = 0.2, 0.12
CHARACTER = 0.068  # inches of one in a node's label
MLP_GAP = 0.5  # before the MLPs' column
MIN_PITCH, MAX_PITCH = 0.27, 0.62  # from row to row
KV_STEP = 0.75  # rows from KV nodes to their heads

Place = tuple[Node, int]  # a node and, where positions are told apart, which; else 0


@dataclass(frozen=True)
class Page:
    """What a figure is laid out on, in inches: then it is scaled to `printed`, the width of a column of print.

    `left` holds the names of layers, `right` the arcs between MLPs; `rows` is the height of what is drawn. `tag` is how
    many characters longer the labels of nodes are, for what says their class.
    """

    printed: float
    width: float
    rows: float
    left: float
    right: float
    layer_name: str
    max_edges: int
    tag: int = 0

    @property
    def heads_a_row(self) -> int:
        """How many heads fit between the names of layers and the MLPs."""
        return max(1, int((self.width - self.left - self.right - MLP_GAP) / (0.12 + CHARACTER * (4 + self.tag) + GAP)))


# Letters of 7.5 points are printed at 7.5, 6.9 and 6.1.
PAGES = {
    "page": Page(6.5, 6.5, 6.8, 0.75, 0.95, "layer {}", 60),
    "double": Page(6.9, 7.5, 7.2, 0.75, 0.95, "layer {}", 60),
    "single": Page(3.3, 4.05, 6.2, 0.35, 0.55, "{}", 30),
}


def page_of(width: str) -> Page:
    """The page called `width`."""
    if width not in PAGES:
        raise unknown_name("width", width, PAGES)
    return PAGES[width]


@dataclass(frozen=True)
class Box:
    """Where a node is drawn: its centre, from the lower left corner, and its width."""

    x: float
    y: float
    width: float
    height: float = BOX_HEIGHT


@dataclass(frozen=True)
class Layout:
    """The boxes of the nodes, from where to where each layer reaches, and the size of the page.

    `columns`: where positions are told apart, from where to where each one that is drawn reaches.
    """

    boxes: dict[Place, Box]
    bands: dict[int, tuple[float, float]]
    width: float
    height: float
    columns: dict[int, tuple[float, float]] = field(default_factory=dict)


def label(node: Node) -> str:
    """`9.6` for a head, `9.g2` for a KV node; else the node's name."""
    if node.kind in ("head", "kv"):
        return f"{node.layer}.{'g' if node.kind == 'kv' else ''}{node.index}"
    return node.name


def layered(graph: Graph, nodes: set[Node], *, head_room: float, foot_room: float, page: Page = PAGES["page"]
            ) -> Layout:
    """From the bottom up: input; per layer KV nodes, heads and, half a row higher, the MLP; logits.

    Input and logits are bars as wide as the rows, and always there. Layers without nodes take no space.
    """
    inner = sorted((node for node in nodes if node.kind in ("head", "kv", "mlp")), key=reading_order)
    rows: list[list[Node]] = []
    for layer in dict.fromkeys(node.layer for node in inner):
        for kind in ("kv", "head"):
            row = [node for node in inner if node.layer == layer and node.kind == kind]
            n_rows = -(-len(row) // page.heads_a_row)
            rows += [part.tolist() for part in np.array_split(np.array(row, dtype=object), n_rows)] if row else []
    mlp_width = MLP_GAP if any(node.kind == "mlp" for node in inner) else 0.0
    widest = max((row_width(row, page) for row in rows), default=0.0)
    area = max(page.width - page.left - page.right - mlp_width, widest)
    across = {node: page.left + x for row in rows for node, x in zip(row, spread(graph, row, area, page), strict=True)}
    across |= {node: page.left + area + mlp_width for node in inner if node.kind == "mlp"}
    levels, level = levels_of(graph, inner, rows)
    pitch = pitch_of(level, page)
    bottom = foot_room + BOX_HEIGHT
    bar = area + mlp_width + (0.25 if mlp_width else 0)
    boxes = {(Node("input"), 0): Box(page.left + bar / 2, bottom, bar)}
    boxes |= {(node, 0): Box(across[node], bottom + pitch * levels[node], box_width(node, page)) for node in inner}
    boxes[Node("logits"), 0] = Box(page.left + bar / 2, bottom + pitch * level, bar)
    height = bottom + pitch * level + BOX_HEIGHT + head_room
    return Layout(boxes, bands_of(boxes), page.left + area + mlp_width + page.right, height)


def bands_of(boxes: dict[Place, Box]) -> dict[int, tuple[float, float]]:
    """From where to where the boxes of each layer reach, and a little more."""
    heights: dict[int, list[float]] = {}
    for (node, _), box in boxes.items():
        if node.kind not in ("input", "logits"):
            heights.setdefault(node.layer, []).append(box.y)
    margin = BOX_HEIGHT / 2 + 0.04
    return {layer: (min(y) - margin, max(y) + margin) for layer, y in heights.items()}


def pitch_of(level: float, page: Page) -> float:
    """Inches from row to row, where the logits lie `level` rows above the input."""
    return float(np.clip(page.rows / level, MIN_PITCH, MAX_PITCH))


def levels_of(graph: Graph, inner: list[Node], rows: list[list[Node]], mlp_step: float = 0.5
              ) -> tuple[dict[Node, float], float]:
    """How many rows each node lies above the input, and how many the logits do.

    `rows` are all but the MLPs that stand beside them; these, in `inner`, are `mlp_step` rows above their layer's last.
    """
    levels: dict[Node, float] = {}
    level = 0.0
    for layer in sorted({node.layer for node in inner} | {row[0].layer for row in rows}):
        of_layer = [row for row in rows if row[0].layer == layer]
        below = ""
        for row in of_layer:
            level += KV_STEP if (below, row[0].kind) == ("kv", "head") else 1
            below = row[0].kind
            levels |= dict.fromkeys(row, level)
        if Node("mlp", layer) in inner:
            level += 1 if not of_layer else 0 if graph.parallel else mlp_step
            levels[Node("mlp", layer)] = level
    return levels, level + 1


def spread(graph: Graph, row: list[Node], area: float, page: Page) -> list[float]:
    """x of a row's nodes, from 0 to `area`: each where its index puts it, moved no more than keeps boxes apart.

    So a head has its place from layer to layer and from figure to figure.
    """
    n = graph.n_heads if row[0].kind == "head" else graph.n_kv_heads
    x = [area * (node.index + 0.5) / n for node in row]
    widths = [box_width(node, page) for node in row]
    for i in range(len(row)):
        least = widths[0] / 2 if i == 0 else x[i - 1] + (widths[i - 1] + widths[i]) / 2 + GAP
        x[i] = max(x[i], least)
    for i in reversed(range(len(row))):
        last = i == len(row) - 1
        most = area - widths[i] / 2 if last else x[i + 1] - (widths[i + 1] + widths[i]) / 2 - GAP
        x[i] = min(x[i], most)
    return x


def reading_order(node: Node) -> tuple[int, int, int]:
    return node.layer, {"kv": 0, "head": 1}.get(node.kind, 2), node.index


def box_width(node: Node, page: Page) -> float:
    return 0.12 + CHARACTER * (len(label(node)) + (page.tag if node.kind in ("head", "kv", "mlp") else 0))


def row_width(row: list[Node], page: Page) -> float:
    return sum((box_width(node, page) + GAP for node in row), 0.0)


def edge_ends(graph: Graph, edge: int) -> tuple[Place, Place]:
    """Where an edge is drawn from and to; both are at its position."""
    position = int(graph.edge_position[edge])
    return (graph.srcs[graph.edge_src[edge]], position), (graph.channels[graph.edge_channel[edge]].node, position)


def carried(graph: Graph, edges: Int[np.ndarray, " shown"]) -> list[tuple[Place, Place]]:
    """The pairs of places between which attention carries what these edges bring: key or value read, output read.

    Within one position there is a pair only for a KV node, which is drawn apart from its heads.
    """
    read: dict[Place, None] = {}
    used: dict[Node, list[int]] = {}
    for edge in edges.tolist():
        (src, position), place = edge_ends(graph, edge)
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

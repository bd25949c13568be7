"""Where each node of a drawn circuit goes: inches on a page, layers upward, heads side by side, MLPs in a column."""

from dataclasses import dataclass, field

import numpy as np

from acdc.graph import Graph, Node

BOX_HEIGHT, GAP = 0.2, 0.12
LEFT, RIGHT, MLP_GAP = 0.75, 0.95, 0.5  # margins (layer names; arcs between MLPs), and before the MLPs' column
PAGE_WIDTH, PAGE_ROWS = 6.5, 7.6  # what fits a printed page; wider only where a row needs it
MAX_HEADS_A_ROW = 12
MIN_PITCH, MAX_PITCH = 0.3, 0.62  # from row to row
KV_STEP = 0.75  # rows from KV nodes to their heads

Place = tuple[Node, int]  # a node and, where positions are told apart, which; else 0


@dataclass(frozen=True)
class Box:
    """Where a node is drawn: its centre, from the lower left corner, and its width."""

    x: float
    y: float
    width: float


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


def layered(graph: Graph, nodes: set[Node], *, head_room: float, foot_room: float) -> Layout:
    """From the bottom up: input; per layer KV nodes, heads and, half a row higher, the MLP; logits.

    Input and logits are bars as wide as the rows, and always there. Layers without nodes take no space.
    """
    inner = sorted((node for node in nodes if node.kind in ("head", "kv", "mlp")), key=reading_order)
    rows: list[list[Node]] = []
    for layer in dict.fromkeys(node.layer for node in inner):
        for kind in ("kv", "head"):
            row = [node for node in inner if node.layer == layer and node.kind == kind]
            n_rows = -(-len(row) // MAX_HEADS_A_ROW)
            rows += [part.tolist() for part in np.array_split(np.array(row, dtype=object), n_rows)] if row else []
    mlp_width = MLP_GAP if any(node.kind == "mlp" for node in inner) else 0.0
    widest = max((row_width(row) for row in rows), default=0.0)
    area = max(PAGE_WIDTH - LEFT - RIGHT - mlp_width, widest)
    across = {node: LEFT + x for row in rows for node, x in zip(row, spread(graph, row, area), strict=True)}
    across |= {node: LEFT + area + mlp_width for node in inner if node.kind == "mlp"}
    levels, level = levels_of(graph, inner, rows)
    pitch = pitch_of(level)
    bottom = foot_room + BOX_HEIGHT
    bar = area + mlp_width + (0.25 if mlp_width else 0)
    boxes = {(Node("input"), 0): Box(LEFT + bar / 2, bottom, bar)}
    boxes |= {(node, 0): Box(across[node], bottom + pitch * levels[node], box_width(node)) for node in inner}
    boxes[Node("logits"), 0] = Box(LEFT + bar / 2, bottom + pitch * level, bar)
    height = bottom + pitch * level + BOX_HEIGHT + head_room
    return Layout(boxes, bands_of(boxes), LEFT + area + mlp_width + RIGHT, height)


def bands_of(boxes: dict[Place, Box]) -> dict[int, tuple[float, float]]:
    """From where to where the boxes of each layer reach, and a little more."""
    heights: dict[int, list[float]] = {}
    for (node, _), box in boxes.items():
        if node.kind not in ("input", "logits"):
            heights.setdefault(node.layer, []).append(box.y)
    margin = BOX_HEIGHT / 2 + 0.04
    return {layer: (min(y) - margin, max(y) + margin) for layer, y in heights.items()}


def pitch_of(level: float) -> float:
    """Inches from row to row, where the logits lie `level` rows above the input."""
    return float(np.clip(PAGE_ROWS / level, MIN_PITCH, MAX_PITCH))


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


def spread(graph: Graph, row: list[Node], area: float) -> list[float]:
    """x of a row's nodes, from 0 to `area`: each where its index puts it, moved no more than keeps boxes apart.

    So a head has its place from layer to layer and from figure to figure.
    """
    n = graph.n_heads if row[0].kind == "head" else graph.n_kv_heads
    x = [area * (node.index + 0.5) / n for node in row]
    for i, node in enumerate(row):
        least = box_width(node) / 2 if i == 0 else x[i - 1] + (box_width(row[i - 1]) + box_width(node)) / 2 + GAP
        x[i] = max(x[i], least)
    for i, node in reversed(list(enumerate(row))):
        last = i == len(row) - 1
        most = area - box_width(node) / 2 if last else x[i + 1] - (box_width(row[i + 1]) + box_width(node)) / 2 - GAP
        x[i] = min(x[i], most)
    return x


def reading_order(node: Node) -> tuple[int, int, int]:
    return node.layer, {"kv": 0, "head": 1}.get(node.kind, 2), node.index


def box_width(node: Node) -> float:
    return 0.12 + 0.068 * len(label(node))


def row_width(row: list[Node]) -> float:
    return sum((box_width(node) + GAP for node in row), 0.0)

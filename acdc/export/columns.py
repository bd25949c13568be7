"""Where each node of a drawn circuit goes where positions are told apart: a column a position, layers across them all.

A node has a box in each column where it takes part, at the same height in all of them.
"""

from typing import NamedTuple

from acdc.export.layout import (
    BOX_HEIGHT,
    CHARACTER,
    GAP,
    MIN_PITCH,
    PAGES,
    Box,
    Layout,
    Page,
    Place,
    bands_of,
    box_width,
    levels_of,
    pitch_of,
    reading_order,
    row_width,
    spread,
)
from acdc.graph import Graph, Node

EDGE, MARGIN, MLP_LANE = 0.2, 0.12, 0.44  # right of the page; left and right in a column; for MLPs beside heads
MLP_STEP = 0.75  # rows from heads to an MLP beside them: edges between the two are short and must still lead upward
HEAD_HEIGHT = 0.22  # for a column's name
MAX_NAME, NAME_WIDTH = 10, 0.075  # characters of a column's name that widen it, and inches of one


class Arrangement(NamedTuple):
    """How the boxes of a layer share a column: how many heads a row, and whether MLPs are beside or above them."""

    heads_a_row: int
    mlps_beside: bool


ARRANGEMENTS = (Arrangement(3, True), Arrangement(2, True), Arrangement(2, False), Arrangement(1, False))


class Arranged(NamedTuple):
    """The nodes between input and logits, in rows (but for MLPs beside them) and at levels; how wide columns must be.

    `top`: the level of the logits.
    """

    rows: list[list[Place]]
    levels: dict[Node, float]
    top: float
    widths: list[float]
    mlps_beside: bool

    def shrinking(self, page: Page) -> float:
        """By what the drawing must be divided to fit a page, at least 1."""
        return max(1.0, (page.left + sum(self.widths) + EDGE) / page.width, MIN_PITCH * self.top / page.rows)


def in_columns(graph: Graph, places: set[Place], *, head_room: float, foot_room: float, page: Page = PAGES["page"]
               ) -> Layout:
    """One column for each position that has places, in the graph's order, and for the last, where the logits are.

    Of a few arrangements, the first of those that fit a page best. Room that is left goes to the columns by how much
    they hold. Each column has its own box for the input, the last one that of the logits.
    """
    last = graph.n_positions - 1
    shown = sorted({position for _, position in places} | {last})
    inner = sorted((place for place in places if place[0].kind in ("head", "kv", "mlp")),
                   key=lambda place: (*reading_order(place[0]), place[1]))
    arranged = min((_arranged(graph, shown, inner, how, page) for how in ARRANGEMENTS),
                   key=lambda option: option.shrinking(page))
    spare = max(0.0, page.width - page.left - EDGE - sum(arranged.widths))
    load = [1 + sum(position == p for _, p in places) for position in shown]
    columns: dict[int, tuple[float, float]] = {}
    x = page.left
    for position, width, share in zip(shown, arranged.widths, load, strict=True):
        columns[position] = (x, x + width + spare * share / sum(load))
        x = columns[position][1]
    across = _across(graph, arranged, inner, columns, page)
    pitch, bottom = pitch_of(arranged.top, page), foot_room + HEAD_HEIGHT + BOX_HEIGHT
    boxes = {(Node("input"), position): _bar(columns[position], bottom) for position in shown}
    for place in inner:
        boxes[place] = Box(across[place], bottom + pitch * arranged.levels[place[0]], box_width(place[0], page))
    boxes[Node("logits"), last] = _bar(columns[last], bottom + pitch * arranged.top)
    height = bottom + pitch * arranged.top + BOX_HEIGHT + head_room
    return Layout(boxes, bands_of(boxes), x + EDGE, height, columns)


def _arranged(graph: Graph, shown: list[int], inner: list[Place], how: Arrangement, page: Page) -> Arranged:
    rows = _rows(inner, how)
    beside = [(node, p) for node, p in inner if node.kind == "mlp"] if how.mlps_beside else []
    levels, top = levels_of(graph, [node for node, _ in beside],
                            [list(dict.fromkeys(node for node, _ in row)) for row in rows], MLP_STEP)
    widths = [_column_width(graph, position, rows, beside, page) for position in shown]
    return Arranged(rows, levels, top, widths, how.mlps_beside)


def _rows(inner: list[Place], how: Arrangement) -> list[list[Place]]:
    """Rows from the bottom up, without MLPs that are beside them: a node is in one row, with all its places.

    A node goes to the first row of its layer and kind in which none of its columns is full.
    """
    rows: list[list[Place]] = []
    n, kinds = how.heads_a_row, ("kv", "head") if how.mlps_beside else ("kv", "head", "mlp")
    for layer in dict.fromkeys(node.layer for node, _ in inner):
        for kind in kinds:
            of_kind: list[list[Place]] = []
            for node in dict.fromkeys(node for node, _ in inner if (node.layer, node.kind) == (layer, kind)):
                own = [place for place in inner if place[0] == node]
                free = (row for row in of_kind if all(sum(p == at for _, p in row) < n for _, at in own))
                row = next(free, None)
                if row is None:
                    of_kind.append(row := [])
                row += own
            rows += of_kind
    return rows


def _column_width(graph: Graph, position: int, rows: list[list[Place]], beside: list[Place],
                  page: Page) -> float:
    widest = max((row_width([node for node, p in row if p == position], page) for row in rows), default=0.0)
    lane = MLP_LANE + CHARACTER * page.tag if any(p == position for _, p in beside) else 0.0
    ends = [Node("input")] if position < graph.n_positions - 1 else [Node("input"), Node("logits")]
    named = NAME_WIDTH * min(MAX_NAME, len(graph.positions[position]))
    return max(widest - GAP + lane, *(box_width(node, page) for node in ends), named) + 2 * MARGIN


def _across(graph: Graph, arranged: Arranged, inner: list[Place], columns: dict[int, tuple[float, float]],
            page: Page) -> dict[Place, float]:
    """x of every node's box in each of its columns."""
    across: dict[Place, float] = {}
    for position, (left, right) in columns.items():
        mlps = [(node, p) for node, p in inner if node.kind == "mlp" and p == position]
        lane = MLP_LANE + CHARACTER * page.tag if arranged.mlps_beside and mlps else 0.0
        area = right - left - 2 * MARGIN - lane
        widest = max((box_width(node, page) for node, _ in mlps), default=0.0)
        across |= dict.fromkeys(mlps, right - MARGIN - widest / 2)
        for row in arranged.rows:
            nodes = [node for node, p in row if p == position and node.kind != "mlp"]
            if nodes:
                x = spread(graph, nodes, area, page)
                across |= {(node, position): left + MARGIN + at for node, at in zip(nodes, x, strict=True)}
    return across


def _bar(column: tuple[float, float], y: float) -> Box:
    left, right = column
    return Box((left + right) / 2, y, right - left - 2 * MARGIN)

"""What the lines and tints of a drawing mean: entries side by side below it, as many rows as they need."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acdc.export.drawing import Panel, Shape, Stroke, Words

SIZE, LINE = 7.5, 0.16  # points of a letter, inches of a row
SAMPLE, AFTER = 0.3, 0.16  # inches of a line or tint, and behind the text
LETTER = 0.0625  # inches of a character, on average
EDGE = 0.1


@dataclass(frozen=True)
class Entry:
    """A line (`colour`, `width` in points, `dashes`) or a `tint`, and what it means."""

    text: str
    colour: str = ""
    width: float = 0.0
    dashes: tuple[float, float] | None = None
    tint: str = ""

    @property
    def room(self) -> float:
        return SAMPLE + 0.06 + LETTER * len(self.text) + AFTER


def n_legend_rows(entries: Sequence[Entry], width: float) -> int:
    return len(_rows(entries, width))


def legend_shapes(entries: Sequence[Entry], width: float, needed: float) -> list[Shape]:
    """The legend in the middle of the page's foot; `needed` is the width that its rows were counted for."""
    rows = _rows(entries, needed)
    shapes: list[Shape] = []
    for i, row in enumerate(rows):
        x = max(EDGE, (width - sum(entry.room for entry in row) + AFTER) / 2)
        y = 0.1 + LINE * (len(rows) - 1 - i)
        for entry in row:
            if entry.tint:
                shapes.append(Panel(x + 0.06, y - 0.05, SAMPLE - 0.06, 0.1, entry.tint, "#333333", 0.5, 0.03))
            else:
                line = np.array([[x, y], [x + SAMPLE, y]])
                shapes.append(Stroke(line, entry.colour, entry.width, dashes=entry.dashes))
            shapes.append(Words(x + SAMPLE + 0.06, y, entry.text, SIZE))
            x += entry.room
    return shapes


def _rows(entries: Sequence[Entry], width: float) -> list[list[Entry]]:
    """As few rows as hold them in their order, filled evenly."""
    if not entries:
        return []
    room = width - 2 * EDGE + AFTER
    n_rows = 1
    while True:
        rows = _filled(entries, max(room / 3, min(room, sum(entry.room for entry in entries) / n_rows)), room)
        if len(rows) <= n_rows or n_rows >= len(entries):
            return rows
        n_rows += 1


def _filled(entries: Sequence[Entry], wanted: float, room: float) -> list[list[Entry]]:
    rows: list[list[Entry]] = [[]]
    for entry in entries:
        used = sum(other.room for other in rows[-1])
        if rows[-1] and (used >= wanted or used + entry.room > room):
            rows.append([])
        rows[-1].append(entry)
    return rows

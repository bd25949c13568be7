"""What a drawing is made of, in inches and points, before anything draws it: matplotlib and TikZ draw the same shapes.

The origin is the lower left corner. Shapes are painted by `depth`, and in their order where it is equal.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from acdc.errors import AcdcError

POINTS_AN_INCH = 72.0
Points = Float[np.ndarray, "point 2"]


class Panel(NamedTuple):
    """A rectangle, with round corners where it has a `radius`; lengths in inches, the line's width in points."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    line: str | None = None
    line_width: float = 0.0
    radius: float = 0.0
    depth: float = 0.0

    def scaled(self, by: float) -> "Panel":
        return self._replace(x=self.x * by, y=self.y * by, width=self.width * by, height=self.height * by,
                             line_width=self.line_width * by, radius=self.radius * by)


class Stroke(NamedTuple):
    """A line: straight from point to point or, `curved`, one cubic Bezier curve of four points. Dashes in line widths.

    `name` says which edge it is, where it is one.
    """

    points: Points
    colour: str
    width: float
    opacity: float = 1.0
    dashes: tuple[float, float] | None = None
    curved: bool = False
    name: str = ""
    depth: float = 2.0

    def scaled(self, by: float) -> "Stroke":
        return self._replace(points=self.points * by, width=self.width * by)


class Patch(NamedTuple):
    """A filled polygon, such as the head of an arrow."""

    points: Points
    fill: str
    depth: float = 1.0

    def scaled(self, by: float) -> "Patch":
        return self._replace(points=self.points * by)


class Words(NamedTuple):
    """One line of text; `size` in points; `across` and `along` say which point of it lies at (x, y)."""

    x: float
    y: float
    text: str
    size: float
    colour: str = "#222222"
    bold: bool = False
    across: Literal["left", "center", "right"] = "left"
    along: Literal["top", "middle", "bottom"] = "middle"
    depth: float = 4.0

    def scaled(self, by: float) -> "Words":
        return self._replace(x=self.x * by, y=self.y * by, size=self.size * by)


Shape = Panel | Stroke | Patch | Words


@dataclass(frozen=True)
class Drawing:
    """Shapes on a page of `width` by `height` inches. `fewer`: fewer edges than asked for, to be legible."""

    width: float
    height: float
    shapes: tuple[Shape, ...]
    fewer: bool = False

    def scaled_to(self, width: float) -> "Drawing":
        """The same drawing, larger or smaller, lines and letters too."""
        if not 0.5 <= width <= 100:
            raise AcdcError(f"a figure {width:g} inches wide: give a width from 0.5 to 100")
        by = width / self.width
        return Drawing(width, self.height * by, tuple(shape.scaled(by) for shape in self.shapes), self.fewer)

    def painted(self) -> Iterator[Shape]:
        """The shapes from the lowest to the highest."""
        yield from sorted(self.shapes, key=lambda shape: shape.depth)

    @property
    def smallest_text(self) -> float:
        """The size of the smallest letters, in points: below 5 they are hard to read in print."""
        return min((shape.size for shape in self.shapes if isinstance(shape, Words)), default=np.inf)

"""Faithfulness over circuit sizes, and the areas that summarise it."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from acdc.circuit import Rank
from acdc.errors import AcdcError

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SMALL = 0.05  # of the edges: circuits up to here have a summary of their own


def exceeds(faithfulness: float) -> bool:
    """Whether a circuit does more than the full model, to the three digits that are shown."""
    return round(faithfulness, 3) > 1


@dataclass(frozen=True)
class CurvePoint:
    """One circuit of the curve. `fraction` is what was asked for, `n_edges` what was kept: int(fraction * edges),
    or all edges that were tried, where these are fewer (then CPR and CMD are not MIB's)."""

    fraction: float
    n_edges: int
    metric: float
    faithfulness: float


@dataclass(frozen=True)
class Areas:
    """What a curve comes to; None where the points span no width. Each has f, higher is better but not bounded by 1,
    and |1 - f|, lower is better and 0 best.

    `cpr`, `cmd`: areas over the fraction x, linear, as MIB has them: 65% of the weight lies on the points at 50% and
    100%. `log_f`, `log_distance`: areas over log10(x), divided by its width, so means: each tenfold growth of the
    circuit counts the same, and f = 1 everywhere gives 1 and 0. Circuits of no edges have no logarithm and are left
    out. `small_f`, `small_distance`: areas over x up to 5%, linear, divided by the width: means over small circuits.
    """

    cpr: float
    cmd: float
    log_f: float | None
    log_distance: float | None
    small_f: float | None
    small_distance: float | None


@dataclass(frozen=True)
class Curve:
    """Circuits of one ranking and growing size. `full`, `empty`: the metric's mean with nothing and all cut.

    `n_graph_edges`: how many edges there are; None: unknown, then nothing is said of achieved fractions.
    """

    by: Rank
    metric: str
    full: float
    empty: float
    n_prompts: int
    points: tuple[CurvePoint, ...]
    n_graph_edges: int | None = None

    @property
    def cpr(self) -> float:
        """Area under the faithfulness f over the requested fraction of edges, trapezoids, linear x: higher is better.

        MIB's CPR where the points are MIB's ten and the ranking is signed. It is not bounded by 1: a circuit may
        exceed the full model. Two thirds of the weight lies on the points at 50% and 100%.
        """
        return self.areas().cpr

    @property
    def cmd(self) -> float:
        """Area under |1 - f|, as for `cpr`: lower is better, 0 is best. MIB's CMD ranks by magnitude."""
        return self.areas().cmd

    def areas(self, *, achieved: bool = False) -> Areas:
        """All areas by trapezoids, over the fractions that were requested or, if `achieved`, those that were kept.

        The two differ by rounding, and by much where a search tried few edges: over requested fractions its last
        circuit then counts as many larger ones that do not exist, over achieved ones the curve ends with it. So
        `cpr` and `cmd` of achieved fractions are areas up to there, not up to 1. Where 5% lies between two points, f
        there is on the straight line between them.
        """
        if achieved:
            if self.n_graph_edges is None:
                raise ValueError("a curve without n_graph_edges has no achieved fractions")
            x = [point.n_edges / self.n_graph_edges for point in self.points]
        else:
            x = [point.fraction for point in self.points]
        f = [point.faithfulness for point in self.points]
        positive = [(math.log10(a), b) for a, b in zip(x, f, strict=True) if a > 0]
        log_f, log_distance = _mean_areas(*_columns(positive))
        small_f, small_distance = _mean_areas(*_columns(_up_to(SMALL, x, f)))
        return Areas(area(x, f), area(x, [abs(1 - y) for y in f]), log_f, log_distance, small_f, small_distance)

    @property
    def stops_short(self) -> bool:
        """Whether some circuit is smaller than was asked for, by more than rounding."""
        total = self.n_graph_edges
        return total is not None and any(point.n_edges < int(point.fraction * total) for point in self.points)

    @property
    def exceeding(self) -> tuple[CurvePoint, ...]:
        """The circuits that do more than the full model: what they leave out works against the task."""
        return tuple(point for point in self.points if exceeds(point.faithfulness))

    def summary(self) -> dict[str, Any]:
        """The curve as JSON holds it: `share` is the achieved fraction, `achieved` the areas over it."""
        total = self.n_graph_edges
        points = [{**asdict(point), "share": point.n_edges / total if total else None,
                   "exceeds": exceeds(point.faithfulness)} for point in self.points]
        return {"by": self.by, **asdict(self.areas()), "stops_short": self.stops_short,
                "achieved": asdict(self.areas(achieved=True)) if total else None, "points": points}

    def smallest_faithful(self, within: float = 0.1) -> CurvePoint | None:
        """The smallest circuit with |1 - f| <= `within`; None if the curve never gets there."""
        return next((point for point in self.points if abs(1 - point.faithfulness) <= within), None)

    def as_record(self) -> dict[str, Any]:
        """What a circuit's provenance holds of it, for `curves_of` to read."""
        return {**asdict(self), "points": [asdict(point) for point in self.points]}


def area(x: Sequence[float], heights: Sequence[Any]) -> Any:
    """By trapezoids. A height may be an array, a number for each of many curves over one x; so is the area then."""
    return sum(((x[i + 1] - x[i]) * (heights[i] + heights[i + 1]) / 2 for i in range(len(x) - 1)), 0.0)


def _mean_areas(x: Sequence[float], f: Sequence[float]) -> tuple[float | None, float | None]:
    """The areas under f and |1 - f| over the width, or None where there is none."""
    width = x[-1] - x[0] if x else 0.0
    if width <= 0:
        return None, None
    return area(x, f) / width, area(x, [abs(1 - y) for y in f]) / width


def _up_to(end: float, x: Sequence[float], f: Sequence[float]) -> list[tuple[float, float]]:
    """The points of a curve up to `end`, with one there if it lies between two."""
    points = list(zip(x, f, strict=True))
    inside = [point for point in points if point[0] <= end]
    beyond = points[len(inside) :]
    if inside and beyond and inside[-1][0] < end:
        (a, left), (b, right) = inside[-1], beyond[0]
        inside.append((end, left + (right - left) * (end - a) / (b - a)))
    return inside


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def curves_of(provenance: Mapping[str, Any]) -> list[Curve]:
    """The curves that a circuit's provenance holds as `curves`, as `Curve.as_record` wrote them; none if it has none.

    Refuses what is no curve: the provenance of a file can be anything.
    """
    records = provenance.get("curves", [])
    if not isinstance(records, list):
        raise _no_curve(f"it is a {type(records).__name__}, not a list")
    return [_read_curve(record) for record in records]


def _read_curve(record: Any) -> Curve:
    _check_record(record, Curve)
    if record["by"] not in ("signed", "magnitude"):
        raise _no_curve(f"by is {record['by']!r}, neither 'signed' nor 'magnitude'")
    if not isinstance(record["points"], list | tuple):
        raise _no_curve("points are not a list")
    for point in record["points"]:
        _check_record(point, CurvePoint)
    total = record["n_graph_edges"]
    counts = [record["n_prompts"], *(point["n_edges"] for point in record["points"]), 1 if total is None else total]
    if not all(type(count) is int and count >= 0 for count in counts) or total == 0:
        raise _no_curve("n_prompts, n_edges and n_graph_edges must be whole numbers from 0 (n_graph_edges: from 1)")
    points = tuple(CurvePoint(float(point["fraction"]), point["n_edges"], float(point["metric"]),
                              float(point["faithfulness"])) for point in record["points"])
    return Curve(**{**record, "points": points, "full": float(record["full"]), "empty": float(record["empty"])})


def _check_record(record: Any, kind: type) -> None:
    if not isinstance(record, dict):
        raise _no_curve(f"a {type(record).__name__} where an object is needed")
    names = {field.name: str(field.type) for field in fields(kind)}
    if set(record) != set(names):
        raise _no_curve(f"an object has the fields {', '.join(sorted(record))}; needed: {', '.join(names)}")
    for name, value in record.items():
        is_number = type(value) in (int, float) and abs(value) <= sys.float_info.max
        if kind is CurvePoint and not is_number or name in ("full", "empty", "n_prompts") and not is_number:
            raise _no_curve(f"{name} is {value!r}, not a finite number")
        if name == "metric" and kind is Curve and not isinstance(value, str):
            raise _no_curve(f"metric is {value!r}, not a name")


def _no_curve(what: str) -> AcdcError:
    return AcdcError(f"the circuit's provenance.curves cannot be read: {what}. Leave curves out, or find it again")

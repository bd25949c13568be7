"""Faithfulness over circuit sizes, and the areas that summarise it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from acdc.circuit import Rank
from acdc.errors import AcdcError

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


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
class Curve:
    """Circuits of one ranking and growing size. `full`, `empty`: the metric's mean with nothing and all cut."""

    by: Rank
    metric: str
    full: float
    empty: float
    n_prompts: int
    points: tuple[CurvePoint, ...]

    @property
    def cpr(self) -> float:
        """Area under the faithfulness f over the requested fraction of edges, trapezoids, linear x: higher is better.

        MIB's CPR where the points are MIB's ten and the ranking is signed. It is not bounded by 1: a circuit may
        exceed the full model. Two thirds of the weight lies on the points at 50% and 100%.
        """
        return self._area([point.faithfulness for point in self.points])

    @property
    def cmd(self) -> float:
        """Area under |1 - f|, as for `cpr`: lower is better, 0 is best. MIB's CMD ranks by magnitude."""
        return self._area([abs(1 - point.faithfulness) for point in self.points])

    def smallest_faithful(self, within: float = 0.1) -> CurvePoint | None:
        """The smallest circuit with |1 - f| <= `within`; None if the curve never gets there."""
        return next((point for point in self.points if abs(1 - point.faithfulness) <= within), None)

    def _area(self, heights: list[float]) -> float:
        x = [point.fraction for point in self.points]
        return sum(((x[i + 1] - x[i]) * (heights[i] + heights[i + 1]) / 2 for i in range(len(x) - 1)), 0.0)

    def as_record(self) -> dict[str, Any]:
        """What a circuit's provenance holds of it, for `curves_of` to read."""
        return {**asdict(self), "points": [asdict(point) for point in self.points]}


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
    return Curve(**{**record, "points": tuple(CurvePoint(**point) for point in record["points"])})


def _check_record(record: Any, kind: type) -> None:
    if not isinstance(record, dict):
        raise _no_curve(f"a {type(record).__name__} where an object is needed")
    names = {field.name: str(field.type) for field in fields(kind)}
    if set(record) != set(names):
        raise _no_curve(f"an object has the fields {', '.join(sorted(record))}; needed: {', '.join(names)}")
    for name, value in record.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if kind is CurvePoint and not is_number or name in ("full", "empty", "n_prompts") and not is_number:
            raise _no_curve(f"{name} is {value!r}, not a finite number")
        if name == "metric" and kind is Curve and not isinstance(value, str):
            raise _no_curve(f"metric is {value!r}, not a name")


def _no_curve(what: str) -> AcdcError:
    return AcdcError(f"the circuit's provenance.curves cannot be read: {what}. Leave curves out, or find it again")

"""Faithfulness over circuit sizes, and the areas that summarise it."""

from dataclasses import dataclass

from acdc.circuit import Rank

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

"""CPR and CMD equal what is computed by hand, and what MIB's code computes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.evaluation.curve import MIB_FRACTIONS, Curve, CurvePoint

N_EDGES = 32_491


def curve(fractions, faithfulness) -> Curve:
    points = tuple(
        CurvePoint(fraction, int(fraction * N_EDGES), 10 * f, f)
        for fraction, f in zip(fractions, faithfulness, strict=True)
    )
    return Curve("signed", "logit_difference", 10.0, 0.0, 8, points)


def mib_areas(faithfulness: list[float]) -> tuple[float, float]:
    """As in MIB_circuit_track/evaluation.py: trapezoids over the requested percentages, starting at 0.001."""
    cpr = cmd = 0.0
    for i in range(len(MIB_FRACTIONS) - 1):
        width = MIB_FRACTIONS[i + 1] - MIB_FRACTIONS[i]
        cpr += width * (faithfulness[i] + faithfulness[i + 1]) / 2
        cmd += width * (abs(1.0 - faithfulness[i]) + abs(1.0 - faithfulness[i + 1])) / 2
    return cpr, cmd


def test_the_grid_is_mibs():
    assert MIB_FRACTIONS == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def test_by_hand():
    given_curve = curve((0.1, 0.5, 1.0), (0.5, 2.0, 1.0))
    assert given_curve.cpr == pytest.approx(0.4 * 1.25 + 0.5 * 1.5)
    assert given_curve.cmd == pytest.approx(0.4 * 0.75 + 0.5 * 0.5)


@given(st.lists(st.floats(-5, 5), min_size=10, max_size=10))
def test_as_mib(faithfulness):
    given_curve = curve(MIB_FRACTIONS, faithfulness)
    assert (given_curve.cpr, given_curve.cmd) == pytest.approx(mib_areas(faithfulness))


def test_the_full_model_everywhere_is_best():
    given_curve = curve(MIB_FRACTIONS, [1.0] * 10)
    assert given_curve.cmd == 0
    assert given_curve.cpr == pytest.approx(0.999)


def test_the_points_at_50_and_100_percent_weigh_most():
    only_last = curve(MIB_FRACTIONS, [0.0] * 8 + [1.0, 1.0])
    assert only_last.cpr == pytest.approx(0.65)


def test_one_point_has_no_area():
    assert curve((1.0,), (1.0,)).cpr == 0


def test_smallest_faithful_is_the_first_within_reach():
    given_curve = curve((0.1, 0.2, 0.5, 1.0), (0.5, 1.3, 0.95, 1.0))
    assert given_curve.smallest_faithful() == given_curve.points[2]
    assert given_curve.smallest_faithful(within=0.4) == given_curve.points[1]
    assert curve((0.1,), (0.5,)).smallest_faithful() is None

"""CPR and CMD equal what is computed by hand, and what MIB's code computes."""

import math

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


GRIDS = [MIB_FRACTIONS, (0.0, 0.01, 0.04, 0.3, 1.0), (0.003, 0.2, 0.7)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("f", [0.0, 0.75, 1.0, 2.5])
def test_areas_of_a_flat_curve_are_its_height(grid, f):
    areas = curve(grid, [f] * len(grid)).areas()
    width = grid[-1] - grid[0]
    assert (areas.cpr, areas.cmd) == pytest.approx((f * width, abs(1 - f) * width))
    assert (areas.log_f, areas.log_distance) == pytest.approx((f, abs(1 - f)))
    assert (areas.small_f, areas.small_distance) == pytest.approx((f, abs(1 - f)))


@pytest.mark.parametrize("grid", GRIDS)
def test_areas_of_a_straight_line(grid):
    first, last = grid[0], grid[-1]
    areas = curve(grid, [x / 2 for x in grid]).areas()  # below 1 throughout
    assert areas.cpr == pytest.approx((last**2 - first**2) / 4)
    assert areas.small_f == pytest.approx((first + 0.05) / 4)
    assert areas.small_distance == pytest.approx(1 - (first + 0.05) / 4)


@pytest.mark.parametrize("grid", [GRIDS[0], GRIDS[2]])
def test_the_log_area_of_a_line_on_a_log_axis(grid):
    areas = curve(grid, [3 + math.log10(x) for x in grid]).areas()
    ends = 3 + math.log10(grid[0]), 3 + math.log10(grid[-1])
    assert areas.log_f == pytest.approx(sum(ends) / 2)
    assert areas.log_distance is not None and areas.log_distance >= areas.log_f - 1


@given(st.lists(st.floats(-5, 5), min_size=10, max_size=10))
def test_the_log_area_is_that_of_mibs_log_scale_up_to_a_factor(faithfulness):
    """MIB's code can take the natural logarithm of the percentages, without dividing by the width."""
    x = [math.log(fraction) for fraction in MIB_FRACTIONS]
    area = sum((x[i + 1] - x[i]) * (faithfulness[i] + faithfulness[i + 1]) / 2 for i in range(9))
    log_f = curve(MIB_FRACTIONS, faithfulness).areas().log_f
    assert log_f is not None and log_f * math.log(1000) == pytest.approx(area, abs=1e-9)


def test_each_tenfold_growth_counts_the_same():
    found = curve((0.001, 0.01, 0.1, 1.0), (0.0, 0.0, 1.0, 1.0)).areas()
    assert found.log_f == pytest.approx(0.5)
    assert found.cpr == pytest.approx(0.09 * 0.5 + 0.9)


def test_five_percent_between_two_points():
    found = curve((0.03, 0.07, 1.0), (0.2, 0.6, 1.0)).areas()
    assert found.small_f == pytest.approx(0.3)  # from 0.2 to 0.4
    assert curve((0.1, 1.0), (0.5, 1.0)).areas().small_f is None


def stopped() -> Curve:
    """A search that tried 300 of 1,000 edges."""
    sizes, fractions, f = (100, 200, 300, 300), (0.1, 0.2, 0.5, 1.0), (0.0, 1.0, 0.5, 0.5)
    points = tuple(CurvePoint(*values) for values in zip(fractions, sizes, f, f, strict=True))
    return Curve("signed", "logit_difference", 1.0, 0.0, 8, points, 1000)


def test_a_curve_that_stops_short_has_other_areas_over_what_it_kept():
    given_curve = stopped()
    assert given_curve.stops_short
    assert given_curve.cpr == pytest.approx(0.1 * 0.5 + 0.3 * 0.75 + 0.5 * 0.5)
    achieved = given_curve.areas(achieved=True)
    assert achieved.cpr == pytest.approx(0.1 * 0.5 + 0.1 * 0.75)
    assert achieved.cmd == pytest.approx(0.1 * 0.5 + 0.1 * 0.25)
    assert achieved.log_f == pytest.approx((math.log10(2) * 0.5 + math.log10(1.5) * 0.75) / math.log10(3))
    summary = given_curve.summary()
    assert summary["stops_short"] and summary["achieved"]["cpr"] == achieved.cpr
    assert [point["share"] for point in summary["points"]] == [0.1, 0.2, 0.3, 0.3]


def test_rounding_to_whole_edges_is_not_stopping_short():
    points = tuple(CurvePoint(x, int(x * N_EDGES), x, x) for x in MIB_FRACTIONS)
    given_curve = Curve("signed", "logit_difference", 1.0, 0.0, 8, points, N_EDGES)
    assert not given_curve.stops_short
    requested, achieved = given_curve.areas(), given_curve.areas(achieved=True)
    assert achieved != requested
    assert vars(achieved) == pytest.approx(vars(requested), abs=1e-3)


def test_what_exceeds_the_full_model_is_flagged():
    given_curve = curve((0.1, 0.2, 0.5, 1.0), (0.9, 1.0004, 1.2, 1.0))
    assert given_curve.exceeding == (given_curve.points[2],)
    assert [point["exceeds"] for point in given_curve.summary()["points"]] == [False, False, True, False]


def test_one_point_and_none_have_no_means():
    for points in ((), ((0.5, 1.0),)):
        areas = curve([x for x, _ in points], [f for _, f in points]).areas()
        assert vars(areas) == {"cpr": 0, "cmd": 0, "log_f": None, "log_distance": None, "small_f": None,
                               "small_distance": None}
    assert curve((0.5,), (1.0,)).summary()["achieved"] is None

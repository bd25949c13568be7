"""The curve's figure shows the points as they are, at every scale."""

import numpy as np
import pytest

from acdc.circuit import Rank
from acdc.errors import AcdcError
from acdc.evaluation.curve import MIB_FRACTIONS, Curve, CurvePoint
from acdc.export.curve_figure import curve_figure
from acdc.export.figure import save_figure


def curve(by: Rank, faithfulness, fractions=MIB_FRACTIONS) -> Curve:
    points = tuple(
        CurvePoint(x, int(x * 123_211), 3 * y, y) for x, y in zip(fractions, faithfulness, strict=True)
    )
    return Curve(by, "logit_difference", 3.0, 0.0, 8, points)


PLAIN = curve("magnitude", np.linspace(0.1, 1, 10).tolist())
FAR = curve("signed", [-4.0, 0.1, 0.4, 0.9, 1.6, 2.4, 9.0, 33.0, 3.0, 1.0])


@pytest.mark.parametrize("curves", [[PLAIN], [FAR], [FAR, PLAIN]])
def test_every_point_is_drawn_where_it_is(curves):
    figure = curve_figure(curves, chosen=curves[0].points[3])
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    for given in curves:
        name = next(label for label in lines if f"CPR {given.cpr:.3f},  CMD {given.cmd:.3f}" in label)
        assert list(lines[name].get_ydata()) == [point.faithfulness for point in given.points]
        low, high = axes.get_ylim()
        assert all(low < point.faithfulness < high for point in given.points)
    assert any("chosen: 1,232 edges" in label for label in lines)


def test_ticks_say_share_and_number():
    ticks = [text.get_text() for text in curve_figure([PLAIN]).axes[0].get_xticklabels()]
    assert ticks[0] == "0.1%\n123"
    assert ticks[-1] == "100%\n123,211"
    assert len(ticks) == 10


def test_ticks_that_are_close_are_left_out():
    close = curve("signed", [0.5] * 4, (0.1, 0.11, 0.12, 1.0))
    ticks = curve_figure([close]).axes[0].get_xticklabels()
    assert [text.get_text()[:4] for text in ticks] == ["12%\n", "100%"]


@pytest.mark.parametrize(("given", "compressed"), [(PLAIN, False), (FAR, True)])
def test_a_compressed_axis_says_so_and_keeps_the_band_visible(given, compressed):
    axes = curve_figure([given]).axes[0]
    assert ("compressed" in axes.get_ylabel()) is compressed
    low, high = (axes.transData.transform((1, y))[1] for y in (0.9, 1.1))
    assert (high - low) / axes.bbox.height > 0.03


def test_text_stays_on_the_page():
    figure = curve_figure([FAR, PLAIN], chosen=FAR.points[3])
    figure.draw_without_rendering()
    tight = figure.get_tightbbox()
    assert tight.x0 >= 0 and tight.y0 >= 0 and tight.x1 <= 6.5 and tight.y1 <= 4.4


def test_points_without_a_place_are_left_out():
    odd = curve("signed", [0.0, float("nan"), 0.5, 1.0], (0.0, 0.01, 0.1, 1.0))
    line = next(line for line in curve_figure([odd]).axes[0].lines if "signed" in str(line.get_label()))
    assert list(line.get_xdata()) == [0.1, 1.0]


def test_the_same_curves_give_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        save_figure(curve_figure([FAR, PLAIN]), tmp_path / f"{name}.svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


def test_no_point_is_refused():
    with pytest.raises(AcdcError, match="no point to draw"):
        curve_figure([])

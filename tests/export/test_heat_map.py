"""A heat map shows each number in its cell, in the order of the names, and says what it cannot draw."""

import numpy as np
import pytest

from acdc.errors import AcdcError
from acdc.export.figure import figure_bytes
from acdc.export.heat_map import Panel, heat_map

VALUES = np.array([[0.0, -1.0, 0.5], [0.25, 2.0, -0.5]])


def axes_of(panel):
    return heat_map([panel]).axes[0]


def test_every_number_has_its_cell_and_colour():
    axes = axes_of(Panel("effects", VALUES, ["a", "b\n"], ["0", "1", "2"], "p"))
    (mesh,) = axes.collections
    np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(2, 3), VALUES)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b\\n"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2"]
    assert axes.yaxis_inverted() and mesh.norm(0.0) == 0.5 and mesh.norm(2.0) == 1 and mesh.norm(-2.0) == 0
    plain = axes_of(Panel("kl", VALUES + 1, ["a", "b"], ["0", "1", "2"], "nats", signed=False)).collections[0]
    assert plain.norm(0.0) == 0 and plain.norm(3.0) == 1


def test_words_are_written_into_cells_as_they_are():
    words = [["$x$", " the", "\n"], ["a" * 40, "é", " "]]
    axes = axes_of(Panel("lens", VALUES, ["a", "b"], ["0", "1", "2"], "p", words=words))
    assert [text.get_text() for text in axes.texts] == ["$x$", " the", "\\n", "a" * 13 + "…", "é", "␣"]
    assert len(figure_bytes(heat_map([Panel("l", VALUES, ["$a", "b"], ["0", "1", "2"], "p", words=words)], "t"), "png"))


def test_the_same_numbers_give_the_same_bytes_and_many_columns_some_labels():
    many = Panel("long", np.zeros((1, 200)), ["m"], [str(i) for i in range(200)], "p")
    assert figure_bytes(heat_map([many]), "svg") == figure_bytes(heat_map([many]), "svg")
    assert len(axes_of(many).get_xticklabels()) == 50


def test_mistakes_are_named():
    for values, message in [(VALUES[:1], "shape"), (VALUES * np.nan, "not finite"), (np.zeros((0, 3)), "shape")]:
        with pytest.raises(AcdcError, match=message):
            Panel("effects", values, ["a", "b"][: 2 * len(values)], ["0", "1", "2"], "p")
    with pytest.raises(AcdcError, match="nothing to draw"):
        heat_map([])

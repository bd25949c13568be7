"""The figure of a training run shows the numbers that were recorded."""

import pytest

from acdc.errors import AcdcError
from acdc.export.history_figure import mask_history_figure

HISTORY = [{"step": 0, "loss": 2.0, "sparsity": 0.5, "target": 0.4},
           {"step": 10, "loss": 1.0, "sparsity": 0.9, "target": 0.99}]


def test_lines_are_the_record():
    above, below = mask_history_figure(HISTORY).axes
    assert above.lines[0].get_xydata().tolist() == [[0, 2.0], [10, 1.0]]
    assert below.lines[0].get_ydata().tolist() == pytest.approx([50, 10])
    assert below.lines[1].get_ydata().tolist() == pytest.approx([60, 1])
    assert below.get_yscale() == "log"


@pytest.mark.parametrize("history", [[], [{"step": 0, "loss": 1.0}]])
def test_what_is_no_history_is_refused(history):
    with pytest.raises(AcdcError, match="no history"):
        mask_history_figure(history)

"""How masks were learned: loss and sparsity, step by step, on one page."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from acdc.errors import AcdcError

KEYS = {"step", "loss", "sparsity", "target"}


def mask_history_figure(history: Sequence[Mapping[str, Any]], *, title: str = "Learning the masks") -> Figure:
    """The loss of each recorded step (of its few prompts, so it jumps) above, and below the share of edges that is
    open, on a log scale, with its target. `history`: provenance["history"] of `edge_pruning` and its like."""
    if not history or any(not point.keys() >= KEYS for point in history):
        raise AcdcError(
            "there is no history to draw: give provenance['history'] of edge_pruning, subnetwork_probing or ugs"
        )
    steps = [point["step"] for point in history]
    figure = Figure(figsize=(6.5, 4.4), facecolor="white")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(steps, [point["loss"] for point in history], color="#0072B2", lw=1.3)
    above.set_ylabel("loss")
    above.set_title(title)
    below.plot(steps, [100 * (1 - point["sparsity"]) for point in history], color="#D55E00", lw=1.6, label="open")
    below.plot(steps, [100 * (1 - point["target"]) for point in history], color="#333333", lw=1, ls=":", label="target")
    below.set_yscale("log")
    below.set_ylabel("open masks (%)")
    below.set_xlabel("step")
    below.legend(frameon=False)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure

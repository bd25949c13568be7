"""How two circuits look on one page: edges of both, of the first alone and of the second alone in three colours."""

import numpy as np
from jaxtyping import Float

from acdc.circuit import Circuit, EdgeScores
from acdc.evaluation.difference import Difference
from acdc.export.circuit_drawing import GREY, Look, drawn, legible, line_width, note_on_columns
from acdc.export.difference_report import range_text
from acdc.export.drawing import Drawing
from acdc.export.layout import page_of
from acdc.export.legend import Entry
from acdc.export.palette import BOTH, ONLY_FIRST, ONLY_SECOND
from acdc.export.paths import Backbone, edge_strengths

DASHED, DOTTED = (4.0, 1.4), (1.0, 1.1)  # colours alone do not print in black and white
MAX_NAME = 40


def difference_drawing(found: Difference, names: tuple[str, str], *, title: str = "", max_edges: int | None = None,
                       width: str = "page") -> Drawing:
    """The edges of either circuit, from the input at the bottom to the logits at the top.

    Width is |score| relative to the mean of what its own circuit keeps, the larger of both: units may differ. Of more
    than `max_edges` the backbone of both together is drawn. `names` are those of the circuits in the legend.
    """
    page = page_of(width)
    graph = found.first.graph
    both = Circuit(graph, found.first.kept | found.second.kept, EdgeScores(graph, relative_strengths(found)))
    first, second = (name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…" for name in names)
    only_first, only_second = found.only_first, found.only_second
    kinds = ((f"both ({found.shared.sum():,})", BOTH, None, found.shared),
             (f"{first} only ({only_first.sum():,})", ONLY_FIRST, DASHED, only_first),
             (f"{second} only ({only_second.sum():,})", ONLY_SECOND, DOTTED, only_second))

    def line(edge: int) -> tuple[str, tuple[float, float] | None]:
        if only_first[edge]:
            return ONLY_FIRST, DASHED
        return (ONLY_SECOND, DOTTED) if only_second[edge] else (BOTH, None)

    def draw(shown: Backbone) -> Drawing:
        entries = [Entry(text, colour, 1.6, dashes) for text, colour, dashes, of_kind in kinds
                   if of_kind[shown.edges].any()]
        if found.first.scores is not None and found.second.scores is not None:
            most = float(edge_strengths(both)[shown.edges].max(initial=0))
            thickest = line_width(1.0, len(shown.edges))
            entries.append(Entry(f"{most:.2g} times its circuit's mean |score|", GREY, thickest))
        note = (f"shown: {len(shown.edges)} of {both.n_edges:,} edges that either keeps; {found.shared.sum():,} are "
                f"kept by both, {only_first.sum():,} by {first} only, {only_second.sum():,} by {second} only"
                f"{_redrawn(found)}")
        return drawn(both, shown, Look(line, entries, title, note + note_on_columns(graph, shown)), page)

    return legible(both, max_edges, page, draw)


def _redrawn(found: Difference) -> str:
    """The Jaccard index of the edges beside its interval for other prompts, where there is one."""
    jaccard, interval = found.overlaps[0].jaccard, found.interval
    if jaccard is None or interval is None:
        return ""
    return f"; Jaccard {jaccard:.3f}, {range_text(found)} in {interval.level:.0%} of draws of the prompts"


def relative_strengths(found: Difference) -> Float[np.ndarray, " edge"]:
    """|score| over the mean of what its circuit keeps; the larger of both circuits that keep the edge."""
    return np.maximum(*map(relative_to_mean, (found.first, found.second)))


def relative_to_mean(circuit: Circuit) -> Float[np.ndarray, " edge"]:
    """|score| of what a circuit keeps over the mean of it; 0 for all else."""
    own = np.where(circuit.kept, edge_strengths(circuit), 0)
    return own / (own.sum() / max(1, circuit.n_edges) or 1)

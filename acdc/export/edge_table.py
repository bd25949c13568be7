"""A circuit's edges as a table for a spreadsheet or pandas: CSV, one row an edge."""

import csv
import io

import numpy as np

from acdc.circuit import Circuit
from acdc.evaluation.bootstrap import RARE, Uncertainty
from acdc.export.paths import edge_strengths


def edge_table(circuit: Circuit, uncertainty: Uncertainty | None = None) -> str:
    """The kept edges, the strongest first, with columns edge, src, channel, position, kept and score.

    With `uncertainty`, also those that are not kept but would be in at least 5% of the draws of the prompts, and the
    columns low, high (of the score), inclusion and same_sign. What is not known is empty; numbers are exact.
    """
    graph, scores = circuit.graph, circuit.scores
    rows = circuit.kept if uncertainty is None else circuit.kept | (uncertainty.inclusion >= RARE)
    edges = np.nonzero(rows)[0]
    edges = edges[np.argsort(-edge_strengths(circuit)[edges], kind="stable")].tolist()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    more = [] if uncertainty is None else ["low", "high", "inclusion", "same_sign"]
    writer.writerow(["edge", "src", "channel", "position", "kept", "score", *more])
    for edge in edges:
        score = -np.inf if scores is None else float(scores.values[edge])
        position = graph.positions[graph.edge_position[edge]] if graph.positions else ""
        writer.writerow([
            graph.edge_name(edge), graph.srcs[graph.edge_src[edge]].name,
            graph.channels[graph.edge_channel[edge]].name, position, int(circuit.kept[edge]),
            repr(score) if np.isfinite(score) else "",
            *(repr(float(getattr(uncertainty, name)[edge])) for name in more),
        ])
    return text.getvalue()

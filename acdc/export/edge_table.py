"""A circuit's edges as a table for a spreadsheet or pandas: CSV, one row an edge; and the way back."""

import csv
import io

import numpy as np

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.evaluation.bootstrap import RARE, Uncertainty
from acdc.export.paths import edge_strengths
from acdc.graph import Graph


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
    writer = csv.writer(text)  # lines end in \r\n, as RFC 4180 has it, so that either in a name is quoted
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


def circuit_from_table(text: str, graph: Graph, source: str = "the text") -> Circuit:
    """The circuit of a table with columns edge, kept and score, on a graph that the table itself does not name.

    Edges without a row are not kept and have no score (-inf); without any score the circuit has none.
    """
    kept, values = np.zeros(graph.n_edges, dtype=bool), np.full(graph.n_edges, -np.inf)
    seen: set[int] = set()
    for i, row in enumerate(rows_of(text, {"edge", "kept", "score"}, source), start=1):
        try:
            edge = graph.edge(row["edge"])
            kept[edge] = {"0": False, "1": True}[row["kept"]]
            values[edge] = float(row["score"] or "-inf")
            if row["score"] and not np.isfinite(values[edge]):
                raise ValueError(f"the score is {row['score']}; leave it empty where the edge was never tried")
        except (AcdcError, KeyError, ValueError) as error:
            raise AcdcError(f"{source}: row {i}: {error}") from error
        if edge in seen:
            raise AcdcError(f"{source}: row {i}: the edge {row['edge']!r} is given twice")
        seen.add(edge)
    return Circuit(graph, kept, EdgeScores(graph, values) if np.isfinite(values).any() else None)


def rows_of(text: str, needed: set[str], source: str) -> list[dict[str, str]]:
    """The rows of a CSV table by the names in its first row, each as long as that one."""
    try:
        names, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError) as error:
        raise AcdcError(f"{source} is not a table of comma-separated values: {error}") from error
    if missing := needed - set(names):
        raise AcdcError(f"{source} lacks the column {min(missing)!r}; it has {', '.join(names)}")
    for i, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise AcdcError(f"{source}: row {i} has {len(row)} cells of {len(names)}. It may be cut off")
    return [dict(zip(names, row, strict=True)) for row in rows]

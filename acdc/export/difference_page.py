"""How two circuits are compared in the browser: the page of a circuit, with each edge's side and both scores."""

import math

import numpy as np

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.evaluation.difference import Difference, jaccard_of, places
from acdc.export.difference_drawing import relative_to_mean
from acdc.export.difference_report import ASKED, interval_text
from acdc.export.page import MAX_EDGES, SHOWN, circuit_data, document, edges_on_page, in_base64
from acdc.export.text import full_provenance, number

LEVELS = {"edge": "edges", "head": "q, k, v merged", "node": "heads, MLPs"}


def difference_page(found: Difference, names: tuple[str, str], *, title: str | None = None,
                    max_edges: int = MAX_EDGES) -> str:
    """The page, as the text of one file: edges of both grey, of the first alone blue, of the second alone orange.

    Edges rank by |score| over the mean of what their own circuit keeps, the larger of both: units may differ. The sign
    is that of the circuit that gave the larger one. It holds the `max_edges` first edges that either circuit keeps.
    Errors: `max_edges` below 1.
    """
    if max_edges < 1:
        raise AcdcError(f"max_edges is {max_edges}: the page must hold at least one edge")
    union = _either(found)
    edges, _ = edges_on_page(union, max_edges)
    title = f"{names[0]} and {names[1]}" if title is None else title
    side = np.where(found.only_first, 1, np.where(found.only_second, 2, 0))
    both = (found.first, found.second)
    diff = {
        "names": list(names), "overlap": _overlap(found), "notes": [interval_text(found, names)],
        "side": in_base64(side[edges], "u1"),
        "scores": [in_base64(_scores(circuit)[edges], "<f8") for circuit in both],
        "places": [in_base64(places(circuit)[edges], "<u4") for circuit in both],
    }
    return document({**circuit_data(union, title, _record(found, names), max_edges), "diff": diff})


def _either(found: Difference) -> Circuit:
    """What either keeps, scored as the page ranks it; what neither keeps has no score."""
    graph, kept = found.first.graph, found.first.kept | found.second.kept
    if found.first.scores is None and found.second.scores is None:
        return Circuit(graph, kept)
    sizes = [relative_to_mean(circuit) for circuit in (found.first, found.second)]
    stronger = sizes[1] > sizes[0]
    signs = np.sign([np.nan_to_num(_scores(circuit), nan=1.0) for circuit in (found.first, found.second)])
    values = np.where(stronger, signs[1] * sizes[1], signs[0] * sizes[0])
    return Circuit(graph, kept, EdgeScores(graph, np.where(kept, values, -np.inf)))


def _scores(circuit: Circuit) -> np.ndarray:
    """The circuit's own, NaN where it has none."""
    if circuit.scores is None:
        return np.full(circuit.graph.n_edges, np.nan)
    return np.where(np.isfinite(circuit.scores.values), circuit.scores.values, np.nan).astype(np.float64)


def _overlap(found: Difference) -> list[list[str]]:
    """A row a level: how many each keeps and both, the Jaccard index, and what chance would give."""
    rows = []
    for at, chance in zip(found.overlaps, found.chances, strict=True):
        by_chance = [jaccard_of(at, n) for n in (chance.expected, chance.low, chance.high)]
        mean, low, high = ("–" if value is None else f"{value:.3f}" for value in by_chance)
        rows.append([LEVELS[at.level], f"{at.n_circuit:,}", f"{at.n_truth:,}", f"{at.n_both:,}",
                     "–" if at.jaccard is None else f"{at.jaccard:.3f}", f"{mean} ({low} to {high})",
                     chance.p_text.removeprefix("= ")])
    return rows


def _record(found: Difference, names: tuple[str, str]) -> list[list[str]]:
    """How the circuits were found, once where it is the same, and how their scores agree."""
    rows = []
    records = full_provenance(found.first), full_provenance(found.second)
    for key in ASKED:
        texts = [number(record[key]) if record.get(key) is not None else "–" for record in records]
        label = SHOWN.get(key, key)
        if texts[0] == texts[1]:
            rows += [[label, texts[0]]] if texts[0] != "–" else []
        else:
            rows += [[f"{label}, {name}", text] for name, text in zip(names, texts, strict=True)]
    agreement = (("Pearson correlation", found.pearson), ("Spearman correlation", found.spearman),
                 ("Same sign, of both", found.same_sign))
    return rows + [[label, f"{value:.3f}"] for label, value in agreement if value is not None and math.isfinite(value)]

"""What two circuits share and where they differ, as a Markdown page and as a table."""

import csv
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from acdc.evaluation.difference import Difference, jaccard_of, places, why_fixed
from acdc.export.report import code, escaped, number, table
from acdc.export.text import full_provenance

ASKED = ("model", "model_sha256", "task", "metric", "ablation", "method", "selection", "seed", "n_prompts",
         "faithfulness")
LEVEL_NAMES = {"edge": "edges", "head": "edges between nodes, q, k, v merged", "node": "heads and MLPs"}


def difference_report(found: Difference, names: tuple[str, str], *, figure: str | None = "diff.svg",
                      n_edges: int = 15) -> str:
    """The page: how the circuits were found where that differs, overlaps beside chance, and the strongest edges that
    both keep, that one keeps, and whose place in the ranking changed most."""
    first, second = map(escaped, names)
    counts = [["Both", f"{found.shared.sum():,}"], [f"{first} only", f"{found.only_first.sum():,}"],
              [f"{second} only", f"{found.only_second.sum():,}"]]
    parts = [f"# {first} and {second}", _asked(found, names),
             "## What they share\n\n" + table(["", "Edges"], counts),
             overlap_table(found, names), _scores(found)]
    if figure:
        parts.append(f"![Both circuits]({figure})")
    for heading, edges in (("Kept by both", found.shared), (f"Kept by {first} only", found.only_first),
                           (f"Kept by {second} only", found.only_second)):
        parts.append(_strongest(found, names, heading, np.nonzero(edges)[0], n_edges))
    parts.append(_moved(found, names, n_edges))
    return "\n\n".join(part for part in parts if part) + "\n"


def overlap_table(found: Difference, names: tuple[str, str]) -> str:
    """Counts, shares and Jaccard index at each level, and what chance would give."""
    interval = found.interval
    redrawn = [] if interval is None else [f"Prompts redrawn ({interval.level:.0%})"]
    rows = []
    for at, chance in zip(found.overlaps, found.chances, strict=True):
        low, high = (jaccard_of(at, n) for n in (chance.low, chance.high))
        rows.append([LEVEL_NAMES[at.level], f"{at.n_circuit:,}", f"{at.n_truth:,}", f"{at.n_both:,}",
                     _share(at.jaccard), *([range_text(found) if at.level == "edge" else ""] if redrawn else []),
                     f"{_share(jaccard_of(at, chance.expected))} ({_share(low)} to {_share(high)})",
                     chance.p_text.removeprefix("= ")])
    columns = ["Level", *map(escaped, names), "Both", "Jaccard", *redrawn, "By chance (95% of draws)", "p"]
    note = ("By chance: circuits of these sizes drawn from all that there is. p is the probability that they share as "
            "much or more. Circuits that prefer the same strong nodes share more than that whatever else they do.")
    return f"{table(columns, rows)}\n\n{note}\n\n{escaped(interval_text(found, names))}"


def range_text(found: Difference) -> str:
    """The ends of the interval; nothing without one."""
    return "" if found.interval is None else f"{found.interval.low:.3f} to {found.interval.high:.3f}"


def interval_text(found: Difference, names: tuple[str, str]) -> str:
    """The interval of the overlap of edges for other prompts, or why there is none and how to get it."""
    interval = found.interval
    pairs = list(zip((found.first, found.second), names, strict=True))
    if interval is not None:
        how = "the same draws for both" if interval.paired else "drawn apart for each"
        if interval.held:
            circuit, name = pairs[interval.held - 1]
            how = f"of {pairs[2 - interval.held][1]} alone: {name} {why_fixed(circuit)}, and is held as it is"
        return (f"Edges, {interval.level:.0%} of {interval.n_resamples:,} draws of the prompts ({how}): Jaccard "
                f"{range_text(found)}. Circuits of drawn prompts differ more than those of all.")
    reasons = [f"{name} {why_fixed(circuit)}" for circuit, name in pairs]
    text = (f"No interval for other prompts: {'; '.join(reasons)}. `acdc discover --keep-prompt-scores` keeps those "
            "scores, where the method has them.")
    shares = []
    for circuit, name in pairs:
        known = full_provenance(circuit).get("uncertainty")
        share = known.get("overlap") if isinstance(known, Mapping) else None
        if isinstance(share, float):
            shares.append(f"{share:.1%} of the edges of {name}")
    return f"{text} For scale, circuits of redrawn prompts have {' and '.join(shares)}." if shares else text


def difference_table(found: Difference) -> str:
    """CSV of the edges that either circuit keeps, those of both first: scores are exact, places are those in the
    order of |score| (1: the largest); empty where there are no scores."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["edge", "kept_by", "score_first", "score_second", "place_first", "place_second"])
    at = places(found.first), places(found.second)
    for kept_by, edges in (("both", found.shared), ("first", found.only_first), ("second", found.only_second)):
        numbers = np.nonzero(edges)[0]
        order = np.argsort(-np.maximum(_sizes(found, 0)[numbers], _sizes(found, 1)[numbers]), kind="stable")
        for edge in numbers[order].tolist():
            writer.writerow([found.first.graph.edge_name(edge), kept_by, *_exact(found, edge),
                             *(str(place[edge]) if place[edge] else "" for place in at)])
    return text.getvalue()


def summary(found: Difference) -> dict[str, Any]:
    """The numbers, as JSON can hold them."""
    levels = {at.level: {**at.summary(), "by_chance": vars(chance)}
              for at, chance in zip(found.overlaps, found.chances, strict=True)}
    interval = None if found.interval is None else vars(found.interval)
    return {"levels": levels, "interval": interval, "pearson": found.pearson, "spearman": found.spearman,
            "same_sign": found.same_sign}


def _asked(found: Difference, names: tuple[str, str]) -> str:
    records = full_provenance(found.first), full_provenance(found.second)
    rows = []
    for key in ASKED:
        values = [escaped(record[key]) if record.get(key) is not None else "" for record in records]
        if any(values):
            rows.append([key, *values, "" if values[0] == values[1] else "differs"])
    return "## What was compared\n\n" + table(["", *map(escaped, names), ""], rows) if rows else ""


def _scores(found: Difference) -> str:
    said = [f"{name} correlation {value:.3f} over all edges that both have scored"
            for name, value in (("Pearson", found.pearson), ("Spearman", found.spearman)) if value is not None]
    if found.same_sign is not None:
        said.append(f"the sign is the same for {found.same_sign:.1%} of the edges that both keep")
    return f"**Scores.** {'; '.join(said)}." if said else ""


def _strongest(found: Difference, names: tuple[str, str], heading: str, edges: np.ndarray, n: int) -> str:
    if not len(edges):
        return ""
    strength = np.maximum(_sizes(found, 0)[edges], _sizes(found, 1)[edges])
    shown = edges[np.argsort(-strength, kind="stable")[:n]].tolist()
    return f"### {heading}\n\n{_rows(found, names, shown)}\n\n{len(shown):,} of {len(edges):,}."


def _moved(found: Difference, names: tuple[str, str], n: int) -> str:
    """The kept edges whose place in the ranking differs most, by the ratio of the places."""
    if found.first.scores is None or found.second.scores is None:
        return ""
    edges = np.nonzero(found.first.kept | found.second.kept)[0]
    ratio = np.abs(np.log(places(found.first)[edges] / places(found.second)[edges]))
    shown = edges[np.argsort(-ratio, kind="stable")[:n]].tolist()
    return f"### Places that changed most\n\n{_rows(found, names, shown)}" if shown else ""


def _rows(found: Difference, names: tuple[str, str], edges: list[int]) -> str:
    columns, at = ["Edge"], (places(found.first), places(found.second))
    for circuit, name in zip((found.first, found.second), names, strict=True):
        columns += [f"Score, {escaped(name)}", "Place"] if circuit.scores is not None else []
    rows = []
    for edge in edges:
        row = [code(found.first.graph.edge_name(edge))]
        for circuit, place in zip((found.first, found.second), at, strict=True):
            if circuit.scores is not None:
                row += [number(float(circuit.scores.values[edge])), f"{place[edge]:,}"]
        rows.append(row)
    return table(columns, rows)


def _sizes(found: Difference, which: int) -> np.ndarray:
    """|score| over the largest of its circuit, so that units do not matter; 0 without scores."""
    scores = (found.first, found.second)[which].scores
    if scores is None:
        return np.zeros(found.first.graph.n_edges)
    sizes = np.abs(np.where(np.isfinite(scores.values), scores.values, 0))
    return sizes / (sizes.max(initial=0) or 1)


def _exact(found: Difference, edge: int) -> list[str]:
    values = [-np.inf if circuit.scores is None else float(circuit.scores.values[edge])
              for circuit in (found.first, found.second)]
    return [repr(value) if np.isfinite(value) else "" for value in values]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

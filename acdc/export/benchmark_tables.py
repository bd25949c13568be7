"""A grid's cells as tables: CSV with all numbers, Markdown and LaTeX with those that say most."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc.export.latex_text import latex
from acdc.export.record import readable
from acdc.export.report import escaped
from acdc.export.report import table as markdown_table

Cell = Mapping[str, Any]
SHOWN = (0.005, 0.01, 0.02, 0.05, 0.1)
HEADINGS = ("method", *(f"f at {share:.1%}" for share in SHOWN), "CPR", "CMD", "smallest within 10% of 1",
            "CPU seconds", "peak GiB")
NOTE = ("f is the faithfulness of the strongest edges by the method's ranking: signed score, or its size, marked |s|. "
        "CPR ranks by signed score, CMD by its size, on MIB's ten sizes. ± is half of the 95% interval over the "
        "held-out prompts; of several seeds, the mean and half of their range. CPU seconds are of discovery, over all "
        "threads; peak memory includes the model. Bold: f nearest 1, the lowest CMD, the smallest circuit; CPR has no "
        "best, as circuits may exceed the model. A search with a threshold has one circuit, its own.")


def groups(cells: Iterable[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """The cells of each model and task, in the order in which they come first."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell["model"], cell["task"]), []).append(cell)
    return found


def f_at(cell: Cell, share: float, by: str | None = None) -> Mapping[str, Any] | None:
    """The point of a cell's curve; None where it has no curve."""
    curve = cell["curves"].get(by or cell["by"], {"points": []})
    return next((point for point in curve["points"] if point["fraction"] == share), None)


def results_csv(cells: Sequence[Cell]) -> str:
    """A line a cell: which it is, whether it is done, and all numbers with their intervals."""
    lines = [_line(cell) for cell in cells]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(cell: Cell) -> dict[str, Any]:
    line = {name: cell[name] for name in ("model", "task", "method", "seed", "status")}
    if cell["status"] != "done":
        return {**line, "message": cell["message"]}
    line |= {name: cell[name] for name in ("loss", "metric", "by", "n_prompts", "n_test_prompts", "n_edges", "full",
                                           "empty", "seconds", "cpu_seconds", "evaluation_seconds", "peak_gib")}
    for name in ("cpr", "cmd"):
        if cell[name]:
            line |= {name: cell[name]["value"]} | _interval(name, cell[name])
    for name in ("smallest", "own"):
        if cell[name]:
            line |= {f"{name}_edges": cell[name]["n_edges"], f"{name}_f": cell[name]["f"]}
            line |= _interval(f"{name}_f", cell[name])
    for by, curve in cell["curves"].items():
        for point in curve["points"]:
            name = f"f_{by}_{point['fraction']:g}"
            line |= {name: point["f"]} | _interval(name, point)
    return line


def _interval(name: str, number: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip((f"{name}_low", f"{name}_high"), number["interval"], strict=True))


@dataclass(frozen=True)
class Number:
    """A value over seeds, with half of its interval or range; None where nothing was measured."""

    value: float
    spread: float | None = None

    def text(self, digits: int = 2) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.{digits}f}"
        return f"{self.value:.{digits}f}{spread}"


@dataclass(frozen=True)
class Row:
    """One method on one task and model, over its seeds. `smallest`, `own`: mean number of edges, share, f."""

    method: str
    f: tuple[Number | None, ...]
    cpr: Number | None
    cmd: Number | None
    smallest: tuple[float, float, float] | None
    own: tuple[float, float, float] | None
    cpu_seconds: float
    peak: float | None


def rows_of(cells: Sequence[Cell]) -> list[Row]:
    """The rows of one model and task. Only cells that are done count."""
    by_method: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell["status"] == "done":
            by_method.setdefault(cell["method"], []).append(cell)
    return [_row(method, own) for method, own in by_method.items()]


def _row(method: str, cells: Sequence[Cell]) -> Row:
    def number(part: Callable[[Cell], Mapping[str, Any] | None], value: str) -> Number | None:
        found = [part(cell) for cell in cells]
        given = [one for one in found if one is not None]
        if len(given) < len(cells):
            return None
        values = [one[value] for one in given]
        if len(values) > 1:
            return Number(sum(values) / len(values), (max(values) - min(values)) / 2)
        low, high = given[0]["interval"]
        return Number(values[0], None if low is None else (high - low) / 2)

    def circuit(name: str) -> tuple[float, float, float] | None:
        found = [cell[name] for cell in cells]
        if any(one is None for one in found):
            return None
        mean = sum(one["n_edges"] for one in found) / len(found)
        return mean, mean / cells[0]["n_edges"], sum(one["f"] for one in found) / len(found)

    peaks = [cell["peak_gib"] for cell in cells]
    size = cells[0]["curves"] and cells[0]["by"] == "magnitude"
    return Row(
        f"{method} |s|" if size else method,
        tuple(number(lambda cell, share=share: f_at(cell, share), "f") for share in SHOWN),
        number(lambda cell: cell["cpr"], "value"), number(lambda cell: cell["cmd"], "value"), circuit("smallest"),
        circuit("own"), sum(cell["cpu_seconds"] for cell in cells) / len(cells),
        None if None in peaks else max(peaks),
    )


def table(rows: Sequence[Row], bold: Callable[[str], str], plain: Callable[[str], str] = str) -> list[list[str]]:
    """The rows as text, as `plain` writes it. The best of a column is bold where there are two or more."""
    best = _best(rows)

    def marked(key: Any, row: Row, text: str) -> str:
        return bold(plain(text)) if row in best.get(key, ()) else plain(text)

    lines = []
    for row in rows:
        numbers = [*((i, number) for i, number in enumerate(row.f)), ("cpr", row.cpr), ("cmd", row.cmd)]
        found = [plain("–") if number is None else marked(key, row, number.text()) for key, number in numbers]
        if row.own:
            smallest = plain(f"its own: {_circuit(row.own)}")
        else:
            smallest = marked("smallest", row, _circuit(row.smallest)) if row.smallest else \
                plain("none below 100%")
        lines.append([plain(row.method), *found, smallest, f"{row.cpu_seconds:.0f}",
                      plain("–" if row.peak is None else f"{row.peak:.1f}")])
    return lines


def _circuit(circuit: tuple[float, float, float]) -> str:
    edges, share, f = circuit
    return f"{edges:,.0f} ({share:.2%}), f {f:.2f}"


def _best(rows: Sequence[Row]) -> dict[Any, list[Row]]:
    """The rows that are best in each column, to the digits that are shown; none where all are equal."""
    best: dict[Any, list[Row]] = {}

    def choose(key: Any, badness: Callable[[Row], float | None]) -> None:
        found = {i: round(value, 2) for i, row in enumerate(rows) if (value := badness(row)) is not None}
        if len(set(found.values())) > 1:
            best[key] = [rows[i] for i, value in found.items() if value == min(found.values())]

    for i in range(len(SHOWN)):
        choose(i, lambda row, i=i: _distance(row.f[i]))
    choose("cmd", lambda row: row.cmd and row.cmd.value)
    choose("smallest", lambda row: row.smallest[0] if row.smallest and not row.own else None)
    return best


def _distance(f: Number | None) -> float | None:
    return None if f is None else abs(1 - f.value)


def overview(cells: Sequence[Cell], share: float = 0.01) -> tuple[list[str], list[list[str]]]:
    """Methods by tasks: f at a share of the edges, of a search its own circuit's."""
    done = [cell for cell in cells if cell["status"] == "done"]
    columns, methods = list(groups(done)), list(dict.fromkeys(cell["method"] for cell in done))
    one_model = len({model for model, _ in columns}) == 1
    lines = []
    for method in methods:
        line = [method]
        for key in columns:
            own = [cell for cell in done if (cell["model"], cell["task"]) == key and cell["method"] == method]
            values = [_f_or_own(cell, share) for cell in own]
            text = f"{sum(values) / len(values):.2f}" if values else "–"
            sizes = [cell["own"]["n_edges"] / cell["n_edges"] for cell in own if cell["own"]]
            line.append(text + (f" ({sum(sizes) / len(sizes):.1%})" if sizes else ""))
        lines.append(line)
    names = [Path(task).stem if one_model else f"{Path(model).name}: {Path(task).stem}" for model, task in columns]
    return ["method", *names], lines


def _f_or_own(cell: Cell, share: float) -> float:
    point = cell["own"] or f_at(cell, share)
    assert point is not None, cell["method"]
    return float(point["f"])


def about(cells: Sequence[Cell]) -> str:
    """What the rows of one model and task share, in a sentence."""
    done = next((cell for cell in cells if cell["status"] == "done"), None)
    if done is None:
        return "Nothing was measured."
    by_seed = {cell["seed"]: cell for cell in cells if cell["status"] == "done"}
    drawn = f"seed{'s' * (len(by_seed) > 1)} {', '.join(map(str, sorted(by_seed)))}"
    full, empty = (sum(cell[name] for cell in by_seed.values()) / len(by_seed) for name in ("full", "empty"))
    return (f"{done['n_edges']:,} edges; {done['n_test_prompts']} held-out prompts, {drawn}; {done['metric']} "
            f"{full:.3f} in the full model, {empty:.3f} with all edges cut.")


def failures(cells: Sequence[Cell]) -> list[str]:
    """What failed and why, each message once for all seeds."""
    return list(dict.fromkeys(f"{cell['method']}: {cell['message']}" for cell in cells if cell["status"] != "done"))


def results_markdown(cells: Sequence[Cell], settings: Mapping[str, Any]) -> str:
    parts = [f"# Benchmark\n{_settings(settings)}\n\n{NOTE}\n"]
    if any(cell["status"] == "done" for cell in cells):
        parts.append("## Overview\nf at 1.0% of the edges; of a search, of its own circuit, with its share.\n\n"
                     + markdown(*overview(cells)))
    for (model, task), own in groups(cells).items():
        parts.append(f"## {escaped(Path(task).stem)} in {escaped(Path(model).name)}\n{escaped(about(own))}\n")
        if rows := rows_of(own):
            parts.append(markdown(HEADINGS, table(rows, lambda text: f"**{text}**")))
        parts += [f"- failed: {escaped(line)}" for line in failures(own)]
    return "\n".join(parts) + "\n"


def _settings(settings: Mapping[str, Any]) -> str:
    return (f"Circuits are found on {settings['prompts']} pairs of prompts and measured on {settings['test_prompts']} "
            f"others; {settings['ablation']} ablation, k and v by {settings['kv']}, {settings['dtype']}.")


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Headings and the names that lines begin with come from the user's words and files; the rest is numbers."""
    return markdown_table([*map(escaped, headings)], [[escaped(name), *numbers] for name, *numbers in lines]) + "\n"


def results_latex(cells: Sequence[Cell], settings: Mapping[str, Any]) -> str:
    """Tables to include in a document that uses the package booktabs; the note is a comment at the top."""
    parts = [f"% needs \\usepackage{{booktabs}}\n% {_settings(settings)}\n% {NOTE}\n"]
    for (model, task), own in groups(cells).items():
        if rows := rows_of(own):
            lines = table(rows, lambda text: f"\\textbf{{{text}}}", latex)
            title = f"{Path(task).stem} in {Path(model).name}. {about(own)}"
            body = [" & ".join(line) + r" \\" for line in lines]
            parts.append("\n".join([
                r"\begin{table}", rf"\caption{{{latex(title)}}}", r"\small",
                rf"\begin{{tabular}}{{l{'r' * (len(HEADINGS) - 1)}}}", r"\toprule",
                " & ".join(map(latex, HEADINGS)) + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
                r"\end{table}", ""]))
        parts += [f"% failed: {readable(line)}" for line in failures(own)]
    return "\n".join(parts) + "\n"

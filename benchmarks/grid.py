"""Shows the results of `acdc benchmark` on the page of measured results: an overview, and a table for each task.

    python -m acdc.benchmarks.grid benchmark --results benchmarks/results
"""

import argparse
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acdc.benchmarks.record import write_table  # pyright: ignore[reportMissingImports]
from acdc.errors import AcdcError
from acdc.export.benchmark_tables import HEADINGS, NOTE, about, failures, groups, overview, rows_of, table
from acdc.output_folder import write_file

AXES = {"models": "model", "tasks": "task", "methods": "method", "seeds": "seed"}


def command(settings: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    """The command that measures all of these cells."""
    words = ["acdc", "benchmark"]
    for option, axis in AXES.items():
        words += [f"--{option}", *dict.fromkeys(str(cell[axis]) for cell in cells)]
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def where(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """When and on which machine the cells were measured: the last date, the highest load."""
    machines = [cell["machine"] for cell in cells]
    same = {key: value for key, value in machines[0].items() if all(m[key] == value for m in machines)}
    varied = {key: "varied" for key in machines[0] if key not in same}
    return {"date": max(cell["date"] for cell in cells),
            "on": {**machines[0], **varied, "load": max(m["load"] for m in machines)}}


def write(folder: Path, results: Path) -> None:
    """The records `grid.json` and `grid_TASK.json`, the pictures, and the page."""
    stored = folder / "results.json"
    if not stored.exists():
        raise AcdcError(f"{folder} holds no results.json; give a folder that `acdc benchmark` wrote")
    content = json.loads(stored.read_text(encoding="utf-8"))
    settings, cells = content["settings"], content["cells"]
    done = [cell for cell in cells if cell["status"] == "done"]
    if not done:
        raise AcdcError(f"in {folder} no cell was measured")
    write_file(results / "grid.png", (folder / "overview.png").read_bytes())
    columns, lines = overview(done)
    own = " ".join(f"{settings[name]} {name.replace('_', ' ')}," for name in ("prompts", "test_prompts"))
    write_table(
        results, "grid", title="Methods by tasks: f at 1% of the edges",
        about=f"Faithfulness on prompts that discovery has not seen ({own} {settings['ablation']} ablation), by each "
              "method's own ranking; of a search with a threshold, of the circuit that it stops at, with its share of "
              "the edges. The picture shows it beside CMD.\n\n![f at 1% of the edges, and CMD](grid.png)",
        command=f"{command(settings, cells)}\npython -m acdc.benchmarks.grid benchmark --results benchmarks/results",
        parameters=settings, columns=columns, rows=lines, **where(done))
    for (model, task), of_task in groups(cells).items():
        if rows := rows_of(of_task):
            name = re.sub(r"\W+", "_", f"{Path(model).name}_{Path(task).stem}")
            failed = "".join(f"\n\nFailed: {line}" for line in failures(of_task))
            write_table(
                results, f"grid_{name}", title=f"{Path(task).stem} in {Path(model).name}",
                about=f"{about(of_task)} {NOTE}{failed}", command=command(settings, of_task),
                parameters={"settings": settings, "cells": of_task}, columns=HEADINGS,
                rows=table(rows, lambda text: f"**{text}**"),
                **where([cell for cell in of_task if cell["status"] == "done"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Shows the results of `acdc benchmark` on the page of results.")
    parser.add_argument("folder", type=Path, help="what `acdc benchmark --out` wrote")
    parser.add_argument("--results", type=Path, required=True, help="where to write the records and the page README.md")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.results)


if __name__ == "__main__":
    main()

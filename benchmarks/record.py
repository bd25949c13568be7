"""How a benchmark's numbers are stored, and the page that shows them all.

    python -m acdc.benchmarks.record benchmarks/results      # writes README.md anew from the *.json beside it

A record is a JSON object: `title`, `about` (what was compared, and how to read it), `command`, `date`, `machine`,
`parameters`, `columns` and `rows`, a list of cells each: for numbers of one kind a column, or, for single numbers, what
was measured, the number with its unit, and what it means.
"""

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acdc.machine import machine
from acdc.output_folder import write_file

INTRODUCTION = """# Measured results
Each table holds the numbers of one run of one command on one machine; the file named under it holds the same, with all
parameters. Compare numbers of one table only: seconds depend on the machine and on what else ran there (the load is the
number of processes that wanted a core when the run ended, the benchmark's own included), and ratios less so. A ratio
says how the two sides did on that model, these prompts and that threshold, and nothing of others. This page is written
by `python -m acdc.benchmarks.record benchmarks/results`.
"""


def row(what: str, value: int | float, unit: str, meaning: str) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "meaning": meaning}


def write_record(folder: Path, name: str, *, title: str, about: str, command: str, parameters: dict[str, Any],
                 rows: list[dict[str, Any]]) -> None:
    """Writes a record with today's date and this machine to `name`.json, and the folder's page anew."""
    columns = ("", "measured", "what it is")
    lines = [[r["what"], number(r["value"], r["unit"]), r["meaning"]] for r in rows]
    write_table(folder, name, title=title, about=about, command=command, parameters={**parameters, "numbers": rows},
                columns=columns, rows=lines)


def write_table(folder: Path, name: str, *, title: str, about: str, command: str, parameters: dict[str, Any],
                columns: Sequence[str], rows: Sequence[Sequence[str]], date: str | None = None,
                on: dict[str, Any] | None = None) -> None:
    """As `write_record`, for a table with columns of its own. `date`, `on`: when and on which machine, if not now and
    here."""
    record = {"title": title, "about": about, "command": command, "date": date or datetime.date.today().isoformat(),
              "machine": on or machine(), "parameters": parameters, "columns": columns, "rows": rows}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    write_file(folder / f"{name}.json", text + "\n")
    write_page(folder)


def number(value: int | float, unit: str) -> str:
    """At most three digits after the point, at least three that say something."""
    text = f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{text} {unit}".strip()


def section(record: dict[str, Any], file: str) -> str:
    """One record as Markdown."""
    facts = ", ".join(f"{name} {value}" for name, value in record["machine"].items())
    lines = [record["columns"], ["---"] * len(record["columns"]), *record["rows"]]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    table = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
    return (f"## {record['title']}\n{record['about']}\n\n```sh\n{record['command']}\n```\n\n{table}\n\n"
            f"{record['date']}; {facts}. File: [{file}]({file})\n")


def page(folder: Path) -> str:
    """All records of a folder as one Markdown page."""
    files = sorted(folder.glob("*.json"))
    return "\n".join([INTRODUCTION, *(section(json.loads(f.read_text(encoding="utf-8")), f.name) for f in files)])


def write_page(folder: Path) -> None:
    write_file(folder / "README.md", page(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the page of measured results.")
    parser.add_argument("folder", type=Path)
    write_page(parser.parse_args().folder)


if __name__ == "__main__":
    main()

"""What the tests of a circuit say, on one page of Markdown."""

from collections.abc import Callable, Iterator
from typing import Any

from acdc.evaluation.verdict import Battery, TestResult
from acdc.export.report import escaped

READ = ("pass: shown at 95%. fail: the contrary is shown. undecided: neither, with these prompts and draws. A verdict "
        "is on these prompts, this metric and this ablation.")


Text = Callable[[str], str]


def battery_page(battery: Battery, *, name: str, on: str, text: Text = escaped) -> str:
    """`name`: of the circuit. `on`: the prompts and how they were measured, in words. `text`: how what holds names
    from files is written; for a terminal, `acdc.export.text.visible`."""
    return "\n".join(_lines(battery, text(name), text(on), text)) + "\n"


def _lines(battery: Battery, name: str, on: str, text: Text) -> Iterator[str]:
    yield f"# Tests of {name}"
    yield (f"{battery.n_edges:,} of {battery.n_edges_of_graph:,} edges "
           f"({battery.n_edges / battery.n_edges_of_graph:.2%}), on {battery.n_prompts} {on}.")
    deciding, informing = ([result for result in battery.results if result.decides == decides]
                           for decides in (True, False))
    if deciding:
        yield f"\n**{battery.verdict}**{text(_because(battery, deciding))}\n"
        yield from (_line(result, text) for result in deciding)
    if informing:
        yield "\nThese inform, and do not decide:\n"
        yield from (_line(result, text) for result in informing)
    for result in informing:
        if result.name == "sensitivity":
            yield from _cells(result.numbers, text)
    yield f"\n{READ}"


def _because(battery: Battery, deciding: list[TestResult]) -> str:
    names = [result.name for result in deciding if result.verdict == battery.verdict]
    if battery.verdict == "pass":
        return f": all {len(names)} tests that decide pass"
    return f": {', '.join(names)}"


def _line(result: TestResult, text: Text) -> str:
    return f"- **{result.verdict}** {text(result.name)}: {text(result.reason)}"


def _cells(numbers: Any, text: Text) -> Iterator[str]:
    yield "\n| faithfulness by | cut edges carry | ratio of means | mean of ratios |\n|---|---|---|---|"
    cells = {(cell["of"], cell["ablation"], cell["ratio"]): cell for cell in numbers["cells"]}
    missing = []
    for of, ablation in dict.fromkeys(key[:2] for key in sorted(cells)):
        row = [cells[of, ablation, ratio] for ratio in ("of means", "mean of")]
        if row[0]["verdict"] is None:
            missing.append(f"{ablation}: {row[0]['why']}")
        yield f"| {of} ({numbers['n_edges'][of]:,}) | {ablation} | {' | '.join(map(_cell, row))} |"
    yield from (f"\nNot measured with {text(why)}" for why in dict.fromkeys(missing))


def _cell(cell: dict[str, Any]) -> str:
    if cell["verdict"] is None:
        return "-"
    return f"{cell['value']:.3f} ({cell['low']:.3f} to {cell['high']:.3f}) {cell['verdict']}"

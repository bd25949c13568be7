"""The page of measured results shows what is stored, all of it."""

import json
from pathlib import Path

import pytest

from acdc.benchmarks.record import number, page, row, write_record

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_page_is_written_from_the_records():
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == page(RESULTS)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_each_record_says_all_that_it_should(file):
    record = json.loads(file.read_text(encoding="utf-8"))
    assert set(record) == {"title", "about", "command", "date", "machine", "parameters", "columns", "rows"}
    assert {"cpu", "cores", "threads", "load", "torch"} <= set(record["machine"])
    assert record["rows"] and all(len(line) == len(record["columns"]) for line in record["rows"])


def test_what_is_written_is_shown(tmp_path):
    write_record(tmp_path, "x", title="Titled", about="About it.", command="run it", parameters={"n": 3},
                 rows=[row("time", 1.23456, "s", "of one run")])
    record = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    numbers = record["parameters"].pop("numbers")
    assert record["parameters"] == {"n": 3} and numbers[0]["value"] == 1.23456
    shown = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert shown == page(tmp_path)
    for part in ("## Titled", "About it.", "run it", "| time | 1.23 s | of one run |", record["date"]):
        assert part in shown


def test_numbers():
    cases = {(1519, ""): "1,519", (0.003456, "s"): "0.00346 s", (123.4, "s"): "123 s", (20, "edges"): "20 edges"}
    assert {case: number(*case) for case in cases} == cases

"""Where the cells of a grid are stored: one file each, written whole when it is finished, found again by what it is."""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from acdc.errors import AcdcError
from acdc.evaluation.curve import MIB_FRACTIONS
from acdc.input_file import read_text
from acdc.output_folder import PART, make_folder, remove_parts, write_file

SETTINGS, CELLS, LOCK = "settings.json", "cells", ".lock"
AXES = ("model", "task", "method", "seed")


@dataclass(frozen=True)
class GridFolder:
    """The folder of one grid. `settings`: what all of its cells share."""

    path: Path
    settings: Mapping[str, Any]

    def file(self, cell: Mapping[str, Any]) -> Path:
        """The file of a cell: readable, and with a hash of all that decides what is in it."""
        known = json.dumps({"cell": dict(cell), "settings": dict(self.settings)}, sort_keys=True)
        names = {**cell, "model": Path(cell["model"]).name, "task": Path(cell["task"]).stem}
        words = (file_word(names[axis]) for axis in AXES)
        return self.path / CELLS / f"{'-'.join(words)}-{hashlib.sha256(known.encode()).hexdigest()[:10]}.json"

    def finished(self, cell: Mapping[str, Any]) -> dict[str, Any] | None:
        """What is stored of a cell, failed or done; None if nothing is."""
        path = self.file(cell)
        return _read_cell(path) if path.exists() else None

    def store(self, cell: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
        record = {**cell, **result}
        write_file(self.file(cell), json.dumps(record, indent=1, allow_nan=False))
        return record

    def all_cells(self) -> list[dict[str, Any]]:
        """Every stored cell, also of models, tasks, methods or seeds that this run does not ask for."""
        return [_read_cell(path) for path in sorted((self.path / CELLS).glob("*.json"))]


def file_word(name: object) -> str:
    """The name as part of a file's name, whatever it holds."""
    return re.sub(r"[^A-Za-z0-9.=]+", "_", str(name))[:60].strip("_")


@contextmanager
def grid_folder(path: Path, settings: Mapping[str, Any]) -> Iterator[GridFolder]:
    """The folder, made or found again, locked while it is used.

    Raises `AcdcError` for a folder of other settings, one that holds something else, and one that is in use.
    """
    if path.exists() and not path.is_dir():
        raise AcdcError(f"cannot write to {path}: it is a file; --out must name a folder")
    stored = path / SETTINGS
    if stored.exists():
        _check_same(path, _read(stored), settings)
    elif path.exists() and any(file.name not in (LOCK, CELLS) and not PART.fullmatch(file.name)
                               for file in [*path.iterdir(), *path.glob(f"{CELLS}/*")]):
        raise AcdcError(f"{path} holds other files and no {SETTINGS}, so it is no folder of benchmark results; give "
                        "another --out")
    make_folder(path / CELLS)
    try:
        with FileLock(path / LOCK, timeout=0):
            for folder in (path, path / CELLS):
                remove_parts(folder)
            if not stored.exists():
                write_file(stored, json.dumps(dict(settings), indent=1))
            yield GridFolder(path, settings)
    except Timeout as error:
        raise AcdcError(f"{path} is in use by another `acdc benchmark`; wait for it, or give another --out") from error


def _check_same(path: Path, there: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    other = [f"{key} {there.get(key)!r} there and {settings.get(key)!r} here"
             for key in sorted({*there, *settings}) if there.get(key) != settings.get(key)]
    if other:
        raise AcdcError(f"{path} holds results of other settings: {'; '.join(other)}. Their numbers do not compare; "
                        "give the same settings, or another --out")


def _read_cell(path: Path) -> dict[str, Any]:
    record = _read(path)
    if fault := _fault(record):
        raise AcdcError(f"{path} is damaged ({fault} is missing, or is not what a cell has there); remove it, and it "
                        "is measured again")
    return record


def _fault(cell: Mapping[str, Any]) -> str | None:
    """The first field of a cell that is not as `run_cell` writes it."""
    is_text = dict.fromkeys(("model", "task", "method"), _is_text)
    if cell.get("status") == "failed":
        checks = {**is_text, "seed": _is_count, "error": _is_text, "message": _is_text}
    else:
        checks = {**is_text, "seed": _is_count, "status": lambda value: value == "done", "loss": _is_text,
                  "metric": _is_text, "by": lambda value: value in ("signed", "magnitude"),
                  **dict.fromkeys(("n_prompts", "n_test_prompts", "n_edges"), _is_count),
                  **dict.fromkeys(("full", "empty", "seconds", "cpu_seconds", "evaluation_seconds"), _is_number),
                  "peak_gib": lambda value: value is None or _is_number(value),
                  **dict.fromkeys(("cpr", "cmd"), lambda value: value is None or _is_measured(value, "value")),
                  **dict.fromkeys(("own", "smallest"), lambda value: value is None or _is_point(value)),
                  "curves": lambda value: _are_curves(value, cell)}
    return next((name for name, check in checks.items() if name not in cell or not check(cell[name])), None)


def _are_curves(curves: Any, cell: Mapping[str, Any]) -> bool:
    """Both curves over MIB's sizes with their areas; or none, where a search has a circuit of its own."""
    if cell.get("own") is not None:
        return curves == {}
    return isinstance(curves, dict) and set(curves) == {"signed", "magnitude"} and all(
        isinstance(curve, dict) and isinstance(curve.get("points"), list) and all(map(_is_point, curve["points"]))
        and [point["fraction"] for point in curve["points"]] == list(MIB_FRACTIONS)
        and all(_is_measured(curve.get(name), "value") for name in ("cpr", "cmd")) for curve in curves.values())


def _is_point(value: Any) -> bool:
    return _is_measured(value, "f") and _is_count(value.get("n_edges")) and "fraction" in value and (
        value["fraction"] is None or _is_number(value["fraction"]))


def _is_measured(value: Any, name: str) -> bool:
    """A number and its interval, whose ends are both known or both not."""
    if not isinstance(value, dict) or not _is_number(value.get(name)):
        return False
    ends = value.get("interval")
    return isinstance(ends, list) and len(ends) == 2 and (ends == [None, None] or all(map(_is_number, ends)))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)  # half a pair, which no file can hold


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise AcdcError(f"{path} is damaged ({error}); remove it, and it is measured again") from error
    if not isinstance(record, dict):
        raise AcdcError(f"{path} is damaged (not a JSON object); remove it, and it is measured again")
    return record

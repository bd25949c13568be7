"""Where the cells of a grid are stored: one file each, written whole when it is finished, found again by what it is."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from acdc.errors import AcdcError
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
        words = (re.sub(r"[^A-Za-z0-9.=]+", "_", str(names[axis]))[:60].strip("_") for axis in AXES)
        return self.path / CELLS / f"{'-'.join(words)}-{hashlib.sha256(known.encode()).hexdigest()[:10]}.json"

    def finished(self, cell: Mapping[str, Any]) -> dict[str, Any] | None:
        """What is stored of a cell, failed or done; None if nothing is."""
        path = self.file(cell)
        return _read(path) if path.exists() else None

    def store(self, cell: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
        record = {**cell, **result}
        write_file(self.file(cell), json.dumps(record, indent=1, allow_nan=False))
        return record

    def all_cells(self) -> list[dict[str, Any]]:
        """Every stored cell, also of models, tasks, methods or seeds that this run does not ask for."""
        return [_read(path) for path in sorted((self.path / CELLS).glob("*.json"))]


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


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AcdcError(f"{path} is damaged ({error}); remove it, and it is measured again") from error
    if not isinstance(record, dict):
        raise AcdcError(f"{path} is damaged (not a JSON object); remove it, and it is measured again")
    return record

"""Where a command's results go: a folder, or a file, that appears whole at the end or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from acdc.errors import AcdcError


@dataclass(frozen=True)
class OutputFolder:
    """`target`, the folder that a command writes, and `path`, where it is built until it is complete."""

    target: Path
    path: Path


@contextmanager
def output_folder(target: Path, names: Sequence[str], overwrite: bool) -> Iterator[OutputFolder]:
    """A folder that appears at the end with the files `names`. Others in an existing folder are left alone."""
    if os.path.lexists(target) and not target.is_dir():
        raise AcdcError(f"cannot write to {target}: it is a file; --out must name a folder")
    there = [name for name in names if (target / name).exists()]
    if there and not overwrite:
        raise AcdcError(f"{target} already holds {there[0]}; give another --out, or --overwrite to replace it")
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        with _workplace(target if target.is_dir() else target.parent, target) as work:
            path = work / "circuit"
            path.mkdir()
            yield OutputFolder(target, path)
            for name in names:
                _sync(path / name)
            if target.is_dir():
                for name in names:
                    os.replace(path / name, target / name)
            else:
                path.rename(target)
    finally:
        for parent in made:
            with suppress(OSError):  # it is not empty: then the circuit is in it
                parent.rmdir()


@contextmanager
def _workplace(folder: Path, target: Path) -> Iterator[Path]:
    """A temporary folder in `folder`, where what is to become `target` is built: on the same disk, so that it can be
    renamed, and before the work, so that a folder that cannot be written is refused at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".acdc-", dir=folder))
    except OSError as error:
        raise AcdcError(f"cannot write to {target}: {error.strerror}; give an --out that can be written") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole, or not at all."""
    with _workplace(path.parent, path) as work:
        (work / path.name).write_bytes(content)
        _sync(work / path.name)
        os.replace(work / path.name, path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""How results reach the disk: a file or a folder appears whole, or not at all, and what was there stays until then.

What is written goes to a temporary file of a name of its own in the same folder, is forced to the disk, and is renamed,
which a file system does in one step; the folder is forced to the disk after it. This is the only module that writes.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from acdc.errors import AcdcError

PART = re.compile(r"\.(?P<name>.*)\.[0-9a-f]{8}\.part")  # what is being written; a killed run leaves one behind
PLAN = "plan"  # the ending of a file that says how many prompts a run has at once
REMEDIES = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space",
            errno.EFBIG: "the system lets no file be so large: ulimit -f",
            errno.ENAMETOOLONG: "give a shorter name"}


class WriteError(AcdcError):
    """The disk is full, the place cannot be written, or something else is there. What was there before still is."""

    def __init__(self, target: Path, error: OSError, remedy: str = "give a place that can be written") -> None:
        self.error = error
        remedy = REMEDIES.get(error.errno or 0, remedy)
        super().__init__(f"cannot write to {target}: {error.strerror or error}; {remedy}")


@dataclass(frozen=True)
class OutputFolder:
    """`target`, the folder that a command writes, and `path`, where it is built until it is complete.

    `spent`: files and folders that a run goes on from if it is stopped; they are removed once the target is complete.
    """

    target: Path
    path: Path
    spent: list[Path] = field(default_factory=list)


@contextmanager
def output_folder(target: Path, names: Sequence[str], overwrite: bool) -> Iterator[OutputFolder]:
    """A folder that appears at the end with the files `names`. Others in an existing folder are left alone.

    Raises `AcdcError` at once where it cannot be written, nor what is kept beside it on the way, or another run is
    writing it; and where the disk is full.
    """
    if os.path.lexists(target) and not target.is_dir():
        raise AcdcError(f"cannot write to {target}: it is a file; --out must name a folder")
    _refuse_to_replace(target, names, overwrite)
    parent, name = target.resolve().parent, target.resolve().name
    if not name or parent.is_dir() and not os.access(parent, os.W_OK | os.X_OK):
        why = "it has no name" if not name else f"what is kept on the way goes beside it, and {parent} is read-only"
        raise AcdcError(f"cannot write to {target}: {why}; give an --out in a folder that can be written")
    work = (target if target.is_dir() else parent) / _part(name)
    with _made(parent, target), _only_run(parent / f".{name}.lock", target), _spent() as spent:
        remove_parts(work.parent, name)
        remove_parts(parent, name, f"{name}.checkpoint")
        try:
            work.mkdir()
            yield OutputFolder(target, work, spent)
            _refuse_to_replace(target, names, overwrite)
            _publish(work, target, names)
        except (OSError, WriteError) as failed:
            error = failed.error if isinstance(failed, WriteError) else failed
            if not str(error.filename).startswith(str(work)):
                raise
            raise WriteError(target, error, "give an --out that can be written") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _refuse_to_replace(target: Path, names: Sequence[str], overwrite: bool) -> None:
    there = [name for name in names if (target / name).exists()]
    if there and not overwrite:
        raise AcdcError(f"{target} already holds {there[0]}; give another --out, or --overwrite to replace it")


@contextmanager
def output_file(target: Path | None) -> Iterator[list[Path]]:
    """While a run is at work that ends in a file: no other run is, that writes the same. Yields what is removed at the
    end, as `OutputFolder.spent`. Without a target there is nothing to guard."""
    if target is None:
        yield []
        return
    if target.is_dir() or not target.parent.is_dir():
        what = "that is a folder" if target.is_dir() else f"{target.parent} is not a folder"
        raise AcdcError(f"cannot write to {target}: {what}; give --out a file in a folder that exists")
    place = target.resolve()
    with _only_run(place.with_name(f".{place.name}.lock"), target), _spent() as spent:
        remove_parts(target.parent, target.name)
        yield spent


def write_file(path: str | Path, content: bytes | str) -> None:
    """Writes a file whole, or not at all; text as UTF-8. Raises `AcdcError` where that is not possible."""
    path = Path(path)
    part = path.with_name(_part(path.name))
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # it would be replaced, not written to
            raise OSError(errno.EEXIST, "it is a device, a pipe or a socket")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        sync(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise WriteError(path, error) from error


def make_folder(path: Path) -> None:
    """A folder, with those that it lies in, if it is not there yet. Raises `AcdcError` where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(path, error) from error


def beside(target: Path, ending: str) -> Path:
    """`target` with an ending, also where it is written as `.` or `..`."""
    target = target if target.name not in ("", "..") else target.resolve()
    return target.with_name(f"{target.name}.{ending}")


def sync(path: Path) -> None:
    """Forces a file, or what a folder lists, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there; of a symbolic link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def set_aside(path: Path, ending: str) -> Path | None:
    """Gives a file another name in its folder, `ending` before its suffix; None where there is none."""
    aside = path.with_name(f"{path.stem}.{ending}{path.suffix}")
    try:
        os.replace(path, aside)
        sync(path.parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WriteError(path, error) from error
    return aside


def _part(name: str) -> str:
    return f".{name.encode()[:200].decode(errors='ignore')}.{secrets.token_hex(4)}.part"


def remove_parts(folder: Path, *names: str) -> None:
    """Removes what killed runs left half-written in a folder: of these names, or all. Nobody else may be writing it."""
    for path in folder.iterdir():
        found = PART.fullmatch(path.name)
        if found and (not names or found["name"] in names):
            remove(path)


def _publish(work: Path, target: Path, names: Sequence[str]) -> None:
    """Puts what was built in place: a new folder in one step, into an existing one file by file."""
    for name in names:
        sync(work / name)
    sync(work)
    if target.is_dir():
        for name in names:
            os.replace(work / name, target / name)
        sync(target)
    else:
        work.rename(target)
        sync(target.absolute().parent)


@contextmanager
def _made(folder: Path, target: Path) -> Iterator[None]:
    """The folder, made if need be, and gone again if nothing came into it."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(target, error, "give an --out that can be written") from error
        yield
    finally:
        for one in made:
            with suppress(OSError):  # it is not empty: then the result is in it
                one.rmdir()


@contextmanager
def _only_run(path: Path, target: Path) -> Iterator[None]:
    """One run at a time; the system frees the lock of a process that is killed."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AcdcError(f"another run is writing to {target}; wait for it, or give another --out") from None
    except OSError as error:
        raise WriteError(target, error, "give an --out that can be written") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _spent() -> Iterator[list[Path]]:
    """What a run goes on from: removed when all is done; else, named to whoever stopped the run. How it began, in a
    file with the ending `PLAN`, is worth nothing alone."""
    spent: list[Path] = []
    kept: list[str] = []
    try:
        yield spent
    except BaseException as stop:
        kept = [str(path) for path in spent if path.exists() and path.suffix != f".{PLAN}"]
        if kept and isinstance(stop, KeyboardInterrupt):
            stop.args = (f"stopped; {' and '.join(kept)} holds what is done, and the same command goes on from it",)
        raise
    finally:
        if not kept:
            for path in spent:
                remove(path)

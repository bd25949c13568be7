"""What of a long run is done, kept on disk as it goes: a run that is stopped or killed goes on to the same result.

A run computes *pieces*, such as the scores of one batch, always in the same order. Inside `resumable`, `piece` writes
each to a folder whose name tells what the run is (a hash of model, prompts, options and versions), and takes it from
there if an earlier try has computed it; elsewhere it only computes. Pieces may be made of smaller ones.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from acdc.errors import AcdcError
from acdc.input_file import check_plain
from acdc.output_folder import PART, WriteError, beside, make_folder, write_file

SECONDS = 5.0  # between writes: so much work is lost at most, and a run that is shorter writes nothing
NUMBERED = re.compile(r"(?P<number>[0-9]{6,9})\.safetensors")
Piece = Mapping[str, np.ndarray]
T = TypeVar("T")


class Pieces:
    """The pieces of one run in a folder. Each has a key: the number of the piece within the one that it is a part of,
    `3`, or `3.0`; and a label, by which a mistake would show. Files hold some pieces each and are written whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path: list[int] = [0]
        self.stored: dict[str, tuple[Path, str]] = {}
        self.pending: dict[str, tuple[str, Piece]] = {}
        self.n_files = 0
        self.last = time.monotonic()
        if folder.is_symlink():  # of a folder that came from elsewhere, it may lead to files of the user
            raise self._damaged("it is a symbolic link")
        if folder.is_dir():
            self._read()

    def take(self, label: str, items: Sequence[T], compute: Callable[[Iterable[T]], Iterator[Piece]]
             ) -> Iterator[Piece]:
        """See `pieces_over`. The numbers of the pieces are reserved when the first is asked for."""
        within, first = self.path[:-1], self.path[-1]
        self.path[-1] += len(items)
        keys = [".".join(map(str, (*within, first + i))) for i in range(len(items))]
        computed = compute(item for key, item in zip(keys, items, strict=True) if key not in self.stored)
        for i, key in enumerate(keys):
            if key in self.stored:
                yield self._load(key, label)
                continue
            outside, self.path = self.path, [*within, first + i, 0]
            try:
                found = next(computed)
            finally:
                self.path = outside
            self.pending[key] = label, found
            if time.monotonic() - self.last >= SECONDS:
                self.write()
            yield found

    def write(self) -> None:
        """Writes what is pending to a file of its own."""
        if self.pending:
            from safetensors.numpy import save

            arrays, labels = {}, {}
            for key, (label, piece) in self.pending.items():
                labels[key] = label
                arrays |= {f"{key}/{name}": np.asarray(array, order="C") for name, array in piece.items()}
            make_folder(self.folder)
            write_file(self.folder / f"{self.n_files:06}.safetensors", save(arrays, {"labels": json.dumps(labels)}))
            self.n_files += 1
            self.pending = {}
        self.last = time.monotonic()

    def close(self) -> None:
        """Writes what is pending, if the run is long enough to be worth it."""
        if self.folder.is_dir() or time.monotonic() - self.last >= SECONDS:
            self.write()

    def _read(self) -> None:
        for path in sorted(self.folder.iterdir()):
            if found := NUMBERED.fullmatch(path.name):
                with self._opened(path) as file:
                    labels = json.loads(file.metadata()["labels"])
                    if not isinstance(labels, dict) or not all(isinstance(label, str) for label in labels.values()):
                        raise ValueError("its labels are not texts by name")
                    self.stored |= {key: (path, label) for key, label in labels.items()}
                self.n_files = max(self.n_files, int(found["number"]) + 1)
            elif PART.fullmatch(path.name) and not path.is_dir():
                path.unlink()  # what was being written when a run was killed

    def _load(self, key: str, label: str) -> Piece:
        path, stored = self.stored[key]
        if stored != label:
            raise self._damaged(f"piece {key} is {stored!r}, not {label!r}")
        with self._opened(path) as file:
            names = [name for name in file.keys() if name.partition("/")[0] == key]  # noqa: SIM118
            arrays = {name.partition("/")[2]: file.get_tensor(name) for name in names}
        return _Stored(self._damaged(f"piece {key} lacks an array"), arrays)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            check_plain(path)
            with safe_open(path, "np") as file:
                yield file
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(f"{path.name}: {error}") from error

    def _damaged(self, what: str) -> AcdcError:
        return AcdcError(f"{self.folder}, from which the run would go on, is damaged ({what}). Delete it to start anew")


class _Stored(dict[str, np.ndarray]):
    """The arrays of a stored piece; an array that is asked for and is not there is damage."""

    def __init__(self, damaged: AcdcError, arrays: Piece) -> None:
        super().__init__(arrays)
        self.damaged = damaged

    def __missing__(self, name: str) -> np.ndarray:
        raise self.damaged


class _Current:
    pieces: Pieces | None = None


def piece(label: str, compute: Callable[[], Piece]) -> Piece:
    """What `compute` returns: arrays by name. Inside `resumable` it is kept, and not computed again.

    `compute` must depend on nothing but what the run is, and change nothing but what it returns. Leave no piece out
    that an earlier try may have computed: they are told apart by their order.
    """
    return next(pieces_over(label, [None], lambda items: (compute() for _ in items)))


def pieces_over(label: str, items: Iterable[T], compute: Callable[[Iterable[T]], Iterator[Piece]]) -> Iterator[Piece]:
    """A piece for each item, in their order. `compute` is given the items that no earlier try has computed, and yields
    their pieces, which are as those of `piece`."""
    return compute(items) if _Current.pieces is None else _Current.pieces.take(label, list(items), compute)


def piece_of_json(label: str, compute: Callable[[], Any]) -> Any:
    """As `piece`, for what JSON can hold. Inside `resumable`, what is returned has been through JSON."""
    if _Current.pieces is None:
        return compute()
    text = piece(label, lambda: {"json": np.frombuffer(json.dumps(compute()).encode(), dtype=np.uint8)})
    return json.loads(text["json"].tobytes())


@contextmanager
def resumable(target: Path | None, run: Mapping[str, Any], spent: list[Path]) -> Iterator[bool]:
    """Inside, pieces are kept beside `target` in a folder named after it and `run`, which says all that the result
    depends on. It is added to `spent`, what is to be removed once the result is written. Yields whether there are
    pieces of an earlier try. Without a target nothing is kept."""
    if target is None:
        yield False
        return
    assert _Current.pieces is None, "one run at a time"
    name = hashlib.sha256(json.dumps(dict(run), sort_keys=True, default=str).encode()).hexdigest()[:12]
    pieces = Pieces(beside(target, f"pieces-{name}"))
    spent.append(pieces.folder)
    _Current.pieces = pieces
    try:
        yield bool(pieces.stored)
    except WriteError:
        raise
    except BaseException:
        pieces.close()
        raise
    else:
        pieces.close()
    finally:
        _Current.pieces = None

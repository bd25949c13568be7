"""What a long search has decided so far, on disk as it decides: a run that is killed goes on where it was.

A journal is a file of JSON lines: a header that says what is searched, then a line a record. Every record is handed to
the system when it is made, so it survives the process, and is forced to the disk at the end of each stage, so that it
survives a power cut. What a killed run left half-written at the end is dropped.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from acdc.errors import AcdcError
from acdc.input_file import LARGE, check_plain
from acdc.output_folder import WriteError, make_folder
from acdc.task import Batch, position_groups, position_names

FORMAT = "acdc-journal"
VERSION = 1


class Journal:
    """`with Journal(path, header) as journal`: `records` holds what is there; `append` adds a record.

    Without a path nothing is written. Raises `AcdcError` where the file is not a journal, is of another search (naming
    what differs), is damaged, cannot be written, or is in use by another process.
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.header = {"format": FORMAT, "version": VERSION, **json.loads(json.dumps(dict(header)))}
        self.records: list[dict[str, Any]] = []
        self.ends: list[int] = []  # where, in the file, the header and each record end

    def __enter__(self) -> "Journal":
        if self.path is None:
            return self
        if self.path.exists():
            check_plain(self.path, LARGE)
        self.lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            make_folder(self.path.parent)
            self.lock.acquire(timeout=0)
            self.file = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
        except Timeout:
            raise AcdcError(f"the journal {self.path} is in use by another run; give another --journal") from None
        except OSError as error:
            message = f"cannot write the journal {self.path}: {error.strerror}; give another --journal"
            raise AcdcError(message) from error
        try:
            self._read()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
                 ) -> None:
        if self.path is not None:
            try:
                self.sync()
            finally:
                self._close()

    def append(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))
        if self.path is not None:
            self._write(record)

    def extend(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds the records that go beyond those that are there, where these are the first of them."""
        if self.records == list(records[: len(self.records)]):
            for record in records[len(self.records) :]:
                self.append(record)

    def keep(self, n: int) -> None:
        """Forgets all but the first `n` records. The file is cut off in one step: what stays is never rewritten."""
        del self.records[n:]
        del self.ends[n + 1 :]
        if self.path is not None:
            self.file.seek(self.ends[n])
            self.file.truncate()

    def sync(self) -> None:
        if self.path is not None:
            with self._full_disk_told():
                os.fsync(self.file.fileno())

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._full_disk_told():
            rest = json.dumps(line).encode() + b"\n"
            while rest:  # a disk that fills up takes a part
                rest = rest[self.file.write(rest) :]
        self.ends.append(self.file.tell())

    @contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        assert self.path is not None
        try:
            yield
        except OSError as error:
            raise WriteError(self.path, error) from error

    def _close(self) -> None:
        self.file.close()
        Path(self.lock.lock_file).unlink(missing_ok=True)
        self.lock.release()

    def _read(self) -> None:
        content = self.file.read()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].split(b"\n")[:-1]
        if not lines:  # new, or killed while the header was written
            if content and not json.dumps(self.header).encode().startswith(content):
                raise self._not_a_journal()
            self.file.seek(0)
            self.file.truncate()
            self._write(self.header)
            return
        try:
            header, *self.records = map(json.loads, lines)
        except (ValueError, RecursionError) as error:
            raise self.damaged(str(error)) from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise self._not_a_journal()
        for key in {**self.header, **header}:
            if header.get(key) != self.header.get(key):
                raise AcdcError(
                    f"the journal {self.path} is of another search: its {key} is {_short(header.get(key))}, here it is "
                    f"{_short(self.header.get(key))}. Search with the same model, task and options, give another "
                    "--journal, or delete it to search anew"
                )
        self.ends = list(accumulate(len(line) + 1 for line in lines))
        self.file.seek(whole)
        self.file.truncate()

    def damaged(self, how: str) -> AcdcError:
        """The error for a file whose records are not those of a search."""
        return AcdcError(f"the journal {self.path} is damaged ({how}). Delete it to search anew")

    def _not_a_journal(self) -> AcdcError:
        return AcdcError(f"{self.path} is not a journal of acdc, and is left alone; give another --journal")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def hash_of(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def hash_of_prompts(batches: Sequence[Batch], positions: str = "all") -> str:
    """Of the tokens, batch by batch; and, where positions are told apart, of their names and of which each token is."""
    tensors = [getattr(batch, name) for batch in batches for name in ("clean", "corrupted", "answer", "wrong")]
    names = position_names(batches, positions)
    if names:
        tensors += [position_groups(batch, names) for batch in batches]
    tokens = np.concatenate([np.append(tensor.cpu().numpy().ravel(), -1) for tensor in tensors])
    return hash_of(np.append(tokens, list("\n".join(names).encode())) if names else tokens)

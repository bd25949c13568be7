"""How a file that may come from anybody is read: a plain file only, and no more of it than a limit.

A file of a folder that was received may be a link to a device, which never ends, or a pipe, which never begins.
"""

import stat
from pathlib import Path

from acdc.errors import AcdcError

MOST, LARGE = 10**9, 4 * 10**9  # bytes; large are circuits of the largest open models, and running text


def check_plain(path: str | Path, most: int | None = None) -> int:
    """The size of a file. Raises `AcdcError` where it is a folder, a device or a pipe, or has more than `most` bytes;
    `OSError` where there is none."""
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, a pipe or a socket"
        raise AcdcError(f"{path} is {kind}, not a file; give a plain file")
    if most is not None and found.st_size > most:
        raise AcdcError(f"{path} has {found.st_size / 1e6:,.0f} MB; at most {most / 1e6:,.0f} MB are read. Give a "
                        "smaller file")
    return found.st_size


def read_bytes(path: str | Path, most: int = MOST) -> bytes:
    """What a file holds. Errors as `check_plain`."""
    size = check_plain(path, most)
    with Path(path).open("rb") as file:
        content = file.read(size + 1)
    if len(content) > size:
        raise AcdcError(f"{path} holds more than its {size:,} bytes: it is not a plain file, or is being written")
    return content


def read_text(path: str | Path, most: int = MOST, encoding: str = "utf-8") -> str:
    """The text of a file, with every end of a line as a newline. Errors as `check_plain`, and `UnicodeDecodeError`."""
    return read_bytes(path, most).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")

"""The command line: reads the arguments, runs one command, and turns errors into one line and a status."""

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, cast

from acdc.arguments import build_parser, check_out
from acdc.commands import COMMANDS
from acdc.errors import AcdcError
from acdc.stopping import stopped_by_signals

MOST_SHOWN = 2000  # characters of an error, which may quote a file
MOVES = re.compile(r"(?:[\r\n]|\x1b\[A)*\Z|\r?")  # how bars draw: back at the start of a write, or moves and no text


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. A user's mistake is one line on stderr and status 1 (2 where the
    command line itself is wrong, as argparse has it)."""
    given = sys.argv[1:] if argv is None else list(argv)
    command_line = argparse.Namespace(command_line=shlex.join(["acdc", *given]))
    arguments = build_parser(COMMANDS).parse_args(given, command_line)
    try:
        with (redirect_stdout(cast(Any, _Printed(sys.stdout))),
              redirect_stderr(cast(Any, sys.stderr and _Drawn(sys.stderr))), _log_shown(), stopped_by_signals()):
            check_out(arguments)
            arguments.run(arguments)
            sys.stdout.flush()
    except AcdcError as error:
        return _fail(str(error))
    except BrokenPipeError:  # whoever read what we print has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or 'no file named'}")
    except (MemoryError, RuntimeError) as error:
        from acdc.fitting import is_out_of_memory  # here, as it imports torch

        if not is_out_of_memory(error):
            raise
        return _fail("out of memory, also with fewer at once; give a smaller --batch-size, fewer or shorter prompts, "
                     "or --dtype bfloat16; `acdc plan` says what takes how much")
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "interrupted; no result was written", getattr(stop, "status", 130))
    return 0


def _fail(message: str, status: int = 1) -> int:
    line = _printable(" ".join(message.splitlines()))
    print(f"acdc: {line if len(line) <= MOST_SHOWN else line[:MOST_SHOWN] + ' ...'}", file=sys.stderr)
    return status


def _printable(text: str) -> str:
    """The text without what a terminal would obey or reorder: files and models may come from anybody."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


class _Printed:
    """A stream that shows what `_printable` leaves, and ? for what its encoding lacks; all else is the stream's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._stream.write(self._shown(text).encode(encoding, "replace").decode(encoding))

    def _shown(self, text: str) -> str:
        return _printable(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Drawn(_Printed):
    """Standard error, on which progress bars also move the cursor."""

    def _shown(self, text: str) -> str:
        moves = cast(re.Match[str], MOVES.match(text))[0]
        return moves + _printable(text[len(moves):])


@contextmanager
def _log_shown() -> Iterator[None]:
    """What `acdc` logs, such as a download that begins, goes to stderr."""
    logger, handler = logging.getLogger("acdc"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())

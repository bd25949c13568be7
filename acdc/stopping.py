"""How a run ends when it is told to: what is done is saved, and a second Ctrl-C ends it at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from acdc.errors import AcdcError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal told the process to stop. `status`: what it exits with, 128 + the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


class _Told:
    """`waits`: whether a signal waits for the end of a step; `by`: the one that does."""

    waits: bool = False
    by: Stopped | None = None


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM raise `Stopped`, once: a second one ends the process as the system would.

    A signal that the process was started to ignore stays ignored. In another thread than the main one, which alone gets
    signals, nothing is changed. What a library makes of a `Stopped` that was raised inside it (numpy some TypeError) is
    a `Stopped` again outside.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: Any) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        _Told.by = Stopped(number)
        if not _Told.waits:
            raise _Told.by

    for each in SIGNALS:
        if signal.getsignal(each) in (signal.default_int_handler, signal.SIG_DFL):
            before[each] = signal.signal(each, stop)
    try:
        yield
    except AcdcError:
        raise
    except Exception as error:
        if _Told.by is None:
            raise
        raise _Told.by from error
    finally:
        _Told.by = None
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def unbroken_steps() -> Iterator[Callable[[], Stopped | None]]:
    """Inside, a signal waits: ask after each step, and if one came, save and raise it. Without `stopped_by_signals`
    nothing waits."""
    waits, _Told.waits = _Told.waits, True
    try:
        yield lambda: _Told.by
    finally:
        _Told.waits = waits

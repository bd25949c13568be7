"""Signals: the first stops a run cleanly, after its step; a second one ends it at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from acdc.errors import AcdcError
from acdc.stopping import Stopped, stopped_by_signals, unbroken_steps


@pytest.fixture(autouse=True)
def _not_ignored():
    """Ctrl-C, which a shell lets programs ignore that it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_once_and_handlers_are_put_back(number, status):
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(Stopped) as stop, stopped_by_signals():
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert stop.value.status == status and isinstance(stop.value, KeyboardInterrupt)
    assert {each: signal.getsignal(each) for each in before} == before


@pytest.mark.parametrize(("raised", "seen"), [(TypeError, Stopped), (AcdcError, AcdcError)])
def test_what_a_library_makes_of_it_is_a_stop_and_what_is_known_is_said(raised, seen):
    with pytest.raises(seen), stopped_by_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except Stopped:
            raise raised("of something else") from None


def test_an_error_that_no_signal_made_stays_as_it_is():
    with pytest.raises(TypeError, match="a bug"), stopped_by_signals():
        raise TypeError("a bug")


def test_a_step_is_finished_first():
    done = []
    with pytest.raises(Stopped), stopped_by_signals(), unbroken_steps() as stopped:
        for step in range(5):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            done.append(step)
            if stop := stopped():
                raise stop
    assert done == [0, 1, 2]
    with unbroken_steps() as stopped:
        assert stopped() is None


def test_other_threads_and_ignored_signals_are_left_alone():
    raised = []

    def inside():
        try:
            with stopped_by_signals():
                pass
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert not raised
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(number):
    code = ("import time\nfrom acdc.stopping import stopped_by_signals\n"
            "with stopped_by_signals():\n"
            "    try:\n        print('ready', flush=True)\n        time.sleep(60)\n"
            "    except KeyboardInterrupt:\n        print('saving', flush=True)\n        time.sleep(60)\n")
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "ready\n"
    run.send_signal(number)
    assert run.stdout.readline() == "saving\n"
    run.send_signal(number)
    assert run.wait(20) == -number
    run.stdout.close()

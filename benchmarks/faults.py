"""Whether anything is lost or leaks: long jobs killed and stopped at random moments, and many runs in one process.

    python -m acdc.benchmarks.faults kill [--times 20] [--jobs exact acdc ...]
    python -m acdc.benchmarks.faults stop [--times 5]
    python -m acdc.benchmarks.faults soak [--runs 200]

`kill`: each job is killed with SIGKILL, first as soon as it has kept something to go on from, then at random moments of
its run, and started again. After the kill every file of an earlier result must be whole, old or new; after the second
run the result must be that of an uninterrupted run, byte for byte, and nothing else may be left. `stop`: the same with
SIGINT and SIGTERM, after which nothing half-written may be left either, and the exit status must be 130 or 143. `soak`:
see `acdc.benchmarks.soak`.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from acdc.benchmarks.fault_jobs import (  # pyright: ignore[reportMissingImports]
    JOBS,
    Job,
    contents,
    prepare,
    run,
    start,
)
from acdc.benchmarks.record import row, write_record  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.soak import soak  # pyright: ignore[reportMissingImports]
from acdc.output_folder import PART


@dataclass
class Tally:
    """Over the tries of one job. `in_time`: it was still running; `kept`: it had something to go on from."""

    n: int = 0
    in_time: int = 0
    kept: int = 0


def interrupt(job: Job, given: Path, times: int, signals: Sequence[signal.Signals], rng: random.Random) -> Tally:
    """Interrupts the job so often and starts it again; raises where anything is not as it should be."""
    base = given.parent / job.name
    shutil.copytree(given, base)
    begin = time.monotonic()
    assert run(base, job.arguments()) == 0, f"{job.name}: {(base / 'log').read_text()}"
    lasts, whole = time.monotonic() - begin, contents(base / job.out)
    tally = Tally()
    while tally.in_time < times and tally.n < 4 * times:
        folder = given.parent / f"{job.name}-{tally.n}"
        shutil.copytree(given, folder)
        old = _older(job, base, folder)
        process = start(folder, job.arguments())
        if tally.n == 0:
            _wait_until_kept(job, folder, process)
        else:
            time.sleep(rng.random() * lasts)
        number = signals[tally.n % len(signals)]
        os.kill(process, number)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        tally.n += 1
        tally.in_time += status != 0
        tally.kept += _has_kept(folder)
        _check_after(job, folder, number, status, old, whole)
        assert run(folder, job.arguments(), "log2") == 0, f"{job.name}: {(folder / 'log2').read_text()}"
        found = contents(folder / job.out)
        assert found == whole, f"{job.name}: {[name for name in whole if found.get(name) != whole[name]]} differ"
        left = {path.relative_to(folder) for path in folder.rglob("*")}
        left -= {path.relative_to(base) for path in base.rglob("*")}
        assert not left - {Path("log2")}, f"{job.name}: left behind: {left}"
        shutil.rmtree(folder)
    shutil.rmtree(base)
    return tally


def _has_kept(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir()]
    return (any("pieces-" in name or name.endswith((".checkpoint", ".journal")) for name in names)
            or any(folder.glob("out/cells/*.json")))


def _wait_until_kept(job: Job, folder: Path, process: int) -> None:
    while not _has_kept(folder):
        assert not os.waitpid(process, os.WNOHANG)[0], f"{job.name}: it ended, and had kept nothing to go on from"
        time.sleep(0.001)


def _older(job: Job, base: Path, folder: Path) -> dict[str, bytes]:
    """An earlier result, of other content, where the job is about to write."""
    if job.name == "benchmark":  # it adds to its folder
        return {}
    if (base / job.out).is_file():
        shutil.copy(base / job.out, folder / job.out)
    else:
        shutil.copytree(base / job.out, folder / job.out)
    for path in [folder / job.out, *folder.glob(f"{job.out}/*")]:
        if path.is_file():
            with path.open("ab") as file:
                file.write(b"\n")
    if job.name == "annotate":  # the kinds that it does not make anew stay
        (folder / job.out).unlink()
    return contents(folder / job.out)


def _check_after(job: Job, folder: Path, number: signal.Signals, status: int, old: dict[str, bytes],
                 whole: dict[str, bytes]) -> None:
    found = contents(folder / job.out)
    for name, content in found.items():
        assert content in (old.get(name), whole.get(name)), f"{job.name}: {name} is half-written"
    assert not set(old) - set(found), f"{job.name}: {set(old) - set(found)} of the earlier result is gone"
    if number != signal.SIGKILL:
        log = (folder / "log").read_text()
        assert status in (0, 128 + number), f"{job.name}: status {status}: {log}"
        assert not _parts(folder) and not list(folder.rglob(".*.lock")), f"{job.name}: left behind"
        assert status == 0 or log.splitlines()[-1].startswith("acdc: "), log


def _parts(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if PART.fullmatch(path.name)]


def interrupt_all(names: Sequence[str], times: int, signals: Sequence[signal.Signals], seed: int) -> list[dict]:
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as made:
        given = Path(made) / "given"
        given.mkdir()
        prepare(given)
        for name in names:
            found = interrupt(JOBS[name], given, times, signals, random.Random(seed))
            rows.append(row(name, found.in_time, "", "interruptions of the running job, all resumed to the same bytes; "
                            f"{found.kept} had work to go on from"))
            print(f"{name}: {found.in_time} interruptions, all resumed to the same bytes; {found.kept} kept work",
                  flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether anything is lost or leaks.")
    parser.add_argument("what", choices=["kill", "stop", "soak"])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "soak":
        rows, title, about = soak(arguments.runs), "Many runs in one process", "Discoveries by all methods in turn."
    else:
        signals = [signal.SIGKILL] if arguments.what == "kill" else [signal.SIGINT, signal.SIGTERM]
        rows = interrupt_all(arguments.jobs, arguments.times, signals, arguments.seed)
        title = f"Long jobs: {arguments.what}"
        about = "Commands on a tiny model, interrupted at random moments and started again."
    if arguments.results:
        write_record(arguments.results, f"faults_{arguments.what}", title=title, about=about, rows=rows,
                     command=f"python -m acdc.benchmarks.faults {arguments.what}",
                     parameters={"times": arguments.times, "runs": arguments.runs, "seed": arguments.seed})


if __name__ == "__main__":
    main()

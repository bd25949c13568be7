"""How much faster many workers are than one process, what they cost, and whether their numbers are the same.

    python -m acdc.benchmarks.many_machines [--prompts 64] [--edges 300] [--workers 1 2 4] [--rounds 3] [--ray ADDRESS]

Without an address, a cluster of this machine is started that believes to have as many CPUs as the most workers: where
it has fewer, more workers cannot be faster. Each worker has one thread, and so has the one process. Rounds alternate
between them; speed is the median over rounds of (seconds of one process) / (seconds of the workers), CPU the same of
the CPU seconds of all processes together, the other way round: what distribution itself costs, whatever else runs here.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from acdc.cluster import finished, on_ray
from acdc.discovery.eap_ig import eap_ig
from acdc.discovery.exact import exact_effects
from acdc.metrics import METRICS
from acdc.models import load_model
from acdc.ray_workers import LostError, find_ray
from acdc.tasks import load_task  # pyright: ignore[reportMissingImports]
from acdc.transformer import Transformer


def own_pid(piece: int) -> Iterator[int]:
    time.sleep(1)
    yield os.getpid()


def cpu_seconds(pids: set[int]) -> float:
    """Of those processes, on this machine alone."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(own[11]) + int(own[12]) for own in fields) / os.sysconf("SC_CLK_TCK")


def timed(job: Callable[[Transformer], np.ndarray], model: Transformer, pids: set[int]) -> tuple[float, float, bytes]:
    start, cpu = time.perf_counter(), cpu_seconds(pids)
    found = job(model)
    return time.perf_counter() - start, cpu_seconds(pids) - cpu, found.tobytes()


def compare(name: str, job: Callable[[Transformer], np.ndarray], model: Transformer, spread: Transformer,
            arguments: argparse.Namespace, pids: set[int]) -> None:
    """Prints a line for each number of workers."""
    every = list(spread.workers.idle)
    runs: dict[int, list[tuple[float, float, bytes]]] = {n: [] for n in (0, *arguments.workers)}
    for _ in range(arguments.rounds):
        for n, own in runs.items():
            spread.workers.idle, spread.workers.n = every[:n], n  # only so many of them
            own.append(timed(job, spread if n else model, pids))
    spread.workers.idle, spread.workers.n = every, len(every)
    expected = runs[0][0][2]
    print(f"{name}: one process {statistics.median(seconds for seconds, _, _ in runs[0]):.1f} s")
    for n in arguments.workers:
        pairs = list(zip(runs[0], runs[n], strict=True))
        speed, cost = (statistics.median(ratio) for ratio in (
            [one[0] / many[0] for one, many in pairs], [many[1] / one[1] for one, many in pairs]))
        same = all(found == expected for _, _, found in runs[n])
        print(f"  {n} workers: {statistics.median(run[0] for run in runs[n]):6.1f} s   speed {speed:4.2f}   "
              f"CPU {cost:4.2f}   {'the same bytes' if same else 'OTHER NUMBERS'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--edges", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", default="", metavar="ADDRESS")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    most = max(arguments.workers)
    if not arguments.ray:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        find_ray().init("local", num_cpus=most, log_to_driver=False, configure_logging=False, include_dashboard=False)
    model = load_model(arguments.model)
    batches = load_task("ioi", model.tokenizer, n=arguments.prompts).batches(
        model.tokenizer, batch_size=arguments.batch_size)
    edges = np.random.default_rng(0).choice(model.graph().n_edges, arguments.edges, replace=False)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; batches of {arguments.batch_size} prompts")
    start = time.perf_counter()
    with on_ray(model, arguments.ray, most) as spread:
        pids = {os.getpid()}
        while len(pids) <= most:
            pids |= {pid for _, found in finished(spread.workers, own_pid, range(2 * most))
                     if not isinstance(found, LostError) for pid in found}
        print(f"{most} workers ready after {time.perf_counter() - start:.1f} s")
        compare(f"eap_ig, {arguments.prompts} prompts", lambda m: eap_ig(m, batches).values, model, spread, arguments,
                pids)
        patch = partial(exact_effects, batches=batches[:1], metric=METRICS["logit_difference"], edges=edges)
        compare(f"{arguments.edges} edges patched, {len(batches[0])} prompts", patch, model, spread, arguments, pids)


if __name__ == "__main__":
    main()

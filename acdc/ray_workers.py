"""Workers of a Ray cluster: how they are started, what they are sent, and what is done where one is lost.

Workers are actors (https://docs.ray.io). Each holds its own copy of what the work is about, such as the model. What is
sent is pickled, with the driver's copy replaced by a reference to the worker's own, and tensors put on the worker's
device. A piece whose worker is lost is given to another.
"""

import importlib.metadata
import io
import logging
import math
import os
import pickle
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from acdc.errors import AcdcError

logger = logging.getLogger("acdc")

MOST_LOSSES = 3  # workers that one piece may take with it, before it is taken for the cause
PATIENCE = 60  # seconds without any worker, until that is said
LOST = object()  # in place of a result


class LostError(AcdcError):
    """A piece of work that ended, again and again, with the death of its worker."""


@contextmanager
def ray_workers(make: Callable[[], tuple[Any, str]], address: str = "", n: int | None = None, *,
                device: torch.device | str) -> Iterator["Workers"]:
    """`n` workers; each calls `make` for its own copy of what the work is about, and words that say which it is.
    Before they are given any work, `stand_for` must be called.

    `address`: HOST:PORT of a cluster's head; `auto`, the cluster that this machine belongs to; `local`, one of this
    machine alone, which ends with the work; default: the one that RAY_ADDRESS names, or of this machine, or `local`.
    `n`: default: one for each CPU, or for each GPU if `device` is one. The CPUs are divided evenly, and each worker
    computes with as many threads as it has CPUs; more workers than GPUs share them.

    Raises `AcdcError` without ray, without such a cluster, and where it has too few CPUs or GPUs.
    """
    ray = find_ray()
    with _cluster(ray, address):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        n, cpus, gpus = divide(nodes, n, on_gpu=torch.device(device).type != "cpu")
        workers = Workers(ray, make, n, cpus, gpus, torch.device(device))
        try:
            yield workers
        finally:
            workers.end()


def find_ray() -> Any:
    """The library; an `AcdcError` where it is not installed."""
    try:
        import ray  # only if it is asked for
    except ImportError as error:
        raise AcdcError("many machines need ray, which is not installed: `pip install acdc[ray]` on each of them, or "
                        "leave out --ray") from error
    return ray


def check_address(address: str) -> None:
    if address not in ("", "auto", "local") and ":" not in address:
        raise AcdcError(f"{address!r} is no address of a Ray cluster: give HOST:PORT, auto or local, or nothing")


@contextmanager
def _cluster(ray: Any, address: str) -> Iterator[None]:
    """Connected to the cluster; one that this process is connected to already is used, and stays."""
    if ray.is_initialized():
        yield
        return
    check_address(address)
    on_stop, settings = signal.getsignal(signal.SIGTERM), _ray_settings()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # a cluster that is started here reports to nobody
    try:
        try:
            ray.init(address=address or None, log_to_driver=False, configure_logging=False, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise AcdcError(f"no Ray cluster at {address or 'the address that RAY_ADDRESS or this machine gives'}: "
                            f"{str(error).splitlines()[0]}. Start one with `ray start --head`, and give its HOST:PORT, "
                            "or local for this machine alone") from error
        finally:
            with suppress(ValueError):  # not in the main thread, where ray sets none either
                signal.signal(signal.SIGTERM, on_stop)
        yield
    finally:
        ray.shutdown()
        for name in _ray_settings():  # ray sets some more
            del os.environ[name]
        os.environ.update(settings)


def _ray_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


def divide(nodes: Sequence[Mapping[str, float]], n: int | None, *, on_gpu: bool) -> tuple[int, int, float]:
    """How many workers, and how many CPUs and GPUs each gets, so that all find a place on some machine.

    `nodes`: what each machine has, as {"CPU": 8.0, "GPU": 1.0}.
    """
    cpus, all_gpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
    n_gpus = sum(all_gpus)
    if on_gpu and not n_gpus:
        raise AcdcError("the cluster has no GPUs; leave out --device, or start it with `ray start --num-gpus`")
    n = (n_gpus if on_gpu else sum(cpus)) if n is None else n
    if n < 1:
        raise AcdcError(f"--workers {n}: at least 1 is needed")
    a_gpu = math.ceil(n / n_gpus) if on_gpu else 0  # so many workers share one

    def places(threads: int) -> int:
        return sum(min(own // threads, gpus * a_gpu) if on_gpu else own // threads
                   for own, gpus in zip(cpus, all_gpus, strict=True))

    for threads in range(max(1, sum(cpus) // n), 0, -1):
        if places(threads) >= n:
            return n, threads, 1 / a_gpu if on_gpu else 0.0
    with_gpus = f" and {n_gpus} GPUs" if on_gpu else ""
    raise AcdcError(f"--workers {n}: the cluster has {sum(cpus)} CPUs{with_gpus}, and each worker needs one of its own "
                    "on its machine. Ask for fewer, or give it more")


class Workers:
    """The workers of a cluster, as the driver sees them."""

    def __init__(self, ray: Any, make: Callable[[], tuple[Any, str]], n: int, threads: int, gpus: float,
                 device: torch.device) -> None:
        self.ray, self.n, self.threads, self.device = ray, n, threads, device
        self.own: Any = None
        self.expected = ""
        self.job = 0
        self.n_lost = 0  # since a worker was last ready
        self.make = _pack(make, None)
        self.actor = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0)(Worker)
        self.idle: list[Any] = []
        self.starting: dict[Any, Any] = {}  # from what is awaited to who does it
        self.unwanted: dict[Any, Any] = {}  # the same, of a job that was given up
        self.losses = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.WorkerCrashedError,
                       ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
        for _ in range(n):
            self._start()

    def stand_for(self, own: Any, which: str) -> None:
        """`own`: what, in what is sent, means each worker's own copy; `which`: what `make` must say that they are."""
        self.own, self.expected = own, _with_versions(which)

    def finished(self, function: Callable[[Any], Iterable[Any]], pieces: Iterable[Any]
                 ) -> Iterator[tuple[int, Iterable[Any] | LostError]]:
        """See `finished` above."""
        self.job += 1
        work = [self.ray.put(_pack(function, self.own))]  # in a list, so that each worker fetches it but once
        source, again = enumerate(pieces), deque[tuple[int, Any]]()
        losses: Counter[int] = Counter()
        running: dict[Any, tuple[Any, int, Any]] = {}
        try:
            while True:
                while self.idle and (entry := again.popleft() if again else next(source, None)) is not None:
                    worker, (i, piece) = self.idle.pop(), entry
                    running[worker.do.remote(self.job, work, _pack(piece, self.own))] = worker, i, piece
                if not running and self.idle:
                    return
                done = self._next_of(running)
                if done not in running:
                    self._settle(done)
                    continue
                worker, i, piece = running.pop(done)
                self.idle.append(worker)
                found = self._result(done)
                if found is not LOST:
                    yield i, found
                    continue
                self._replace(worker)
                losses[i] += 1
                if losses[i] <= MOST_LOSSES:
                    logger.info("a worker was lost; what it was doing is done again")
                    again.append((i, piece))
                else:
                    yield i, LostError(f"{losses[i]} workers died of the same piece of work, {_short(piece)}; perhaps "
                                       "their memory is too small: give a smaller --batch-size, or fewer --workers")
        finally:
            self.unwanted |= {done: worker for done, (worker, _, _) in running.items()}

    def end(self) -> None:
        for worker in (*self.idle, *self.starting.values(), *self.unwanted.values()):
            self.ray.kill(worker)

    def _start(self) -> None:
        worker = self.actor.remote()
        self.starting[worker.prepare.remote(self.make, self.threads)] = worker

    def _next_of(self, running: Mapping[Any, Any]) -> Any:
        """What is done next; says so if nobody is there to do anything."""
        awaited = [*running, *self.starting, *self.unwanted]
        patience = PATIENCE if not running and not self.unwanted else None
        done, _ = self.ray.wait(awaited, num_returns=1, timeout=patience)
        if not done:
            logger.info("still waiting for workers: they load the model, or the cluster is busy with other work")
            done, _ = self.ray.wait(awaited, num_returns=1)
        return done[0]

    def _settle(self, done: Any) -> None:
        """A worker that is ready, at last or again."""
        new = done in self.starting
        worker = (self.starting if new else self.unwanted).pop(done)
        self.idle.append(worker)
        try:
            found = self._result(done)
            if new and found not in (LOST, self.expected):
                raise AcdcError(f"a worker has {found}, but here are {self.expected}. Install the same versions on all "
                                "machines, and give a model that is the same on all of them")
        except Exception:
            if new:
                self._replace(worker)
                raise
            return  # nobody waits for it
        if found is LOST:
            self._replace(worker)
        self.n_lost = self.n_lost + 1 if new and found is LOST else 0
        if self.n_lost > MOST_LOSSES * self.n:
            raise AcdcError(f"{self.n_lost} workers died, one after another, while they loaded the model; perhaps "
                            "their memory is too small for so many: give fewer --workers")

    def _replace(self, worker: Any) -> None:
        self.idle.remove(worker)
        self.ray.kill(worker)  # one that cannot be reached may still live
        self._start()

    def _result(self, done: Any) -> Any:
        """What a worker found, or LOST if it is lost. Raises what it raised."""
        try:
            failed, packed = self.ray.get(done)
        except self.losses:
            return LOST
        except self.ray.exceptions.RayTaskError as error:  # as in one process; the worker lives
            raise (error.cause or error) from error
        if failed:
            raise AcdcError(packed)
        return _unpack(packed, self.own, self.device)


def _with_versions(which: str) -> str:
    versions = (f"{name} {importlib.metadata.version(name).partition('+')[0]}"
                for name in ("acdc", "torch", "transformers"))
    return f"{', '.join(versions)}, {which}"


class Worker:
    """The actor: holds its own copy of what the work is about, and does one piece after another."""

    def __init__(self) -> None:
        self.own: Any = None
        self.device = torch.device("cpu")
        self.job, self.function = 0, None

    def prepare(self, make: bytes, threads: int) -> tuple[bool, Any]:
        """Makes its copy; says which it is."""
        torch.set_num_threads(threads)
        return self._caught(lambda: self._made(_unpack(make, None, self.device)))

    def do(self, job: int, work: list[Any], piece: bytes) -> tuple[bool, Any]:
        return self._caught(lambda: self._done(job, work, piece))

    def _made(self, make: Callable[[], tuple[Any, str]]) -> str:
        self.own, which = make()
        self.device = getattr(self.own, "device", self.device)
        return _with_versions(which)

    def _done(self, job: int, work: list[Any], piece: bytes) -> list[Any]:
        import ray

        if job != self.job:
            self.function, self.job = _unpack(ray.get(work[0]), self.own, self.device), job
        assert self.function is not None
        return list(self.function(_unpack(piece, self.own, self.device)))

    def _caught(self, do: Callable[[], Any]) -> tuple[bool, Any]:
        """A user's mistake is a result; whatever else is raised Ray brings to the driver, with its traceback."""
        try:
            return False, _pack(do(), self.own)
        except AcdcError as error:
            return True, str(error)


def _pack(value: Any, own: Any) -> bytes:
    """Pickled, but for `own`, which is left out, and tensors, which keep no device."""
    from ray import cloudpickle  # functions made in a function, too, such as a metric of a notebook

    class Pickler(cloudpickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if own is not None and obj is own:
                return "own", None
            assert not isinstance(obj, torch.nn.Module), f"{type(obj).__name__} would be sent along with each piece"
            if not isinstance(obj, Tensor):
                return None
            flat = obj.detach().cpu().contiguous().reshape(-1)
            return "tensor", (flat.view(torch.uint8).numpy(), obj.dtype, tuple(obj.shape))

    stream = io.BytesIO()
    Pickler(stream).dump(value)
    return stream.getvalue()


def _unpack(content: bytes, own: Any, device: torch.device) -> Any:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            kind, value = pid
            if kind == "own":
                return own
            raw, dtype, shape = value
            return torch.from_numpy(raw).view(dtype).reshape(shape).to(device)

    return Unpickler(io.BytesIO(content)).load()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

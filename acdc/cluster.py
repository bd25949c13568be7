"""Where the pieces of a computation are done: in this process, or in workers on many machines, with the same result.

A computation says what its pieces are (batches of prompts, groups of edges, cells of a grid) and what is done with one;
`over` gives the results in the order of the pieces, wherever they were computed, so that what is added up is added up
in the same order. Without workers, each piece is done when its result is asked for.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from acdc.errors import AcdcError
from acdc.models import load_model, weights_hash
from acdc.pieces import Piece, pieces_over
from acdc.ray_workers import LostError, Workers, ray_workers
from acdc.transformer import Transformer

T = TypeVar("T")
Result = TypeVar("Result")


def over(model: Transformer, function: Callable[[T], Piece], items: Iterable[T], label: str) -> Iterator[Piece]:
    """What `function` returns for each item, in their order; done by `model.workers`, if it has any, and kept on disk
    inside `acdc.pieces.resumable`, under this label.

    `function` must give for an item what does not depend on the others, and be a function of a module, or a `partial`
    of one; `model` may be among its arguments.
    """
    return pieces_over(label, items, lambda missing: _in_order(finished(_workers(model), partial(_once, function),
                                                                        missing)))


def _once(function: Callable[[T], Piece], item: T) -> Iterator[Piece]:
    yield function(item)


def _in_order(results: Iterator[tuple[int, Iterable[Piece] | LostError]]) -> Iterator[Piece]:
    known: dict[int, Any] = {}
    place = 0
    for i, found in results:
        known[i] = found
        while place in known:
            result = known.pop(place)
            if isinstance(result, AcdcError):
                raise result
            yield from result
            place += 1


class Shared(Generic[T]):
    """What pieces of one batch share, such as its clean run: made for the first of those that follow each other."""

    def __init__(self) -> None:
        self.key: Any = None
        self.value: T | None = None

    def of(self, key: Any, make: Callable[[], T]) -> T:
        if self.key != key or self.value is None:
            self.key = self.value = None  # before the next is made: two may not fit in memory
            self.value = make()
            self.key = key
        return self.value


def finished(workers: Workers | None, function: Callable[[T], Iterable[Result]], pieces: Iterable[T]
             ) -> Iterator[tuple[int, Iterable[Result] | LostError]]:
    """The number of each piece and what `function` yields for it, or that it was lost, in the order of completion.

    Without workers, it is computed as it is iterated over. A piece is taken from `pieces` when it is begun.
    """
    if workers is None:
        return ((i, function(piece)) for i, piece in enumerate(pieces))
    return workers.finished(function, pieces)


def _workers(model: Transformer) -> Workers | None:
    """None also for an edited copy of the model that the workers hold."""
    workers = model.workers
    return workers if workers is not None and workers.own is model else None


@contextmanager
def on_ray(model: Transformer, address: str = "", n: int | None = None) -> Iterator[Transformer]:
    """The same model, whose scores and circuits are computed by `n` workers of a Ray cluster.

    Each worker loads it by its name, a hub name or a folder that all machines see, and must find the same weights.
    `address`, `n`: see `ray_workers`. Changes that are made to the model's weights in here do not reach the workers.
    """
    name = str(Path(model.name).resolve()) if Path(model.name).is_dir() else model.name
    load = partial(load_model, name, dtype=model.dtype, device=model.device.type, causal=model.causal)
    with ray_workers(partial(_with_weights, load), address, n, device=model.device) as workers:
        spread = replace(model, workers=workers)
        workers.stand_for(spread, _weights(model))
        yield spread


def _with_weights(load: Callable[[], Transformer]) -> tuple[Transformer, str]:
    model = load()
    return model, _weights(model)


def _weights(model: Transformer) -> str:
    return f"weights of sha256 {weights_hash(model)}"

"""How many prompts are run at once: as many as are given, or as memory holds.

What runs out of memory is run again in halves, and the rest goes on with as few at a time. Results are those of single
prompts, side by side or summed, so that they do not depend on how prompts are divided.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from acdc.task import Batch

T = TypeVar("T")
logger = logging.getLogger("acdc")

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "bad_alloc")
"""How PyTorch says it, by device."""


def is_out_of_memory(error: BaseException) -> bool:
    message = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in message for words in OUT_OF_MEMORY))


class Halving:
    """Runs things that come in rows, such as prompts, as many at a time as memory holds.

    `at_once`: the most that have been found to fit; None: all so far. `rows`: what they are, for the note.
    """

    def __init__(self, rows: str = "prompts", at_once: int | None = None) -> None:
        self.rows, self.at_once = rows, at_once

    def over(self, n: int, run: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
        """What `run` returns for rows 0 to n - 1, part by part, in their order.

        Raises the error of the device where even a single row does not fit.
        """
        first = 0
        while first < n:
            part = slice(first, min(n, first + (self.at_once or n)))
            try:
                result = run(part)
            except (RuntimeError, MemoryError) as error:
                if not self.halves(error, part.stop - part.start):
                    raise
            else:
                yield part, result
                del result
                first = part.stop
                continue
            gc.collect()  # here, where the error and what its frames held are gone

    def parts(self, batch: Batch, run: Callable[[Batch], T]) -> list[T]:
        """What `run` returns for a batch, or for parts of it, in the order of prompts."""
        return [result for _, result in self.over(len(batch), lambda rows: run(batch.rows(rows)))]

    def halves(self, error: BaseException, n: int) -> bool:
        """Takes note of rows that did not fit, `n` at once. Whether fewer can be tried."""
        if n < 2 or not is_out_of_memory(error):
            return False
        self.at_once = (n + 1) // 2
        logger.warning("out of memory with %d %s at once; going on with %d", n, self.rows, self.at_once)
        return True


def over_batches(batches: Sequence[Batch], run: Callable[[Batch], T], *, desc: str = "", progress: bool = False
                 ) -> Iterator[tuple[Batch, T]]:
    """What `run` returns for every batch, or for parts of one that does not fit in memory, in the order of prompts.

    `run` must change nothing else: it is called again where memory runs out.
    """
    fits = Halving()
    for batch in tqdm(batches, desc=desc, unit="batch", disable=not progress):
        for rows, result in fits.over(len(batch), lambda rows, batch=batch: run(batch.rows(rows))):
            yield batch.rows(rows), result


def most_at_once(batches: Sequence[Batch]) -> int:
    """How many prompts the largest batch has."""
    return max(map(len, batches))

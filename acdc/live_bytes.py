"""How many bytes a computation has in use at most, besides what was there before.

On the CPU, tensors are counted as operations return them, until their storage is freed, and arrays of numpy by
`tracemalloc`; a device that counts its own memory is asked. What kernels use inside themselves is not
seen, nor what an allocator keeps.
"""

import tracemalloc
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acdc.machine import counts_memory


class _LiveTensors(TorchDispatchMode):
    """`peak`: the most bytes that storages made inside have had at once. `known`: tensors from before."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive = {_address(tensor): 0 for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        address, storage = _address(tensor), tensor.untyped_storage()
        if address in self.alive:
            return
        self.alive[address] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, address)

    def _freed(self, address: int) -> None:
        self.now -= self.alive.pop(address)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_bytes(run: Callable[[], Any], device: torch.device, known: Iterable[Tensor] = ()) -> int:
    """The most bytes in use while `run` runs, less those before. `known`: tensors that it reads, such as weights."""
    counter = counts_memory(device)
    if counter is not None:
        counter.reset_peak_memory_stats(device)
        before = counter.memory_allocated(device)
        run()
        return counter.max_memory_allocated(device) - before
    with _LiveTensors(()):
        torch.empty(0)  # imports, the first time, what shall not be counted
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start(1)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        with _LiveTensors(known) as tensors:
            run()
        return tensors.peak + max(0, tracemalloc.get_traced_memory()[1] - before)
    finally:
        if not was_tracing:
            tracemalloc.stop()

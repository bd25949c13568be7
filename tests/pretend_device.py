"""A second device, for machines that have only a CPU: tensors that say they are elsewhere, and refuse to be computed
with together with tensors on the CPU, as those of a GPU do.

Their values are held on the CPU, where all operations are done. The device is called "meta", which PyTorch knows on
every machine; a true tensor there has no values, so that whatever slips past this shows up as wrong numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from acdc.task import Batch

NAME = "meta"
MIXES = ("aten._to_copy", "aten.copy_", "aten.index.", "aten.index_put")  # indices, and copies, may be on the CPU


class Elsewhere(Tensor):
    """A tensor on the other device, with the values of `held`."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(cls, held.size(), strides=held.stride(), dtype=held.dtype, device=NAME,
                                             storage_offset=held.storage_offset())
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Elsewhere) else x


def _computed(function: Any, args: tuple, kwargs: dict) -> Any:
    name, device = str(function), kwargs.get("device")
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    away = any(isinstance(x, Elsewhere) for x in tensors)
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim() > 0]
    if away and here and not name.startswith(MIXES):
        raise RuntimeError(f"{name}: some tensors are on the CPU, of shapes {[tuple(x.shape) for x in here]}")
    goes = away if device is None else torch.device(device).type == NAME
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    result = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    if "out" in kwargs:
        return kwargs["out"]
    if function._schema.is_mutable:
        return args[0]
    return tree_map(lambda x: Elsewhere(x) if goes and isinstance(x, Tensor) else x, result)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """What makes a tensor of Python's numbers does so before any operation is seen."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return Elsewhere(function(*args, **{**kwargs, "device": "cpu"}))
        if function is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return Elsewhere(args[0].held.new_tensor(*args[1:], **kwargs))
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = args[0], tuple(_as_index(x) for x in index), *args[2:]
        return function(*args, **kwargs)


def _as_index(x: Any) -> Any:
    return torch.from_numpy(np.array(x, dtype=None if len(x) else int)) if isinstance(x, list | np.ndarray) else x


@contextmanager
def second_device() -> Iterator[None]:
    with _Operations(), _FromNumbers():
        yield


def move(hf: nn.Module) -> None:
    for module in hf.modules():
        for name, value in module._parameters.items():
            module._parameters[name] = None if value is None else nn.Parameter(Elsewhere(value.detach()))
        for name, value in module._buffers.items():
            module._buffers[name] = None if value is None else Elsewhere(value)


def moved(batch: Batch) -> Batch:
    return replace(batch, **{name: Elsewhere(getattr(batch, name))
                             for name in ("clean", "corrupted", "answer", "wrong")})

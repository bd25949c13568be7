"""Where a module computes, and what its weights are: also where accelerate spreads a model over devices and disks.

There, modules take their inputs to the device that they compute on, and weights that have no room on it are fetched
when a module is called, and only then. What is computed here with weights, and not by a module, gets them from
`parameter`.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


def _hooks(module: nn.Module) -> Iterator[Any]:
    """accelerate's hooks of one module."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):  # several in a row, or one
        if hasattr(one, "execution_device"):
            yield one


def is_spread(hf: nn.Module) -> bool:
    """Whether accelerate places the modules of a model."""
    return any(True for module in hf.modules() for _ in _hooks(module))


def is_offloaded(hf: nn.Module) -> bool:
    """Whether some weights are fetched only when they are needed."""
    return any(hook.offload for module in hf.modules() for hook in _hooks(module))


def device_of(module: Any) -> torch.device:
    """The device that a module computes on."""
    devices = [hook.execution_device for hook in _hooks(module) if hook.execution_device is not None]
    return torch.device(devices[-1]) if devices else module.weight.device


def parameter(module: Any, name: str, home: torch.device | None = None) -> Tensor | None:
    """A weight of a module, at `home` if that is given; None if it has none of that name."""
    value = getattr(module, name, None)
    hooked = value is not None and getattr(module, "_hf_hook", None) is not None  # asked for each head of each pass
    offloading = [hook for hook in _hooks(module) if hook.offload] if hooked else []
    if offloading:
        hook = offloading[0]
        hook.pre_forward(module)
        try:
            value = getattr(module, name)
        finally:
            hook.post_forward(module, None)
    return value if value is None or home is None else value.to(home)


def like(embedding: Any, positions: Tensor) -> Tensor:
    """Nothing, in the dtype of the model and on the device of the positions: by which a rotary embedding goes."""
    return positions.new_empty(0, dtype=embedding.weight.dtype)


def weights(hf: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All weights in the order of their names, one at a time; those that are shared once."""
    tied = getattr(hf, "all_tied_weights_keys", None) or {}  # no longer the same objects where they are offloaded
    for name in sorted(name for name, _ in hf.named_parameters() if name not in tied):
        path, _, own = name.rpartition(".")
        value = parameter(hf.get_submodule(path), own)
        assert value is not None, name
        yield name, value


def placed(part: Any, home: torch.device) -> Any:
    """The same part of an anatomy, or a tuple of parts, with weights that are read at `home`."""
    if isinstance(part, tuple):
        return tuple(placed(one, home) for one in part)
    if not is_dataclass(part) or isinstance(part, type):
        return part
    values = {field.name: placed(getattr(part, field.name), home) for field in fields(part)}
    return replace(part, **{**values, **({"home": home} if "home" in values else {})})

"""What is done to activations while a model runs: adding, clamping and removing a direction, ablating nodes.

    with intervened(model, [add(direction, 0.5), *ablate_nodes(model, ["a3.h1"], values)]):
        ...                                          # every forward pass in here, the model's own generate included

Interventions are made in the order given, each on what the ones before left; contexts can be nested.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acdc.ablation import Replacement
from acdc.activations import contribution, hooks
from acdc.annotation.sites import Change, changed
from acdc.errors import AcdcError, unknown_name
from acdc.intervention.direction import Direction
from acdc.transformer import Transformer

Here = Float[Tensor, "batch pos width"]
POSITIONS = ("all", "prompt", "last")
CACHE_NAMES = ("cache", "past_key_values")  # what a forward calls its cache in newer and older transformers


@dataclass(frozen=True, eq=False)
class Intervention:
    """`change(x, first)`: what shall be at `site` instead of x, whose first position is `first`.

    `positions`: "all"; "prompt", those of the prompt; "last", those that a next token is read from: the prompt's last
    and every generated one; or places, negative ones counted from the prompt's end. The prompt is what a pass without
    a cache reads. `text` says in words what is done.
    """

    site: str
    change: Callable[[Here, int], Tensor]
    text: str
    positions: str | Sequence[int] = "all"


def add(direction: Direction, strength: float, *, absolute: bool = False, positions: str | Sequence[int] = "all"
        ) -> Intervention:
    """h + strength * scale * v / |v|: steering. `absolute`: strength is a length itself, not in units of the mean norm.

    Source: Turner et al. 2023 (arXiv 2308.10248), Rimsky et al. 2023 (arXiv 2312.06681).
    """
    by = direction.amount(strength, absolute) * direction.unit

    def change(x: Tensor, first: int) -> Tensor:
        return x + _fitting(by, x, direction)

    return Intervention(direction.site, change, f"{direction.label or 'direction'} added at {direction.site}, "
                        f"length {float(by.norm()):.4g}", positions)


def clamp(direction: Direction, value: float, *, absolute: bool = False, positions: str | Sequence[int] = "all"
          ) -> Intervention:
    """(I - P) h + value * scale * v / |v|, P the projection on v: its part along v is `value`, whatever it was."""
    target = direction.amount(value, absolute)

    def change(x: Tensor, first: int) -> Tensor:
        unit = _fitting(direction.unit, x, direction)
        return x + (target - (x @ unit)[..., None]) * unit

    return Intervention(direction.site, change, f"{direction.label or 'direction'} clamped to {target:.4g} at "
                        f"{direction.site}", positions)


def project_out(direction: Direction, *, positions: str | Sequence[int] = "all") -> Intervention:
    """(I - P) h: the direction is ablated."""
    return clamp(direction, 0.0, absolute=True, positions=positions)


def _fitting(vector: Tensor, x: Tensor, direction: Direction) -> Tensor:
    if len(vector) != x.shape[-1]:
        raise AcdcError(f"the direction {direction.label!r} has {len(vector):,} dimensions, {direction.site} has "
                        f"{x.shape[-1]:,}; it is of another site or model")
    return vector.to(x)


def ablate_nodes(model: Transformer, nodes: Sequence[str], values: Replacement, *,
                 positions: str | Sequence[int] = "all") -> list[Intervention]:
    """Each node writes its replacement instead, as `prepare_ablation(...)(batch)` gives it, one intervention a node.

    Zero and mean_over_positions are the same at every position; values by position (mean, resample) hold for prompts
    of their length alone, and generation past them is refused. Raises `AcdcError` for an unknown node.
    """
    index, found = model.graph().src_index, []
    for node in nodes:
        if node not in index:
            raise unknown_name("node", node, index)
        value = contribution(model, values.activations, index[node])
        found.append(Intervention(node, _replaces(node, value), f"{node} ablated", positions))
    return found


def _replaces(node: str, value: Tensor) -> Callable[[Tensor, int], Tensor]:
    def change(x: Tensor, first: int) -> Tensor:
        new = value if value.shape[1] == 1 else value[:, first : first + x.shape[1]]
        if new.shape[1] not in (1, x.shape[1]) or new.shape[0] not in (1, x.shape[0]):
            raise AcdcError(
                f"the values of {node} are of {value.shape[0]} prompts of {value.shape[1]} tokens; they cannot stand "
                f"at positions {first} to {first + x.shape[1] - 1} of {x.shape[0]}. Use zero or mean_over_positions"
            )
        return new.to(x).expand_as(x)

    return change


@contextmanager
def intervened(model: Transformer, interventions: Sequence[Intervention], *, prompt: int = 0) -> Iterator[None]:
    """Every forward pass of the model inside has these interventions, with or without a cache; gradients flow.

    `prompt`: the prompt's length, where it was read before. Runs of circuits (`run_circuit`) do not have them: they
    compute nodes in another way. Raises `AcdcError` for a site or positions that are none; the hooks are gone
    afterwards, whatever happens.
    """
    place = Place(prompt)
    with ExitStack() as stack:
        attach = stack.enter_context(hooks())
        attach(model.hf.base_model.register_forward_pre_hook(place.note, with_kwargs=True))
        for intervention in interventions:
            stack.enter_context(changed(model, {intervention.site: _at(place, intervention)}))
        yield


class Place:
    """Where in the text a forward pass is: `first`, its first position, and `prompt`, the length of the prompt."""

    def __init__(self, prompt: int = 0) -> None:
        self.first, self.prompt = 0, prompt

    def note(self, module: Any, args: tuple, kwargs: dict) -> None:
        """Is called before each pass; a cache holds what was read before."""
        cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
        given = (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        tokens = next(tokens for tokens in given if tokens is not None)
        self.first = 0 if cache is None else int(cache.get_seq_length())
        if self.first == 0:
            self.prompt = tokens.shape[1]


def _at(place: Place, intervention: Intervention) -> Change:
    positions = intervention.positions
    if isinstance(positions, str) and positions not in POSITIONS:
        raise unknown_name("positions", positions, POSITIONS)

    def change(x: Tensor) -> Tensor:
        new = intervention.change(x, place.first)
        return new if positions == "all" else torch.where(_mask(positions, place, x)[None, :, None], new, x)

    return change


def _mask(positions: str | Sequence[int], place: Place, x: Tensor) -> Bool[Tensor, " pos"]:
    here = torch.arange(place.first, place.first + x.shape[1], device=x.device)
    if positions == "prompt":
        return here < place.prompt
    if positions == "last":
        return here >= place.prompt - 1
    chosen = [int(p) for p in positions]
    if any(p < -place.prompt for p in chosen):
        raise AcdcError(f"positions {chosen}: the prompt has {place.prompt} tokens, so they begin at -{place.prompt}")
    places = [p if p >= 0 else place.prompt + p for p in chosen]
    return torch.isin(here, torch.tensor(places, device=x.device, dtype=here.dtype))

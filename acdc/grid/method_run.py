"""Which method, with which options, a text such as `edge_pruning:sparsity=0.99,steps=300` means."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from acdc.arguments import choose, size_of
from acdc.circuit import EdgeScores, Rank
from acdc.discovery import METHODS
from acdc.discovery.ensemble import choose_methods
from acdc.errors import AcdcError, unknown_name
from acdc.metrics import METRICS

OF_THE_RUN = ("loss", "by", "prompts", "shortlist")  # what any method takes here, as far as it makes sense
OF_THE_GRID = {"ablation", "kv", "positions", "per_prompt", "progress", "journal", "checkpoint", "seed"}


@dataclass(frozen=True)
class MethodRun:
    """A method with its options.

    `loss`: the metric that it minimises, the task's if None. `by`: the ranking of its headline curve. `prompts`: how
    many of the grid's it takes, all if None. `shortlist`: how many edges, or which share, it tries (a search).
    """

    label: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    loss: str | None = None
    by: Rank = "magnitude"
    prompts: int | None = None
    shortlist: str | None = None

    @property
    def function(self) -> Callable[..., EdgeScores]:
        return METHODS[self.method]

    @property
    def takes_seed(self) -> bool:
        return "seed" in inspect.signature(self.function).parameters


def parse_method(text: str) -> MethodRun:
    """`name` or `name:option=value,option=value`; several names are joined by +, as in `ensemble:methods=eap+relp`.

    Options are the method's own, and: `loss`, a metric, by default that of the method where it is KL, else the task's;
    `by`, signed or magnitude, by default signed for methods of KL, which look for what does as the model does, else
    magnitude; `prompts`, how many of the prompts it takes; `shortlist`, as 500 or 5%, for a search. Raises `AcdcError`
    for what the method does not take.
    """
    name, _, rest = text.strip().partition(":")
    choose("method", name, METHODS)
    taken = inspect.signature(METHODS[name]).parameters
    own = {key: p for key, p in taken.items() if p.kind is p.KEYWORD_ONLY and key not in OF_THE_GRID}
    known = [key for key in dict.fromkeys((*own, *OF_THE_RUN)) if key != "shortlist" or key in own]
    default = taken["metric"].default.name
    found: dict[str, Any] = {"loss": default if default == "kl_divergence" else None}
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise AcdcError(f"method {text!r}: {part!r} is no option=value")
        if key not in known:
            raise unknown_name(f"option of {name!r}", key, known)
        if key in OF_THE_RUN:
            found[key] = _of_run(text, key, value)
        else:
            options[key] = _value(text, key, value, own[key].default)
    found.setdefault("by", "signed" if found["loss"] == "kl_divergence" else "magnitude")
    return MethodRun(text.strip(), name, options, **found)


def _of_run(text: str, key: str, value: str) -> Any:
    if key == "loss":
        choose("metric", value, METRICS)
    elif key == "by":
        choose("ranking", value, {"signed": None, "magnitude": None})
    elif key == "shortlist":
        size_of(value, option=f"method {text!r}: shortlist")
    else:
        n = _value(text, key, value, 0)
        if n < 1:
            raise AcdcError(f"method {text!r}: prompts={n}; it must be at least 1")
        return n
    return value


def _value(text: str, key: str, value: str, default: Any) -> Any:
    """The value in the type of the option's default; where that is None, a number if it is one."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value.lower()]
        if isinstance(default, tuple):
            choose_methods(value.split("+"))
            return tuple(value.split("+"))
        if isinstance(default, str):
            return value
        if isinstance(default, int) or (default is None and value.lstrip("-").isdigit()):
            return int(value)
        number = float(value)
    except (ValueError, KeyError) as error:
        kind = {bool: "true or false", int: "a whole number"}.get(type(default), "a number")
        raise AcdcError(f"method {text!r}: {key}={value!r} must be {kind}") from error
    if not math.isfinite(number):
        raise AcdcError(f"method {text!r}: {key}={value} must be a finite number")
    return number

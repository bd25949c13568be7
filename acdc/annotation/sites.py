"""Which places of a model can be read and changed while it runs, by name.

- `resid5`: the residual stream that block 5 reads; `input` is `resid0`, `resid{n_layers}` what the final norm reads
- `resid5.mid`: the residual stream that the MLP of layer 5 reads (not where attention and MLP are parallel)
- `a5`, `a5.h1`: what attention, or one head of it, adds to the residual stream
- `a5.z`, `a5.h1.z`: attention's outputs before W_O, heads side by side, or one head's
- `m5`: what the MLP adds to the residual stream
- `m5.in`, `m5.neurons`: what the MLP's first weights read, after the norm; and what its last weights read
- `m5.norm`: what that norm makes of the residual stream before its gain and bias

Everything happens in HuggingFace's own forward, by hooks that are gone afterwards, so it also holds while it generates:
there a site sees the prompt first, then one position at a time.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.activations import hooks, out_weight
from acdc.architectures.anatomy import Block
from acdc.errors import AcdcError
from acdc.transformer import Transformer, frozen

Here = Float[Tensor, "batch pos width"]
Change = Callable[[Tensor], "Tensor | None"]
"""What is done at a site: it gets what is there, and returns what shall be there instead, or None to leave it."""

NAME = re.compile(r"(?P<kind>resid|a|m)(?P<layer>0|[1-9]\d{0,5})(?:\.h(?P<head>0|[1-9]\d{0,5}))?"
                  r"(?:\.(?P<part>mid|z|norm|in|neurons))?")
PARTS = {"resid": (None, "mid"), "a": (None, "z"), "m": (None, "norm", "in", "neurons")}
# What is computed after what in a layer; heads come just before the whole
ORDER = {("resid", None): 0, ("a", "z"): 1, ("a", None): 2, ("resid", "mid"): 3, ("m", "norm"): 4, ("m", "in"): 5,
         ("m", "neurons"): 6, ("m", None): 7}


@dataclass(frozen=True)
class Site:
    """A place of one model. `kind`: "resid", "a" or "m"; `head` and `part` as in its name."""

    name: str
    kind: str
    layer: int
    head: int | None
    part: str | None


def site(model: Transformer, name: str) -> Site:
    """The site of that name. Raises `AcdcError` for a name that is none, and for a layer or head beyond the model's."""
    match = NAME.fullmatch("resid0" if name == "input" else name)
    if match is None or match["part"] not in PARTS[match["kind"]] or (match["head"] and match["kind"] != "a"):
        raise AcdcError(f"{name!r} is not a site; write input, resid5, resid5.mid, a5, a5.h1, a5.z, a5.h1.z, m5, "
                        "m5.norm, m5.in or m5.neurons, with the layer and head that you mean")
    kind, layer, part = match["kind"], int(match["layer"]), match["part"]
    last = model.n_layers if kind == "resid" and part is None else model.n_layers - 1
    if layer > last:
        raise AcdcError(f"{name!r}: {model.name} has {model.n_layers} layers, so its last is {kind}{last}")
    if match["head"] and int(match["head"]) >= model.n_heads:
        raise AcdcError(f"{name!r}: {model.name} has the heads h0 to h{model.n_heads - 1} in each layer")
    if part == "mid" and model.parallel:
        raise AcdcError(f"{name!r}: attention and MLP of {model.name} are parallel, both read resid{layer}")
    if part == "norm" and model.blocks[layer].mlp_norm.eps is None:
        raise AcdcError(f"{name!r}: there is no norm before that MLP, take {kind}{layer}.in")
    if part == "neurons" and _neurons(model.blocks[layer]) is None:
        raise AcdcError(f"{name!r}: that MLP has no neurons that could be found")
    return Site(name, kind, layer, None if match["head"] is None else int(match["head"]), part)


def check_after(model: Transformer, reads: str, target: str) -> None:
    """Raises `AcdcError` where what is at `target` is not computed after what is at `reads`, or the same. Errors as
    `site`."""
    first, then = site(model, reads), site(model, target)
    place = [(at.layer, ORDER[at.kind, at.part], at.head is None) for at in (first, then)]
    other_head = None not in (first.head, then.head) and first.head != then.head
    parallel = model.parallel and {first.kind, then.kind} == {"a", "m"}
    beside = first.layer == then.layer and (other_head or parallel)
    same = place[0] == place[1] and not other_head
    if not same and (place[0] >= place[1] or beside):
        raise AcdcError(f"{target} does not come after {reads} in {model.name}, so it cannot be rebuilt from it; take "
                        "a target that is computed from what is read, such as m5 from m5.in, or the same site")


def width(model: Transformer, name: str) -> int:
    """The number of dimensions at a site, found by one short forward pass. Errors as `site`."""
    return widths(model, [name])[name]


def widths(model: Transformer, names: Sequence[str]) -> dict[str, int]:
    """The same of several sites, by one pass."""
    probe = model.anatomy.probe
    tokens = torch.zeros(1, 1, dtype=torch.long, device=model.device) if probe is None else probe()
    return {name: here.shape[-1] for name, here in read(model, tokens, names).items()}


def read(model: Transformer, tokens: Int[Tensor, "batch pos"], names: Sequence[str]) -> dict[str, Here]:
    """What is at the sites `names`. Cost: a forward pass up to the last of them. Errors as `site`."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Change:
        def change(x: Tensor) -> None:
            seen[name] = x.clone()
            if len(seen) == len(set(names)):
                raise _AllSeen

        return change

    with frozen(model), torch.no_grad(), suppress(_AllSeen), changed(model, {name: note(name) for name in names}):
        model.run_body(tokens)
    return seen


class _AllSeen(Exception):  # noqa: N818 - it ends a forward pass of which the rest is not needed
    pass


@contextmanager
def changed(model: Transformer, changes: Mapping[str, Change]) -> Iterator[None]:
    """Every forward pass of the model inside has these changes made; gradients flow through them.

    A change of a head's contribution (`a5.h1`) changes what its layer's attention adds, by as much. Where a norm
    follows attention or MLP (Gemma), `a5`, `a5.h1` and `m5` are what the norm returned. Several changes of one layer's
    attention are made one after the other. Errors as `site`, and `AcdcError` for a change of another shape.
    """
    with hooks() as add:
        for name, change in changes.items():
            _attach(model, site(model, name), _checked(name, change), add)
        yield


def _checked(name: str, change: Change) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        new = change(x)
        if new is not None and new.shape != x.shape:
            raise AcdcError(f"the change at {name} returned the shape {tuple(new.shape)} for {tuple(x.shape)}")
        return x if new is None else new

    return apply


def _attach(model: Transformer, at: Site, change: Callable[[Tensor], Tensor], add: Any) -> None:
    if at.kind == "resid" and at.part is None and at.layer == model.n_layers:
        add(model.anatomy.final_norm.module.register_forward_pre_hook(lambda m, args: (change(args[0]),)))
        return
    block = model.blocks[at.layer]
    attention_out = block.attention.out if block.attn_post is None else block.attn_post.module
    if at.kind == "resid" and at.part is None:
        add(block.module.register_forward_pre_hook(_first_argument(change), with_kwargs=True))
    elif at.part == "mid":
        stream: dict[str, Tensor] = {}

        def note_stream(x: Tensor) -> Tensor:
            stream["x"] = x  # a pass may have ended before it was taken
            return x

        add(block.module.register_forward_pre_hook(_first_argument(note_stream), with_kwargs=True))

        def of_stream(m: Any, args: tuple, out: Tensor) -> Tensor:
            before = stream.pop("x")
            return change(before + out) - before

        add(attention_out.register_forward_hook(of_stream))
    elif at.kind == "a" and at.part == "z":
        add(block.attention.out.register_forward_pre_hook(lambda m, args: (_of_head(block, at.head, args[0], change),)))
    elif at.kind == "a" and at.head is None:
        add(attention_out.register_forward_hook(lambda m, args, out: change(out)))
    elif at.kind == "a":
        _attach_head(block, at.head, attention_out, change, add)
    elif at.part == "norm":
        _attach_norm(block, change, add)
    elif at.part == "in":
        add(block.mlp.register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:])))
    elif at.part == "neurons":
        module, reads = _neurons(block)
        add(module.register_forward_pre_hook(lambda m, args: (change(args[0]),)) if reads
            else module.register_forward_hook(lambda m, args, out: change(out)))
    else:
        module = block.mlp if block.mlp_post is None else block.mlp_post.module
        add(module.register_forward_hook(lambda m, args, out: change(out)))


def _first_argument(change: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: Any, args: tuple, kwargs: dict) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook


def _of_head(block: Block, head: int | None, z: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    if head is None:
        return change(z)
    by_head = z.unflatten(-1, (block.attention.q.n_heads, block.attention.q.d_head))
    new = [change(by_head[..., head, :]) if i == head else by_head[..., i, :] for i in range(by_head.shape[-2])]
    return torch.stack(new, dim=-2).flatten(-2)


def _attach_head(block: Block, head: int | None, attention_out: Any, change: Callable[[Tensor], Tensor], add: Any
                 ) -> None:
    seen: dict[str, Tensor] = {}

    def note_z(m: Any, args: tuple) -> None:
        seen["z"] = args[0].unflatten(-1, (block.attention.q.n_heads, block.attention.q.d_head))[..., head, :]

    def note_scale(m: Any, args: tuple) -> None:
        assert block.attn_post is not None
        seen["z"] = seen["z"] * block.attn_post.statistics(args[0])[1].to(seen["z"].dtype)

    def of_contribution(m: Any, args: tuple, out: Tensor) -> Tensor:
        wrote = seen.pop("z") @ out_weight(block)[head]
        return out + (change(wrote) - wrote)

    add(block.attention.out.register_forward_pre_hook(note_z))
    if block.attn_post is not None:
        add(block.attn_post.module.register_forward_pre_hook(note_scale))
    add(attention_out.register_forward_hook(of_contribution))


def _attach_norm(block: Block, change: Callable[[Tensor], Tensor], add: Any) -> None:
    seen: dict[str, Tensor] = {}

    def note(m: Any, args: tuple, out: Tensor) -> None:
        seen["x_hat"] = block.mlp_norm.statistics(args[0])[0].to(out.dtype)

    def apply(m: Any, args: tuple) -> tuple:
        before = seen.pop("x_hat")
        moved, gain = change(before) - before, block.mlp_norm.gain
        return (args[0] + (moved if gain is None else moved * gain), *args[1:])

    add(block.mlp_norm.module.register_forward_hook(note))
    add(block.mlp.register_forward_pre_hook(apply))


def _neurons(block: Block) -> Any:
    """The module at which an MLP's neurons are found, and whether it reads them (else it returns them)."""
    if block.gated_down is not None:
        return block.gated_down, True
    return None if block.mlp_act is None else (block.mlp_act, False)

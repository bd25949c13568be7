"""Directions, nodes and edges watched while a model generates, one reading a token, with alarms."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from acdc.annotation.sites import Change, changed, site
from acdc.architectures.anatomy import Norm
from acdc.errors import AcdcError
from acdc.intervention.direction import Direction, checked
from acdc.intervention.generation import Chooser, Reader, Tokens, check_prompt, end_tokens
from acdc.intervention.interventions import Intervention, intervened
from acdc.transformer import Transformer

Here = Float[Tensor, "batch pos width"]
Values = Float[Tensor, "batch pos"]


@dataclass(frozen=True, eq=False)
class Watch:
    """`value` makes one number a position of what is at `sites`; above `threshold` it is an alarm (None: never)."""

    name: str
    sites: tuple[str, ...]
    value: Callable[..., Tensor]
    threshold: float | None = None


@dataclass(frozen=True)
class Reading:
    """One token, what was measured where the model read it, and the watches whose value is above their threshold."""

    position: int
    token: int
    text: str
    prompt: bool
    values: dict[str, float]
    alarms: tuple[str, ...]

    def as_record(self) -> dict[str, Any]:
        return {**vars(self), "alarms": list(self.alarms)}


def watch_direction(model: Transformer, direction: Direction, threshold: float | None = None) -> Watch:
    """h . v / |v| - offset: the projection beyond neutral, in the unit of the activations. For a probe's direction its
    logit over the norm of its weights."""
    fitting = checked(model, direction)

    def value(x: Here) -> Values:
        return x @ fitting.unit - direction.offset

    return Watch(direction.label or direction.site, (direction.site,), value, threshold)


def watch_feature(name: str, at: str, encode: Callable[[Tensor], Tensor], index: int, threshold: float | None = None
                  ) -> Watch:
    """A feature of a sparse autoencoder: `encode` makes the features of what is at the site `at`."""
    return Watch(name, (at,), lambda x: encode(x)[..., index], threshold)


def watch_node(model: Transformer, node: str, threshold: float | None = None) -> Watch:
    """|what the node writes|: the norm of its contribution to the residual stream."""
    if node not in model.graph().src_index:
        raise AcdcError(f"{node!r} is not a node that writes; name one such as a3.h1, m3 or input")
    return Watch(node, (node,), _norm, threshold)


def _norm(x: Here) -> Values:
    return x.norm(dim=-1)


def watch_edge(model: Transformer, edge: str, threshold: float | None = None) -> Watch:
    """How much of what the edge's dst reads is src's, at that position.

    Into q, k, v or an MLP: the share c . y / |y|^2, y what the channel computes (q, k, v as its projection returns it;
    the normed stream that an MLP reads) and c src's part of it, with the norm's scale as it is. The shares of all srcs
    and of the biases sum to 1; one is negative where src writes against the rest. Into the logits: the direct effect on
    the logit of the likeliest next token, in logits (a soft-cap aside), less its mean over the vocabulary.
    """
    graph = model.graph()
    number = graph.edge(edge)
    src, channel = graph.srcs[graph.edge_src[number]], graph.channels[graph.edge_channel[number]]
    layer = channel.node.layer
    if channel.node.kind == "logits":
        def direct(c: Here, x: Here) -> Values:
            row = model.logits(x).argmax(-1)
            weight = model.unembedding
            part = _part(model.anatomy.final_norm, c, x)
            return (part * (weight[row] - weight.mean(0))).sum(-1)

        return Watch(edge, (src.name, f"resid{model.n_layers}"), direct, threshold)
    block = model.blocks[layer]
    if channel.node.kind == "mlp":
        def share(c: Here, x: Here) -> Values:
            return _share(_part(block.mlp_norm, c, x), block.mlp_norm(x))

        return Watch(edge, (src.name, f"resid{layer}" if model.parallel else f"resid{layer}.mid"), share, threshold)
    projection = getattr(block.attention, channel.letter)
    own = channel.node.index if channel.letter == "q" else int(model.kv_head[channel.node.index])

    def projected(c: Here, x: Here) -> Values:
        y = projection.of_output(projection.module(block.attn_norm(x)))[..., own, :]
        return _share(_part(block.attn_norm, c, x) @ projection.weight[own].T, y)

    return Watch(edge, (src.name, f"resid{layer}"), projected, threshold)


def _part(norm: Norm, c: Here, x: Here) -> Here:
    """The part of norm(x) that comes from c, one of x's summands: linear, given the scale that x has."""
    centred = c - c.mean(-1, keepdim=True) if norm.centered else c
    scaled = centred * norm.statistics(x)[1].to(c.dtype)
    return scaled if norm.gain is None else scaled * norm.gain


def _share(part: Here, whole: Here) -> Values:
    return (part * whole).sum(-1) / whole.pow(2).sum(-1).clamp(min=torch.finfo(whole.dtype).tiny)


def monitor(
    model: Transformer,
    prompt: Tokens,
    watches: Sequence[Watch],
    n_tokens: int,
    *,
    interventions: Sequence[Intervention] = (),
    stop_on_alarm: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Reading]:
    """Yields a reading for each token of the prompt, then for each that is generated, as it is read.

    A token's values are those where the model reads it, so an alarm is there before the next token is chosen:
    `stop_on_alarm` ends the text there. Values equal those of one pass over the whole text. `interventions` are seen as
    they change it. Cost: as `generate`, and one position more. No hook is left between tokens, so the model can be used
    in the meantime. Raises `AcdcError` at once for no watch, two of one name, and sites that are none.
    """
    check_prompt(prompt, n_tokens)
    names = [watch.name for watch in watches]
    if not names or len(set(names)) < len(names):
        raise AcdcError(f"watching {', '.join(names) or 'nothing'}: give at least one watch, each with its own name")
    for name in (name for watch in watches for name in watch.sites):
        site(model, name)
    choose, read, ends = Chooser(temperature, seed), _WatchedReader(model, watches, interventions), end_tokens(model)
    return _readings(model, prompt, n_tokens, choose, read, ends, stop_on_alarm)


def _readings(model: Transformer, prompt: Tensor, n_tokens: int, choose: Chooser, read: "_WatchedReader",
              ends: set[int], stop_on_alarm: bool) -> Iterator[Reading]:
    tokens, position = prompt, 0
    while True:
        logits, values = read(tokens)
        for place, token in enumerate(tokens[0].tolist()):
            now = {name: float(row[place]) for name, row in values.items()}
            alarms = tuple(watch.name for watch in read.watches
                           if watch.threshold is not None and now[watch.name] > watch.threshold)
            text = "" if model.tokenizer is None else model.tokenizer.decode([token])
            yield Reading(position, token, text, position < prompt.shape[1], now, alarms)
            position += 1
            if alarms and stop_on_alarm:
                return
        generated = position - prompt.shape[1]
        if generated >= n_tokens or (generated and int(tokens[0, -1]) in ends):
            return
        tokens = choose(logits)


class _WatchedReader:
    """Reads tokens, and what is at the watched sites. Hooks are there during each pass alone."""

    def __init__(self, model: Transformer, watches: Sequence[Watch], interventions: Sequence[Intervention]) -> None:
        self.model, self.interventions, self.reader = model, interventions, Reader(model)
        self.watches, self.prompt = list(watches), 0

    def __call__(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.prompt = self.prompt or tokens.shape[1]
        seen: dict[str, Tensor] = {}
        with ExitStack() as stack:
            stack.enter_context(intervened(self.model, self.interventions, prompt=self.prompt))
            for name in dict.fromkeys(name for watch in self.watches for name in watch.sites):
                stack.enter_context(changed(self.model, {name: _noting(seen, name)}))
            logits = self.reader(tokens)
        with torch.no_grad():
            return logits, {watch.name: watch.value(*(seen[name] for name in watch.sites))[0].float().cpu()
                            for watch in self.watches}


def _noting(seen: dict[str, Tensor], name: str) -> Change:
    return lambda x: seen.update({name: x.detach().clone()})

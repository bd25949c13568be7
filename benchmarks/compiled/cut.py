"""What the edges of a compiled model do: its forward pass in numpy, in which any edge can be cut.

It shares no code with the package, so that the true edges are found by other means than the methods that are measured
against them. In float64, with logits at every position.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

Edge = tuple[str, str]  # src, channel
MOVED = 1e-3  # an edge counts if cutting it alone moves some logit by more than this


@dataclass(frozen=True)
class Weights:
    """A compiled model: no biases, no norms, relu, attention scores divided by sqrt(d_head)."""

    token_embed: np.ndarray  # token d_model
    position_embed: np.ndarray  # position d_model
    q: np.ndarray  # layer d_model head d_head; k and v too
    k: np.ndarray
    v: np.ndarray
    o: np.ndarray  # layer head d_head d_model
    mlp_in: np.ndarray  # layer d_model d_mlp
    mlp_out: np.ndarray  # layer d_mlp d_model
    unembed: np.ndarray  # d_model label
    causal: bool
    apart: bool = False  # whether token and position embedding are two nodes, tok and pos, or one, input

    @property
    def embeds(self) -> list[str]:
        """The nodes that the first layer reads."""
        return ["tok", "pos"] if self.apart else ["input"]

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, heads."""
        return self.q.shape[0], self.q.shape[2]

    def tensors(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


def channels(n_layers: int, n_heads: int, embeds: Iterable[str] = ("input",)) -> Iterator[tuple[str, list[str]]]:
    """Every channel in the order of the forward pass, with the nodes that it can read."""
    before = list(embeds)
    for layer in range(n_layers):
        heads = [f"a{layer}.h{h}" for h in range(n_heads)]
        for letter, head in product("qkv", heads):
            yield f"{head}<{letter}>", list(before)
        before += heads
        yield f"m{layer}", list(before)
        before.append(f"m{layer}")
    yield "logits", before


def edges(weights: Weights) -> list[Edge]:
    return [(src, channel) for channel, srcs in channels(*weights.shape, weights.embeds) for src in srcs]


def name(edge: Edge) -> str:
    return "->".join(edge)


def run(weights: Weights, tokens: np.ndarray, cut: Iterable[Edge] = (), replaced: Mapping[str, np.ndarray] | None = None
        ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits at every position, and what every node writes, in float64; an edge of `cut` carries its src's value in
    `replaced`, or 0 without it."""
    w = {name: value.astype(np.float64) for name, value in weights.tensors().items()}
    n_layers, n_heads = weights.shape
    cut, length = set(cut), tokens.shape[1]
    hidden = np.triu(np.full((length, length), -np.inf), 1) if weights.causal else np.zeros((length, length))
    of_tokens, of_positions = w["token_embed"][tokens], np.broadcast_to(w["position_embed"][:length],
                                                                        (*tokens.shape, w["position_embed"].shape[1]))
    wrote = {"tok": of_tokens, "pos": of_positions} if weights.apart else {"input": of_tokens + of_positions}
    readable = dict(channels(*weights.shape, weights.embeds))

    def read(channel: str) -> np.ndarray:
        total = np.zeros_like(of_tokens)
        for src in readable[channel]:
            if (src, channel) not in cut:
                total = total + wrote[src]
            elif replaced is not None:
                total = total + replaced[src]
        return total

    for layer in range(n_layers):
        heads = {}
        for h in range(n_heads):
            q, k, v = (read(f"a{layer}.h{h}<{x}>") @ w[x][layer, :, h] for x in "qkv")
            scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + hidden
            attention = np.exp(scores - scores.max(-1, keepdims=True))
            heads[f"a{layer}.h{h}"] = attention / attention.sum(-1, keepdims=True) @ v @ w["o"][layer, h]
        wrote |= heads
        wrote[f"m{layer}"] = np.maximum(read(f"m{layer}") @ w["mlp_in"][layer], 0) @ w["mlp_out"][layer]
    return read("logits") @ w["unembed"], wrote


def used_by_weights(weights: Weights) -> list[Edge]:
    """The edges whose src writes into directions that the channel reads, on a path of such edges to the logits."""
    n_layers, n_heads = weights.shape
    tok, pos = weights.token_embed, weights.position_embed
    writes = {"tok": tok, "pos": pos} if weights.apart else {"input": np.concatenate([tok, pos])}
    reads = {"logits": weights.unembed}
    for layer in range(n_layers):
        for h in range(n_heads):
            writes[f"a{layer}.h{h}"] = weights.o[layer, h]
            reads |= {f"a{layer}.h{h}<{x}>": getattr(weights, x)[layer, :, h] for x in "qkv"}
        writes[f"m{layer}"], reads[f"m{layer}"] = weights.mlp_out[layer], weights.mlp_in[layer]
    used = {(src, channel) for src, channel in edges(weights) if np.any(writes[src] @ reads[channel])}
    while True:
        fed = {channel.partition("<")[0] for _, channel in used} | set(weights.embeds)
        read = {src for src, _ in used} | {"logits"}
        pruned = {(src, channel) for src, channel in used if src in fed and channel.partition("<")[0] in read}
        if pruned == used:
            return [edge for edge in edges(weights) if edge in used]
        used = pruned


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted prompts of one length as token ids, BOS first."""

    clean: np.ndarray
    corrupted: np.ndarray


def movement(weights: Weights, pairs: Pairs, ablation: str) -> Callable[[Iterable[Edge]], np.ndarray]:
    """By how much cutting edges moves the logits of the clean prompts: edges -> (prompt, position after BOS)."""
    replaced = run(weights, pairs.corrupted)[1] if ablation == "resample" else None
    clean = run(weights, pairs.clean)[0]

    def moved_by(cut: Iterable[Edge]) -> np.ndarray:
        return np.abs(run(weights, pairs.clean, cut, replaced)[0] - clean).max(-1)[:, 1:]

    return moved_by

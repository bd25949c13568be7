"""By how much each edge and each node, cut alone, changes what a network says: a forward pass in which any can be cut.

It is plain algebra on the weights, in float64, and shares no code with the engine whose methods are tested against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from acdc.benchmarks.compiled.cut import Edge, channels  # pyright: ignore[reportMissingImports]
from acdc.metrics import Metric
from acdc.task import Batch

Wrote = Mapping[str, Float[Tensor, "batch pos d_model"]]


@dataclass(frozen=True)
class Run:
    """Of a network: what it gives at every position, what every node writes, and where every head attends."""

    outputs: Float[Tensor, "batch pos output"]
    wrote: Wrote
    patterns: Mapping[str, Float[Tensor, "batch query key"]]


class Network:
    """The weights of a GPT-2 without norms, in float64; b_O is added whatever is cut."""

    def __init__(self, hf: Any) -> None:
        self.weights = {name: weight.detach().double() for name, weight in hf.state_dict().items()}
        self.layers, self.heads = hf.config.n_layer, hf.config.n_head
        self.readable = dict(channels(self.layers, self.heads))

    @property
    def edges(self) -> list[Edge]:
        return [(src, channel) for channel, srcs in self.readable.items() for src in srcs]

    @property
    def nodes(self) -> list[str]:
        """Those that write."""
        return self.readable["logits"]

    def run(self, tokens: Int[Tensor, "batch pos"], cut: Sequence[Edge] = (), replaced: Wrote | None = None
            ) -> Run:
        """A forward pass in which an edge of `cut` carries its src's value in `replaced`, or 0 without it."""
        w, length = self.weights, tokens.shape[1]
        wrote: dict[str, Tensor] = {}
        patterns: dict[str, Tensor] = {}
        wrote["input"] = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][:length]
        biases = torch.zeros_like(wrote["input"])
        future = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)

        def read(channel: str) -> Tensor:
            total = biases
            for src in self.readable[channel]:
                if (src, channel) not in cut:
                    total = total + wrote[src]
                elif replaced is not None:
                    total = total + replaced[src]
            return total

        for layer in range(self.layers):
            at, found = f"transformer.h.{layer}", {}
            qkv_weight, qkv_bias = w[f"{at}.attn.c_attn.weight"].chunk(3, 1), w[f"{at}.attn.c_attn.bias"].chunk(3)
            out = w[f"{at}.attn.c_proj.weight"].chunk(self.heads, 0)
            for h in range(self.heads):
                q, k, v = (read(f"a{layer}.h{h}<{x}>") @ weight.chunk(self.heads, 1)[h] + bias.chunk(self.heads)[h]
                           for x, weight, bias in zip("qkv", qkv_weight, qkv_bias, strict=True))
                pattern = (q @ k.mT / q.shape[-1] ** 0.5 + future).softmax(-1)
                patterns[f"a{layer}.h{h}"] = pattern
                found[f"a{layer}.h{h}"] = pattern @ v @ out[h]
            wrote |= found
            biases = biases + w[f"{at}.attn.c_proj.bias"]
            hidden = F.gelu(read(f"m{layer}") @ w[f"{at}.mlp.c_fc.weight"] + w[f"{at}.mlp.c_fc.bias"])
            wrote[f"m{layer}"] = hidden @ w[f"{at}.mlp.c_proj.weight"] + w[f"{at}.mlp.c_proj.bias"]
        return Run(read("logits") @ w["lm_head.weight"].T, wrote, patterns)


def effects(hf: Any, batches: Sequence[Batch], metric: Metric, ablation: str, cuts: Mapping[str, Sequence[Edge]]
            ) -> dict[str, float]:
    """For each of `cuts`, the mean over prompts of how much the loss rises when these edges alone are cut."""
    network, totals = Network(hf), dict.fromkeys(cuts, 0.0)
    for batch in batches:
        replaced = network.run(batch.corrupted).wrote if ablation == "resample" else None
        clean = network.run(batch.clean).outputs[:, -1]
        for name, edges in cuts.items():
            moved = network.run(batch.clean, edges, replaced).outputs[:, -1]
            totals[name] += float((metric.loss(moved, batch, clean) - metric.loss(clean, batch, clean)).sum())
    return {name: total / sum(map(len, batches)) for name, total in totals.items()}


def each_edge(hf: Any) -> dict[str, list[Edge]]:
    """Every edge, to be cut alone."""
    return {"->".join(edge): [edge] for edge in Network(hf).edges}


def each_node(hf: Any) -> dict[str, list[Edge]]:
    """Every node that writes, to be cut alone: all edges out of it at once."""
    found: dict[str, list[Edge]] = {}
    for edge in Network(hf).edges:
        found.setdefault(edge[0], []).append(edge)
    return found

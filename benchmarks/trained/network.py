"""A small GPT-2 whose nodes can be recorded and swapped, in plain torch, for training and for measuring it.

Nodes have the names of the graph: `a{layer}.h{head}` (its attention output before W_O) and `m{layer}`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acdc.activations import hooks

STARTS_SMALL = 0.1  # what writes to the residual stream and what reads off the logits: no path is strong at first
Outputs = Float[Tensor, "batch pos output"]


@dataclass(frozen=True)
class Size:
    """Of a network. `outputs`: logits that it gives, or 1 for a number; `d_mlp` 0: MLPs that write nothing."""

    vocabulary: int
    positions: int
    outputs: int
    layers: int = 2
    heads: int = 4
    d_model: int = 16
    d_mlp: int = 32


@dataclass(frozen=True)
class Swap:
    """Of some rows of a batch, what a node writes instead of what it computes."""

    node: str
    rows: slice
    value: Float[Tensor, "row pos d_node"]


def new_network(size: Size, seed: int) -> Any:
    """A GPT-2 without norms, with random weights of a seed; its unembedding is its own.

    MLPs that write nothing are MLPs all of whose weights are 0 and do not learn.
    """
    from transformers import GPT2Config, GPT2LMHeadModel  # slow to import: not before it is needed

    config = GPT2Config(
        vocab_size=size.vocabulary, n_positions=size.positions, n_embd=size.d_model, n_layer=size.layers,
        n_head=size.heads, n_inner=max(1, size.d_mlp), activation_function="gelu", resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):  # its weights are drawn, and then replaced
        hf: Any = GPT2LMHeadModel(config)
        hf.lm_head = nn.Linear(size.d_model, size.outputs, bias=False)
    hf.transformer.ln_f = nn.Identity()
    for block in hf.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if ".mlp." in name and size.d_mlp == 0:
                weight.zero_().requires_grad_(False)
            elif weight.dim() == 1:
                weight.zero_()
            else:
                std = weight.shape[0] ** -0.5 if "c_attn" in name or "c_fc" in name else STARTS_SMALL
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    return hf


def rise_and_fall(steps: int) -> Callable[[int], float]:
    """The learning rate at each step, as a factor: it rises over the first twentieth, and falls to 0 as a cosine."""
    return lambda step: min((step + 1) / max(1, steps // 20), (1 + math.cos(math.pi * step / steps)) / 2)


def node_names(size: Size) -> list[str]:
    """The nodes that can be swapped, in the order of the forward pass."""
    return [name for layer in range(size.layers)
            for name in (*(f"a{layer}.h{head}" for head in range(size.heads)), f"m{layer}")]


def written(hf: Any, tokens: Int[Tensor, "batch pos"]) -> dict[str, Float[Tensor, "batch pos d_node"]]:
    """What every node writes, without gradients."""
    found: dict[str, Tensor] = {}

    def notes(layer: int, n_heads: int, d_head: int) -> Any:
        def heads(module: nn.Module, args: tuple) -> None:
            found.update({f"a{layer}.h{h}": z for h, z in enumerate(args[0].split(d_head, -1))})

        def mlp(module: nn.Module, args: tuple, out: Tensor) -> None:
            found[f"m{layer}"] = out

        return heads, mlp

    with hooks() as add, torch.no_grad():
        for layer, block in enumerate(hf.transformer.h):
            heads, mlp = notes(layer, block.attn.num_heads, block.attn.head_dim)
            add(block.attn.c_proj.register_forward_pre_hook(heads))
            add(block.mlp.register_forward_hook(mlp))
        hf(tokens, use_cache=False)
    return found


def outputs(hf: Any, tokens: Int[Tensor, "batch pos"], swaps: Sequence[Swap] = ()) -> Outputs:
    """What the network gives at every position, with some nodes swapped."""
    by_node: dict[str, list[Swap]] = {}
    for swap in swaps:
        by_node.setdefault(swap.node, []).append(swap)
    with hooks() as add:
        for layer, block in enumerate(hf.transformer.h):
            names = {h: f"a{layer}.h{h}" for h in range(block.attn.num_heads)}
            heads = {h: by_node[name] for h, name in names.items() if name in by_node}
            if heads:
                add(block.attn.c_proj.register_forward_pre_hook(_swaps_heads(heads, block.attn.head_dim)))
            if f"m{layer}" in by_node:
                add(block.mlp.register_forward_hook(_swaps_output(by_node[f"m{layer}"])))
        return hf(tokens, use_cache=False).logits


def _swaps_heads(swaps: Mapping[int, list[Swap]], d_head: int) -> Any:
    def hook(module: nn.Module, args: tuple) -> tuple:
        z = args[0].clone()
        for head, of_head in swaps.items():
            for swap in of_head:
                z[swap.rows, :, head * d_head : (head + 1) * d_head] = swap.value
        return (z,)

    return hook


def _swaps_output(swaps: Sequence[Swap]) -> Any:
    def hook(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        out = out.clone()
        for swap in swaps:
            out[swap.rows] = swap.value
        return out

    return hook

"""A small GPT-2 whose nodes can be recorded and swapped, in plain torch, for training and for measuring it.

Nodes have the names of the graph: `a{layer}.h{head}` (its attention output before W_O) and `m{layer}`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

STARTS_SMALL = 0.1  # what writes to the residual stream and what reads off the logits: no path is strong at first
Outputs = Float[Tensor, "batch pos output"]
Written = Float[Tensor, "batch pos d_node"]


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


def rise_and_fall(steps: int, power: int = 1) -> Callable[[int], float]:
    """The learning rate at each step, as a factor: it rises over the first twentieth, and falls to 0 as a power of
    half a cosine."""
    return lambda step: min((step + 1) / max(1, steps // 20), ((1 + math.cos(math.pi * step / steps)) / 2) ** power)


def node_names(size: Size) -> list[str]:
    """The nodes that can be swapped, in the order of the forward pass."""
    return [name for layer in range(size.layers)
            for name in (*(f"a{layer}.h{head}" for head in range(size.heads)), f"m{layer}")]


@dataclass(frozen=True)
class Pass:
    """What a network gives at every position, and what every node writes."""

    outputs: Outputs
    wrote: dict[str, Written]


def run(hf: Any, tokens: Int[Tensor, "batch pos"], swaps: Sequence[Swap] = ()) -> Pass:
    """A forward pass, with some nodes swapped, in a few operations that are quick for small networks."""
    body, wrote = hf.transformer, {}
    resid = body.wte(tokens) + body.wpe.weight[: tokens.shape[1]]
    hidden = torch.full((tokens.shape[1],) * 2, -torch.inf, dtype=resid.dtype).triu(1)[..., None, None]
    for layer, block in enumerate(body.h):
        heads = block.attn.num_heads
        # The batch last: products of many tiny matrices are quickest as products of long rows.
        q, k, v = block.attn.c_attn(resid).unflatten(-1, (3, heads, -1)).permute(2, 1, 3, 4, 0).contiguous()
        pattern = ((q[:, None] * k).sum(3) / q.shape[2] ** 0.5 + hidden).softmax(1)
        z = (pattern[:, :, :, None] * v).sum(1).permute(3, 0, 1, 2).contiguous()
        for h in range(heads):
            wrote[f"a{layer}.h{h}"] = z[:, :, h]
        for swap in swaps:
            if swap.node in (own := [f"a{layer}.h{h}" for h in range(heads)]):
                z = z.clone()
                z[swap.rows, :, own.index(swap.node)] = swap.value
        resid = resid + block.attn.c_proj(z.flatten(2))
        wrote[f"m{layer}"] = out = block.mlp(resid)
        for swap in swaps:
            if swap.node == f"m{layer}":
                out = out.clone()
                out[swap.rows] = swap.value
        resid = resid + out
    return Pass(hf.lm_head(resid), wrote)


def outputs(hf: Any, tokens: Int[Tensor, "batch pos"], swaps: Sequence[Swap] = ()) -> Outputs:
    """What the network gives at every position, with some nodes swapped."""
    return run(hf, tokens, swaps).outputs


@torch.no_grad()
def written(hf: Any, tokens: Int[Tensor, "batch pos"]) -> dict[str, Written]:
    """What every node writes, without gradients."""
    return run(hf, tokens).wrote

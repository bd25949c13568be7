"""One view of any supported model: embedding, blocks with per-head channels, unembedding.

The model stays HuggingFace's own; nothing is converted. What is computed here in other words than HF's (attention of
chosen heads on chosen positions) is checked against HF's logits when a model is loaded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from acdc.architectures import anatomy_of
from acdc.architectures.anatomy import Attention, Block
from acdc.architectures.placement import device_of, is_offloaded, is_spread, parameter, placed
from acdc.graph import KV, Graph, graph_of


@dataclass(frozen=True, eq=False)
class Transformer:
    """A HuggingFace model with its tokenizer, seen as a graph of heads and MLPs.

    `causal=False` runs it with every position seeing every other (compiled models of bidirectional programs, images).
    `workers`: those that pieces of its work are given to, see `acdc.cluster`.
    """

    hf: Any
    tokenizer: Any
    name: str
    causal: bool = True
    workers: Any = None

    @cached_property
    def anatomy(self) -> Any:
        anatomy = anatomy_of(self.hf)
        return placed(anatomy, self.device) if is_spread(self.hf) else anatomy

    @cached_property
    def is_offloaded(self) -> bool:
        """Whether weights are fetched from the CPU or a disk when they are needed (accelerate)."""
        return is_offloaded(self.hf)

    @property
    def blocks(self) -> tuple[Block, ...]:
        return self.anatomy.blocks

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def n_heads(self) -> int:
        return self.blocks[0].attention.q.n_heads

    @property
    def n_kv_heads(self) -> int:
        return self.blocks[0].attention.k.n_heads

    @property
    def parallel(self) -> bool:
        return self.anatomy.parallel

    @property
    def device(self) -> torch.device:
        """Where prompts, and what is computed here, are; of a model on several devices that of the unembedding."""
        return device_of(self.hf.get_output_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.get_output_embeddings().weight.dtype

    def graph(self, kv: KV = "head", positions: tuple[str, ...] = ()) -> Graph:
        """What can be cut in this model; `positions`: names that `task.position_names` gives."""
        return graph_of(self.n_layers, self.n_heads, self.n_kv_heads, self.parallel, kv, positions)

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """What the first block reads: the output of the `input` node."""
        return self.anatomy.embed(tokens).to(tokens.device)

    def logits(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """The logits from the residual stream after the last block."""
        logits = self.hf.get_output_embeddings()(self.anatomy.final_norm(resid)).to(resid.device)
        cap = self.anatomy.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        weight = parameter(self.hf.get_output_embeddings(), "weight", self.device)
        assert weight is not None
        return weight

    def token_text(self, token: int) -> str:
        """A token as text; its number where there is no tokenizer."""
        return str(token) if self.tokenizer is None else self.tokenizer.decode([token])

    def full_mask(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch 1 pos pos"] | None:
        """The attention mask that HF's forward takes: none for a causal model, else one that hides nothing."""
        if self.causal:
            return None
        batch, length = tokens.shape
        return torch.zeros(batch, 1, length, length, dtype=self.dtype, device=tokens.device)

    def run_body(self, tokens: Int[Tensor, "batch pos"]) -> None:
        """HF's own forward without the unembedding; hooks take what they need from it."""
        self.hf.base_model(input_ids=tokens, attention_mask=self.full_mask(tokens), use_cache=False)

    @cached_property
    def kv_head(self) -> Int[Tensor, " head"]:
        """For each query head, the KV head that it reads."""
        return torch.arange(self.n_heads) // (self.n_heads // self.n_kv_heads)

    def attend(
        self,
        attention: Attention,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key head d_head"],
        v: Float[Tensor, "batch key head d_head"],
        query_start: int,
        softmax: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "batch query head d_head"]:
        """Attention of some heads, from what their projections return to z (before W_O).

        Keys are at positions 0, 1, ...; queries at `query_start`, `query_start` + 1, ... `softmax`: what makes the
        pattern out of scores, over their last axis, in place of the softmax.
        """
        q_positions = torch.arange(query_start, query_start + q.shape[1], device=q.device)
        k_positions = torch.arange(k.shape[1], device=q.device)
        q = q if attention.q_norm is None else attention.q_norm(q)
        k = k if attention.k_norm is None else attention.k_norm(k)
        if attention.rotary is not None:
            q = rotate(q, *(x.to(q.device) for x in attention.rotary(q_positions[None])))
            k = rotate(k, *(x.to(k.device) for x in attention.rotary(k_positions[None])))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        visible = self._visible(q_positions, k_positions, attention.window)
        if softmax is None and attention.softcap is None and not attention.softmax_float32:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=attention.scaling).transpose(1, 2)
        scores = (q @ k.mT) * attention.scaling
        if attention.softcap is not None:
            scores = torch.tanh(scores / attention.softcap) * attention.softcap
        if visible is not None:
            scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        softmax_dtype = torch.float32 if attention.softmax_float32 else torch.promote_types(q.dtype, torch.float32)
        scores = scores.to(softmax_dtype)
        pattern = scores.softmax(-1) if softmax is None else softmax(scores)
        return (pattern.to(v.dtype) @ v).transpose(1, 2)

    def _visible(
        self, query: Int[Tensor, " query"], key: Int[Tensor, " key"], window: int | None
    ) -> Bool[Tensor, "query key"] | None:
        """Which keys each query sees."""
        if not self.causal:
            return None
        visible = key[None, :] <= query[:, None]
        return visible if window is None else visible & (key[None, :] > query[:, None] - window)


def rotate(
    x: Float[Tensor, "batch pos head d_head"], cos: Float[Tensor, "1 pos rotary"], sin: Float[Tensor, "1 pos rotary"]
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotary embedding, halves paired (GPT-NeoX style), of the first `rotary` dimensions of each head."""
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned, passed = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, passed), dim=-1) if passed.shape[-1] else turned


@contextmanager
def frozen(model: Transformer) -> Iterator[None]:
    """Evaluation mode and no gradients to weights inside, also within inference mode; all as it was outside."""
    training = [module for module in model.hf.modules() if module.training]
    learning = [weight for weight in model.hf.parameters() if weight.requires_grad]
    for module in training:
        module.training = False
    for weight in learning:
        weight.requires_grad_(False)
    try:
        with torch.inference_mode(False):
            yield
    finally:
        for module in training:
            module.training = True
        for weight in learning:
            weight.requires_grad_(True)

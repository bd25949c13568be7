"""Llama and what shares its shape: Mistral (sliding window), Qwen2 (biases), Qwen3 (q and k norms), SmolLM."""

from typing import Any

from torch import nn

from acdc.architectures.anatomy import Anatomy, Attention, Block, Norm, Projection
from acdc.architectures.placement import like


def rms_norm(module: Any) -> Norm:
    """The Norm of a Llama-like RMSNorm, or of an nn.Identity in its place."""
    if isinstance(module, nn.Identity):
        return Norm(module, None)
    return Norm(module, module.variance_epsilon)


def separate_projections(attn: Any, config: Any) -> tuple[Projection, Projection, Projection]:
    """q, k and v of an attention with q_proj, k_proj and v_proj."""
    n_kv = config.num_key_value_heads
    return (
        Projection(attn.q_proj, config.num_attention_heads, attn.head_dim),
        Projection(attn.k_proj, n_kv, attn.head_dim),
        Projection(attn.v_proj, n_kv, attn.head_dim),
    )


def llama(hf: Any) -> Anatomy:
    body, config = hf.model, hf.config

    def window(block: Any) -> int | None:
        """Mistral has one window, Qwen one a layer; Llama has none, whatever its config says."""
        own = getattr(block.self_attn, "sliding_window", None)
        return config.sliding_window if config.model_type == "mistral" else own

    def head_norm(block: Any, name: str) -> Norm | None:
        return rms_norm(getattr(block.self_attn, name)) if hasattr(block.self_attn, name) else None

    blocks = tuple(
        Block(
            module=block,
            attn_norm=rms_norm(block.input_layernorm),
            attention=Attention(
                *separate_projections(block.self_attn, config),
                out=block.self_attn.o_proj,
                scaling=block.self_attn.scaling,
                rotary=lambda positions: body.rotary_emb(like(body.embed_tokens, positions), positions),
                q_norm=head_norm(block, "q_norm"),
                k_norm=head_norm(block, "k_norm"),
                window=window(block),
                softmax_float32=config._attn_implementation == "eager",
            ),
            mlp_norm=rms_norm(block.post_attention_layernorm),
            mlp=block.mlp,
            mlp_act=getattr(block.mlp, "act_fn", None),
            gated_down=getattr(block.mlp, "down_proj", None),
        )
        for block in body.layers
    )
    return Anatomy(blocks, body.embed_tokens, rms_norm(body.norm))

"""Gemma 2 and 3: norms after attention and MLP too, soft-caps, alternating windows, a scaled embedding."""

from functools import partial
from typing import Any

from acdc.architectures.anatomy import Anatomy, Attention, Block, Norm
from acdc.architectures.llama import separate_projections
from acdc.architectures.placement import like
from acdc.errors import AcdcError


def gemma_norm(module: Any) -> Norm:
    return Norm(module, module.eps, gain_offset=1.0)


def gemma(hf: Any) -> Anatomy:
    """Gemma 2 and the text model of Gemma 3, which adds norms of q and k and a rotary embedding per layer type."""
    body, config = hf.model, hf.config
    if config.attention_bias:
        raise AcdcError(
            f"{type(hf).__name__} with attention_bias=True is not supported: a bias inside the post-norm belongs to no "
            "head, so the heads' contributions would not sum to what the next block reads"
        )
    rotary_by_type = config.model_type == "gemma3_text"

    def rotary(layer_type: str, positions: Any) -> Any:
        return body.rotary_emb(like(body.embed_tokens, positions), positions, *([layer_type] if rotary_by_type else []))

    def head_norm(block: Any, name: str) -> Norm | None:
        return gemma_norm(getattr(block.self_attn, name)) if hasattr(block.self_attn, name) else None

    blocks = tuple(
        Block(
            module=block,
            attn_norm=gemma_norm(block.input_layernorm),
            attention=Attention(
                *separate_projections(block.self_attn, config),
                out=block.self_attn.o_proj,
                scaling=block.self_attn.scaling,
                rotary=partial(rotary, config.layer_types[layer]),
                q_norm=head_norm(block, "q_norm"),
                k_norm=head_norm(block, "k_norm"),
                window=config.sliding_window if config.layer_types[layer] == "sliding_attention" else None,
                softcap=None if rotary_by_type else config.attn_logit_softcapping,
                softmax_float32=config._attn_implementation == "eager",
            ),
            mlp_norm=gemma_norm(block.pre_feedforward_layernorm),
            mlp=block.mlp,
            mlp_act=block.mlp.act_fn,
            gated_down=block.mlp.down_proj,
            attn_post=gemma_norm(block.post_attention_layernorm),
            mlp_post=gemma_norm(block.post_feedforward_layernorm),
        )
        for layer, block in enumerate(body.layers)
    )
    return Anatomy(
        blocks, body.embed_tokens, gemma_norm(body.norm), logit_softcap=getattr(config, "final_logit_softcapping", None)
    )

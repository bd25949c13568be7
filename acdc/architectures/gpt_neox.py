"""GPT-NeoX and Pythia: attention and MLP in parallel, rotary embedding of part of each head."""

from typing import Any

from acdc.architectures.anatomy import Anatomy, Attention, Block, Projection, layer_norm
from acdc.architectures.placement import like


def gpt_neox(hf: Any) -> Anatomy:
    body, config = hf.gpt_neox, hf.config
    n_heads = config.num_attention_heads

    def projection(attn: Any, part: int) -> Projection:
        return Projection(attn.query_key_value, n_heads, attn.head_size, "heads parts", part)

    blocks = tuple(
        Block(
            module=layer,
            attn_norm=layer_norm(layer.input_layernorm),
            attention=Attention(
                *(projection(layer.attention, part) for part in range(3)),
                out=layer.attention.dense,
                scaling=layer.attention.scaling,
                rotary=lambda positions: body.rotary_emb(like(body.embed_in, positions), positions),
                softmax_float32=config._attn_implementation == "eager",
            ),
            mlp_norm=layer_norm(layer.post_attention_layernorm),
            mlp=layer.mlp,
            mlp_act=getattr(layer.mlp, "act", None),
        )
        for layer in body.layers
    )
    return Anatomy(blocks, body.embed_in, layer_norm(body.final_layer_norm), parallel=config.use_parallel_residual)

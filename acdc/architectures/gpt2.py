"""GPT-2 and its variants: Identity norms, relu, MLPs without effect (compiled models)."""

from typing import Any

import torch

from acdc.architectures.anatomy import Anatomy, Attention, Block, Projection, layer_norm


def gpt2(hf: Any) -> Anatomy:
    body = hf.transformer

    def projection(attn: Any, part: int) -> Projection:
        return Projection(attn.c_attn, attn.num_heads, attn.head_dim, "parts heads", part, transposed=True)

    blocks = tuple(
        Block(
            module=block,
            attn_norm=layer_norm(block.ln_1),
            attention=Attention(
                *(projection(block.attn, part) for part in range(3)),
                out=block.attn.c_proj,
                out_transposed=True,
                scaling=block.attn.scaling,
                softmax_float32=hf.config._attn_implementation == "eager" and block.attn.reorder_and_upcast_attn,
            ),
            mlp_norm=layer_norm(block.ln_2),
            mlp=block.mlp,
            mlp_act=getattr(block.mlp, "act", None),
        )
        for block in body.h
    )

    def embed(tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return body.wte(tokens).to(tokens.device) + body.wpe(places).to(tokens.device)

    return Anatomy(blocks, embed, layer_norm(body.ln_f))

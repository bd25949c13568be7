"""Tiny random-weight models of every supported architecture, deterministic by name."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB = 97
SHAPE = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 40,
         "max_position_embeddings": 64, "vocab_size": VOCAB}
GROUPED = {**SHAPE, "num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": False}
GEMMA = {**GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 5}
GPT2 = {"n_embd": 24, "n_head": 4, "n_layer": 3, "n_positions": 64, "vocab_size": VOCAB}
WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS = {
    "gpt2": GPT2Config(**GPT2),
    "gpt2_inverse_scale": GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True),
    "gpt2_compiled": GPT2Config(**GPT2, activation_function="relu", tie_word_embeddings=False),
    "gpt_neox": GPTNeoXConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                                        "partial_rotary_factor": 0.34}),
    "gpt_neox_sequential": GPTNeoXConfig(**SHAPE, use_parallel_residual=False),
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=4),
    "qwen2": Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=4, layer_types=WINDOWED),
    "qwen3": Qwen3Config(**GROUPED),
    "gemma2": Gemma2Config(**GEMMA, layer_types=WINDOWED, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3": Gemma3TextConfig(**{**GEMMA, "num_key_value_heads": 1}, layer_types=WINDOWED),
}
FAMILIES = list(CONFIGS)


class NoEffect(nn.Module):
    """An MLP of a compiled model without one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def tiny_hf(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A random model whose biases, gains and weights are all far from their trivial initial values."""
    hf = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[family]), dtype=torch.float32).eval()
    if family == "gpt2_compiled":
        hf.transformer.ln_f = nn.Identity()
        for i, block in enumerate(hf.transformer.h):
            block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
            if i == 1:
                block.mlp = NoEffect()
    generator = torch.Generator().manual_seed(seed)
    scale = 0.15 if family == "gpt2_compiled" else 0.3
    with torch.no_grad():
        for parameter in hf.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return hf.to(dtype)

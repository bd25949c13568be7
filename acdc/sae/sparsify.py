"""sparsify's files: `cfg.json` and `sae.safetensors`, topk only."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acdc.errors import AcdcError
from acdc.sae.files import check_names, coder_of, config_of, k_of, weights_of
from acdc.sae.sparse_coder import SparseCoder

WEIGHTS = "sae.safetensors"
RENAMED = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}


def read_sparsify(path: Path, site: str | None, target: str | None, dtype: torch.dtype) -> SparseCoder:
    """The coder of a sparsify folder. b_dec is subtracted from what an autoencoder reads, and of a transcoder never."""
    config, tensors = config_of(path.parent / "cfg.json"), weights_of(path, dtype)
    if config.get("activation", "topk") != "topk":
        raise AcdcError(f"{path}: the activation {config['activation']!r} of sparsify is not supported; topk is")
    check_names(path, tensors, {*RENAMED, "W_dec", "b_dec", "W_skip"})
    tensors = {RENAMED.get(name, name): tensor for name, tensor in tensors.items()}
    if "W_enc" in tensors:
        tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    sites = (site or config.get("acdc_site"), target or config.get("acdc_target"))
    return coder_of(path, "topk", sites, tensors, k=k_of(path, config.get("k")),
                    centred=not config.get("transcode", False))


def as_sparsify(coder: SparseCoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors that sparsify reads."""
    w = coder.weights
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    if "W_skip" in w:
        tensors["W_skip"] = w["W_skip"]
    config = {
        "activation": "topk",
        "expansion_factor": max(1, coder.n_features // coder.d_in),
        "normalize_decoder": True,
        "num_latents": coder.n_features,
        "k": coder.k,
        "multi_topk": False,
        "skip_connection": "W_skip" in w,
        "transcode": coder.kind != "autoencoder",
        "d_in": coder.d_in,
        "acdc_site": coder.site,
        "acdc_target": coder.target,
    }
    return config, tensors

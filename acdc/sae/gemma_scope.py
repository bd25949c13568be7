"""Gemma Scope's files: `params.npz`, and the safetensors of Gemma Scope 2. They do not say what they read."""

from pathlib import Path

import torch
from torch import Tensor

from acdc.errors import AcdcError
from acdc.sae.files import arrays_of, check_names, coder_of
from acdc.sae.sparse_coder import SparseCoder

WEIGHTS = "params.npz"
SECOND = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}


def read_npz(path: Path, site: str | None, target: str | None, dtype: torch.dtype) -> SparseCoder:
    """A jumprelu coder; b_dec is not subtracted from what it reads."""
    tensors = arrays_of(path, dtype)
    check_names(path, tensors, {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"})
    return coder_of(path, "jumprelu", (site, target), tensors)


def read_second(path: Path, tensors: dict[str, Tensor], site: str | None, target: str | None) -> SparseCoder:
    """The same of Gemma Scope 2, where the skip connection is held transposed."""
    check_names(path, tensors, {*SECOND, "b_enc", "b_dec", "threshold"})
    tensors = {SECOND.get(name, name): tensor for name, tensor in tensors.items()}
    if tensors.get("W_dec", torch.zeros(0)).dim() == 3:
        raise AcdcError(f"{path}: a layer of a cross-layer transcoder of Gemma Scope 2; write its layers as "
                        "circuit-tracer's W_enc_0.safetensors, W_dec_0.safetensors, ..., which are read")
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T.contiguous()
    return coder_of(path, "jumprelu", (site, target), tensors)

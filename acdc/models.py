"""Loads a model by name, path or object, and refuses one that is not understood exactly.

The parity check runs probe tokens through HuggingFace's own forward and, node by node, through ours; a model whose
logits differ by more than rounding is not supported, whatever it calls itself.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc.ablation import prepare_ablation
from acdc.architectures import HOW_TO_ADD
from acdc.circuit import Circuit
from acdc.errors import AcdcError, unknown_name
from acdc.packaged import PACKAGED, packaged_model
from acdc.patching import run_circuit
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float64: 1e-9}  # of max(1, largest logit)


def load_model(
    source: Any,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    causal: bool = True,
) -> Transformer:
    """A model ready for circuit discovery.

    `source`: a packaged model ("smollm2"), a hub name, the path of a folder that `save_pretrained` wrote, or a
    HuggingFace causal language model (then with its `tokenizer`, which only tasks need). `dtype`: float32 (the default
    for names and paths), bfloat16 or float64; an object keeps its own. `device`: where to put it; default: where it is.
    `causal=False`: every position sees every other. Code from the hub is never run (`trust_remote_code` is off).

    Raises `AcdcError` for an unknown name, an unsupported architecture, weights that are not finite, and a model whose
    logits we do not reproduce (with the largest difference).
    """
    wanted = None if dtype is None else _dtype(dtype)
    if isinstance(source, (str, Path)):
        hf, tokenizer, name = _from_name(str(source), wanted or torch.float32)
    else:
        hf, name = source, getattr(getattr(source, "config", None), "name_or_path", "") or type(source).__name__
        if not isinstance(source, torch.nn.Module):
            raise AcdcError(f"cannot load a model from {type(source).__name__}; give a name, a path or a HuggingFace model")
        hf = hf if wanted is None else hf.to(wanted)
    model = Transformer(hf if device is None else hf.to(device), tokenizer, name, causal)
    if model.dtype not in TOLERANCE:
        raise AcdcError(f"{name} is in {model.dtype}; use one of {', '.join(DTYPES)}")
    check_parity(model)
    return model


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    return DTYPES[dtype]


def _from_name(name: str, dtype: torch.dtype) -> tuple[Any, Any, str]:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # slow to import: not before it is needed

    local = Path(name).is_dir()
    folder = packaged_model(name) if name in PACKAGED and not local else name
    try:
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "that folder holds no model that can be loaded" if local else (
            "it is neither a packaged model nor a folder here, and the hub did not give it"
        )
        raise AcdcError(
            f"cannot load the model {name!r}: {where} ({reason}). Packaged models: {', '.join(PACKAGED)}; `acdc models` "
            "lists them and the supported architectures"
        ) from error
    return hf, tokenizer, name


def check_parity(model: Transformer) -> float:
    """The largest logit difference between HF's forward and ours with nothing cut, over probe tokens.

    Two prompts are used, one as the corrupted run, so that a difference of contributions travels along every edge.
    Raises `AcdcError` beyond the tolerance.
    """
    name, hf = type(model.hf).__name__, model.hf
    tokens = _probe_tokens(model)
    batch = Batch(tokens, tokens.flip(0), tokens[:, 0], tokens[:, 0], examples=())
    graph = model.graph()
    with torch.no_grad(), frozen(model):
        mask = model.full_mask(tokens)
        expected = hf(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        _check_finite(model, expected)
        everything = Circuit(graph, np.ones(graph.n_edges, dtype=bool))
        try:
            replacement = prepare_ablation(model, [batch])(batch)
            ours = run_circuit(model, batch, everything, replacement, all_positions=True)
            difference = float((ours - expected).abs().max())
        except (RuntimeError, AttributeError, TypeError, IndexError, KeyError) as error:
            raise AcdcError(
                f"{name} (model_type {hf.config.model_type!r}) is not built as its architecture's adapter expects: "
                f"{error}. {HOW_TO_ADD}"
            ) from error
    tolerance = TOLERANCE[model.dtype] * max(1.0, float(expected.abs().max()))
    if not difference <= tolerance:
        raise AcdcError(
            f"{name} (model_type {hf.config.model_type!r}) is not the architecture it says: with nothing cut, our "
            f"logits differ from HuggingFace's by up to {difference:.3g} (tolerance {tolerance:.3g}). {HOW_TO_ADD}"
        )
    return difference


def _probe_tokens(model: Transformer) -> torch.Tensor:
    """Two prompts of assorted tokens, longer than every short attention window."""
    windows = [block.attention.window for block in model.blocks]
    length = max([12, *(window + 4 for window in windows if window is not None and window <= 64)])
    length = min(length, getattr(model.hf.config, "max_position_embeddings", length))
    vocab = model.hf.get_input_embeddings().weight.shape[0]
    return (torch.arange(2 * length, device=model.device).view(2, length) * 7919 + 13) % vocab


def _check_finite(model: Transformer, logits: torch.Tensor) -> None:
    if torch.isfinite(logits).all():
        return
    bad = [name for name, weight in model.hf.named_parameters() if not torch.isfinite(weight).all()]
    where = f"these weights are not finite: {', '.join(bad[:5])}" if bad else "all weights are finite, so it overflows"
    raise AcdcError(f"{model.name} computes logits that are NaN or infinite; {where}. Load intact weights, or float32")


def weights_hash(model: Transformer) -> str:
    """sha256 of all weights with their names, shapes and dtypes: tells whether a circuit belongs to a model."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.hf.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

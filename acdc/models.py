"""Loads a model by name, path or object, and refuses one that is not understood exactly.

The parity check runs probe tokens through HuggingFace's own forward and, node by node, through ours; a model whose
logits differ by more than rounding is not supported, whatever it calls itself.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc.ablation import prepare_ablation
from acdc.architectures import HOW_TO_ADD, anatomy_of, reads_images, taking_tokens
from acdc.architectures.anatomy import Norm
from acdc.architectures.placement import is_spread, weights
from acdc.circuit import Circuit
from acdc.errors import AcdcError, unknown_name
from acdc.packaged import PACKAGED, packaged_model
from acdc.patches import FILE, PatchTable
from acdc.patching import run_circuit
from acdc.shipped import SHIPPED, shipped_model
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

logger = logging.getLogger("acdc")
OWN_RISK = "If you trust it, load it with transformers and give load_model that object and its tokenizer"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 0.1}  # of max(1, largest logit)
COPIED = 2**28  # weights: a bfloat16 model of fewer is checked as a copy in float32


def load_model(
    source: Any,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    causal: bool = True,
) -> Transformer:
    """A model ready for circuit discovery.

    `source`: a packaged model ("smollm2"), a hub name, the path of a folder that `save_pretrained` wrote, or a
    HuggingFace model: a causal language model, or one that classifies images. `tokenizer`: what tasks need; default:
    the one that comes with a name or path; a `PatchTable` for images.
    `dtype`: float32 (the default for names and paths), bfloat16 or float64; an object keeps its own, and is converted
    in place if another is given. `device`: where to put it; default: where it is. `device_map`, of a name or path: how
    accelerate spreads a large model: "auto" over all devices, then the CPU, then the disk; or a device for each module.
    An object that is spread already is taken as it is.
    `causal=False`: every position sees every other. Code from the hub is never run (`trust_remote_code` is off), and
    weights in pickles (.bin) are not read.

    Raises `AcdcError` for an unknown name, weights that are missing or not finite, an unsupported architecture, and a
    model whose logits we do not reproduce (with the largest difference).
    """
    wanted = None if dtype is None else _dtype(dtype)
    if device_map is not None and (device is not None or not isinstance(source, (str, Path))):
        other = f"device {str(device)!r}" if device is not None else "a model that is loaded already"
        raise AcdcError(f"device_map with {other}: it says where a model goes as it is loaded; give one of the two")
    if isinstance(source, (str, Path)):
        name = str(source)
        hf, tokenizer = _from_name(name, wanted or torch.float32, tokenizer, device_map)
    elif isinstance(source, torch.nn.Module):
        name = getattr(getattr(source, "config", None), "name_or_path", "") or type(source).__name__
        hf = taking_tokens(source, tokenizer)
        anatomy_of(hf)  # refuses what is not a supported model before it is converted or moved
        if is_spread(hf) and (wanted is not None or device is not None):
            raise AcdcError(f"{name} is spread over devices by accelerate, so it cannot be moved or converted; leave "
                            "out device and dtype, or load it with them")
        hf = hf if wanted is None else hf.to(wanted)
    else:
        raise AcdcError(f"cannot load a model from {type(source).__name__}; give a name, a path or a HuggingFace model")
    model = Transformer(hf if device is None else hf.to(device), tokenizer, name, causal and anatomy_of(hf).causal)
    if not model.n_layers:
        raise AcdcError(f"{name} has no layers, so there is nothing to find in it; give a model with layers")
    if model.dtype not in DTYPES.values():
        raise AcdcError(f"{name} is in {model.dtype}; use one of {', '.join(DTYPES)}")
    check_parity(model)
    return model


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return DTYPES[name]


def _folder(name: str) -> str | Path:
    """Where transformers finds a model: a folder that is here, or that acdc brings or fetches, or a hub name."""
    if Path(name).is_dir():
        return name
    if name in SHIPPED:
        return shipped_model(name)
    return packaged_model(name) if name in PACKAGED else name


def _tokenizer(folder: str | Path, *, of_images: bool) -> Any:
    from transformers import AutoTokenizer  # slow to import: not before it is needed

    if of_images:
        return PatchTable.load(Path(folder))
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _from_name(name: str, dtype: torch.dtype, tokenizer: Any, device_map: Any) -> tuple[Any, Any]:
    import transformers  # slow to import: not before it is needed

    local, folder = Path(name).is_dir(), _folder(name)
    spread = {} if device_map is None else {"device_map": device_map}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        # Other ways to attend, which a config may name, transformers takes from the hub as code; None is its default.
        attends = config._attn_implementation
        config._attn_implementation = attends if attends in ("eager", "sdpa") else None
        of_images = reads_images(config)
        # Weights of other shapes are looked for below: transformers does not name them in what it raises.
        auto = transformers.AutoModelForImageClassification if of_images else transformers.AutoModelForCausalLM
        loaded: Any = auto.from_pretrained(
            folder, config=config, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **spread
        )
        hf, info = loaded
        tokenizer = _tokenizer(folder, of_images=of_images) if tokenizer is None else tokenizer
    except AcdcError:
        raise
    except Exception as error:  # whatever transformers, tokenizers and safetensors raise at a damaged file
        if "custom code" in str(error):
            raise AcdcError(
                f"the model {name!r} comes with Python code of its own, which is not run: it could do anything. "
                f"{OWN_RISK}"
            ) from error
        where = "that folder holds no model that can be loaded" if local else (
            "it is neither a packaged model nor a folder here, and the hub did not give it"
        )
        raise AcdcError(
            f"cannot load the model {name!r}: {where} ({_reason(error)}). {_of_pickles(error)}Packaged models: "
            f"{', '.join((*PACKAGED, *SHIPPED))}; "
            "`acdc models` lists them and the supported architectures"
        ) from error
    taken = taking_tokens(hf, tokenizer)
    anatomy_of(taken)
    _check_complete(name, hf, info)
    return taken.eval(), tokenizer


def _of_pickles(error: Exception) -> str:
    """What to do where there are weights, but not as safetensors."""
    no_safetensors = "no file named model.safetensors" in str(error) or "does not appear to have a file" in str(error)
    return f"Weights are read from safetensors alone, not from pickles such as pytorch_model.bin. {OWN_RISK}. " * (
        no_safetensors)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a packaged model, hub name or folder, without its model."""
    try:
        folder = _folder(name)
        return _tokenizer(folder, of_images=(Path(folder) / FILE).is_file())
    except AcdcError:
        raise
    except Exception as error:  # whatever transformers and tokenizers raise at a damaged file
        raise AcdcError(
            f"cannot load a tokenizer for {name!r} ({_reason(error)}). Give a packaged model "
            f"({', '.join((*PACKAGED, *SHIPPED))}), "
            "a hub name or a folder"
        ) from error


def _reason(error: Exception) -> str:
    """The first sentence of a message that may go on for pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def _check_complete(name: str, hf: Any, info: Any) -> None:
    """Refuses a model of which transformers made up weights, which it does where the files lack them."""
    missing, mismatched = sorted(info["missing_keys"]), sorted(str(key[0]) for key in info["mismatched_keys"])
    for what, keys in (("lack", missing), ("have other shapes for", mismatched)):
        if keys:
            raise AcdcError(
                f"the files of {name!r} {what} weights of {type(hf).__name__}: {_some(keys)}. Random numbers would "
                "stand in for them; give files that hold the whole model, as save_pretrained writes them, with their "
                "own config"
            )
    if info["unexpected_keys"]:
        unused = _some(sorted(info["unexpected_keys"]))
        logger.warning("%s does not use all weights in the files of %r: not %s", type(hf).__name__, name, unused)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names):,} in all)" if len(names) > 5 else "")


def check_parity(model: Transformer) -> float:
    """The largest logit difference between HF's forward and ours with nothing cut, over probe tokens.

    Two prompts are used, one as the corrupted run, so that a difference of contributions travels along every edge.
    What is known of each norm (eps, centring, gain), which gradients use, is compared with what its module returns.
    A bfloat16 model is checked as a copy in float32, as its own rounding would hide a small mistake; a large one, or
    one that is spread over devices, as it is, with a tolerance of many roundings. Raises `AcdcError` beyond the
    tolerance.
    """
    n_weights = sum(weight.numel() for weight in model.hf.parameters())
    if model.dtype == torch.bfloat16 and n_weights < COPIED and not is_spread(model.hf):
        return check_parity(replace(model, hf=deepcopy(model.hf).float()))
    name, hf = type(model.hf).__name__, model.hf
    tokens = _probe_tokens(model)
    batch = Batch(tokens, tokens.flip(0), tokens[:, 0], tokens[:, 0], examples=())
    graph = model.graph()
    with torch.no_grad(), frozen(model):
        everything = Circuit(graph, np.ones(graph.n_edges, dtype=bool))
        try:
            mask = model.full_mask(tokens)
            expected = hf(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            _check_finite(model, expected)
            corrupted = prepare_ablation(model, [batch])(batch)
            ours = run_circuit(model, batch, everything, corrupted, all_positions=True)
            difference = float((ours - expected).abs().max())
            norm_difference = max((_norm_difference(norm, model) for norm in model.anatomy.norms), default=0.0)
        except (RuntimeError, AttributeError, TypeError, IndexError, KeyError) as error:
            raise AcdcError(
                f"{name} (model_type {hf.config.model_type!r}) is not built as its architecture's adapter expects: "
                f"{error}. {HOW_TO_ADD}"
            ) from error
    # Where CLS is elsewhere than in HF, so is the order of sums, also in a softmax that HF rounds to float32.
    rounded = not model.anatomy.causal and model.blocks[0].attention.softmax_float32
    tolerance = TOLERANCE[torch.float32 if rounded else model.dtype] * max(1.0, float(expected.abs().max()))
    if not difference <= tolerance:
        raise AcdcError(
            f"{name} (model_type {hf.config.model_type!r}) is not the architecture it says: with nothing cut, our "
            f"logits differ from HuggingFace's by up to {difference:.3g} (tolerance {tolerance:.3g}). {HOW_TO_ADD}"
        )
    tolerance = max(TOLERANCE[model.dtype], TOLERANCE[torch.float32])  # some norms compute in float32 in any model
    if not norm_difference <= tolerance:
        raise AcdcError(
            f"{name} (model_type {hf.config.model_type!r}) has a norm that its adapter describes wrongly (eps, centred "
            f"or not, gain): it differs from its module by up to {norm_difference:.3g} of its largest output "
            f"(tolerance {tolerance:.3g}). {HOW_TO_ADD}"
        )
    return difference


def _norm_difference(norm: Norm, model: Transformer) -> float:
    """How far a norm as its adapter describes it is from its module, on small inputs, where eps counts too."""
    width = model.hf.get_input_embeddings().weight.shape[1]
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype) * 0.01 + 0.01
    module, described = norm(x), x if norm.eps is None else norm.statistics(x)[0]
    if norm.gain is not None:
        described = described * norm.gain
    if norm.bias is not None:
        described = described + norm.bias
    return float((described - module).abs().max() / module.abs().max().clamp(min=1e-30))


def _probe_tokens(model: Transformer) -> torch.Tensor:
    """Two prompts of assorted tokens, longer than every short attention window."""
    if model.anatomy.probe is not None:
        return model.anatomy.probe()
    windows = [block.attention.window for block in model.blocks]
    length = max([12, *(window + 4 for window in windows if window is not None and window <= 64)])
    length = min(length, getattr(model.hf.config, "max_position_embeddings", length))
    vocab = model.hf.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(vocab, (length,), generator=torch.Generator().manual_seed(0))
    # The second differs everywhere: had they a token in common, a vocabulary of two might give the same prompt twice.
    return torch.stack([tokens, (tokens + 1 + torch.arange(length) % max(1, vocab - 1)) % vocab]).to(model.device)


def _check_finite(model: Transformer, logits: torch.Tensor) -> None:
    if torch.isfinite(logits).all():
        return
    bad = [name for name, weight in weights(model.hf) if not torch.isfinite(weight).all()]
    where = f"these weights are not finite: {', '.join(bad[:5])}" if bad else "all weights are finite, so it overflows"
    raise AcdcError(f"{model.name} computes logits that are NaN or infinite; {where}. Load intact weights, or float32")


def check_prompts(model: Transformer, batches: Sequence[Batch]) -> None:
    """Refuses prompts that the model has no embeddings for: too long, or of tokens beyond its vocabulary."""
    longest = getattr(model.hf.config, "max_position_embeddings", None)
    vocab = model.hf.get_input_embeddings().weight.shape[0]
    for batch in batches:
        length = batch.clean.shape[1]
        if longest is not None and length > longest:
            raise AcdcError(
                f"the prompt {batch.examples[0].clean!r} has {length:,} tokens, but {model.name} takes at most "
                f"{longest:,}. Give shorter prompts"
            )
        for tokens in (batch.clean, batch.corrupted, batch.answer[:, None], batch.wrong[:, None]):
            beyond = (tokens >= vocab).any(1)
            if beyond.any():
                example = batch.examples[int(beyond.int().argmax())]
                raise AcdcError(
                    f"the tokenizer gives the token {int(tokens.max()):,} in {example.clean!r}, but {model.name} has "
                    f"only {vocab:,} tokens. Give the tokenizer that belongs to the model"
                )


def weights_hash(model: Transformer) -> str:
    """sha256 of the config and all weights with names, shapes and dtypes: tells whether a circuit belongs to a model.

    What does not change what the model computes (its name, the version that stored it) does not count.
    """
    config = model.hf.config.to_diff_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "architectures", "use_cache"):
        config.pop(key, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in weights(model.hf):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

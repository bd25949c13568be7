"""Sparse coders on disk: SAELens and sparsify written and read, circuit-tracer's and Gemma Scope's read.

Weights come from safetensors, or from an .npz without pickled objects. A pickle (.pt, .pkl, .bin) is refused: loading
one can run any code.
"""

import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from acdc.errors import AcdcError, unknown_name
from acdc.output_folder import write_file
from acdc.sae.sparse_coder import SparseCoder

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")
MOST_BYTES, MOST_UNPACKED = 64 * 2**30, 50  # bytes, and how many times what is packed
SAELENS = "6.0.0"  # the version whose configuration is written
# TransformerLens' names of places, which SAELens uses
HOOKS = {
    "resid{}": "blocks.{}.hook_resid_pre",
    "resid{}.mid": "blocks.{}.hook_resid_mid",
    "a{}": "blocks.{}.hook_attn_out",
    "a{}.z": "blocks.{}.attn.hook_z",
    "m{}": "blocks.{}.hook_mlp_out",
    "m{}.neurons": "blocks.{}.mlp.hook_post",
}
# Fields of configurations that are read, by what they must be where they are given.
NUMBER = "([0-9]{1,9})"  # of a layer or head
OBJECTS = ("metadata", "activation_fn_kwargs")
TEXTS = ("architecture", "activation", "activation_fn", "activation_fn_str", "hook_name", "hook_point", "hook_name_out",
         "acdc_site", "acdc_target")
COUNTS = ("hook_head_index", "hook_point_head_index")
OTHER_HOOKS = {"blocks.{}.hook_resid_post": "resid{+1}", "blocks.{}.hook_mlp_in": "resid{}.mid"}


def hook_of(site: str) -> str:
    """TransformerLens' name of a site, or the site itself where there is none."""
    for pattern, hook in HOOKS.items():
        match = re.fullmatch(pattern.replace("{}", NUMBER), site)
        if match:
            return hook.format(match[1])
    return site


def site_of(hook: str) -> str | None:
    """The site that TransformerLens calls so; a site's own name stays as it is; None for others."""
    for pattern, site in {**{hook: site for site, hook in HOOKS.items()}, **OTHER_HOOKS}.items():
        match = re.fullmatch(re.escape(pattern).replace(r"\{\}", NUMBER), hook)
        if match:
            return site.replace("{+1}", str(int(match[1]) + 1)).format(match[1])
    return hook if re.fullmatch(r"(input|(resid|a|m)[0-9]{1,9}(\.h[0-9]{1,9})?(\.(mid|z|in|neurons))?)", hook) else None


def load_coder(
    path: str | Path,
    *,
    site: str | None = None,
    target: str | None = None,
    layer: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> SparseCoder:
    """Reads a coder from a folder or file, whatever of the known formats it is in.

    `site`, `target`: what it reads and rebuilds, where the files do not say so (sparsify, Gemma Scope, circuit-tracer's
    layers know none or only the layer); by default the target is the site. `layer`: which of a circuit-tracer folder.
    Raises `AcdcError` for a pickle, an unknown format, missing or misshapen weights, and a missing site.
    """
    path = Path(path)
    if path.suffix in PICKLES:
        raise AcdcError(
            f"{path} is a pickle, which can run any code when it is read, and is refused. Convert it "
            "where you trust it: load it there and save its tensors with safetensors.torch.save_file"
        )
    if not path.exists():
        raise AcdcError(f"there is no {path}; give the folder or file of a sparse coder")
    if path.is_dir() and layer is not None:
        return _circuit_tracer(path / f"layer_{layer}.safetensors", site, target, dtype)
    for name, reader in READERS.items():
        if path.is_dir() and (path / name).is_file():
            return reader(path / name, site, target, dtype)
    if path.is_dir() and (path / "params.npz").is_file():
        path = path / "params.npz"
    if path.suffix == ".npz":
        return _gemma_scope(_npz(path, dtype), path, site, target)
    if path.suffix == ".safetensors":
        tensors = _tensors(path, dtype)
        if "w_enc" in tensors:
            return _gemma_scope_2(tensors, path, site, target)
        return (
            READERS[path.name](path, site, target, dtype)
            if path.name in READERS
            else _circuit_tracer(path, site, target, dtype)
        )
    held = sorted(child.name for child in path.iterdir())[:8] if path.is_dir() else []
    pickles = [name for name in held if Path(name).suffix in PICKLES]
    if pickles:
        return load_coder(path / pickles[0])
    raise AcdcError(
        f"{path} holds no sparse coder ({', '.join(held) or 'not a known file'}). Known are SAELens "
        "(sae_weights.safetensors), sparsify (sae.safetensors), circuit-tracer (layer_3.safetensors) and "
        "Gemma Scope (params.npz, or safetensors with w_enc)"
    )


def save_coder(coder: SparseCoder, folder: str | Path, *, format: str = "saelens", model_name: str = "") -> None:
    """Writes a coder as SAELens or sparsify read it; sparsify knows topk only."""
    check_format(format, coder.architecture, autoencoder=coder.kind == "autoencoder")
    folder = Path(folder)
    config, tensors, name = _as_saelens(coder, model_name) if format == "saelens" else _as_sparsify(coder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, save({key: value.contiguous().cpu() for key, value in tensors.items()}))
        write_file(folder / "cfg.json", (json.dumps(config, indent=1, default=str) + "\n").encode())
    except OSError as error:
        raise AcdcError(f"cannot write to {folder}: {error.strerror}; give another folder") from error


def check_format(format: str, architecture: str, *, autoencoder: bool) -> None:
    """Refuses a format that has no place for such a coder."""
    if format not in ("saelens", "sparsify"):
        raise unknown_name("format of a sparse coder", format, ["saelens", "sparsify"])
    if format == "saelens" and not autoencoder and architecture in ("gated", "topk"):
        raise AcdcError(
            f"SAELens has no {architecture} transcoders: take relu, jumprelu or batchtopk, or for topk sparsify"
        )
    if format == "sparsify" and architecture != "topk":
        raise AcdcError(f"sparsify holds topk coders, this is {architecture}; take the format saelens")


def _as_saelens(coder: SparseCoder, model_name: str) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    architecture = {"relu": "standard"}.get(coder.architecture, coder.architecture)
    config: dict[str, Any] = {
        "d_in": coder.d_in,
        "d_sae": coder.n_features,
        "dtype": str(coder.decoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": coder.centred,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if coder.site.endswith(".z") and ".h" not in coder.site else "none",
        "metadata": {
            "model_name": model_name,
            "hook_name": hook_of(coder.site),
            "sae_lens_version": SAELENS,
            "acdc_site": coder.site,
            "acdc_target": coder.target,
            "acdc_record": dict(coder.record),
        },
    }
    if coder.architecture == "topk":
        config |= {"k": coder.k, "rescale_acts_by_decoder_norm": False}
    if coder.kind != "autoencoder":
        skip = "skip_" * ("W_skip" in coder.weights)
        architecture = f"{'jumprelu_' * (coder.architecture == 'jumprelu')}{skip}transcoder"
        config |= {"d_out": coder.d_out}
        config["metadata"]["hook_name_out"] = hook_of(coder.target)
    config["architecture"] = architecture
    return config, dict(coder.weights), "sae_weights.safetensors"


def _as_sparsify(coder: SparseCoder) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    autoencoder = coder.kind == "autoencoder"
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
        "transcode": not autoencoder,
        "d_in": coder.d_in,
        "acdc_site": coder.site,
        "acdc_target": coder.target,
    }
    return config, tensors, "sae.safetensors"


def _saelens(path: Path, site: str | None, target: str | None, dtype: torch.dtype) -> SparseCoder:
    config, tensors = _config(path.parent / "cfg.json"), _tensors(path, dtype)
    architecture = config.get("architecture") or "standard"
    transcoder = "transcoder" in architecture
    if config.get("activation_fn", config.get("activation_fn_str")) == "topk" or architecture.startswith("topk"):
        kind = "topk"
    elif architecture in ("standard", "transcoder", "skip_transcoder", "matryoshka_batchtopk"):
        kind = "relu"
    else:
        kind = architecture.removesuffix("_transcoder").removesuffix("_skip")
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    kind = "jumprelu" if "threshold" in tensors else kind
    normalise = config.get("normalize_activations", "none")
    if normalise not in ("none", False, None):
        raise AcdcError(
            f"{path}: activations are normalised before they are read ({normalise}), which these weights do not hold; "
            "fold it in with SAELens, or give another coder"
        )
    if config.get("finetuning_scaling_factor"):
        raise AcdcError(
            f"{path}: its features are scaled once more after training (finetuning_scaling_factor); fold it in"
        )
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if kind == "topk" and config.get("rescale_acts_by_decoder_norm") and {"W_enc", "b_enc", "W_dec"} <= set(tensors):
        norm = tensors["W_dec"].norm(dim=1).clamp(min=1e-12)  # then the features are those times their decoder's norm
        tensors |= {
            "W_enc": tensors["W_enc"] * norm,
            "b_enc": tensors["b_enc"] * norm,
            "W_dec": tensors["W_dec"] / norm[:, None],
        }
    about = config.get("metadata") or config
    site = site or about.get("acdc_site") or _named(about.get("hook_name") or about.get("hook_point"), path)
    head = about.get("hook_head_index", about.get("hook_point_head_index"))
    if head is not None and site is not None and re.fullmatch(r"a\d+\.z", site):
        site = site.replace(".z", f".h{int(head)}.z")
    after = about.get("acdc_target") or about.get("hook_name_out")
    target = target or (_named(after, path) if transcoder and after else site)
    centred = bool(config.get("apply_b_dec_to_input", True)) and not transcoder
    wanted = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold", "b_gate", "b_mag", "r_mag", "W_skip"}
    tensors = {name: tensor for name, tensor in tensors.items() if name in wanted}
    return _coder(path, kind, site, target, tensors, k if kind == "topk" else None, centred)


def _sparsify(path: Path, site: str | None, target: str | None, dtype: torch.dtype) -> SparseCoder:
    config, tensors = _config(path.parent / "cfg.json"), _tensors(path, dtype)
    if config.get("activation", "topk") != "topk":
        raise AcdcError(f"{path}: the activation {config['activation']!r} of sparsify is not supported; topk is")
    renamed = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
    tensors = {renamed.get(name, name): tensor for name, tensor in tensors.items()}
    if "W_enc" in tensors:
        tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    transcode = bool(config.get("transcode", False))
    site = site or config.get("acdc_site")
    target = target or config.get("acdc_target")
    return _coder(path, "topk", site, target, tensors, config.get("k"), not transcode)


def _circuit_tracer(path: Path, site: str | None, target: str | None, dtype: torch.dtype) -> SparseCoder:
    tensors = _tensors(path, dtype)
    tensors = {name.removeprefix("activation_function."): tensor for name, tensor in tensors.items()}
    if "k" in tensors:
        raise AcdcError(
            f"{path} is a topk transcoder of circuit-tracer, whose own loader refuses it, too; give another"
        )
    config = path.parent / "config.yaml"
    if (
        config.is_file()
        and site is None
        and not re.search(rb"feature_input_hook:\s*[\"']?mlp\.hook_in", config.read_bytes())
    ):
        raise AcdcError(f"{config} says what its coders read in names of its own; give the site, and the target")
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].flatten()
    if tensors.get("W_dec", torch.zeros(0)).dim() == 3:
        raise AcdcError(
            f"{path}: a cross-layer transcoder writes to several layers, which no one site holds; give a "
            "transcoder of one layer"
        )
    if "W_enc" in tensors:
        tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    number = re.search(r"layer_(\d+)", path.stem)
    if number:
        site, target = site or f"m{number[1]}.in", target or f"m{number[1]}"
    return _coder(path, "jumprelu" if "threshold" in tensors else "relu", site, target, tensors, None, False)


def _gemma_scope(tensors: dict[str, Tensor], path: Path, site: str | None, target: str | None) -> SparseCoder:
    return _coder(path, "jumprelu", site, target, tensors, None, False)


def _gemma_scope_2(tensors: dict[str, Tensor], path: Path, site: str | None, target: str | None) -> SparseCoder:
    renamed = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}
    tensors = {renamed.get(name, name): tensor for name, tensor in tensors.items()}
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T.contiguous()
    return _coder(path, "jumprelu", site, target, tensors, None, False)


def _coder(
    path: Path,
    kind: str,
    site: str | None,
    target: str | None,
    tensors: Mapping[str, Tensor],
    k: Any,
    centred: bool,
) -> SparseCoder:
    k = int(k) if isinstance(k, float) and k.is_integer() else k
    if k is not None and type(k) is not int:
        raise AcdcError(f"{path}: k must be a whole number, not {str(k)[:40]!r}")
    if site is None:
        raise AcdcError(f"{path} does not say which site of the model it reads; give it, such as m5 or resid5")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AcdcError(f"{path}: {name} holds numbers that are not finite; give intact weights")
    try:
        return SparseCoder(kind, site, target or site, tensors, k, centred, {"file": str(path)})
    except AcdcError as error:
        raise AcdcError(f"{path}: {error}") from error
    except (ValueError, IndexError, RuntimeError) as error:
        raise AcdcError(f"{path}: its weights do not have the dimensions of a coder ({error})") from error


def _named(hook: str | None, path: Path) -> str:
    site = None if hook is None else site_of(hook)
    if site is None:
        raise AcdcError(f"{path} reads {hook!r}, for which there is no site; say which it is, such as m5 or resid5")
    return site


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AcdcError(f"cannot read {path} ({error}); it must be the coder's configuration") from error
    if not isinstance(config, dict):
        raise AcdcError(f"{path} must hold a JSON object, the coder's configuration")
    for part in (config, *(config[name] for name in OBJECTS if config.get(name) is not None)):
        if not isinstance(part, dict):
            raise AcdcError(f"{path}: {', '.join(OBJECTS)} must be objects, not {str(part)[:40]!r}")
        for names, kind in ((TEXTS, str), (COUNTS, int)):
            for name in names:
                if part.get(name) is not None and type(part[name]) is not kind:
                    raise AcdcError(f"{path}: {name} must be {'a text' if kind is str else 'a whole number'}, not "
                                    f"{str(part[name])[:40]!r}")
    return config


def _tensors(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            raise ValueError("a tensor is not of floating-point numbers")
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise AcdcError(f"{path} is not a safetensors file, or is damaged ({error})") from error


def _npz(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > min(MOST_BYTES, MOST_UNPACKED * path.stat().st_size + 2**20):
                raise AcdcError(f"{path} unpacks to {size / 2**30:.2g} GiB, more than weights that were packed do")
            for member in archive.infolist():
                with archive.open(member) as file:
                    _check_array(file, member.file_size)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name].astype(np.float32)).to(dtype) for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, SyntaxError, TypeError,
            OverflowError, zipfile.BadZipFile, zlib.error) as error:
        raise AcdcError(f"{path} is not an .npz of plain arrays, or is damaged ({error})") from error


def _check_array(file: Any, size: int) -> None:
    """Refuses an array in an .npz that says it is larger than the bytes that are there, or holds other than numbers."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind not in "fiu" or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"an array of {dtype} of shape {shape} in {size:,} bytes")


READERS: dict[str, Callable[[Path, str | None, str | None, torch.dtype], SparseCoder]] = {
    "sae_weights.safetensors": _saelens,
    "sae.safetensors": _sparsify,
}

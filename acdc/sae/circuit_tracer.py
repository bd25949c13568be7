"""circuit-tracer's folders: a transcoder for each layer (`layer_0.safetensors`, ...), or one across layers
(`W_enc_0.safetensors`, `W_dec_0.safetensors`, ...); `config.yaml` beside them says what they read and write.

W_enc is held transposed. A threshold makes a jumprelu, none a relu.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acdc.errors import AcdcError
from acdc.sae.cross_layer import CrossLayerTranscoder
from acdc.sae.files import check_names, coder_of, config_of, site_named, weights_of
from acdc.sae.hooks import before_post_norm
from acdc.sae.sparse_coder import SparseCoder

CONFIG = "config.yaml"
OF_LAYER, ACROSS = re.compile(r"layer_(\d+)\.safetensors"), re.compile(r"W_enc_(\d+)\.safetensors")
HOOKS = ("feature_input_hook", "feature_output_hook")


def layers_of(folder: Path, pattern: re.Pattern[str] = OF_LAYER) -> list[int]:
    """The layers that a folder holds files of."""
    return sorted(int(found[1]) for path in folder.iterdir() if (found := pattern.fullmatch(path.name)))


def read_layer(path: Path, site: str | None, target: str | None, dtype: torch.dtype) -> SparseCoder:
    """The transcoder of one layer. Without config.yaml, `site` and `target` must be given."""
    tensors = {name.removeprefix("activation_function."): tensor for name, tensor in weights_of(path, dtype).items()}
    if tensors.get("W_dec", torch.zeros(0)).dim() == 3 or any(name.startswith("W_enc_") for name in tensors):
        raise AcdcError(f"{path}: a layer of a cross-layer transcoder, which is read as a whole; give its folder, with "
                        "W_enc_0.safetensors, W_dec_0.safetensors and so on")
    check_names(path, tensors, {"W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip"})
    number, config = OF_LAYER.fullmatch(path.name), _config(path.parent)
    if number and site is None and config:
        site, own_target = _sites(path.parent, config, int(number[1]))
        target = target or own_target
    if site is None:
        raise AcdcError(f"{path} does not say what it reads, and there is no {CONFIG} beside it that does; give the "
                        "site and the target, such as m5.in and m5")
    tensors = _with_threshold(path, tensors)
    if "W_enc" in tensors:
        tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    return coder_of(path, "jumprelu" if "threshold" in tensors else "relu", (site, target), tensors,
                    record=_record(config))


def read_cross_layer(folder: Path, dtype: torch.dtype) -> CrossLayerTranscoder:
    """The cross-layer transcoder of a folder. By circuit-tracer's default it reads what is before each MLP's norm
    (hook_resid_mid) and writes what the MLP adds; config.yaml may say otherwise.

    Memory: all decoders, n_layers (n_layers + 1) / 2 matrices. Raises `AcdcError` for missing and misshapen files.
    """
    layers, config = layers_of(folder, ACROSS), _config(folder)
    if layers != list(range(len(layers))):
        raise AcdcError(f"{folder} holds a cross-layer transcoder's layers {', '.join(map(str, layers))}; all from 0 "
                        "on are needed")
    defaults = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    encoders, decoders, biases, targets = [], [], [], []
    for layer in layers:
        site, target = _sites(folder, {**defaults, **config}, layer)
        if target != f"m{layer}":
            raise AcdcError(f"{folder / CONFIG}: a cross-layer transcoder that writes to {target}; those that rebuild "
                            "MLPs (hook_mlp_out) are supported")
        path, written = folder / f"W_enc_{layer}.safetensors", folder / f"W_dec_{layer}.safetensors"
        tensors = _of_layer(path, layer, {"W_enc", "b_enc", "b_dec"}, {"threshold"}, dtype)
        decoder = _of_layer(written, layer, {"W_dec"}, set(), dtype)["W_dec"]
        tensors = _with_threshold(path, tensors)
        if decoder.dim() != 3 or tensors["W_enc"].dim() != 2:
            raise AcdcError(f"{folder}: W_enc_{layer} must have 2 dimensions and W_dec_{layer} 3; they have "
                            f"{tensors['W_enc'].dim()} and {decoder.dim()}")
        if not torch.isfinite(decoder).all():
            raise AcdcError(f"{written} holds numbers that are not finite; give intact weights")
        weights = {**tensors, "W_enc": tensors["W_enc"].T.contiguous(), "W_dec": decoder[:, 0]}
        encoders.append(coder_of(path, "jumprelu" if "threshold" in tensors else "relu", (site, target), weights,
                                 record=_record(config)))
        decoders.append(decoder)
        biases.append(tensors["b_dec"])
        targets.append(target)
    return CrossLayerTranscoder(tuple(encoders), tuple(decoders), tuple(biases), tuple(targets))


def _of_layer(path: Path, layer: int, needed: set[str], known: set[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a file, without the number of the layer at their names' ends."""
    tensors = weights_of(path, dtype)
    check_names(path, tensors, {f"{name}_{layer}" for name in needed | known})
    missing = [f"{name}_{layer}" for name in sorted(needed) if f"{name}_{layer}" not in tensors]
    if missing:
        raise AcdcError(f"{path} does not hold {', '.join(missing)}; give intact files")
    return {name.removesuffix(f"_{layer}"): tensor for name, tensor in tensors.items()}


def _with_threshold(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if "threshold" not in tensors:
        return tensors
    threshold = tensors["threshold"].flatten()
    if (threshold < 0).any():
        raise AcdcError(f"{path}: thresholds below 0, by which circuit-tracer lets features be negative; they are not "
                        "supported")
    return {**tensors, "threshold": threshold}


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return config_of(path) if path.exists() else {}


def _sites(folder: Path, config: dict[str, Any], layer: int) -> tuple[str, str]:
    for name in HOOKS:
        if name not in config:
            raise AcdcError(f"{folder / CONFIG} does not say {name}; give the site and the target, such as m5.in and "
                            "m5")
    site, target = (site_named(folder / CONFIG, config[name], layer) for name in HOOKS)
    return site, target


def _record(config: dict[str, Any]) -> dict[str, Any]:
    told = {name: config[name] for name in ("model_name", "scan") if name in config}
    return {**told, **({"before_post_norm": True} if before_post_norm(str(config.get(HOOKS[1], ""))) else {})}

"""Sparse coders on disk: SAELens and sparsify written and read, circuit-tracer's and Gemma Scope's read.

Weights come from safetensors, or from an .npz without pickled objects. A pickle (.pt, .pkl, .bin) is refused: loading
one can run any code.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save

from acdc.errors import AcdcError, unknown_name
from acdc.output_folder import write_file
from acdc.sae import circuit_tracer, gemma_scope, saelens, sparsify
from acdc.sae.cross_layer import CrossLayerTarget
from acdc.sae.files import weights_of
from acdc.sae.sparse_coder import SparseCoder
from acdc.tensor_file import PICKLES, pickle_refused

AnyCoder = SparseCoder | CrossLayerTarget
READERS = {saelens.WEIGHTS: saelens.read_saelens, sparsify.WEIGHTS: sparsify.read_sparsify,
           gemma_scope.WEIGHTS: gemma_scope.read_npz}


def load_coder(
    path: str | Path,
    *,
    site: str | None = None,
    target: str | None = None,
    layer: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> AnyCoder:
    """Reads a coder from a folder or file, whatever of the known formats it is in.

    `site`, `target`: what it reads and rebuilds, where the files do not say so (sparsify and Gemma Scope do not); by
    default the target is the site. `layer`: which of a circuit-tracer folder; of a cross-layer transcoder, what
    rebuilds that layer's MLP. Raises `AcdcError` for a pickle, an unknown format, missing or misshapen weights, a
    missing site, and a folder of several layers of which none is chosen.
    """
    path = _there(Path(path))
    if path.is_dir() and not any((path / name).is_file() for name in READERS):
        layers, across = (circuit_tracer.layers_of(path, of) for of in (circuit_tracer.OF_LAYER, circuit_tracer.ACROSS))
        if layers or across:
            return _of_layer(path, layers, across, layer, (site, target), dtype)
    if layer is not None:
        raise AcdcError(f"{path} holds one coder; a layer is chosen from a circuit-tracer folder")
    return _one(path, site, target, dtype)


def load_coders(path: str | Path, *, dtype: torch.dtype = torch.float32) -> list[AnyCoder]:
    """All coders of a folder: one, or those of each layer. Errors as `load_coder`."""
    path = _there(Path(path))
    if not path.is_dir() or any((path / name).is_file() for name in READERS):
        return [load_coder(path, dtype=dtype)]
    if circuit_tracer.layers_of(path, circuit_tracer.ACROSS):
        whole = circuit_tracer.read_cross_layer(path, dtype)
        return [whole.target(layer) for layer in range(whole.n_layers)]
    layers = circuit_tracer.layers_of(path)
    return [load_coder(path, layer=layer, dtype=dtype) for layer in layers] or [load_coder(path, dtype=dtype)]


def _there(path: Path) -> Path:
    if path.suffix in PICKLES:
        raise pickle_refused(path)
    if not path.exists():
        raise AcdcError(f"there is no {path}; give the folder or file of a sparse coder")
    return path


def _of_layer(path: Path, layers: list[int], across: list[int], layer: int | None,
              sites: tuple[str | None, str | None], dtype: torch.dtype) -> AnyCoder:
    if layer is None or layer not in (layers or across):
        given = "none is chosen" if layer is None else f"there is no layer {layer}"
        raise AcdcError(f"{path} holds transcoders of the layers {', '.join(map(str, layers or across))}; {given}, "
                        "say which (--layer; or give the file of one, where it has its own)")
    if layers:
        return circuit_tracer.read_layer(path / f"layer_{layer}.safetensors", *sites, dtype)
    if sites != (None, None):
        raise AcdcError(f"{path} holds a cross-layer transcoder, whose config.yaml says what it reads and writes; "
                        "leave out the site and the target")
    return circuit_tracer.read_cross_layer(path, dtype).target(layer)


def _one(path: Path, site: str | None, target: str | None, dtype: torch.dtype) -> SparseCoder:
    for name, reader in READERS.items():
        if path.is_dir() and (path / name).is_file():
            return reader(path / name, site, target, dtype)
    if path.suffix == ".npz":
        return gemma_scope.read_npz(path, site, target, dtype)
    if path.name in READERS:
        return READERS[path.name](path, site, target, dtype)
    if path.is_file() and path.suffix == ".safetensors":
        tensors = weights_of(path, dtype)
        if "w_enc" in tensors:
            return gemma_scope.read_second(path, tensors, site, target)
        return circuit_tracer.read_layer(path, site, target, dtype)
    held = sorted(child.name for child in path.iterdir())[:8] if path.is_dir() else []
    pickles = [name for name in held if Path(name).suffix in PICKLES]
    if pickles:
        raise pickle_refused(path / pickles[0])
    raise AcdcError(
        f"{path} holds no sparse coder ({', '.join(held) or 'not a known file'}). Known are SAELens "
        "(sae_weights.safetensors), sparsify (sae.safetensors), circuit-tracer (layer_3.safetensors, or "
        "W_enc_3.safetensors and W_dec_3.safetensors) and Gemma Scope (params.npz, or safetensors with w_enc)"
    )


def save_coder(coder: SparseCoder, folder: str | Path, *, format: str = "saelens", model_name: str = "") -> None:
    """Writes a coder as SAELens or sparsify read it; sparsify knows topk only."""
    check_format(format, coder.architecture, autoencoder=coder.kind == "autoencoder")
    folder = Path(folder)
    name = {"saelens": saelens.WEIGHTS, "sparsify": sparsify.WEIGHTS}[format]
    config, tensors = saelens.as_saelens(coder, model_name) if format == "saelens" else sparsify.as_sparsify(coder)
    write_file(folder / name, save({key: value.contiguous().cpu() for key, value in tensors.items()}))
    write_file(folder / "cfg.json", json.dumps(config, indent=1, default=str) + "\n")


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

"""How the files of a coder are read: weights, configurations, and a coder of them; damage is an `AcdcError`."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from acdc.errors import AcdcError
from acdc.sae.hooks import site_of
from acdc.sae.sparse_coder import SparseCoder
from acdc.tensor_file import read_tensors

MOST_BYTES = 64 * 2**30


def weights_of(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Errors as `read_tensors`."""
    tensors, _ = read_tensors(path, "safetensors file of a sparse coder", "give intact files")
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def arrays_of(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The arrays of an .npz. Raises `AcdcError` for one that is damaged, holds objects, or unpacks to over 64 GiB."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MOST_BYTES:
            raise AcdcError(f"{path} unpacks to {size / 2**30:.0f} GiB, more than {MOST_BYTES // 2**30}")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name].astype(np.float32)).to(dtype) for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise AcdcError(f"{path} is not an .npz of plain arrays, or is damaged ({error})") from error


def config_of(path: Path) -> dict[str, Any]:
    """The JSON or YAML object in a file. Raises `AcdcError` for one that is missing or no such object."""
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise AcdcError(f"cannot read {path} ({error}); it must be the coder's configuration") from error
    if not isinstance(config, dict):
        kind = "YAML mapping" if path.suffix == ".yaml" else "JSON object"
        raise AcdcError(f"{path} must hold a {kind}, the coder's configuration")
    return config


def k_of(path: Path, k: Any) -> int:
    """How many features a topk coder keeps, as its configuration says it; it is never guessed."""
    if not isinstance(k, int) or isinstance(k, bool):
        raise AcdcError(f"{path}: a topk coder, whose configuration says k = {k!r}; it must be a whole number")
    return k


def site_named(path: Path, hook: str | None, layer: int | None = None) -> str:
    found = site_of(hook, layer) if isinstance(hook, str) else None
    if found is None:
        raise AcdcError(f"{path} reads or writes {hook!r}, for which there is no site; say which it is, such as m5 or "
                        "resid5")
    return found


def check_names(path: Path, tensors: Mapping[str, Tensor], known: set[str]) -> None:
    """Raises `AcdcError` for tensors that the format does not know: leaving one out would change what is computed."""
    strange = sorted(tensors.keys() - known)
    if strange:
        raise AcdcError(f"{path} holds {', '.join(strange)}, which is not known of its format; known are "
                        f"{', '.join(sorted(known))}")


def coder_of(path: Path, architecture: str, sites: tuple[str | None, str | None], tensors: Mapping[str, Tensor], *,
             k: int | None = None, centred: bool = False, record: Mapping[str, Any] | None = None) -> SparseCoder:
    """The coder of weights that were read. `sites`: what it reads and what it rebuilds."""
    reads, target = sites
    if reads is None:
        raise AcdcError(f"{path} does not say which site of the model it reads; give it, such as m5 or resid5")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AcdcError(f"{path}: {name} holds numbers that are not finite; give intact weights")
    try:
        return SparseCoder(architecture, reads, target or reads, tensors, k, centred,
                           {"file": str(path), **(record or {})})
    except AcdcError as error:
        raise AcdcError(f"{path}: {error}") from error
    except (ValueError, IndexError) as error:
        raise AcdcError(f"{path}: its weights do not have the dimensions of a coder ({error})") from error

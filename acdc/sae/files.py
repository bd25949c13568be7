"""How the files of a coder are read: weights, configurations, and a coder of them; damage is an `AcdcError`."""

import json
import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from acdc.errors import AcdcError
from acdc.input_file import check_plain, read_text
from acdc.sae.hooks import site_of
from acdc.sae.sparse_coder import SparseCoder
from acdc.tensor_file import read_tensors

MOST_BYTES, MOST_UNPACKED = 64 * 2**30, 50  # bytes, and how many times what is packed
# Fields of configurations that are read, by what they must be where they are given.
OBJECTS = ("metadata", "activation_fn_kwargs")
TEXTS = ("architecture", "activation", "activation_fn", "activation_fn_str", "hook_name", "hook_point", "hook_name_out",
         "acdc_site", "acdc_target")
COUNTS = ("hook_head_index", "hook_point_head_index")


def weights_of(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Errors as `read_tensors`."""
    tensors, _ = read_tensors(path, "safetensors file of a sparse coder", "give intact files")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise AcdcError(f"{path}: {name} is not of floating-point numbers, as a coder's weights are; give those of "
                            "one")
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def arrays_of(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The arrays of an .npz. Raises `AcdcError` for one that is damaged, holds objects, or unpacks to far more than it
    is."""
    try:
        check_plain(path)
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
            OverflowError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError) as error:
        raise AcdcError(f"{path} is not an .npz of plain arrays, or is damaged ({error})") from error


def _check_array(file: Any, size: int) -> None:
    """Refuses an array in an .npz that says it is larger than the bytes that are there, or holds other than numbers."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except MemoryError as error:  # Python's parser says so of brackets and signs in a row
        raise ValueError("its header is nested too deeply") from error
    if dtype.kind not in "fiu" or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"an array of {dtype} of shape {shape} in {size:,} bytes")


class _Plain(yaml.SafeLoader):
    """Without aliases, by which a short text may stand for a huge one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*), which a configuration does not need")
        return super().compose_node(parent, index)


def _yaml(text: str) -> Any:
    loader = _Plain(text)
    try:
        return loader.get_single_data()
    except (AttributeError, KeyError, IndexError, TypeError) as error:  # of numbers and dates
        raise ValueError(f"a value is not of its type: {error}") from error
    finally:
        loader.dispose()


def config_of(path: Path) -> dict[str, Any]:
    """The JSON or YAML object in a file. Raises `AcdcError` for one that is missing or no such object."""
    try:
        text = read_text(path)
        config = _yaml(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise AcdcError(f"cannot read {path} ({error}); it must be the coder's configuration") from error
    if not isinstance(config, dict):
        kind = "YAML mapping" if path.suffix == ".yaml" else "JSON object"
        raise AcdcError(f"{path} must hold a {kind}, the coder's configuration")
    for part in (config, *(config[name] for name in OBJECTS if config.get(name) is not None)):
        if not isinstance(part, dict):
            raise AcdcError(f"{path}: {', '.join(OBJECTS)} must be objects, not of type {type(part).__name__}")
        for names, kind in ((TEXTS, str), (COUNTS, int)):
            for name in names:
                if part.get(name) is not None and type(part[name]) is not kind:
                    raise AcdcError(f"{path}: {name} must be {'a text' if kind is str else 'a whole number'}, not of "
                                    f"type {type(part[name]).__name__}")
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
    except (ValueError, IndexError, RuntimeError) as error:
        raise AcdcError(f"{path}: its weights do not have the dimensions of a coder ({error})") from error

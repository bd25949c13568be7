"""Safetensors files: their one reader, which never runs what is in them, and the same bytes for the same content."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from acdc.errors import AcdcError
from acdc.input_file import check_plain

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


def read_tensors(path: str | Path, what: str = "safetensors file", remedy: str = "give an intact safetensors file"
                 ) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file; numbers of 8 bits, of which torch computes little, as numbers of 32.

    `what` it should be and the `remedy` are said in errors. Raises `AcdcError` for a file that is missing, a pickle,
    or damaged: cut short, or with a header that claims more than the file holds.
    """
    path = Path(path)
    try:
        check_plain(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: _computable(file.get_tensor(name)) for name in list(file.keys())}
            return tensors, file.metadata() or {}
    except FileNotFoundError as error:
        raise AcdcError(f"there is no {path}, which should be a {what}; {remedy}") from error
    except (SafetensorError, OSError, ValueError, NotImplementedError) as error:
        if is_pickle(path):
            raise pickle_refused(path) from error
        raise AcdcError(f"{path} is not a {what}, or is damaged ({error}); {remedy}") from error


def _computable(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def is_pickle(path: Path) -> bool:
    """Whether a file that is not safetensors is a pickle, by its name or its first bytes (torch writes an archive)."""
    try:
        with path.open("rb") as file:
            first = file.read(4)
    except OSError:
        return False
    return path.suffix in PICKLES or first == b"PK\x03\x04" or (first[:1] == b"\x80" and first[1:2] in b"\2\3\4\5")


def pickle_refused(path: Path) -> AcdcError:
    return AcdcError(f"{path} is a pickle, which can run any code when it is read, and is refused. Convert it where "
                     "you trust it: load it there and save its tensors with safetensors.torch.save_file")


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """What `safetensors.torch.save` returns, but with `metadata` in the order of its keys: there it is random."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(metadata))
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that numbers are aligned
    return len(text).to_bytes(8, "little") + text + content[8 + length :]

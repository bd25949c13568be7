"""Tensors and texts as the bytes of a safetensors file, the same bytes for the same content."""

import json
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """What `safetensors.torch.save` returns, but with `metadata` in the order of its keys: there it is random."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(metadata))
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that numbers are aligned
    return len(text).to_bytes(8, "little") + text + content[8 + length :]

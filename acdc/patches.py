"""How images are written as prompts: each distinct patch is a token, CLS is the last one.

A model that reads images has no vocabulary. It gets one from the images that it is studied on: the labels, which are
what the logits are over; CLS; then every distinct patch of those images, in the order of their pixels. So a prompt of
4 x 4 patches has 17 tokens, answers are tokens that no image holds, and whatever works on token ids works on images.
Nothing is approximated: a token stands for exactly the pixels that the model is given.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.errors import AcdcError
from acdc.output_folder import write_file
from acdc.tensor_file import read_tensors, tensor_bytes

CLS = "[CLS]"
FILE = "patches.safetensors"
Images = Float[Tensor, "image channel height width"]


@dataclass(frozen=True, eq=False)
class PatchTable:
    """The vocabulary of a model that reads images, in the place of a tokenizer.

    `pixels`: every patch that a prompt can hold, as the model is given it. `size`: height and width of an image, in
    pixels. `labels`: what the model tells apart; spaces in them are written as _.
    """

    pixels: Float[Tensor, "patch channel height width"]
    size: tuple[int, int]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(label.replace(" ", "_") for label in self.labels))
        if len(self.words) < len(self):
            raise AcdcError(f"{len(self.labels)} labels, two of them alike, or called like a patch or {CLS}: "
                            f"{', '.join(self.labels[:9])}; each needs a name of its own")

    @staticmethod
    def of_images(images: Images, patch: int, labels: Sequence[str]) -> "PatchTable":
        """The table of all distinct patches, `patch` pixels high and wide, of some images, as the model is given them
        (`pixel_values`)."""
        if not len(images) or not torch.isfinite(images).all():
            raise AcdcError(f"{len(images)} images; give one or more, of finite pixels")
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            raise AcdcError(f"images of {height} x {width} pixels cannot be cut into patches of {patch} x {patch}")
        return PatchTable(torch.unique(_cut(images, patch).flatten(0, 1), dim=0), (height, width), tuple(labels))

    @staticmethod
    def of_model(images: Images, config: Any) -> "PatchTable":
        """The same, with the patches and labels of a HuggingFace config."""
        labels = [config.id2label[i] for i in range(config.num_labels)]
        return PatchTable.of_images(images, config.patch_size, labels)

    @property
    def patch(self) -> int:
        return self.pixels.shape[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """How many rows and columns of patches an image has."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def length(self) -> int:
        """Tokens of a prompt."""
        return self.grid[0] * self.grid[1] + 1

    @property
    def cls(self) -> int:
        return len(self.labels)

    def __len__(self) -> int:
        return len(self.labels) + 1 + len(self.pixels)

    @property
    def all_special_ids(self) -> list[int]:
        """Tokens that stand for no patch."""
        return list(range(self.cls + 1))

    @cached_property
    def words(self) -> dict[str, int]:
        """Each token's name: a label, [CLS], p0, p1, ..."""
        names = [*self.labels, CLS, *(f"p{i}" for i in range(len(self.pixels)))]
        return {name: i for i, name in enumerate(names)}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.words)

    @cached_property
    def _patch_tokens(self) -> dict[bytes, int]:
        return {pixels.numpy().tobytes(): self.cls + 1 + i for i, pixels in enumerate(self.pixels)}

    def __call__(self, text: str) -> Mapping[str, list[int]]:
        """The tokens of a text of names, as a tokenizer gives them."""
        for word in text.split():
            if word not in self.words:
                raise AcdcError(f"{word!r} is neither a label nor a patch of this model; the {len(self.pixels):,} "
                                f"patches are called p0 to p{len(self.pixels) - 1}, and the labels "
                                f"{', '.join(self.labels[:20])}. `text` of a PatchTable writes an image so")
        return {"input_ids": [self.words[word] for word in text.split()]}

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(self._names[i] for i in token_ids)

    def tokens(self, images: Images) -> Int[Tensor, "image pos"]:
        """Images as prompts: row by row, CLS last. Raises `AcdcError` for a patch that is not in the table."""
        if tuple(images.shape[1:]) != (self.pixels.shape[1], *self.size):
            raise AcdcError(f"images of the shape {tuple(images.shape[1:])} (channel, height, width); this model's are "
                            f"{(self.pixels.shape[1], *self.size)}")
        rows = []
        for n, patches in enumerate(_cut(images.to(self.pixels.dtype), self.patch)):
            keys = [pixels.contiguous().numpy().tobytes() for pixels in patches]
            if not all(key in self._patch_tokens for key in keys):
                raise AcdcError(f"image {n} holds patches that are not in the table; make the table of all images that "
                                "are to be prompts: PatchTable.of_images")
            rows.append([*(self._patch_tokens[key] for key in keys), self.cls])
        return torch.tensor(rows)

    def text(self, images: Images) -> list[str]:
        """Images as the text of prompts."""
        return [self.decode(row) for row in self.tokens(images).tolist()]

    def images(self, tokens: Int[Tensor, "image pos"], pixels: Tensor | None = None) -> Images:
        """The images that prompts stand for. `pixels`: those of the table, on another device or of another dtype.

        Raises `AcdcError` for tokens that are no image: of another number, or with CLS elsewhere than at the end.
        """
        patches, rows, columns = tokens[:, :-1] - self.cls - 1, *self.grid
        if tokens.shape[1] != self.length or bool((tokens[:, -1] != self.cls).any()) or bool((patches < 0).any()):
            raise AcdcError(f"prompts of {tokens.shape[1]} tokens, or without {CLS} at the end alone, are no images: "
                            f"this model reads {rows} x {columns} patches, then {CLS}")
        found = (self.pixels if pixels is None else pixels)[patches]
        return found.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def place_names(self) -> list[str]:
        """Where in the image each patch of a prompt is: patch r1 c1 at the upper left, ..."""
        rows, columns = self.grid
        return [f"patch r{row + 1} c{column + 1}" for row in range(rows) for column in range(columns)]

    def save(self, folder: Path) -> None:
        """Writes the table beside a model's files."""
        about = {"size": json.dumps(self.size), "labels": json.dumps(self.labels)}
        write_file(folder / FILE, tensor_bytes({"pixels": self.pixels}, about))

    @staticmethod
    def load(folder: Path) -> "PatchTable":
        """The table beside a model's files. Raises `AcdcError` where there is none, or it is damaged."""
        try:
            tensors, about = read_tensors(folder / FILE)
            (height, width), labels, pixels = json.loads(about["size"]), json.loads(about["labels"]), tensors["pixels"]
            if not all(type(length) is int and length > 0 for length in (height, width)):
                raise ValueError(f"the size {height!r} x {width!r}")
            if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
                raise ValueError("labels that are no texts")
            if pixels.dim() != 4 or pixels.shape[-1] != pixels.shape[-2] or not pixels.isfinite().all():
                raise ValueError("patches that are not square or not finite")
            return PatchTable(pixels.float(), (height, width), tuple(labels))
        except (AcdcError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise AcdcError(
                f"{folder} holds a model that reads images, and no table of patches that can be read ({FILE}: "
                f"{error}). Make one of your images with PatchTable.of_model(images, config) and give it as "
                "`tokenizer`, or store it there with save(folder)"
            ) from error


def _cut(images: Images, patch: int) -> Float[Tensor, "image place channel patch patch"]:
    """The patches of images, row by row."""
    rows = images.unflatten(2, (-1, patch)).unflatten(4, (-1, patch))
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).contiguous()

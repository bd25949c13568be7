"""A tiny random vision transformer, images of 2 x 4 patches for it, and pairs of them as a batch."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig
from transformers.models.vit.modeling_vit import ViTForImageClassification

from acdc.models import load_model
from acdc.patches import PatchTable
from acdc.task import Batch, Example
from acdc.transformer import Transformer

LABELS = ("cat", "great white shark", "dog", "sea urchin", "7")


def tiny_vit(dtype: torch.dtype = torch.float64) -> Any:
    """Its biases, gains and weights are all far from their trivial initial values."""
    config = ViTConfig(hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40,
                       image_size=[4, 8], patch_size=2, num_channels=3, id2label=dict(enumerate(LABELS)),
                       label2id={label: i for i, label in enumerate(LABELS)})
    hf: Any = ViTForImageClassification(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return hf.to(dtype)


def some_images(n: int = 12) -> Tensor:
    """Every second pair of neighbours has the first two rows of patches' upper half in common."""
    images = torch.rand(n, 3, 4, 8, generator=torch.Generator().manual_seed(1)).double()
    images[1::2, :, :2] = images[::2, :, :2]
    return images


@cache
def tiny_image_model(dtype: torch.dtype = torch.float64) -> Transformer:
    hf = tiny_vit(dtype)
    return load_model(hf, PatchTable.of_model(some_images().to(dtype), hf.config))


def image_batch(n: int = 3, first: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """Pairs of images that differ in their lower half alone."""
    table = tiny_image_model(dtype).tokenizer
    images = some_images().to(dtype)[2 * first :]
    clean, corrupted = table.tokens(images[: 2 * n : 2]), table.tokens(images[1 : 2 * n : 2])
    roles = {name: place for place, name in enumerate(table.place_names())}
    examples = tuple(Example(*texts, " cat", " dog", roles=roles)
                     for texts in zip(map(table.decode, clean.tolist()), map(table.decode, corrupted.tolist()),
                                      strict=True))
    return Batch(clean, corrupted, torch.arange(n) % 5, (torch.arange(n) + 2) % 5, examples)

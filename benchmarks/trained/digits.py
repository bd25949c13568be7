"""Trains a small vision transformer to read scikit-learn's digits, as it comes with acdc.

    python -m acdc.benchmarks.trained.digits      # writes digits_vit anew: config, weights, table of patches

A ViT of HuggingFace with patches of 2 x 2 pixels: 16 of them and CLS. What is minimised is the cross-entropy of the
digit; images are shifted by up to a pixel at random. A third of the images is held out, and gives the accuracy.

Phases: train; measure on held-out images; write.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from acdc.benchmarks.trained.network import rise_and_fall  # pyright: ignore[reportMissingImports]
from acdc.patches import PatchTable
from acdc.shipped import shipped_model
from acdc.tasks.digits import images_and_labels  # pyright: ignore[reportMissingImports]

Pixels = Float[Tensor, "image 1 8 8"]


@dataclass(frozen=True)
class Settings:
    """Of AdamW, whose learning rate goes as `rise_and_fall` says, and of the network."""

    steps: int = 3000
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    layers: int = 2
    heads: int = 4
    d_model: int = 48
    d_mlp: int = 96
    seed: int = 0


def digits(*, held_out: bool) -> tuple[Pixels, Int[Tensor, " image"]]:
    """Images as the network is given them, with their digits."""
    images, labels = images_and_labels(held_out=held_out)
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels)


def new_network(settings: Settings) -> Any:
    """A ViT with the random weights of a seed."""
    from transformers import ViTConfig, ViTForImageClassification  # slow to import: not before it is needed

    labels = [str(digit) for digit in range(10)]
    config = ViTConfig(
        hidden_size=settings.d_model, num_hidden_layers=settings.layers, num_attention_heads=settings.heads,
        intermediate_size=settings.d_mlp, image_size=8, patch_size=2, num_channels=1, hidden_dropout_prob=0,
        attention_probs_dropout_prob=0, id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ViTForImageClassification(config).eval()


def shifted(images: Pixels, generator: torch.Generator) -> Pixels:
    """Each image moved by -1, 0 or 1 pixels either way, with 0 where nothing was."""
    rows, columns = torch.randint(3, (2, len(images), 1), generator=generator)
    padded, place = F.pad(images, (1, 1, 1, 1))[:, 0], torch.arange(8)
    which = torch.arange(len(images))[:, None, None]
    return padded[which, (rows + place)[:, :, None], (columns + place)[:, None, :]][:, None]


def train(settings: Settings, *, report: bool = False) -> tuple[Any, list[float]]:
    """A trained network, and the loss of every step."""
    hf, (images, labels) = new_network(settings), digits(held_out=False)
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rise_and_fall(settings.steps))
    history = []
    for step in range(settings.steps):
        drawn = torch.randint(len(images), (settings.batch,), generator=generator)
        loss = F.cross_entropy(hf(shifted(images[drawn], generator)).logits, labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        history.append(loss.item())
        if report and step % 250 == 249:
            print(step + 1, f"{loss.item():.3f}", f"{accuracy(hf):.3f}", flush=True)
    return hf, history


@torch.no_grad()
def accuracy(hf: Any) -> float:
    """The share of held-out images that are read rightly."""
    images, labels = digits(held_out=True)
    return float((hf(images).logits.argmax(-1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the vision transformer that comes with acdc.")
    parser.add_argument("--out", type=Path, default=shipped_model("digits_vit"), help="the folder to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small matrices: more threads are slower
    start = time.process_time()
    hf, _ = train(Settings(), report=True)
    everything = torch.cat([digits(held_out=held_out)[0] for held_out in (True, False)])
    hf.save_pretrained(arguments.out)
    PatchTable.of_model(everything, hf.config).save(arguments.out)
    print(f"accuracy on held-out images {accuracy(hf):.4f}; {time.process_time() - start:.0f} s")


if __name__ == "__main__":
    main()

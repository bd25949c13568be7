"""Which small models come with acdc itself, as folders that transformers loads."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ShippedModel:
    """`made_by`: the command that trains it anew."""

    description: str
    made_by: str


SHIPPED = {
    "digits_vit": ShippedModel(
        description="a vision transformer that reads handwritten digits (8 x 8 pixels, 2 layers; for the task digits)",
        made_by="python -m acdc.benchmarks.trained.digits",
    ),
}


def shipped_model(name: str) -> Path:
    """The folder of a shipped model: config, weights and, for models of images, the table of patches."""
    return Path(__file__).parent / "shipped_models" / name

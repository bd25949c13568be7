"""The files of a trained model: weights in NAME.safetensors, all else in NAME.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from acdc.benchmarks.compiled.generate import to_json  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.trained.cutting import each_edge, each_node, effects  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.trained.network import Size, new_network  # pyright: ignore[reportMissingImports]
from acdc.metrics import Metric
from acdc.output_folder import write_file
from acdc.task import Batch

FOLDER = Path(__file__).parent
ABLATIONS = ("zero", "resample")


def known(hf: Any, batches: Sequence[Batch], metric: Metric, threshold: Mapping[str, float]) -> dict[str, Any]:
    """What is measured of a network's edges and nodes: the effect of each, and the edges above the threshold."""
    found: dict[str, Any] = {"metric": metric.name, "threshold": dict(threshold), "truth": {}, "effects": {}}
    for ablation in ABLATIONS:
        edges = effects(hf, batches, metric, ablation, each_edge(hf))
        found["truth"][ablation] = [name for name, effect in edges.items() if effect > threshold[ablation]]
        found["effects"][ablation] = {**edges, **effects(hf, batches, metric, ablation, each_node(hf))}
    return found


def write(folder: Path, name: str, hf: Any, size: Size, batches: Sequence[Batch], record: Mapping[str, Any]) -> None:
    """Stores a network and what is known of it."""
    write_file(folder / f"{name}.safetensors",
               save({key: weight.float().contiguous() for key, weight in hf.state_dict().items()}))
    prompts = [{"clean": batch.clean.tolist(), "corrupted": batch.corrupted.tolist()} for batch in batches]
    text = to_json({"name": name, "size": asdict(size), **record, "batches": prompts})
    write_file(folder / f"{name}.json", text)


def read(folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """A network with its weights, in float32, and what is stored of it."""
    stored = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    hf = new_network(Size(**stored["size"]), seed=0)
    hf.load_state_dict(load_file(folder / f"{name}.safetensors"))
    hf.config.name_or_path = f"trained {name}"
    return hf.eval(), stored

"""Loads a trained model with its prompts, the nodes that it is known to use, and the measured effect of every edge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from acdc.benchmarks.compiled.load import (  # pyright: ignore[reportMissingImports]
    LOGIT_DISTANCE,
    batch_of,
    circuit_of,
)
from acdc.benchmarks.trained.stored import FOLDER, read  # pyright: ignore[reportMissingImports]
from acdc.circuit import Circuit
from acdc.errors import unknown_name
from acdc.metrics import METRICS, Metric
from acdc.models import load_model
from acdc.task import Batch
from acdc.transformer import Transformer

TRAINED = ("frac_prevs", "pair_balance", "detect_ab", "induction")
KNOWN_METRICS = {**METRICS, LOGIT_DISTANCE.name: LOGIT_DISTANCE}


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained model, prompts that training has not seen, and what is known of it.

    `nodes`: what each node that it uses holds; all others are of no use. `effects`: by ablation (`zero`, `resample`),
    the mean over the prompts of how much the loss rises when that edge, or all edges out of that node, is cut alone, in
    units of `metric`. `truth`: the edges whose effect is above `threshold`, by ablation; and the `program`'s own edges,
    where it was trained on one. `reached`: how well it does what it was trained for. `training`: its settings.
    """

    name: str
    computes: str
    model: Transformer
    batches: list[Batch]
    metric: Metric
    nodes: Mapping[str, str]
    truth: Mapping[str, tuple[str, ...]]
    threshold: Mapping[str, float]
    effects: Mapping[str, Mapping[str, float]]
    vocabulary: Mapping[str, int]
    labels: tuple[str, ...]
    reached: Mapping[str, Any]
    training: Mapping[str, Any]

    @property
    def expected(self) -> tuple[str, ...]:
        """The edges that resample ablation should show: the program's own, or those found by cutting each alone."""
        return self.truth.get("program", self.truth["resample"])

    def circuit(self, truth: str) -> Circuit:
        """The true edges of an ablation, or of the `program`, as a circuit."""
        return circuit_of(self.model, self.truth, truth)


def load_trained(name: str, dtype: str = "float64") -> TrainedModel:
    """The trained model of that name in TRAINED. Its weights are stored in float32."""
    if name not in TRAINED:
        raise unknown_name("trained model", name, TRAINED)
    hf, stored = read(FOLDER, name)
    model = load_model(hf, dtype=dtype)
    return TrainedModel(
        name=name, computes=stored["computes"], model=model, metric=KNOWN_METRICS[stored["metric"]],
        batches=[batch_of(model, ids, list(stored["vocabulary"]), stored["labels"]) for ids in stored["batches"]],
        nodes=stored["nodes"],
        truth={key: tuple(edges) for key, edges in stored["truth"].items()}, threshold=stored["threshold"],
        effects=stored["effects"], vocabulary=stored["vocabulary"], labels=tuple(stored["labels"]),
        reached=stored["reached"], training=stored["training"],
    )

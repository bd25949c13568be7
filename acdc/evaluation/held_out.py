"""How circuits do on prompts that discovery has not seen: many circuits, one preparation, intervals over the prompts.

Phases: the full model, the empty circuit and the replacement values are computed once; then each circuit is run, each
different one once; prompts are drawn anew with replacement for the intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from acdc.ablation import Ablation, Replacement, prepare_ablation
from acdc.activations import record
from acdc.circuit import Circuit
from acdc.evaluation.bootstrap import LEVEL
from acdc.evaluation.faithfulness import measure
from acdc.metrics import Metric
from acdc.patching import run_circuit
from acdc.task import Batch
from acdc.transformer import Transformer, frozen


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Prompts ready to measure circuits on. `full`, `empty`: the metric of each prompt with nothing and all cut."""

    model: Transformer
    metric: Metric
    batches: Sequence[Batch]
    replacements: Sequence[Replacement]
    references: Sequence[torch.Tensor]
    full: Float[np.ndarray, " prompt"]
    empty: Float[np.ndarray, " prompt"]

    def metrics(self, circuits: Sequence[Circuit]) -> Float[np.ndarray, "circuit prompt"]:
        """The metric of each prompt in each circuit. Equal circuits are run once, the full and the empty one not at
        all. Cost: one circuit run a batch for each of the others."""
        known: dict[bytes, Float[np.ndarray, " prompt"]] = {}
        for circuit in circuits:
            key = circuit.kept.tobytes()
            if key not in known:
                known[key] = self._metric(circuit)
        return np.stack([known[circuit.kept.tobytes()] for circuit in circuits])

    def _metric(self, circuit: Circuit) -> Float[np.ndarray, " prompt"]:
        if circuit.kept.all():
            return self.full
        if not circuit.kept.any():
            return self.empty
        values = [self.metric(run_circuit(self.model, batch, circuit, replacement), batch, reference)
                  for batch, replacement, reference in zip(self.batches, self.replacements, self.references,
                                                           strict=True)]
        return torch.cat(values).double().cpu().numpy()


def hold_out(model: Transformer, batches: Sequence[Batch], metric: Metric, *, ablation: str | Ablation = "resample"
             ) -> HeldOut:
    """Prompts ready to measure circuits on; it keeps the replacement values of all of them.

    Raises `AcdcError` where the metric does not separate the full model from the empty circuit.
    """
    full, empty = measure(model, [], batches, metric, ablation=ablation).cpu().numpy()
    replace = prepare_ablation(model, batches, ablation)
    with torch.no_grad(), frozen(model):
        references = [model.logits(record(model, batch.clean).final[:, -1]) for batch in batches]
    return HeldOut(model, metric, batches, [replace(batch) for batch in batches], references, full, empty)


@dataclass(frozen=True, eq=False)
class Resampled:
    """Faithfulness of circuits on all prompts, and in each draw of as many prompts with replacement."""

    values: Float[np.ndarray, " circuit"]
    draws: Float[np.ndarray, "draw circuit"]

    def interval(self, i: int) -> tuple[float | None, float | None]:
        return interval(self.draws[:, i])


def faithfulness_of(metrics: Float[np.ndarray, "circuit prompt"], held_out: HeldOut, *, n_draws: int = 1000,
                    seed: int = 0) -> Resampled:
    """f = (m(circuit) - m(empty)) / (m(full) - m(empty)), a ratio of means, of all prompts and of each draw."""
    n = metrics.shape[1]
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_draws) / n
    gain, whole = metrics - held_out.empty, held_out.full - held_out.empty
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw may have no difference between full and empty
        draws = (weights @ gain.T) / (weights @ whole)[:, None]
    return Resampled(gain.mean(1) / whole.mean(), draws)


def interval(draws: Float[np.ndarray, " draw"]) -> tuple[float | None, float | None]:
    """The percentile interval at `LEVEL`; none where f has no value in some draw, or there was one prompt."""
    if not np.isfinite(draws).all():
        return None, None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def areas(fractions: Sequence[float], f: Float[np.ndarray, "draw circuit"]
          ) -> dict[str, Float[np.ndarray, " draw"]]:
    """CPR and CMD of every draw: areas under f and |1 - f| over the requested fraction, trapezoids, linear x."""
    widths = np.diff(fractions)

    def under(heights: Float[np.ndarray, "draw circuit"]) -> Float[np.ndarray, " draw"]:
        return (heights[:, 1:] + heights[:, :-1]) / 2 @ widths

    return {"cpr": under(f), "cmd": under(np.abs(1 - f))}

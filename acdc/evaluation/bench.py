"""What a circuit is tested on: a model, prompts, a metric and replacement values; and what circuits gain there.

The gain of a circuit on a prompt is its score minus the empty circuit's, the score being the metric with the sign by
which higher is better. The gap is the full model's gain. Faithfulness is mean(gain) / mean(gap).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from acdc.ablation import Ablation, prepare_ablation
from acdc.circuit import Circuit
from acdc.evaluation.faithfulness import measure
from acdc.evaluation.significance import Estimate, draw_weights, interval, ratios_of_draws
from acdc.metrics import Metric
from acdc.task import Batch
from acdc.transformer import Transformer

Gains = Float[np.ndarray, "circuit prompt"]
TIE = 1e-4  # of the mean gap: a smaller difference may be rounding


@dataclass(frozen=True, eq=False)
class Bench:
    """`full`, `empty`: the score of each prompt with nothing and all cut. `seed`: of every draw made here."""

    model: Transformer
    batches: Sequence[Batch]
    metric: Metric
    ablation: Ablation
    full: Float[np.ndarray, " prompt"]
    empty: Float[np.ndarray, " prompt"]
    n_resamples: int
    seed: int
    progress: bool

    @property
    def sign(self) -> int:
        return 1 if self.metric.higher_is_better else -1

    @property
    def n_prompts(self) -> int:
        return len(self.full)

    @cached_property
    def gap(self) -> Float[np.ndarray, " prompt"]:
        return self.full - self.empty

    @cached_property
    def weights(self) -> Float[np.ndarray, "resample prompt"]:
        """The same draws for every interval, so that differences are of the same prompts."""
        return draw_weights(self.n_prompts, self.n_resamples, self.seed)

    def gains(self, circuits: Sequence[Circuit]) -> Gains:
        """The gain of each circuit on each prompt. Cost: a circuit run each, and two forward passes a batch."""
        if not circuits:
            return np.zeros((0, self.n_prompts))
        values = measure(self.model, circuits, self.batches, self.metric, ablation=self.ablation,
                         progress=self.progress)
        return self.sign * values[2:].cpu().numpy() - self.empty

    def draws(self, gains: Gains) -> Float[np.ndarray, "circuit resample"]:
        """mean(gain) / mean(gap) in each draw of the prompts."""
        return ratios_of_draws(gains, self.gap, self.weights)

    def estimates(self, gains: Gains) -> list[Estimate]:
        """mean(gain) / mean(gap) with its bootstrap interval."""
        ends = interval(self.draws(gains), self.n_prompts)
        return [Estimate(float(value), float(low), float(high))
                for value, (low, high) in zip(self.values(gains), ends, strict=True)]

    def values(self, gains: Gains) -> Float[np.ndarray, " circuit"]:
        """mean(gain) / mean(gap), without an interval."""
        return gains.mean(1) / self.gap.mean()


def prepare_bench(model: Transformer, batches: Sequence[Batch], metric: Metric, *,
                  ablation: str | Ablation = "resample", n_resamples: int = 2000, seed: int = 0,
                  progress: bool = False) -> Bench:
    """Runs the full model and the empty circuit. Raises `AcdcError` where the metric does not separate them."""
    replace = prepare_ablation(model, batches, ablation)
    values = measure(model, [], batches, metric, ablation=replace).cpu().numpy()
    full, empty = (1 if metric.higher_is_better else -1) * values
    bench = Bench(model, batches, metric, replace, full, empty, n_resamples, seed, progress)
    assert bench.weights.shape == (n_resamples, bench.n_prompts)  # refuses too few prompts before anything is run
    return bench

"""Random scores: the baseline that any method must beat. The model is not run."""

from collections.abc import Sequence

import numpy as np

from acdc.ablation import check_ablation
from acdc.circuit import EdgeScores
from acdc.errors import AcdcError
from acdc.graph import KV
from acdc.metrics import METRICS, Metric
from acdc.task import Batch, position_names
from acdc.transformer import Transformer


def random(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    seed: int = 0,
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    progress: bool = False,
) -> EdgeScores:
    """s(edge) uniform in [-1, 1), each edge on its own.

    The scores depend on `seed` (0 or more) and on the number of edges, and on nothing else; they have no unit. By
    either ranking, `top(n)` is a random choice of n edges. Cost: none. It misleads as a lower bound: the area under a
    faithfulness curve that ends at the full model is not 0 for random edges, and one seed is one draw.
    """
    if seed < 0:
        raise AcdcError(f"seed={seed}: it must be 0 or more")
    check_ablation(batches, ablation)
    graph = model.graph(kv, position_names(batches, positions))
    values = np.random.default_rng(seed).uniform(-1, 1, graph.n_edges)
    provenance = {"method": "random", "method_options": {"seed": seed}, "metric": metric.name, "ablation": ablation}
    return EdgeScores(graph, values, provenance)

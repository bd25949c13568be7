"""Several methods' scores made comparable and averaged, edge by edge.

Phases: each method scores every edge with its default options; its scores are put on a scale of their own that leaves
signs as they are; the mean over the methods is taken.
Source: our own; ensembles did well at the BlackboxNLP 2025 shared task (arXiv 2511.18409).
"""

import inspect
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from acdc.circuit import EdgeScores
from acdc.errors import AcdcError, unknown_name
from acdc.graph import KV
from acdc.metrics import METRICS, Metric
from acdc.task import Batch, position_names
from acdc.transformer import Transformer

Values = Float[np.ndarray, " edge"]


def ensemble(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    methods: Sequence[str] = ("eap", "eap_ig"),
    combine: str = "zscore",
    ablation: str = "resample",
    kv: KV = "head",
    positions: str = "all",
    progress: bool = False,
) -> EdgeScores:
    """s(edge) = mean over `methods` of f(the method's scores)(edge), where f is

    `combine="zscore"`: s / root mean square of the method's scores. The mean is not subtracted, so that signs stay; a
    method whose scores are all 0 adds 0.
    `combine="rank"`: sign(s) * (rank of |s| among all edges, 1 = least) / (number of edges), between -1 and 1. Edges of
    equal |s| share the mean of their ranks; a score of 0 stays 0.

    Positive = the edge helps, according to the methods on the whole; the scores have no unit. Cost: that of all
    methods. It misleads where methods share a fault, as all gradients do. Ranks lose how far the few strongest edges
    stand out, which small circuits live on, and give a place to what is mere rounding. Raises `AcdcError` for fewer
    than two methods, one named twice, `ensemble` itself, methods without a sign (hisp, ifr), and a method that leaves
    edges untried (ACDC), since -inf has no place on either scale.
    """
    chosen = choose_methods(methods)
    if combine not in COMBINE:
        raise unknown_name("combine", combine, COMBINE)
    graph = model.graph(kv, position_names(batches, positions))
    total = np.zeros(graph.n_edges)
    for name, method in chosen.items():
        values = method(model, batches, metric, ablation=ablation, kv=kv, positions=positions, progress=progress).values
        if not np.isfinite(values).all():
            raise _leaves_untried(name)
        total += COMBINE[combine](values) / len(chosen)
    provenance = {"method": "ensemble", "method_options": {"methods": ", ".join(methods), "combine": combine},
                  "metric": metric.name, "ablation": ablation}
    return EdgeScores(graph, total, provenance)


def choose_methods(methods: Sequence[str]) -> dict[str, Callable[..., EdgeScores]]:
    """The methods of these names. Refuses those that cannot be combined, before anything is computed."""
    from acdc.discovery import METHODS, UNSIGNED  # here, because that table lists this module too

    for name in methods:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
        if METHODS[name] is ensemble:
            raise AcdcError("an ensemble cannot be a part of itself; name other methods, such as eap and eap_ig")
        if name in UNSIGNED:
            raise AcdcError(f"{name} cannot be a part of an ensemble: its scores do not say whether an edge helps or "
                            "hurts. Name methods that do, such as eap, eap_ig or exact")
        if "threshold" in inspect.signature(METHODS[name]).parameters:
            raise _leaves_untried(name)
    if len(methods) < 2 or len(set(methods)) < len(methods):
        raise AcdcError(f"an ensemble of {', '.join(methods) or 'nothing'}: name two different methods or more")
    return {name: METHODS[name] for name in methods}


def _leaves_untried(name: str) -> AcdcError:
    return AcdcError(
        f"{name} cannot be a part of an ensemble: it leaves edges untried, whose score -inf has no place among others. "
        "Name methods that score every edge, such as eap, eap_ig or exact"
    )


def _in_units_of_rms(values: Values) -> Values:
    largest = np.abs(values).max()
    if largest == 0:
        return values
    scaled = values / largest  # whose squares cannot underflow
    return scaled / np.sqrt(np.mean(scaled**2))


def _signed_rank(values: Values) -> Values:
    size = np.abs(values)
    _, place, count = np.unique(size, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    return np.sign(values) * mean_rank[place] / len(values)


COMBINE: dict[str, Callable[[Values], Values]] = {"zscore": _in_units_of_rms, "rank": _signed_rank}

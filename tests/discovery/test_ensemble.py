"""Combined scores against ranks and root mean squares that are counted edge by edge."""

import math

import numpy as np
import pytest
from conftest import make_batch, tiny

from acdc.circuit import EdgeScores
from acdc.discovery import METHODS
from acdc.discovery.ensemble import ensemble
from acdc.errors import AcdcError
from acdc.metrics import METRICS


def slow_rank(values):
    """Half a point for each edge of the same size, a whole one for each smaller edge; and half a point more."""
    ranks = []
    for value in values:
        smaller = sum(abs(other) < abs(value) for other in values)
        equal = sum(abs(other) == abs(value) for other in values)
        sign = 0 if value == 0 else math.copysign(1, value)
        ranks.append(sign * (smaller + (equal + 1) / 2) / len(values))
    return ranks


def slow_zscore(values):
    rms = math.sqrt(math.fsum(value**2 for value in values) / len(values))
    return [value / rms if rms else 0.0 for value in values]


SLOW = {"rank": slow_rank, "zscore": slow_zscore}


def returns(monkeypatch, name, values):
    """Registers a method of fixed scores; what is left out is 0."""

    def method(model, batches, metric, *, ablation, kv, positions, progress):
        graph = model.graph(kv)
        return EdgeScores(graph, np.concatenate([values, np.zeros(graph.n_edges - len(values))]))

    monkeypatch.setitem(METHODS, name, method)


@pytest.mark.parametrize("kv", ["head", "group"])
@pytest.mark.parametrize("combine", SLOW)
def test_scores_are_the_mean_of_the_scaled_scores(combine, kv):
    model, batches, metric = tiny("llama"), [make_batch(2), make_batch(2, 7)], METRICS["probability_difference"]
    options = {"kv": kv, "ablation": "mean"}
    names = ["eap", "exact", "random"]
    scaled = [SLOW[combine](METHODS[name](model, batches, metric, **options).values) for name in names]
    scores = ensemble(model, batches, metric, methods=names, combine=combine, **options)
    np.testing.assert_allclose(scores.values, np.mean(scaled, axis=0), rtol=0, atol=1e-12)
    assert scores.provenance == {"method": "ensemble", "metric": "probability_difference", "ablation": "mean",
                                 "method_options": {"methods": "eap, exact, random", "combine": combine}}


EXTREMES = [[3.0, -1, 1, -1, 0, -0.0, 7], [1e-200, 2e-200, -1e-200], [1e200, -1e200]]


@pytest.mark.parametrize("values", EXTREMES)
@pytest.mark.parametrize("combine", SLOW)
def test_ties_zeros_and_extreme_sizes(combine, values, monkeypatch):
    returns(monkeypatch, "fixed", np.array(values))
    returns(monkeypatch, "nothing", np.array([]))
    scores = ensemble(tiny("gpt2"), [make_batch()], methods=["fixed", "nothing"], combine=combine).values
    expected = np.concatenate([values, np.zeros(len(scores) - len(values))]) / max(values)
    np.testing.assert_allclose(scores, np.array(SLOW[combine](expected)) / 2, rtol=1e-12)
    assert np.array_equal(np.sign(scores), np.sign(expected))


def test_the_order_of_the_methods_and_their_units_do_not_matter(monkeypatch):
    model, batches = tiny("gpt2"), [make_batch()]
    returns(monkeypatch, "thousandfold", 1000 * METHODS["exact"](model, batches).values)
    for combine in SLOW:
        scores = [ensemble(model, batches, methods=names, combine=combine).values
                  for names in (("eap", "exact"), ("exact", "eap"), ("eap", "thousandfold"))]
        np.testing.assert_allclose(scores[1], scores[0], atol=1e-12)
        np.testing.assert_allclose(scores[2], scores[0], atol=1e-12)


@pytest.mark.parametrize(("methods", "message"), [
    (["eap", "eap_gi"], "unknown method 'eap_gi'. Did you mean 'eap_ig'"),
    (["eap", "ensemble"], "cannot be a part of itself"),
    (["eap", "acdc"], "acdc cannot be a part of an ensemble: it leaves edges untried"),
    (["acdc_sequential", "eap"], "acdc_sequential cannot be a part"),
    (["eap", "hisp"], "hisp cannot be a part of an ensemble: its scores do not say whether an edge helps"),
    (["eap"], "an ensemble of eap: name two"),
    (["eap", "eap"], "an ensemble of eap, eap: name two different"),
    ([], "an ensemble of nothing: name two"),
])
def test_methods_that_cannot_be_combined_are_refused_before_any_runs(methods, message, monkeypatch):
    monkeypatch.setitem(METHODS, "eap", lambda *args, **kwargs: pytest.fail("eap was run"))
    with pytest.raises(AcdcError, match=message):
        ensemble(tiny("gpt2"), [make_batch()], methods=methods)


def test_untried_edges_and_unknown_ways_are_refused(monkeypatch):
    returns(monkeypatch, "search", np.array([1, -np.inf]))
    with pytest.raises(AcdcError, match="search cannot be a part of an ensemble: it leaves edges untried"):
        ensemble(tiny("gpt2"), [make_batch()], methods=["search", "eap"])
    with pytest.raises(AcdcError, match="unknown combine 'ranks'. Did you mean 'rank'"):
        ensemble(tiny("gpt2"), [make_batch()], combine="ranks")

"""Calibration equals scipy on all edges where all are drawn, and estimates the same from a part."""

import json

import numpy as np
import pytest
from conftest import make_batch, tiny
from scipy.stats import pearsonr, spearmanr, ttest_1samp

from acdc.circuit import EdgeScores
from acdc.discovery.eap_ig import eap_ig
from acdc.discovery.exact import exact, exact_effects
from acdc.errors import AcdcError
from acdc.evaluation import calibration as module
from acdc.evaluation.calibration import KINDS, LEAST_EDGES, calibrate
from acdc.graph import Graph
from acdc.metrics import METRICS

MODEL = tiny("llama")
BATCHES = [make_batch(20, 7), make_batch(16, 6, seed=1)]
METRIC = METRICS["kl_divergence"]  # no effect is negative, so that many are clear
GRAPH = MODEL.graph()
EFFECTS = exact_effects(MODEL, BATCHES, METRIC, np.arange(GRAPH.n_edges))
EXACT = exact(MODEL, BATCHES, METRIC)
SCORES = eap_ig(MODEL, BATCHES, METRIC)
KIND = np.array([GRAPH.channels[c].letter or GRAPH.channels[c].node.kind for c in GRAPH.edge_channel])
ALL = 10**6


@pytest.fixture
def known(monkeypatch):
    """Effects that are made up, in place of patched ones; the graph is of 32,491 edges then."""

    def patch(effects):
        monkeypatch.setattr(module, "exact_effects", lambda model, batches, metric, edges, **options: effects[edges])
        monkeypatch.setattr(module, "check_graph", lambda model, graph: None)

    return patch


@pytest.mark.parametrize("size", [1, 20, 60])
def test_with_all_edges_drawn_the_numbers_are_scipys(size):
    result = calibrate(MODEL, SCORES, BATCHES, METRIC, n=ALL, size=size)
    assert result.overall.n_edges == GRAPH.n_edges and result.n_prompts == 36
    assert (result.sample.edge == np.arange(GRAPH.n_edges)).all() and (result.sample.weight == 1).all()
    means = EFFECTS.mean(1)
    clear = ttest_1samp(EFFECTS, 0, axis=1).pvalue < 0.05 / GRAPH.n_edges
    assert clear.any()
    kept = SCORES.top(size, by="magnitude").kept
    large = np.abs(means) >= np.abs(SCORES.values[kept]).min()
    for row in (result.overall, *result.kinds):
        rows = np.full(GRAPH.n_edges, True) if row.kind == "all" else row.kind == KIND
        assert row.n_edges == row.n_sampled == rows.sum()
        assert row.pearson == pytest.approx(pearsonr(SCORES.values[rows], means[rows]).statistic)
        assert row.spearman == pytest.approx(spearmanr(SCORES.values[rows], means[rows]).statistic)
        assert row.n_distinguishable == (clear & rows).sum()
        if (clear & rows).any():
            same = np.sign(SCORES.values) == np.sign(means)
            assert row.sign_agreement == pytest.approx(same[clear & rows].mean())
        if (large & rows).any():
            assert row.missed == pytest.approx(1 - kept[large & rows].mean())
            assert row.missed_low == pytest.approx(row.missed) == row.missed_high  # nothing is left to chance
        else:
            assert (row.missed, row.missed_low, row.missed_high) == (None, None, None)


@pytest.mark.parametrize("n", [60, ALL])
def test_exact_scores_calibrate_to_1(n):
    result = calibrate(MODEL, EXACT, BATCHES, METRIC, n=n, size=30, seed=1)
    assert result.overall.n_sampled == min(n, GRAPH.n_edges)
    for row in (result.overall, *result.kinds):
        assert (row.pearson, row.spearman) == pytest.approx((1, 1))
        assert row.sign_agreement in (1, None) and row.missed in (0, None)
    assert (result.overall.sign_agreement, result.overall.missed) == (1, 0)


@pytest.mark.parametrize("seed", range(3))
def test_weights_sum_to_the_edges_of_every_kind_and_strata_share_the_sample(seed):
    scores = EdgeScores(GRAPH, np.where(np.random.default_rng(seed).random(GRAPH.n_edges) < 0.2, -np.inf,
                                        SCORES.values))
    tried = np.isfinite(scores.values)
    result = calibrate(MODEL, scores, BATCHES, METRIC, n=70, seed=seed, size=20)
    sample = result.sample
    assert len(np.unique(sample.edge)) == len(sample.edge) == result.overall.n_sampled == 70
    assert tried[sample.edge].all() and result.n_untried == (~tried).sum()
    assert sample.weight.sum() == pytest.approx(tried.sum())
    for row in result.kinds:
        assert sample.weight[KIND[sample.edge] == row.kind].sum() == pytest.approx(row.n_edges)
        assert row.n_edges == (tried & (row.kind == KIND)).sum()
    assert sum(row.n_sampled for row in result.kinds) == 70
    counts, whole = np.unique(sample.stratum, return_counts=True)[1], []
    for s in np.unique(sample.stratum):
        members = sample.stratum == s
        assert len(set(sample.weight[members])) == 1
        assert len(set(np.abs(sample.score[members]) >= result.threshold)) == 1
        whole.append(sample.weight[members][0] == 1)
    partial = counts[~np.array(whole)]
    assert partial.max() - partial.min() <= 1 and counts[whole].max() <= partial.max()
    np.testing.assert_allclose(sample.effect, EFFECTS.mean(1)[sample.edge], atol=1e-12)
    np.testing.assert_allclose(sample.error, EFFECTS.std(1, ddof=1)[sample.edge] / 6, atol=1e-12)


def test_the_seed_decides():
    first, again, other = (calibrate(MODEL, SCORES, BATCHES, METRIC, n=60, seed=seed) for seed in (3, 3, 4))
    assert first.summary() == again.summary() != other.summary()
    assert (first.sample.edge == again.sample.edge).all() and (first.sample.edge != other.sample.edge).any()
    assert json.loads(json.dumps(first.summary(), allow_nan=False)) == first.summary()


def test_estimates_from_a_sample_are_near_those_of_all_edges(known):
    """On a graph as large as GPT-2 small's, with heavy tails; the interval of the missed share holds the truth."""
    graph, generator = Graph(12, 12, 12), np.random.default_rng(0)
    mean = generator.standard_t(2, graph.n_edges) * 0.01
    values = mean + 0.004 * generator.standard_normal(graph.n_edges)
    known(mean[:, None] + 0.002 * generator.standard_normal((graph.n_edges, 12)))
    scores = EdgeScores(graph, values)
    truth = calibrate(MODEL, scores, BATCHES, METRIC, n=ALL, size=2000).overall
    found = [calibrate(MODEL, scores, BATCHES, METRIC, n=800, size=2000, seed=seed).overall for seed in range(40)]
    for name in ("pearson", "spearman", "missed"):
        estimates = np.array([getattr(row, name) for row in found])
        assert estimates.mean() == pytest.approx(getattr(truth, name), abs=3 * estimates.std() / np.sqrt(40) + 0.005)
        assert estimates.std() < 0.15
    assert sum(row.missed_low <= truth.missed <= row.missed_high for row in found) >= 38
    assert all(0 <= row.missed_low <= row.missed <= row.missed_high <= 1 for row in found)


def test_what_is_undefined_is_none(known):
    constant = EdgeScores(GRAPH, np.full(GRAPH.n_edges, 0.5))
    overall = calibrate(MODEL, constant, BATCHES, METRIC, n=60).overall
    assert (overall.pearson, overall.spearman) == (None, None) and overall.sign_agreement is not None
    single = calibrate(MODEL, SCORES, [make_batch(1, 6)], METRIC, n=60)
    assert np.isnan(single.sample.error).all()
    assert (single.overall.n_distinguishable, single.overall.sign_agreement) == (0, None)
    empty = calibrate(MODEL, SCORES, BATCHES, METRIC, n=60, size=0)
    assert (empty.threshold, empty.overall.missed, empty.overall.missed_high) == (None, None, None)
    two = np.full(GRAPH.n_edges, -np.inf)
    two[np.nonzero(KIND == "logits")[0][:2]] = (1.0, 2.0)
    result = calibrate(MODEL, EdgeScores(GRAPH, two), BATCHES, METRIC)
    assert [row.kind for row in result.kinds] == list(KINDS) and result.n_untried == GRAPH.n_edges - 2
    assert [(row.n_edges, row.n_sampled, row.pearson) for row in result.kinds] == [(0, 0, None)] * 4 + [(2, 2, None)]
    known(np.zeros((GRAPH.n_edges, 4)))
    overall = calibrate(MODEL, SCORES, BATCHES, METRIC, n=60).overall
    assert (overall.pearson, overall.n_distinguishable, overall.missed) == (None, 0, None)


def test_mistakes_are_refused(known):
    with pytest.raises(AcdcError, match=f"give at least {LEAST_EDGES}"):
        calibrate(MODEL, SCORES, BATCHES, METRIC, n=LEAST_EDGES - 1)
    with pytest.raises(AcdcError, match="no edge has a score"):
        calibrate(MODEL, EdgeScores(GRAPH, np.full(GRAPH.n_edges, -np.inf)), BATCHES, METRIC)
    with pytest.raises(AcdcError, match="of another model"):
        calibrate(MODEL, EdgeScores(Graph(2, 4, 2), np.zeros(Graph(2, 4, 2).n_edges)), BATCHES, METRIC)
    with pytest.raises(AcdcError, match="cannot keep"):
        calibrate(MODEL, SCORES, BATCHES, METRIC, size=GRAPH.n_edges + 1)
    known(np.full((GRAPH.n_edges, 4), np.nan))
    with pytest.raises(AcdcError, match="is not finite"):
        calibrate(MODEL, SCORES, BATCHES, METRIC)

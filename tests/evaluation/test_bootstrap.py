"""The bootstrap against a plain one, and against what statistics promises."""

import numpy as np
import pytest

from acdc.circuit import EdgeScores
from acdc.errors import AcdcError
from acdc.evaluation import bootstrap as module
from acdc.evaluation.bootstrap import bootstrap
from acdc.graph import Graph

GRAPH = Graph(2, 2, 2)


def scored(n_prompts=12, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    alone = (rng.normal(size=GRAPH.n_edges) + scale * rng.normal(size=(n_prompts, GRAPH.n_edges))).astype(np.float32)
    return EdgeScores(GRAPH, alone.astype(np.float64).mean(0), {"method": "made up"}, alone)


@pytest.mark.parametrize("by", ["signed", "magnitude"])
@pytest.mark.parametrize("chunk", [1, 2**26])
def test_it_is_the_plain_bootstrap(by, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    scores, size = scored(), 7
    found = bootstrap(scores, size=size, by=by, n_resamples=50, seed=3)
    draws = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), 50)
    resampled = np.array([np.repeat(scores.per_prompt, draw, axis=0).astype(np.float64).mean(0) for draw in draws])
    circuits = [EdgeScores(GRAPH, values).top(size, by=by).kept for values in resampled]
    np.testing.assert_allclose(found.inclusion, np.mean(circuits, axis=0))
    np.testing.assert_allclose(found.same_sign, (np.sign(resampled) == np.sign(scores.values)).mean(0))
    np.testing.assert_allclose([found.low, found.high], np.quantile(resampled, [0.025, 0.975], axis=0), atol=1e-6)
    kept = scores.top(size, by=by).kept
    assert found.overlap == pytest.approx(np.mean([(kept & circuit).sum() / size for circuit in circuits]))
    assert found.inclusion.sum() == pytest.approx(size)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """30 prompts, true score 0 for every edge: 95% intervals by percentiles cover somewhat less."""
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(10):
        alone = rng.normal(size=(30, GRAPH.n_edges)).astype(np.float32)
        scores = EdgeScores(GRAPH, alone.mean(0).astype(np.float64), {}, alone)
        found = bootstrap(scores, size=5, by="signed", seed=seed)
        covered.append((found.low <= 0) & (found.high >= 0))
    assert 0.90 < np.mean(covered) < 0.97


def test_equal_prompts_leave_no_doubt():
    alone = np.tile(np.random.default_rng(0).normal(size=GRAPH.n_edges).astype(np.float32), (4, 1))
    scores = EdgeScores(GRAPH, alone[0].astype(np.float64), {}, alone)
    found = bootstrap(scores, size=6, by="magnitude", n_resamples=20)
    assert (found.inclusion == scores.top(6, by="magnitude").kept).all() and found.overlap == 1
    assert (found.same_sign == 1).all()
    np.testing.assert_allclose(found.high - found.low, 0, atol=1e-6)
    summary = found.summary()
    assert (summary["n_certain"], summary["n_possible"], summary["templates"]) == (6, 6, [])
    assert bootstrap(scores, size=0, by="signed", n_resamples=2).overlap == 1


@pytest.mark.parametrize("by", ["signed", "magnitude"])
def test_edges_that_tie_go_by_the_graph_as_in_a_circuit(by):
    """Under resample ablation, all edges at positions before the first difference score exactly 0."""
    one = np.zeros(GRAPH.n_edges, dtype=np.float32)
    one[[3, 11, 17]] = 0.5
    scores = EdgeScores(GRAPH, one.astype(np.float64), {}, np.tile(one, (4, 1)))
    found = bootstrap(scores, size=GRAPH.n_edges // 2, by=by, n_resamples=5, templates=["a", "a", "b", "b"])
    assert found.overlap == 1 and [split.overlap for split in found.templates] == [1, 1]
    assert (found.inclusion == scores.top(GRAPH.n_edges // 2, by=by).kept).all()


def test_templates_are_split():
    scores = scored(scale=3.0)
    templates = ["a", "b", "b"] * 4
    found = bootstrap(scores, size=9, by="magnitude", templates=templates, n_resamples=2)
    kept = scores.top(9, by="magnitude").kept
    for split, rows in zip(found.templates, ([1, 2, 4, 5, 7, 8, 10, 11], [0, 3, 6, 9]), strict=True):
        own = EdgeScores(GRAPH, scores.per_prompt[rows].mean(0).astype(np.float64)).top(9, by="magnitude").kept
        assert (split.n_prompts, split.overlap) == (len(rows), pytest.approx((own & kept).sum() / 9))
        assert split.overlap < split.by_chance + 0.35 and 0 < split.by_chance < 1
    rng = np.random.default_rng(0)
    drawn = [[rng.choice(12, n, replace=False) for _ in range(20)] for n in (4, 8)]
    by_chance = [np.mean([(EdgeScores(GRAPH, scores.per_prompt[rows].mean(0).astype(np.float64)).top(
        9, by="magnitude").kept & kept).sum() / 9 for rows in draws]) for draws in drawn]
    assert [split.by_chance for split in found.templates] == pytest.approx(by_chance[::-1])
    assert [split.template for split in found.templates] == ["b", "a"]
    whole = bootstrap(scores, size=9, by="magnitude", templates=["a"] * 11 + ["b"], n_resamples=2).templates[0]
    assert whole.by_chance > found.templates[1].by_chance  # 11 of 12 prompts say nearly what 12 do, 4 do not
    assert bootstrap(scores, size=9, by="signed", templates=["a"] * 12, n_resamples=2).templates == ()


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(AcdcError, match="acdc: there are no scores of single prompts"):
        bootstrap(EdgeScores(GRAPH, np.zeros(GRAPH.n_edges), {"method": "acdc"}), size=1, by="signed")
    with pytest.raises(AcdcError, match="one prompt cannot be resampled"):
        bootstrap(scored(1), size=1, by="signed")
    with pytest.raises(AcdcError, match="2 templates for 12 prompts"):
        bootstrap(scored(), size=1, by="signed", templates=["a", "b"])
    with pytest.raises(AcdcError, match="n_resamples=0"):
        bootstrap(scored(), size=1, by="signed", n_resamples=0)
    with pytest.raises(AcdcError, match="cannot keep"):
        bootstrap(scored(), size=10**6, by="signed")

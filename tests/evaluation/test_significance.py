"""Intervals and p-values against other computations, and at their level."""

import numpy as np
import pytest
from scipy import stats

from acdc.errors import AcdcError
from acdc.evaluation.significance import (
    binomial,
    binomial_tail,
    draw_weights,
    holm,
    interval,
    p_above,
    p_below,
    ratios_of_draws,
    share_interval,
)

RNG = np.random.default_rng(0)
VALUES, GAP = RNG.normal(1, 1, 30), RNG.normal(3, 1, 30)


def test_numerator_and_denominator_are_drawn_together():
    weights = draw_weights(30, 200, seed=1)
    np.testing.assert_allclose(weights.sum(1), 1)
    counts = np.rint(weights * 30).astype(int)
    ours = ratios_of_draws(np.stack([VALUES, GAP]), GAP, weights)
    for draw, count in enumerate(counts):
        rows = np.repeat(np.arange(30), count)
        assert ours[0, draw] == pytest.approx(VALUES[rows].mean() / GAP[rows].mean())
    np.testing.assert_allclose(ours[1], 1)


def test_the_interval_is_the_expanded_percentile_interval():
    draws = ratios_of_draws(VALUES[None], GAP, draw_weights(30, 1000, seed=0))
    tail = stats.norm.cdf(-np.sqrt(30 / 29) * stats.t.ppf(0.975, 29))
    assert tail < 0.025
    np.testing.assert_allclose(interval(draws, 30)[0], np.quantile(draws[0], [tail, 1 - tail]))


def test_intervals_cover_what_they_say():
    """Skewed prompts, 600 repetitions: within three standard errors of 95%."""
    rng, inside = np.random.default_rng(3), 0
    weights = draw_weights(32, 1000, seed=0)
    for _ in range(600):
        gap = rng.gamma(4, 1, 32)
        low, high = interval(ratios_of_draws((0.7 * gap + rng.normal(0, 1, 32))[None], gap, weights), 32)[0]
        inside += low <= 0.7 <= high
    assert abs(inside / 600 - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 600)


@pytest.mark.parametrize("bound", [0.1, 0.3, 0.5])
def test_p_of_a_ratio_is_that_of_a_t_test(bound):
    expected = stats.ttest_1samp(VALUES - bound * GAP, 0, alternative="greater").pvalue
    assert p_above(VALUES, GAP, bound) == pytest.approx(expected)
    assert p_below(VALUES, GAP, bound) == pytest.approx(1 - expected)


def test_p_without_spread():
    assert (p_above(2 * GAP[:1].repeat(4), GAP[:1].repeat(4), 1.0), p_below(np.zeros(4), np.ones(4), 0.1)) == (0, 0)
    assert p_above(np.ones(4), np.ones(4), 1.0) == 1


def test_holm_by_hand():
    """Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and the last not below the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_errs_in_any_of_them_at_alpha():
    rng = np.random.default_rng(0)
    errors = sum(min(holm(rng.random(20).tolist())) <= 0.05 for _ in range(1000))
    assert 0.03 < errors / 1000 < 0.07


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_the_binomial_is_scipys(share):
    np.testing.assert_allclose(binomial(25, share), stats.binom.pmf(np.arange(26), 25, share), atol=1e-14)
    assert binomial_tail(7, 25, share, above=True) == pytest.approx(stats.binom.sf(6, 25, share), abs=1e-14)
    assert binomial_tail(7, 25, share, above=False) == pytest.approx(stats.binom.cdf(7, 25, share), abs=1e-14)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (57, 100)])
def test_the_interval_of_a_share_is_the_exact_one(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert share_interval(k, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("n", "resamples", "says"), [(1, 1000, "one prompt"), (5, 20, "too few")])
def test_what_cannot_be_drawn_is_refused(n, resamples, says):
    with pytest.raises(AcdcError, match=says):
        draw_weights(n, resamples, 0)

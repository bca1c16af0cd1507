"""Rates over users: known answers, other ways to the same figure, and how often a test is wrong."""

import numpy as np
import pytest
from scipy import stats

from sasrec.core.arrays import Float64
from sasrec.evaluation.intervals import estimate
from sasrec.evaluation.user_rates import compare_rates, rate

Group = tuple[Float64, Float64]


def group(rng: np.random.Generator, n_users: int, chance: float) -> Group:
    """Users who differ in how often they come and in how often they click."""
    trials = 1.0 + rng.poisson(4, n_users)
    clicks = rng.beta(5 * chance, 5 * (1 - chance), n_users)
    return rng.binomial(trials.astype(int), clicks).astype(float), trials


def test_a_rate_is_hits_over_trials_with_the_interval_of_a_mean_over_lists_clustered_by_user() -> None:
    hits, trials = group(np.random.default_rng(0), 50, 0.3)
    users = np.repeat(np.arange(50), trials.astype(int))
    each = np.concatenate([[1.0] * int(h) + [0.0] * int(t - h) for h, t in zip(hits, trials, strict=True)])
    found, expected = rate(hits, trials), estimate(each, users, upper=1.0)
    assert {name: pytest.approx(value) for name, value in found.items()} == expected


def test_with_one_trial_a_user_the_difference_is_tested_as_two_means() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.random(n) < p for n, p in ((400, 0.3), (300, 0.4)))
    found = compare_rates((a.astype(float), np.ones(400)), (b.astype(float), np.ones(300)))
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert found["difference"] == pytest.approx(b.mean() - a.mean())
    assert found["relative"] == pytest.approx(b.mean() / a.mean() - 1)
    assert found["p_value"] == pytest.approx(expected.pvalue, rel=0.02)  # normal, not Student's
    assert found["stderr"] == pytest.approx(found["difference"] / expected.statistic)
    low, high = expected.confidence_interval()
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_the_standard_error_is_that_of_a_bootstrap_over_users() -> None:
    rng = np.random.default_rng(2)
    hits, trials = group(rng, 300, 0.2)
    drawn = rng.integers(0, 300, (4000, 300))
    bootstrapped = hits[drawn].sum(axis=1) / trials[drawn].sum(axis=1)
    assert rate(hits, trials)["stderr"] == pytest.approx(bootstrapped.std(), rel=0.05)


def test_two_alike_are_called_different_in_about_five_of_a_hundred_experiments() -> None:
    rng = np.random.default_rng(3)
    n, wrong, naive = 1500, 0, 0
    for _ in range(n):
        a, b = group(rng, 900, 0.3), group(rng, 100, 0.3)  # a tenth of the users
        wrong += (compare_rates(a, b)["p_value"] or 0) < 0.05
        table = [[side[0].sum(), (side[1] - side[0]).sum()] for side in (a, b)]
        naive += stats.chi2_contingency(table, correction=False).pvalue < 0.05
    assert 0.038 < wrong / n < 0.066  # 0.05 within 2.5 standard errors, and a little for the normal distribution
    assert naive / n > 0.09  # as if lists of a user were independent


def test_a_difference_that_is_called_detectable_is_found_in_eighty_of_a_hundred() -> None:
    rng = np.random.default_rng(4)
    found = [compare_rates(group(rng, 1000, 0.3), group(rng, 1000, 0.336)) for _ in range(400)]
    detectable = np.mean([one["detectable"] for one in found])
    power = np.mean([(one["p_value"] or 1) < 0.05 for one in found])
    expected = stats.norm.cdf(0.036 / (detectable / 2.801585) - 1.959964)
    assert power == pytest.approx(expected, abs=0.06)
    assert 0.7 < power < 0.97


def test_too_little_has_no_interval_and_no_p_value() -> None:
    one, none = (np.array([1.0]), np.array([2.0])), (np.array([]), np.array([]))
    assert rate(*one) == {"value": 0.5, "stderr": None, "low": None, "high": None}
    assert rate(*none)["value"] == 0
    found = compare_rates(one, (np.ones(9), np.ones(9)))
    assert (found["difference"], found["low"], found["p_value"], found["detectable"]) == (0.5, None, None, None)
    still = compare_rates((np.zeros(9), np.ones(9)), (np.zeros(9), np.ones(9)))
    assert (still["p_value"], still["relative"]) == (1.0, None)

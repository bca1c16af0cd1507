"""Means with their uncertainty: the usual standard error, clusters of targets, the range, the coverage."""

import math

import numpy as np
import pytest

from sasrec.evaluation.intervals import estimate


def test_the_standard_error_is_the_usual_one_with_one_target_a_user() -> None:
    values = np.random.default_rng(0).random(50)
    result = estimate(values, np.arange(50), 1.0)
    stderr = values.std(ddof=1) / math.sqrt(50)
    assert result["value"] == pytest.approx(values.mean())
    assert result["stderr"] == pytest.approx(stderr)
    assert result["low"] == pytest.approx(values.mean() - 1.959964 * stderr)
    assert result["high"] == pytest.approx(values.mean() + 1.959964 * stderr)


def test_repeating_each_users_targets_does_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).random(50)
    once, often = estimate(values, np.arange(50)), estimate(np.repeat(values, 9), np.repeat(np.arange(50), 9))
    assert often["stderr"] == pytest.approx(once["stderr"])


def test_intervals_stay_in_range() -> None:
    result = estimate(np.array([0.0, 0.0, 1.0]), np.arange(3), 1.0)
    assert (result["low"], result["high"]) == (0.0, pytest.approx(min(1.0, 1 / 3 + 1.959964 / 3)))


def test_the_interval_covers_the_truth_95_times_in_100() -> None:
    values = np.random.default_rng(1).random((2000, 200)) < 0.3
    covered = 0
    for row in values.astype(np.float64):
        result = estimate(row, np.arange(200), 1.0)
        covered += (result["low"] or 0) <= 0.3 <= (result["high"] or 0)
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)

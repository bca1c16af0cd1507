"""How often something happens to users: a rate with its interval over users, and the difference of two groups.

What happens to the same user is not independent, so each user counts as one observation of two sums: what happened,
and how often it could have.
"""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np

from sasrec.core.arrays import Float64
from sasrec.evaluation.intervals import Z95, Estimate, without_interval

Z80 = 0.841621  # a difference this far beyond the interval's half width is found in 80 of 100 tries


class RateDifference(TypedDict):
    """How much higher the rate of group b is than that of group a."""

    a: Estimate
    b: Estimate
    difference: float  # b - a
    relative: float | None  # of a; None where a is 0
    stderr: float | None  # over users; None where a group has fewer than two, as for all below
    low: float | None
    high: float | None
    p_value: float | None  # two-sided, of no difference
    detectable: float | None  # the difference that so many users would show at p < 0.05 in 80 of 100 experiments


def rate(hits: Float64, trials: Float64) -> Estimate:
    """The share of trials that were hits, with its standard error and 95 % interval over users.

    The delta method for a ratio of two means: with residuals `d = hits - rate * trials` of n users, the variance is
    `n / (n - 1) * sum(d^2) / sum(trials)^2`.

    Args:
        hits: (n,) of each user.
        trials: (n,) of each user, above 0.

    Source: Deng, Knoblich and Lu 2018, "Applying the Delta Method in Metric Analytics", cluster randomization.
    """
    n, total = len(trials), float(trials.sum())
    value = float(hits.sum()) / total if total else 0.0
    if n < 2:
        return without_interval(value)
    residuals = hits - value * trials
    stderr = math.sqrt(float(residuals @ residuals) * n / (n - 1)) / total
    return Estimate(value=value, stderr=stderr, low=max(value - Z95 * stderr, 0), high=min(value + Z95 * stderr, 1))


def compare_rates(a: tuple[Float64, Float64], b: tuple[Float64, Float64]) -> RateDifference:
    """The difference of the rates of two groups that have no user in common.

    The interval and p-value are by the normal distribution, which is close from some 30 users in each group on.

    Args:
        a: hits and trials of each user, as for `rate`.
        b: the same of the other group.
    """
    first, second = rate(*a), rate(*b)
    difference = second["value"] - first["value"]
    stderr = low = high = p_value = None
    if first["stderr"] is not None and second["stderr"] is not None:
        stderr = float(np.hypot(first["stderr"], second["stderr"]))
        low, high = difference - Z95 * stderr, difference + Z95 * stderr
        z = abs(difference) / stderr if stderr else (math.inf if difference else 0.0)
        p_value = math.erfc(z / math.sqrt(2))
    return RateDifference(
        a=first,
        b=second,
        difference=difference,
        relative=difference / first["value"] if first["value"] else None,
        stderr=stderr,
        low=low,
        high=high,
        p_value=p_value,
        detectable=None if stderr is None else (Z95 + Z80) * stderr,
    )

"""Means over targets with their standard error and 95 % interval."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np

from sasrec.core.arrays import Float64, Int64

Z95 = 1.959964  # half the width of a 95 % interval, in standard errors
FEW_USERS = 30  # below this, intervals and p-values by the normal distribution are rough


class Estimate(TypedDict):
    """A mean over targets with its 95 % interval; None where one user, or a figure of all lists, has none."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None


Metrics = dict[str, Estimate]


def estimate(values: Float64, users: Int64, upper: float = math.inf, lower: float = 0.0) -> Estimate:
    """The mean over targets with its standard error and 95 % interval (normal, cut to lower .. upper).

    Targets of one user are not independent, so deviations are summed within users first; with one target a user this
    is the ordinary standard error of the mean.

    Args:
        values: (n,) a figure per target.
        users: (n,) numbers from 0 that say whose each target is.
        upper: the largest value there can be.
        lower: the least.
    """
    mean = float(values.mean()) if len(values) else 0.0
    n_users = np.count_nonzero(np.bincount(users))
    if n_users < 2:
        return without_interval(mean)
    deviations = np.bincount(users, values - mean)
    stderr = math.sqrt(float(deviations @ deviations) * n_users / (n_users - 1)) / len(values)
    low, high = max(mean - Z95 * stderr, lower), min(mean + Z95 * stderr, upper)
    return Estimate(value=mean, stderr=stderr, low=low, high=high)


def without_interval(value: float) -> Estimate:
    """A figure that has no standard error."""
    return Estimate(value=value, stderr=None, low=None, high=None)

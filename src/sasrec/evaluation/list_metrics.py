"""What top-k lists are like beyond their accuracy: coverage, popularity, novelty, serendipity.

coverage         share of the catalogue that is recommended at all
gini             how unequally the places in the lists are shared among the items
popularity       how popular the recommended items are
popularity_lift  how much more popular they are than what the same users had before
novelty          how surprising the recommended items are, by their popularity
serendipity      hits that popularity alone would not have placed so high

Everything is counted in train, and nothing is known of an item but its events. Shape legend: n lists, k their length,
V n_items + 1 (column 0 is padding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Float64, Int32, Int64
from sasrec.data.splits import Split, Targets
from sasrec.evaluation.intervals import Metrics, estimate, without_interval

CHUNK = 1 << 16  # events looked at at once


@dataclass(frozen=True)
class Background:
    """What lists are held against; the same for every scorer and every k."""

    train_counts: Int64  # (V,) events per item in train
    popularity_ranks: Int64  # (V,) 1 = the most popular; equal counts share a rank; 0 = never in train
    profile_popularity: Float64  # (n,) mean train count of the items that the user had before the target
    targets: Int32  # (n,) the items that came next
    users: Int64  # (n,) numbers from 0 that say whose list it is


def build_background(split: Split, targets: Targets, users: Int64) -> Background:
    """The background of lists that are made for these targets."""
    counts, starts = split.train_counts, split.sequences.offsets[targets.users]
    before_start, before_target = _counted_before(split, [starts, targets.positions])
    profiles = (before_target - before_start) / np.maximum(targets.positions - starts, 1)
    return Background(counts, popularity_ranks(counts), profiles, targets.items(split.sequences), users)


def _counted_before(split: Split, wanted: Sequence[Int64]) -> list[Int64]:
    """For ascending arrays of events: the train counts of the items of all events before each of them, added up."""
    items, counts = split.sequences.items, split.train_counts
    sums, so_far = [np.zeros(len(events), np.int64) for events in wanted], 0
    for start in range(0, len(items), CHUNK):  # in parts that stay in cache
        running = so_far + np.cumsum(counts[items[start : start + CHUNK]])
        for events, found in zip(wanted, sums, strict=True):
            rows = slice(*np.searchsorted(events, [start + 1, start + CHUNK + 1]))
            found[rows] = running[events[rows] - start - 1]
        so_far = int(running[-1])
    return sums


def popularity_ranks(counts: Int64) -> Int64:
    """(V,) the place of each count among the distinct counts above 0, from 1 for the largest; 0 for a count of 0."""
    distinct, place = np.unique(counts[1:], return_inverse=True)
    ranks = np.concatenate([[0], len(distinct) - place])
    return np.where(counts > 0, ranks, 0)


def list_metrics(lists: Int32, background: Background, k: int) -> Metrics:
    """The metrics of top-k lists.

    Args:
        lists: (n, K) item indices, best first; 0 fills up short lists. Empty lists count nothing.
        background: what they are held against.
        k: the cut-off, part of the metrics' names; a catalogue smaller than k has shorter lists.
    """
    filled = lists[:, :1].any(axis=1)
    lists, users = lists[filled, :k], background.users[filled]
    given = lists > 0
    lengths = given.sum(axis=1)
    exposure = np.bincount(lists[given], minlength=len(background.train_counts))[1:]
    popularity = _popularity(lists, background.train_counts, lengths)
    metrics = {
        "coverage": without_interval(float(np.count_nonzero(exposure) / len(exposure))),
        "gini": without_interval(gini(exposure)),
        "popularity": estimate(popularity, users),
        **_popularity_lift(popularity, background.profile_popularity[filled], users),
        "novelty": estimate(_novelty(lists, given, background.train_counts, lengths), users),
        "serendipity": estimate(_serendipity(lists, background, background.targets[filled], lengths), users, 1.0),
    }
    return {f"{name}@{k}": value for name, value in metrics.items()}


def _popularity(lists: Int32, counts: Int64, lengths: Int64) -> Float64:
    """(n,) mean train count of the recommended items.

    Source: Yin et al. 2012, "Challenging the long tail recommendation"; AvgRecPopularity of RecTools 0.19.
    """
    popularity: Float64 = counts[lists].sum(axis=1) / lengths  # padding has no events
    return popularity


def _popularity_lift(popularity: Float64, profiles: Float64, users: Int64) -> Metrics:
    """Popularity bias: (GAP of the lists - GAP of the profiles) / GAP of the profiles.

    GAP is the group average popularity: the mean over users of the mean popularity of their items. 0 = as popular as
    what these users had, 1 = twice as popular. The standard error of the ratio is by the delta method.
    There is none where nothing in the profiles occurs in train.

    Source: Abdollahpouri et al. 2020, "The connection between popularity bias, calibration, and fairness in
    recommendation".
    """
    if not profiles.any():
        return {}
    ratio = popularity.mean() / profiles.mean()
    residuals = (popularity - ratio * profiles) / profiles.mean()  # their mean is 0
    return {"popularity_lift": estimate(ratio - 1 + residuals, users, lower=-1.0)}


def _novelty(lists: Int32, given: NDArray[np.bool_], counts: Int64, lengths: Int64) -> Float64:
    """(n,) mean over a list of -log2 p(i), p(i) the share of train events that are of the item; in bits.

    An item without any event counts as one event.

    Source: the free discovery of Vargas & Castells 2011, "Rank and relevance in novelty and diversity metrics for
    recommender systems", without discounts. MeanInvUserFreq of RecTools 0.19 takes the share of users in place of
    events: log2(events / users) bits less in a log without repeats.
    """
    bits = np.log2(max(counts.sum(), 1)) - np.log2(np.maximum(counts, 1))  # (V,)
    novelty: Float64 = (bits[lists] * given).sum(axis=1) / lengths
    return novelty


def _serendipity(lists: Int32, background: Background, targets: Int32, lengths: Int64) -> Float64:
    """(n,) mean over a list of max(p(j) - pu(j), 0) * rel(j), rel(j) = whether place j holds the target.

    p(j) = (n_items + 1 - j) / n_items is how strongly this user gets the item, pu(j) = (n_items + 1 - r) / n_items how
    strongly anyone would, r the item's popularity rank; pu is 0 for an item that never occurs in train.

    Source: Serendipity of RecTools 0.19 (rectools/metrics/serendipity.py), after the unexpectedness of Ge et al. 2010,
    "Beyond accuracy: evaluating recommender systems by coverage and serendipity".
    """
    n_items, place = len(background.train_counts) - 1, np.arange(1, lists.shape[1] + 1)
    ranks = background.popularity_ranks
    anyone = np.where(ranks > 0, n_items + 1 - ranks, 0)  # (V,) times 1 / n_items
    unexpected = np.maximum(n_items + 1 - place - anyone[lists], 0) / n_items  # (n, k)
    serendipity: Float64 = (unexpected * (lists == targets[:, None])).sum(axis=1) / lengths
    return serendipity


def gini(exposure: Int64) -> float:
    """The Gini index of how often each item is in a list: 0 = all alike, near 1 = a few items have all places.

    sum over i of (2 i - n - 1) x_i / (n sum of x), x in ascending order; 0 when there is nothing to share.

    Source: Fleder & Hosanagar 2009, "Blockbuster culture's next rise or fall"; GiniIndex of RecBole 1.2.1.
    """
    n, total = len(exposure), int(exposure.sum())
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(exposure) / (n * total)) if total else 0.0

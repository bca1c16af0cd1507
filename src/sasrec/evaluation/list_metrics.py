"""What recommended lists are like beyond their accuracy.

coverage         share of the catalogue that is in at least one list
gini             how unequally the places in the lists are shared among the items
popularity       how popular the recommended items are
popularity_lift  how much more popular they are than what the same users had before
novelty          how surprising the recommended items are, by their popularity
serendipity      hits that popularity alone would not have ranked so high

All counts are of train, and an item is known only by its events.
Shape legend: n lists, k their length, V n_items + 1 (column 0 is padding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sasrec.core.arrays import Bool, Float64, Int32, Int64
from sasrec.data.splits import Split
from sasrec.data.targets import Targets
from sasrec.evaluation.intervals import Metrics, estimate, without_interval

CHUNK = 1 << 16  # events looked at at once: they stay in the cache


@dataclass(frozen=True)
class Background:
    """What lists are compared with; the same for every scorer and every k."""

    train_counts: Int64  # (V,) events per item in train
    popularity_ranks: Int64  # (V,) 1 = the most popular; equal counts share a rank; 0 = never in train
    profile_popularity: Float64  # (n,) mean train count of the items that the user had before the target
    targets: Int32  # (n,) the items that came next
    users: Int64  # (n,) whose list each is, as numbers from 0


def build_background(split: Split, targets: Targets, users: Int64, *, chunk: int = CHUNK) -> Background:
    """The background of lists that are made for these targets, from `chunk` events at once."""
    counts, starts = split.train_counts, split.sequences.offsets[targets.users]
    before_start, before_target = _counted_before(split, [starts, targets.positions], chunk)
    profiles = (before_target - before_start) / np.maximum(targets.positions - starts, 1)
    return Background(counts, popularity_ranks(counts), profiles, targets.items(split.sequences), users)


def _counted_before(split: Split, wanted: Sequence[Int64], chunk: int) -> list[Int64]:
    """For ascending arrays of events: the train counts of the items of all events before each of them, added up."""
    items, counts = split.sequences.items, split.train_counts
    sums, so_far = [np.zeros(len(events), np.int64) for events in wanted], 0
    for start in range(0, len(items), chunk):
        running = so_far + np.cumsum(counts[items[start : start + chunk]])
        for events, found in zip(wanted, sums, strict=True):
            rows = slice(*np.searchsorted(events, [start + 1, start + chunk + 1]))
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
        lists: (n, K) item indices, best first; a short list ends in 0. Empty lists do not count.
        background: what they are compared with.
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
    what these users had, 1 = twice as popular. The standard error of the ratio is by the delta method. The metric is
    left out where no item of the profiles occurs in train.

    Source: Abdollahpouri et al. 2020, "The connection between popularity bias, calibration, and fairness in
    recommendation".
    """
    if not profiles.any():
        return {}
    ratio = popularity.mean() / profiles.mean()
    residuals = (popularity - ratio * profiles) / profiles.mean()  # their mean is 0
    return {"popularity_lift": estimate(ratio - 1 + residuals, users, lower=-1.0)}


def _novelty(lists: Int32, given: Bool, counts: Int64, lengths: Int64) -> Float64:
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
    """The Gini index of how often each item is in a list: 0 = all equally often, near 1 = a few items have all places.

    sum over i of (2 i - n - 1) x_i / (n sum of x), x in ascending order; 0 when all x are 0.

    Source: Fleder & Hosanagar 2009, "Blockbuster culture's next rise or fall"; GiniIndex of RecBole 1.2.1.
    """
    n, total = len(exposure), int(exposure.sum())
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(exposure) / (n * total)) if total else 0.0

"""Which events of a log an earlier model has been trained on: as targets they would say nothing.

An event is known again by its user and item, and by its time where both logs have one. Of events that are alike the
first are the same: with 3 train events of a user and an item, the first 3 of them in the new log have been seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Bool, Int32, Int64
from sasrec.data.sequences import Sequences
from sasrec.data.splits import Split
from sasrec.data.vocabulary import Vocabulary

SAME_CLOCK = 0.5  # of the events known again by user and item: with fewer times alike, the logs' units differ


@dataclass(frozen=True)
class _Events:
    """Events in the rows and indices of one log, user by user in time order."""

    pairs: Int64  # (n,) a number for user and item
    times: NDArray[np.generic] | None


def trained_events(split: Split, refit: bool) -> Bool:
    """(n_events,) which events of a run's log its model knows: train, all after a refit, and what `seen` tells of."""
    sequences = split.sequences
    if refit:
        return np.ones(len(sequences.items), bool)
    marks = np.zeros(len(sequences.items) + 1, np.int32)
    np.add.at(marks, sequences.offsets[:-1], 1)
    np.add.at(marks, split.train_ends, -1)
    trained: Bool = np.cumsum(marks)[:-1] > 0
    if sequences.seen is not None:
        trained[sequences.seen] = True
    return trained


def seen_events(split: Split, refit: bool, vocabulary: Vocabulary, new: Sequences, new_vocabulary: Vocabulary) -> Int64:
    """Events of a log that a model was trained on.

    Args:
        split: how the model's own log was cut.
        refit: whether it was trained again on all of it.
        vocabulary: of its log.
        new: the log.
        new_vocabulary: of it.

    Returns:
        Positions of `new.items`, ascending.
    """
    old, trained = split.sequences, np.flatnonzero(trained_events(split, refit))
    rows = Vocabulary(new.user_ids).indices_of(old.user_ids.to_list())  # from 1; 0 = gone
    items = np.concatenate([np.zeros(1, np.int32), new_vocabulary.indices_of(vocabulary.ids)])
    owners = rows[np.searchsorted(old.offsets, trained, side="right") - 1]
    trained_items = items[old.items[trained]]
    kept = (owners > 0) & (trained_items > 0)
    before = _Events(_pairs(owners[kept], trained_items[kept], new), _taken(old.timestamps, trained[kept]))
    candidates = np.flatnonzero(np.isin(np.repeat(np.arange(1, len(new) + 1), np.diff(new.offsets)), owners[kept]))
    users = np.searchsorted(new.offsets, candidates, side="right")
    now = _Events(_pairs(users, new.items[candidates], new), _taken(new.timestamps, candidates))
    return candidates[_known_again(before, now)]


def _pairs(users: Int32 | Int64, items: Int32, log: Sequences) -> Int64:
    pairs: Int64 = users.astype(np.int64) * (log.n_items + 1) + items
    return pairs


def _taken(times: NDArray[np.generic] | None, events: Int64) -> NDArray[np.generic] | None:
    return None if times is None else np.asarray(times[events])


def _known_again(before: _Events, now: _Events) -> Bool:
    """(n,) which events of now are among those before."""
    by_pair = _first_ones(before.pairs, now.pairs)
    if before.times is None or now.times is None:
        return by_pair
    alike = np.unique(np.concatenate([before.times, now.times]), return_inverse=True)[1]
    pairs = np.unique(np.concatenate([before.pairs, now.pairs]), return_inverse=True)[1]
    keys = pairs.astype(np.int64) * (len(alike) + 1) + alike
    by_time = _first_ones(keys[: len(before.pairs)], keys[len(before.pairs) :])
    return by_time if by_time.sum() >= SAME_CLOCK * by_pair.sum() else by_pair


def _first_ones(before: Int64, now: Int64) -> Bool:
    """(n,) true for the first events with a key, as many as there were before with it."""
    keys, counts = np.unique(before, return_counts=True)
    order = np.argsort(now, kind="stable")
    ordered = now[order]
    starts = np.searchsorted(ordered, ordered)  # where the events with the same key begin
    place = np.searchsorted(keys, ordered)
    known = np.append(counts, 0)[place] * (np.append(keys, -1)[place] == ordered)
    first = np.empty(len(now), bool)
    first[order] = np.arange(len(now)) - starts < known
    return first

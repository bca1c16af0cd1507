"""What items can be ranked by: the model, and the baselines that stand beside it.

Shape legend: B histories, V n_items + 1 (column 0 is padding), D embedding_dim, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from sasrec.core.arrays import Bool, Float32, Float64, Int32, Int64
from sasrec.core.config import Ties
from sasrec.data.facts import PIECE, row_slices
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged, flat_index, offsets_of
from sasrec.data.splits import Split
from sasrec.data.targets import Targets
from sasrec.engine.protocol import Engine
from sasrec.ranking.device_index import index_for
from sasrec.ranking.index import (
    BLOCK_BYTES,
    Exceptions,
    ItemIndex,
    PlainLevelIndex,
    candidate_scores,
    create_level_index,
)
from sasrec.ranking.order import ranks_sampled

MOST_FOLLOWERS = 2**22  # of last items whose histories are ranked together


class Scorer(Protocol):
    """What can be evaluated: a model, a baseline, or your own."""

    @property
    def name(self) -> str:
        """What results call it."""

    def scores(self, histories: Ragged) -> Float32:
        """(B, V) a score for each item after each history; the next call may overwrite the array."""

    def candidate_scores(self, histories: Ragged, candidates: Int32) -> Float32:
        """(B, C) the scores of these candidates only."""


@runtime_checkable
class Ranker(Scorer, Protocol):
    """A scorer that ranks without computing a score for every item."""

    def rank(
        self, histories: Ragged, targets: Int32, hidden: Ragged | None, ties: Ties, k: int
    ) -> tuple[Float64, Int32]:
        """The rank of each target among all items that are not hidden, and the k best, as `ItemIndex.rank`."""

    def rank_among(self, histories: Ragged, candidates: Int32, ties: Ties) -> Float64:
        """The rank of column 0 among the candidates, as `ItemIndex.rank_among`."""


class ModelScorer:
    """A trained model: features of a history times the item table.

    Args:
        engine: encodes histories; its weights must not change while this scorer is used.
        max_seq_len: how many of a user's last items the model sees.
        index: of the engine's item table; None makes one.
    """

    name = "model"

    def __init__(self, engine: Engine, max_seq_len: int, index: ItemIndex | None = None) -> None:
        self.engine, self.max_seq_len = engine, max_seq_len
        self.table = engine.item_table()  # (V, D)
        self.index = index or index_for(engine, self.table)
        self._buffer = np.empty((0, len(self.table)), np.float32)

    @property
    def by_row(self) -> bool:
        """Whether a row gets the same rank and list whatever rows are beside it: so it is with the compiled core."""
        return self.engine.name == "native"

    def scores(self, histories: Ragged) -> Float32:
        features = self._encode(histories)
        if len(self._buffer) < len(features):  # kept: fresh memory costs as much as the product
            self._buffer = np.empty((len(features), len(self.table)), np.float32)
        with np.errstate(all="ignore"):  # `order` names scores that are not finite
            return np.matmul(features, self.table.T, out=self._buffer[: len(features)])

    def candidate_scores(self, histories: Ragged, candidates: Int32) -> Float32:
        return candidate_scores(self._encode(histories), self.table, candidates)

    def rank(
        self, histories: Ragged, targets: Int32, hidden: Ragged | None, ties: Ties, k: int
    ) -> tuple[Float64, Int32]:
        return self.index.rank(self._encode(histories), targets, hidden, ties, k)

    def rank_among(self, histories: Ragged, candidates: Int32, ties: Ties) -> Float64:
        return self.index.rank_among(self._encode(histories), candidates, ties)

    def _encode(self, histories: Ragged) -> Float32:
        return self.engine.encode(histories.last(self.max_seq_len))  # (B, D)


class Popularity:
    """Scores an item by how often it occurs in train.

    The score is not the count but its level among all counts: 0 for the smallest, then 1, 2, and so on. That keeps
    order and ties, and float32 holds every level exactly; counts above 2**24 it would round.
    """

    name, by_row = "popularity", True

    def __init__(self, train_counts: Int64) -> None:
        self.levels = _levels(train_counts).astype(np.float32)  # (V,)
        self._index = create_level_index(self.levels)

    def scores(self, histories: Ragged) -> Float32:
        return np.broadcast_to(self.levels, (len(histories), len(self.levels)))

    def candidate_scores(self, histories: Ragged, candidates: Int32) -> Float32:
        return self.levels[candidates]

    def rank(
        self, histories: Ragged, targets: Int32, hidden: Ragged | None, ties: Ties, k: int
    ) -> tuple[Float64, Int32]:
        return self._index.rank(Exceptions.none(len(histories)), targets, hidden, ties, k)

    def rank_among(self, histories: Ragged, candidates: Int32, ties: Ties) -> Float64:
        return ranks_sampled(self.candidate_scores(histories, candidates), candidates, ties)


class LastItem:
    """Scores an item by how often it followed the user's last item in train; equal counts are ordered by popularity.

    The score of a follower is its place among the distinct (count, popularity) of that item's followers, above the
    highest level of popularity. It is an integer below twice n_items, which float32 holds exactly up to 8 M items.

    Args:
        train: the users' train items, some users at a time.
        train_counts: (V,) how often each item occurs in train.
        last_items: the only items after which anything will be asked: followers of others take memory for nothing.
            None = all.
    """

    name, by_row = "last_item", True

    def __init__(self, train: Iterable[Ragged], train_counts: Int64, last_items: Int32 | None = None) -> None:
        n_columns, popularity = len(train_counts), _levels(train_counts)
        is_asked = np.ones(n_columns, bool)
        if last_items is not None:
            is_asked[:] = False
            is_asked[last_items] = True
        self.pairs, counts = _counted((_pairs(part, is_asked) for part in train), int(train_counts.sum()), n_columns**2)
        self.levels = popularity.astype(np.float32)  # (V,)
        self._index = create_level_index(self.levels)
        self.starts = np.searchsorted(self.pairs[:-1], np.arange(n_columns + 1) * n_columns)  # of an item's followers
        self.after = np.empty(len(counts), np.int32)  # followers, item by item
        self.places = np.empty(len(counts), np.float32)  # and their scores
        for items in row_slices(self.starts, MOST_FOLLOWERS):
            mine = slice(self.starts[items.start], self.starts[items.stop])
            before, self.after[mine] = np.divmod(self.pairs[mine], n_columns)
            self.places[mine] = _places(before, counts[mine], popularity[self.after[mine]], popularity.max() + 1)

    def scores(self, histories: Ragged) -> Float32:
        own = self._followers(_last_items(histories), np.arange(len(histories)))
        return PlainLevelIndex(self.levels).scores(own)

    def _followers(self, last: Int32, list_of: Int64) -> Exceptions:
        """The followers of some items, for rows that have one of these last."""
        items = Ragged.cut(self.after, self.starts[last], self.starts[last + 1])
        return Exceptions(items, self.places[flat_index(self.starts[last], items.offsets)], list_of)

    def candidate_scores(self, histories: Ragged, candidates: Int32) -> Float32:
        wanted = _last_items(histories)[:, None].astype(np.int64) * len(self.levels) + candidates
        place = np.searchsorted(self.pairs, wanted)
        follows = self.pairs[place] == wanted
        scores = self.levels[candidates]
        scores[follows] = self.places[place[follows]]
        return scores

    def rank(
        self, histories: Ragged, targets: Int32, hidden: Ragged | None, ties: Ties, k: int
    ) -> tuple[Float64, Int32]:
        ranks, lists = np.empty(len(targets)), np.zeros((len(targets), k), np.int32)
        last, list_of = np.unique(_last_items(histories), return_inverse=True)
        rows = np.argsort(list_of, kind="stable")  # those with the same last item beside each other
        ends = np.cumsum(np.bincount(list_of, minlength=len(last)))
        followers = offsets_of(self.starts[last + 1] - self.starts[last])
        for part in row_slices(followers, MOST_FOLLOWERS):  # what everybody has is followed by nearly everything
            mine = rows[ends[part.start - 1] if part.start else 0 : ends[part.stop - 1]]
            found = self._followers(last[part], list_of[mine] - part.start)
            gone = None if hidden is None else hidden.take(mine)
            ranks[mine], lists[mine] = self._index.rank(found, targets[mine], gone, ties, k)
        return ranks, lists

    def rank_among(self, histories: Ragged, candidates: Int32, ties: Ties) -> Float64:
        return ranks_sampled(self.candidate_scores(histories, candidates), candidates, ties)


class Recency:
    """Scores the items of the history by recency, all others by popularity; for logs whose events repeat."""

    name, by_row = "recency", True

    def __init__(self, train_counts: Int64) -> None:
        self.levels = _levels(train_counts).astype(np.float32)
        self._index = create_level_index(self.levels)

    def scores(self, histories: Ragged) -> Float32:
        return PlainLevelIndex(self.levels).scores(Exceptions.of_rows(histories, self._places(histories)))

    def candidate_scores(self, histories: Ragged, candidates: Int32) -> Float32:
        n_columns = len(self.levels)
        keys = histories.row_of * n_columns + histories.values
        order = np.argsort(keys, kind="stable")  # an item's last event is the last of its keys
        keys, places = np.append(-1, keys[order]), np.append(np.float32(0), self._places(histories)[order])
        wanted = np.arange(len(histories))[:, None] * n_columns + candidates
        place = np.searchsorted(keys, wanted, side="right") - 1
        return np.where(keys[place] == wanted, places[place], self.levels[candidates])

    def rank(
        self, histories: Ragged, targets: Int32, hidden: Ragged | None, ties: Ties, k: int
    ) -> tuple[Float64, Int32]:
        return self._index.rank(Exceptions.of_rows(histories, self._places(histories)), targets, hidden, ties, k)

    def rank_among(self, histories: Ragged, candidates: Int32, ties: Ties) -> Float64:
        return ranks_sampled(self.candidate_scores(histories, candidates), candidates, ties)

    def _places(self, histories: Ragged) -> Float32:
        """(T,) scores of the events of histories: above every level of popularity, and higher for newer events."""
        position = np.arange(len(histories.values)) - histories.offsets[:-1].repeat(histories.lengths)
        places: Float32 = (self.levels.max() + 1 + position).astype(np.float32)
        return places


class SharedFeatures:
    """Scores an item by how many features it shares with the user's last item; equal counts are ties.

    Args:
        features: of all items; vectors do not count.
    """

    name, by_row = "shared_features", True

    def __init__(self, features: ItemFeatures) -> None:
        self.features, self.n_columns = features.values, len(features.values)
        order = np.argsort(features.values.values, kind="stable")
        starts = np.searchsorted(features.values.values[order], np.arange(features.n_features + 1))
        self.items = Ragged(features.values.row_of[order].astype(np.int32), starts)  # F rows: who has a feature

    def scores(self, histories: Ragged) -> Float32:
        mine = self.features.take(_last_items(histories).astype(np.int64))  # B rows of features
        sharing = self.items.take(mine.values.astype(np.int64))
        row_of = mine.row_of[sharing.row_of]
        counts = np.bincount(row_of * self.n_columns + sharing.values, minlength=len(histories) * self.n_columns)
        return counts.reshape(len(histories), self.n_columns).astype(np.float32)

    def candidate_scores(self, histories: Ragged, candidates: Int32) -> Float32:
        scores = np.empty(candidates.shape, np.float32)
        step = max(1, BLOCK_BYTES // (8 * self.n_columns))
        for start in range(0, len(histories), step):
            rows = slice(start, min(start + step, len(histories)))
            scores[rows] = np.take_along_axis(self.scores(histories.take(rows)), candidates[rows].astype(int), axis=1)
        return scores


class Baselines:
    """Popularity and last-item co-occurrence, from train only; with recency where seen items stay candidates.

    And with shared features where items have any: the only one that knows items without events. Each is made when it
    is first asked for, and kept: of a large log, counting takes as long as ranking.

    Args:
        split: whose train part they know.
        features: of all items; None = there are none.
        targets: the baselines need to know of the histories before these only; None = of any.
    """

    def __init__(
        self, split: Split, features: ItemFeatures | None = None, targets: Sequence[Targets] | None = None
    ) -> None:
        self._split, self._features, self._targets = split, features, targets

    def scorers(self, with_recency: bool = False) -> list[Scorer]:
        """All of them, those that are asked for again as they were."""
        found: list[Scorer] = [self._popularity, self._last_item]
        if with_recency:
            found.append(self._recency)
        if self._shared_features is not None:
            found.append(self._shared_features)
        return found

    @cached_property
    def _popularity(self) -> Popularity:
        return Popularity(self._split.train_counts)

    @cached_property
    def _last_item(self) -> LastItem:
        last = None
        if self._targets is not None:
            sequences = self._split.sequences
            last = np.concatenate([_last_items(targets.histories(sequences, 1)) for targets in self._targets])
        return LastItem(self._split.train_parts(), self._split.train_counts, last)

    @cached_property
    def _recency(self) -> Recency:
        return Recency(self._split.train_counts)

    @cached_property
    def _shared_features(self) -> SharedFeatures | None:
        features = self._features
        return SharedFeatures(features) if features is not None and features.n_features else None


def _levels(counts: Int64) -> Int64:
    """The place of each count among the distinct counts, from 0."""
    levels: Int64 = np.unique(counts, return_inverse=True)[1]
    return levels


def _pairs(train: Ragged, is_asked: Bool) -> Int64:
    """A number for each train item that is asked about and the one that the user had next."""
    before, after, rows = train.values[:-1], train.values[1:], train.row_of
    kept = (rows[1:] == rows[:-1]) & is_asked[before]
    pairs: Int64 = before[kept].astype(np.int64) * len(is_asked) + after[kept]
    return pairs


def _counted(parts: Iterable[Int64], most: int, end: int) -> tuple[Int64, Int32]:
    """The different numbers of all parts, ascending, and how often each occurs.

    They are counted in place, since of a large log they are most of what a process holds.

    Args:
        parts: the numbers.
        most: how many there may be.
        end: a number above all of them, which is put behind them: every search finds a place.
    """
    held, n = np.empty(most + 1, np.int64), 0  # memory that nothing is written to is not taken
    for part in parts:
        held[n : n + len(part)] = part
        n += len(part)
    held[:n].sort()
    ends, n_different = np.empty(n, np.int32 if n < 2**31 else np.int64), 0
    for begin in range(0, n, PIECE):
        piece = held[begin : min(begin + PIECE, n) + 1].copy()
        if begin + PIECE >= n:
            piece[-1] = end
        last = np.flatnonzero(piece[1:] != piece[:-1])
        held[n_different : n_different + len(last)] = piece[last]
        ends[n_different : n_different + len(last)] = last + begin + 1
        n_different += len(last)
    held[n_different] = end
    return held[: n_different + 1], np.diff(ends[:n_different], prepend=ends.dtype.type(0)).astype(np.int32, copy=False)


def _places(before: Int64, counts: Int32, popularity: Int64, n_levels: int) -> Int64:
    """Of followers of some items, item by item: the places of (count, popularity) among those of the same item.

    Args:
        before: (n,) whose followers they are, ascending.
        counts: (n,) how often they followed it.
        popularity: (n,) their levels, below n_levels.
        n_levels: from where places are counted.
    """
    stride = (int(counts.max(initial=0)) + 1) * n_levels
    distinct, place = np.unique(before * stride + counts.astype(np.int64) * n_levels + popularity, return_inverse=True)
    from_zero: Int64 = place - np.searchsorted(distinct, before * stride)
    return from_zero + n_levels


def run_starts(values: Int64) -> Bool:
    """(n,) true where a value differs from the one before it, and for the first."""
    starts = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=starts[1:])
    return starts


def _last_items(histories: Ragged) -> Int32:
    """(B,) the newest item of each history; 0 where it is empty."""
    last = np.zeros(len(histories), np.int32)
    filled = histories.lengths > 0
    last[filled] = histories.values[histories.offsets[1:][filled] - 1]
    return last

"""Rank features of histories against the item table: ranks of targets, and top-k lists.

`NativeIndex` lets the compiled core compare scores where it computes them. `PlainIndex` computes blocks of scores and
leaves the rest to `order`. Both give the same order, except for scores that differ in their last bit.
A `LevelIndex` does the same for scores that all rows share with a few exceptions, as the baselines' are.
Shape legend: B rows, V n_items + 1 (row 0 is padding), D embedding_dim, C candidates (column 0 is the target),
K list length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sasrec.core.arrays import Bool, Float32, Float64, Int32, Int64
from sasrec.core.config import Ties
from sasrec.core.isa import load_native
from sasrec.data.ragged import Ragged, flat_index
from sasrec.ranking.order import check_k, rank_of, ranks_full, ranks_sampled, top_k

BLOCK_BYTES = 2**25  # of scores, or of candidates' embeddings, held at once
GATHER_BYTES = 2**20  # of candidates' embeddings held at once: they stay in the cache
NOTHING = Ragged(np.zeros(0, np.int32), np.zeros(0, np.int64))  # tells the core that nothing is hidden
EVERYTHING = np.zeros(0, np.bool_)  # tells it that everything is allowed


class ItemIndex(Protocol):
    """A table of items that features are ranked against."""

    def rank(
        self, features: Float32, targets: Int32, hidden: Ragged | None, ties: Ties, k: int = 0
    ) -> tuple[Float64, Int32]:
        """The rank of each row's target among all items that are not hidden, and the k best of them.

        Args:
            features: (B, D).
            targets: (B,) item indices; a target is a candidate even if it is hidden.
            hidden: B rows of item indices; None hides nothing.
            ties: as in `order.ranks_full`.
            k: length of the lists; 0 = none.

        Returns:
            (B,) ranks, and (B, k) lists; a row with fewer candidates ends in 0.

        Raises:
            DataError: a score is infinite or not a number.
        """

    def rank_among(self, features: Float32, candidates: Int32, ties: Ties) -> Float64:
        """The rank of column 0 among each row's candidates (B, C), as `order.ranks_sampled`.

        Raises:
            DataError: a score is infinite or not a number.
        """

    def top_k(
        self, features: Float32, k: int, *, hidden: Ragged | None = None, allowed: Bool | None = None
    ) -> tuple[Int32, Float32]:
        """The k best items of each row with their scores, as `order.top_k`.

        Raises:
            ConfigError: k is below 1.
            DataError: a score is infinite or not a number.
        """


def create_index(table: Float32, threads: int) -> ItemIndex:
    """The index of this installation.

    Args:
        table: (V, D); it must not change while the index is used.
        threads: of the compiled core.
    """
    native = load_native()
    return NativeIndex(table, native.module, threads) if native.module else PlainIndex(table)


class PlainIndex:
    """An index that multiplies matrices in NumPy, a block of rows at a time.

    Args:
        table: (V, D).
        block_bytes: of the scores of a block.
    """

    def __init__(self, table: Float32, block_bytes: int = BLOCK_BYTES) -> None:
        self.table = table
        self.rows_at_once = max(1, block_bytes // (4 * len(table)))

    def rank(
        self, features: Float32, targets: Int32, hidden: Ragged | None, ties: Ties, k: int = 0
    ) -> tuple[Float64, Int32]:
        ranks, lists = np.empty(len(features)), np.zeros((len(features), k), np.int32)
        for rows, scores in self._blocks(features):
            part = None if hidden is None else hidden.take(rows)
            ranks[rows], lists[rows] = ranks_and_lists(scores, targets[rows], part, ties, k)
        return ranks, lists

    def rank_among(self, features: Float32, candidates: Int32, ties: Ties) -> Float64:
        return ranks_sampled(candidate_scores(features, self.table, candidates), candidates, ties)

    def top_k(
        self, features: Float32, k: int, *, hidden: Ragged | None = None, allowed: Bool | None = None
    ) -> tuple[Int32, Float32]:
        width = min(check_k(k), len(self.table) - 1)
        indices, best = np.zeros((len(features), width), np.int32), np.full((len(features), width), -np.inf, np.float32)
        for rows, scores in self._blocks(features):
            part = None if hidden is None else hidden.take(rows)
            found, values = top_k(scores, k, hidden=part, allowed=allowed)
            indices[rows, : found.shape[1]], best[rows, : found.shape[1]] = found, values
        return trimmed(indices, best)

    def _blocks(self, features: Float32) -> Iterator[tuple[slice, Float32]]:
        for rows in blocks_of_rows(len(features), self.rows_at_once):
            with np.errstate(all="ignore"):  # ranking names scores that are not finite
                scores: Float32 = features[rows] @ self.table.T
            yield rows, scores


class NativeIndex:
    """An index in the compiled core, without a score matrix; it packs the table once.

    Args:
        table: (V, D) float32.
        module: the core's module.
        threads: how many share the work.
    """

    def __init__(self, table: Float32, module: Any, threads: int) -> None:
        self.table = np.ascontiguousarray(table, np.float32)
        self.core = module.ItemIndex(self.table, threads)

    def rank(
        self, features: Float32, targets: Int32, hidden: Ragged | None, ties: Ties, k: int = 0
    ) -> tuple[Float64, Int32]:
        n_above, n_tied = np.empty((2, len(features)), np.int64)
        lists = np.zeros((len(features), k), np.int32)
        gone = NOTHING if hidden is None else hidden
        if not self.core.rank(features, targets, gone.values, gone.offsets, n_above, n_tied, lists):
            return self._plain.rank(features, targets, hidden, ties, k)
        return rank_of(n_above, n_tied, ties), lists

    def rank_among(self, features: Float32, candidates: Int32, ties: Ties) -> Float64:
        n_above, n_tied = np.empty((2, len(features)), np.int64)
        if not self.core.rank_among(features, candidates, n_above, n_tied):
            return self._plain.rank_among(features, candidates, ties)
        return rank_of(n_above, n_tied, ties)

    def top_k(
        self, features: Float32, k: int, *, hidden: Ragged | None = None, allowed: Bool | None = None
    ) -> tuple[Int32, Float32]:
        shape = len(features), min(check_k(k), len(self.table) - 1)
        indices, scores = np.empty(shape, np.int32), np.empty(shape, np.float32)
        gone = NOTHING if hidden is None else hidden
        mask = EVERYTHING if allowed is None else allowed
        if not self.core.top_k(features, gone.values, gone.offsets, mask, indices, scores):
            return self._plain.top_k(features, k, hidden=hidden, allowed=allowed)
        return trimmed(indices, scores)

    @property
    def _plain(self) -> PlainIndex:
        """The index that finds the score that is not finite, and raises."""
        return PlainIndex(self.table)


@dataclass(frozen=True)
class Exceptions:
    """Items that have a score of their own in a row; of an item named twice the higher score counts.

    Rows may share a list. It is cheapest where those that do follow each other.
    """

    items: Ragged  # lists of them
    scores: Float32  # (T,) of each of their values
    list_of: Int64  # (B,) the list of each row

    @classmethod
    def of_rows(cls, items: Ragged, scores: Float32) -> Exceptions:
        """A list for each row."""
        return cls(items, scores, np.arange(len(items)))

    @classmethod
    def none(cls, n_rows: int) -> Exceptions:
        """Rows without any."""
        return cls(Ragged(np.zeros(0, np.int32), np.zeros(2, np.int64)), np.zeros(0, np.float32), np.zeros(n_rows, int))

    def __len__(self) -> int:
        return len(self.list_of)

    def take(self, rows: slice) -> Exceptions:
        """The exceptions of some consecutive rows."""
        return Exceptions(self.items, self.scores, self.list_of[rows])


class LevelIndex(Protocol):
    """Ranks items by scores that all rows share, except for a few items of each row."""

    def rank(
        self, exceptions: Exceptions, targets: Int32, hidden: Ragged | None, ties: Ties, k: int
    ) -> tuple[Float64, Int32]:
        """Ranks and lists, as `ItemIndex.rank`."""


def create_level_index(levels: Float32) -> LevelIndex:
    """The index of this installation.

    Args:
        levels: (V,) the score of each item.
    """
    native = load_native()
    return NativeLevelIndex(levels, native.module) if native.module else PlainLevelIndex(levels)


class PlainLevelIndex:
    """A level index that computes blocks of scores.

    Args:
        levels: (V,).
        block_bytes: of the scores of a block.
    """

    def __init__(self, levels: Float32, block_bytes: int = BLOCK_BYTES) -> None:
        self.levels = levels
        self.rows_at_once = max(1, block_bytes // (4 * len(levels)))

    def scores(self, exceptions: Exceptions) -> Float32:
        """(B, V) the scores in full."""
        scores = np.tile(self.levels, (len(exceptions), 1))
        items = exceptions.items.take(exceptions.list_of)
        own = exceptions.scores[flat_index(exceptions.items.offsets[exceptions.list_of], items.offsets)]
        cells = items.row_of, items.values
        scores[cells] = -np.inf
        np.maximum.at(scores, cells, own)
        return scores

    def rank(
        self, exceptions: Exceptions, targets: Int32, hidden: Ragged | None, ties: Ties, k: int
    ) -> tuple[Float64, Int32]:
        ranks, lists = np.empty(len(targets)), np.zeros((len(targets), k), np.int32)
        for rows in blocks_of_rows(len(targets), self.rows_at_once):
            part = None if hidden is None else hidden.take(rows)
            scores = self.scores(exceptions.take(rows))
            ranks[rows], lists[rows] = ranks_and_lists(scores, targets[rows], part, ties, k)
        return ranks, lists


class NativeLevelIndex:
    """A level index in the compiled core, which reads only exceptions and hidden items.

    Args:
        levels: (V,).
        module: the core's module.
    """

    def __init__(self, levels: Float32, module: Any) -> None:
        self.levels = levels
        self.core = module.LevelIndex(np.ascontiguousarray(levels, np.float32))

    def rank(
        self, exceptions: Exceptions, targets: Int32, hidden: Ragged | None, ties: Ties, k: int
    ) -> tuple[Float64, Int32]:
        n_above, n_tied = np.empty((2, len(targets)), np.int64)
        lists = np.zeros((len(targets), k), np.int32)
        items, gone = exceptions.items, NOTHING if hidden is None else hidden
        if not self.core.rank(
            items.values,
            items.offsets,
            exceptions.scores,
            exceptions.list_of,
            targets,
            gone.values,
            gone.offsets,
            n_above,
            n_tied,
            lists,
        ):  # the plain index finds the score that is not finite, and raises
            return PlainLevelIndex(self.levels).rank(exceptions, targets, hidden, ties, k)
        return rank_of(n_above, n_tied, ties), lists


def blocks_of_rows(n_rows: int, rows_at_once: int) -> Iterator[slice]:
    """Slices of consecutive rows."""
    for start in range(0, n_rows, rows_at_once):
        yield slice(start, min(start + rows_at_once, n_rows))


def ranks_and_lists(
    scores: Float32, targets: Int32, hidden: Ragged | None, ties: Ties, k: int
) -> tuple[Float64, Int32]:
    """The ranks of targets in a block of scores, and (B, k) lists; a short list ends in 0."""
    lists = np.zeros((len(targets), k), np.int32)
    if k:
        best, _ = top_k(scores, k, hidden=hidden)
        lists[:, : best.shape[1]] = best
    return ranks_full(scores, targets, hidden, ties), lists


def candidate_scores(features: Float32, table: Float32, candidates: Int32) -> Float32:
    """(B, C) scores of each row's candidates."""
    scores = np.empty(candidates.shape, np.float32)
    step = max(1, GATHER_BYTES // (4 * candidates.shape[1] * table.shape[1]))
    with np.errstate(all="ignore"):
        for start in range(0, len(candidates), step):
            rows = slice(start, start + step)
            embedded = table[candidates[rows]]  # (b, C, D)
            scores[rows] = np.matmul(embedded, features[rows, :, None])[:, :, 0]
    return scores


def trimmed(indices: Int32, scores: Float32) -> tuple[Int32, Float32]:
    """The lists without the last columns, where no row has an item."""
    if not indices.size or indices[0, -1]:
        return indices, scores
    width = int((indices > 0).sum(axis=1).max())
    return indices[:, :width], scores[:, :width]

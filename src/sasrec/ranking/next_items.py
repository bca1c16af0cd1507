"""From histories to top-k lists, in item indices.

This is the one way: the library, the server, the lists of all users and the checks of exports call it.
Shape legend: B rows, V n_items + 1 (row 0 is padding), D embedding_dim, K list length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sasrec.core.arrays import Bool, Float32, Int32, Int64
from sasrec.data.ragged import Ragged
from sasrec.engine.protocol import Engine
from sasrec.ranking.device_index import index_for
from sasrec.ranking.diversity import diversified, n_candidates
from sasrec.ranking.order import check_k, top_k

Mask = Bool  # (V,) which items may be given
ALL_ROWS = slice(None)


class Group(NamedTuple):
    """Rows that are ranked together."""

    rows: Int64 | slice  # (b,) which histories
    k: int
    hidden: Ragged | None  # b rows of items that the row must not get; None = nothing is hidden
    allowed: Mask | None  # the only items to give; None = all
    diversity: float = 0.0  # see `diversity`; 0 = the best items as they are


class Reasons(NamedTuple):
    """What an item's score after a history comes from, the largest contribution first."""

    score: float
    indices: Int32  # (n,) the items of the history that the model reads
    positions: Int32  # (n,) where they stand in it, 0 = the oldest
    contributions: Float32  # (n,) score minus the score without that item


class NextItems:
    """Recommends items after histories.

    Args:
        engine: encodes histories; its weights must not change any more.
        counts: (n_items,) events of each item: a history without any item gets popular ones.
    """

    def __init__(self, engine: Engine, counts: Int64) -> None:
        self.engine, self.counts = engine, counts
        self.table = engine.item_table()  # (V, D)
        self.index = index_for(engine, self.table)

    def top_k(
        self,
        histories: Ragged,
        k: int,
        *,
        hidden: Ragged | None = None,
        allowed: Mask | None = None,
        diversity: float = 0.0,
    ) -> tuple[Int32, Float32]:
        """The k best items after each history.

        Args:
            histories: B rows of item indices from 1; an empty row gets popular items, their counts for scores.
            k: how many; fewer come back when fewer may be given.
            hidden: B rows of items that the row must not get.
            allowed: the only items to give; None = all.
            diversity: from 0 (off) to 1: how much less items count that are like those above them.

        Returns:
            Indices and scores, (B, K), best first; a row with fewer ends in index 0.

        Raises:
            ConfigError: k is below 1.
        """
        return self.top_k_of_groups(histories, [Group(ALL_ROWS, k, hidden, allowed, diversity)])[0]

    def top_k_of_groups(self, histories: Ragged, groups: Sequence[Group]) -> list[tuple[Int32, Float32]]:
        """As `top_k` for each group of rows; all histories are encoded at once."""
        longer = [g._replace(k=n_candidates(check_k(g.k))) if g.diversity else g for g in groups]
        return [self._chosen(group, *found) for group, found in zip(groups, self._best(histories, longer), strict=True)]

    def _chosen(self, group: Group, indices: Int32, scores: Float32) -> tuple[Int32, Float32]:
        """The list of a group, of all that it may be chosen from."""
        if not group.diversity:
            return indices, scores
        return diversified(indices, scores, self.table, self._norms, group.k, group.diversity)

    def _best(self, histories: Ragged, groups: Sequence[Group]) -> list[tuple[Int32, Float32]]:
        """The best items of each group, without regard to diversity."""
        known = histories.offsets[1:] > histories.offsets[:-1]  # (B,)
        if known.all():
            features = self.engine.encode(histories)  # (B, D)
            return [
                self.index.top_k(features[group.rows], group.k, hidden=group.hidden, allowed=group.allowed)
                for group in groups
            ]
        features = self.engine.encode(histories.take(np.flatnonzero(known)))  # (number known, D)
        place = np.cumsum(known) - 1  # (B,) of a known row in features
        return [self._rank(features, place, known, group) for group in groups]

    def _rank(self, features: Float32, place: Int64, known: Mask, group: Group) -> tuple[Int32, Float32]:
        """The lists of a group in which some histories may be empty."""
        check_k(group.k)
        is_known = known[group.rows]  # (b,)
        parts = []
        for rows in (np.flatnonzero(is_known), np.flatnonzero(~is_known)):
            hidden = None if group.hidden is None else group.hidden.take(rows)
            if is_known[rows].any():
                mine = features[place[group.rows][rows]]
                parts.append((rows, *self.index.top_k(mine, group.k, hidden=hidden, allowed=group.allowed)))
            else:
                parts.append((rows, *self._popular_lists(len(rows), group.k, hidden, group.allowed)))
        return _laid_together(parts, len(is_known))

    @cached_property
    def popular(self) -> Int32:
        """(n_items,) all items, the most popular first; of equal counts the lower index."""
        order: Int32 = np.argsort(-self.counts, kind="stable").astype(np.int32) + 1
        return order

    def _popular_lists(self, n_rows: int, k: int, hidden: Ragged | None, allowed: Mask | None) -> tuple[Int32, Float32]:
        order = self.popular if allowed is None else self.popular[allowed[self.popular]]
        best = [order[:k]] * n_rows if hidden is None else [_first(order, k, hidden.row(i)) for i in range(n_rows)]
        indices = np.zeros((n_rows, max(map(len, best), default=0)), np.int32)
        for i, row in enumerate(best):
            indices[i, : len(row)] = row
        scores = np.where(indices > 0, self.counts[indices - 1], 0).astype(np.float32)
        return indices, scores

    @cached_property
    def _norms(self) -> Float32:
        """(V,) the length of each row of the table."""
        norms: Float32 = np.linalg.norm(self.table, axis=1)
        return norms

    def similar(self, index: int, k: int, allowed: Mask | None = None) -> tuple[Int32, Float32]:
        """(K,) the items nearest to one by the cosine of their rows, and the cosines; of the allowed ones if given.

        Raises:
            ConfigError: k is below 1.
        """
        norms = self._norms
        cosine = (self.table @ self.table[index]) / np.maximum(norms * norms[index], 1e-12)
        indices, scores = top_k(
            cosine[None].astype(np.float32), k, hidden=Ragged.from_lists([[index]]), allowed=allowed
        )
        return indices[0], scores[0]

    def reasons(self, history: Int32, target: int) -> Reasons:
        """How much the score of an item falls when one item is left out of a history.

        Args:
            history: (n,) item indices, oldest first, at least one and not more than the model reads.
            target: the index of the item explained.
        """
        without = [np.delete(history, j) for j in range(len(history))] if len(history) > 1 else []
        scores = self.engine.encode(Ragged.from_lists([history, *without])) @ self.table[target]
        left_out = scores[1:] if without else np.zeros(1, np.float32)
        contributions = (scores[0] - left_out).astype(np.float32)
        order = np.argsort(-contributions, kind="stable").astype(np.int32)
        return Reasons(float(scores[0]), history[order], order, contributions[order])


def _first(order: Int32, k: int, hidden: Int32) -> Int32:
    """The first k of an order that are not hidden."""
    if not len(hidden):
        return order[:k]
    head = order[: k + len(hidden)]
    return head[~np.isin(head, hidden)][:k]


def _laid_together(parts: Sequence[tuple[Int64, Int32, Float32]], n_rows: int) -> tuple[Int32, Float32]:
    """Lists of some rows and of the others as one array; index 0 fills up."""
    width = max(indices.shape[1] for _, indices, _ in parts)
    all_indices, all_scores = np.zeros((n_rows, width), np.int32), np.zeros((n_rows, width), np.float32)
    for rows, indices, scores in parts:
        all_indices[rows, : indices.shape[1]], all_scores[rows, : indices.shape[1]] = indices, scores
    return all_indices, all_scores

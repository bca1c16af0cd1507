"""A model that ranks the items of another log than its own, such as yesterday's on today's log.

All items of the log are candidates. Those that the model does not know score -inf: they rank below all others, and as
targets they are misses. Histories are what the model knows of them; where it knows nothing, popular items rank first,
as for `recommend`.
Shape legend: B histories, V n_items + 1 of the log (column 0 is padding), M items that both have, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sasrec.core.arrays import Float32, Float64, Int32, Int64
from sasrec.core.config import Ties
from sasrec.data.ragged import Ragged, offsets_of
from sasrec.engine.protocol import Engine
from sasrec.ranking.device_index import index_for
from sasrec.ranking.index import Exceptions, candidate_scores, create_level_index
from sasrec.ranking.order import LOWEST, ranks_sampled


class MappedScorer:
    """A trained model for the items of a log.

    Args:
        engine: encodes histories; its weights must not change while this scorer is used.
        max_seq_len: how many of a user's last known items the model sees.
        own: (V,) the model's item index of each of the log's; 0 = it does not know the item.
        counts: (n_items,) events of each of the model's items in its log.
    """

    name = "model"

    def __init__(self, engine: Engine, max_seq_len: int, own: Int32, counts: Int64) -> None:
        self.engine, self.max_seq_len, self.own = engine, max_seq_len, own
        self.known = np.concatenate([np.zeros(1, np.int32), np.flatnonzero(own).astype(np.int32)])  # (M + 1,)
        self.place = np.zeros(len(own), np.int32)  # (V,) where an item stands among the known
        self.place[self.known] = np.arange(len(self.known))
        self.table = engine.item_table()[own[self.known]]  # (M + 1, D)
        self.popularity = np.concatenate([[0], counts])[own[self.known]].astype(np.float32)
        self._index = index_for(engine, self.table)
        self._popular = create_level_index(self.popularity)

    def scores(self, histories: Ragged) -> Float32:
        scores = np.full((len(histories), len(self.own)), LOWEST, np.float32)
        for rows, features in self._parts(histories):
            of_known = self.popularity if features is None else features @ self.table.T
            scores[rows[:, None], self.known] = of_known
        return scores

    def candidate_scores(self, histories: Ragged, candidates: Int32) -> Float32:
        scores, places = np.empty(candidates.shape, np.float32), self.place[candidates]
        for rows, features in self._parts(histories):
            part = places[rows]
            scores[rows] = self.popularity[part] if features is None else candidate_scores(features, self.table, part)
        scores[places == 0] = LOWEST
        return scores

    def rank(
        self, histories: Ragged, targets: Int32, hidden: Ragged | None, ties: Ties, k: int
    ) -> tuple[Float64, Int32]:
        """As `ItemIndex.rank`; the rank of a target that the model does not know is infinite."""
        ranks, lists, places = np.empty(len(targets)), np.zeros((len(targets), k), np.int32), self.place[targets]
        gone = None if hidden is None else _known_part(hidden, self.place)
        for rows, features in self._parts(histories):
            wanted = np.maximum(places[rows], 1)  # of an unknown target, any item's
            part = None if gone is None else gone.take(rows)
            if features is None:
                ranks[rows], found = self._popular.rank(Exceptions.none(len(rows)), wanted, part, ties, k)
            else:
                ranks[rows], found = self._index.rank(features, wanted, part, ties, k)
            lists[rows] = self.known[found]
        ranks[places == 0] = np.inf
        return ranks, lists

    def rank_among(self, histories: Ragged, candidates: Int32, ties: Ties) -> Float64:
        ranks = ranks_sampled(self.candidate_scores(histories, candidates), candidates, ties)
        ranks[self.place[candidates[:, 0]] == 0] = np.inf
        return ranks

    def _parts(self, histories: Ragged) -> Iterator[tuple[Int64, Float32 | None]]:
        """Rows with the features of what the model knows of them; and rows of which it knows nothing, with None."""
        known = _known_part(histories, self.own)
        filled, empty = np.flatnonzero(known.lengths), np.flatnonzero(known.lengths == 0)
        if len(filled):
            yield filled, self.engine.encode(known.take(filled).last(self.max_seq_len))
        if len(empty):
            yield empty, None


def _known_part(rows: Ragged, index: Int32) -> Ragged:
    """Rows in other indices, without what has index 0 there."""
    values = index[rows.values]
    kept = values > 0
    return Ragged(values[kept], offsets_of(np.bincount(rows.row_of[kept], minlength=len(rows))))

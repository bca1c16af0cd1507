"""A baseline that knows items without events, too: those that have most in common with the user's last item.

Shape legend: B histories, V n_items + 1 (column 0 is padding), C candidates, F n_features.
"""

from __future__ import annotations

import numpy as np

from sasrec.core.arrays import Float32, Int32
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged
from sasrec.ranking.index import BLOCK_BYTES
from sasrec.ranking.scorers import last_items


class SharedFeatures:
    """Scores an item by how many features it shares with the user's last item; equal counts are ties.

    Args:
        features: of all items; vectors do not count.
    """

    name = "shared_features"

    def __init__(self, features: ItemFeatures) -> None:
        self.features, self.n_columns = features.values, len(features.values)
        order = np.argsort(features.values.values, kind="stable")
        starts = np.searchsorted(features.values.values[order], np.arange(features.n_features + 1))
        self.items = Ragged(features.values.row_of[order].astype(np.int32), starts)  # F rows: who has a feature

    def scores(self, histories: Ragged) -> Float32:
        mine = self.features.take(last_items(histories).astype(np.int64))  # B rows of features
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

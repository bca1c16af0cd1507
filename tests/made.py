"""Small made logs, and a scorer with given scores, for tests of evaluation."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec.sequences import Ragged, Split, Vocabulary, build_sequences, split_leave_one_out


def make_split(histories: list[list[int]]) -> tuple[Split, Vocabulary]:
    """Leave-one-out of users 1, 2, ... with these items."""
    users = [u for u, items in enumerate(histories, 1) for _ in items]
    log = pl.DataFrame({"user_id": users, "item_id": [i for items in histories for i in items]})
    sequences, vocabulary = build_sequences(log)
    return split_leave_one_out(sequences), vocabulary


def random_histories(seed: int, n_users: int, n_items: int, longest: int = 12) -> list[list[int]]:
    """Histories of 3 and more items, without repeats where the catalogue allows it; every item occurs."""
    rng = np.random.default_rng(seed)
    longest = max(3, min(longest, n_items))
    rows = [rng.permutation(n_items)[: rng.integers(3, longest + 1)] + 1 for _ in range(n_users)]
    return [row.tolist() for row in rows] + [list(range(1, n_items + 1))]


class Table:
    """Gives user row u of the evaluated part the scores of row u of a table; blocks must come in order."""

    name = "table"

    def __init__(self, table: NDArray[np.float32]) -> None:
        self.table, self.at = table, 0

    def scores(self, histories: Ragged) -> NDArray[np.float32]:
        self.at += len(histories)
        return self.table[self.at - len(histories) : self.at]

    def candidate_scores(self, histories: Ragged, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        return np.take_along_axis(self.scores(histories), candidates, axis=1)

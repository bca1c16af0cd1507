"""Read the histories that callers pass in (lists or a frame), and give frames back in the caller's library."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from sasrec.core.errors import DataError
from sasrec.core.forks import needs_threads_of
from sasrec.data.readers import read_interactions
from sasrec.data.sequences import Ragged
from sasrec.data.vocabulary import Vocabulary

Histories = Sequence[Sequence[Any]]


def read_histories(histories: Any) -> tuple[Histories, pl.Series | None, bool]:
    """Rows of ids, oldest first; the user id of each row (None = its position); whether pandas came in.

    Args:
        histories: lists of item ids, or a frame user_id, item_id[, timestamp].

    Raises:
        DataError: a history is not a list of ids, or the frame cannot be read.
    """
    as_pandas = is_pandas(histories)
    if as_pandas or isinstance(histories, pl.DataFrame):
        needs_threads_of("Polars")
        log = read_interactions(histories)
        if "timestamp" in log.columns:
            log = log.sort("timestamp", maintain_order=True)
        grouped = log.group_by("user_id", maintain_order=True).agg("item_id")
        return grouped["item_id"].to_list(), grouped["user_id"], as_pandas
    rows = list(histories)
    for position, row in enumerate(rows):
        if isinstance(row, str) or not isinstance(row, Iterable):
            raise DataError(
                f"history {position} is {row!r}, not a list of item ids; for one user give a list with one history"
            )
    return [list(row) for row in rows], None, False


def known_histories(vocabulary: Vocabulary, rows: Histories) -> tuple[Ragged, list[list[Any]]]:
    """The indices of the known items of each history, and the ids that are not known."""
    known, unknown = [], []
    for row in rows:
        indices, others = vocabulary.split_known(row)
        known.append(indices)
        unknown.append(others)
    return Ragged.from_lists(known), unknown


def is_pandas(value: Any) -> bool:
    """Whether this is a pandas object, without importing pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame | pandas.Series | pandas.Index)


def to_pandas(frame: pl.DataFrame) -> Any:
    """The frame in pandas, by way of NumPy (no pyarrow needed)."""
    import pandas

    return pandas.DataFrame({name: frame[name].to_numpy() for name in frame.columns})

"""Columns of events as numbers: made of a frame, by ranges of users, in order, without repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec.core.arrays import Bool, Int32, Int64
from sasrec.data.facts import order_and_counts, order_by_user
from sasrec.data.filters import Repeats
from sasrec.data.sequences import TYPES, WEIGHTS
from sasrec.reading.id_counts import IdIndex

USERS = "users.npy"  # whose events they are
Columns = dict[str, NDArray[Any]]  # by the name of the file that a column has on disk


def numbers_of(frame: pl.DataFrame, indices: dict[str, IdIndex]) -> Columns:
    """The events of a chunk as they are written."""
    columns: Columns = {
        USERS: indices["user"].places_of(frame["user_id"]),
        "items.npy": indices["item"].places_of(frame["item_id"]) + np.int32(1),
    }
    if "timestamp" in frame.columns:
        columns["timestamps.npy"] = frame["timestamp"].to_numpy()
    if "event" in frame.columns:
        columns[TYPES] = indices["event"].places_of(frame["event"]).astype(np.uint8)
    if "weight" in frame.columns:
        columns[WEIGHTS] = frame["weight"].to_numpy()
    return columns


def by_range(columns: Columns, range_of: Int32, n_ranges: int) -> tuple[Columns, Int64]:
    """Events by the range of their user, those of a range in their order; and how many each range has."""
    order, counts = order_and_counts(range_of[columns[USERS]], n_ranges)
    return _taken(columns, order), counts


def in_order(columns: Columns, users: slice, offsets: Int64, repeats: Repeats, n_items: int) -> Columns:
    """The events of a range by user and time, without those that repeat others; as they are where that is so already.

    Args:
        columns: in input order.
        users: of the range.
        offsets: (n_users + 1,) of all users.
        repeats: which stay.
        n_items: that there are.
    """
    begins = offsets[users.start : users.stop + 1] - offsets[users.start]
    order = order_by_user(columns[USERS] - users.start, begins, columns.get("timestamps.npy"))
    if order is not None:
        columns = _taken(columns, order)
    return columns if repeats == "keep" else _taken(columns, _is_kept(columns, repeats, n_items))


def _taken(columns: Columns, rows: Int64 | Bool) -> Columns:
    return {name: values[rows] for name, values in columns.items()}


def of_core(columns: Columns, kept: tuple[Bool, Bool], repeats: Repeats, n_items: int) -> Columns:
    """The events, in order, of users and items that are kept; without those that repeat others only now, if asked."""
    columns = _taken(columns, kept[0][columns[USERS]] & kept[1][columns["items.npy"] - 1])
    return _taken(columns, _is_kept(columns, repeats, n_items)) if repeats == "consecutive_again" else columns


def _is_kept(columns: Columns, repeats: Repeats, n_items: int) -> Bool:
    """(n,) which events of users, in order, are no repeats, as `filter_repeats` says it."""
    users, what = columns[USERS], columns["items.npy"].astype(np.int64)
    if TYPES in columns:
        what += columns[TYPES].astype(np.int64) * (n_items + 1)
    kept = np.ones(len(users), bool)
    if repeats.startswith("consecutive"):
        kept[1:] = (what[1:] != what[:-1]) | (users[1:] != users[:-1])
        return kept
    order = np.lexsort((what, users))  # stable
    same = (what[order][1:] == what[order][:-1]) & (users[order][1:] == users[order][:-1])
    kept[order[1:][same] if repeats == "first" else order[:-1][same]] = False
    return kept

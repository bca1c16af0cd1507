"""Check the lists of ids that callers hand in: histories, users, allow, deny, candidates."""

from __future__ import annotations

import io
from collections import UserString
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from sasrec.core.arrays import Int64
from sasrec.core.errors import DataError
from sasrec.data.ragged import Ragged
from sasrec.data.sequences import Sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.frame_kinds import column_of, is_frame, is_pandas
from sasrec.reading.frames import frame_of
from sasrec.reading.ids import canonical_ids
from sasrec.reading.readers import read_interactions

Histories = Sequence[Sequence[Any]]
NO_LISTS = str | UserString | bytes | bytearray | memoryview | io.IOBase  # though one can go over most of them
COLLECTIONS = (list, tuple, set, frozenset, dict, np.ndarray, pl.Series)
ONE_ID = "for one id give a list with it"
ONE_USER = "for one user give a list with one history"


def list_of_ids(ids: Any, name: str, *, ordered: bool = False, fix: str = ONE_ID) -> list[Any]:
    """The ids of any collection with one dimension: a list, an array, a Series, a generator, a frame of one column, ...

    Args:
        ids: what the caller gave.
        name: of the argument, for messages.
        ordered: whether the order counts, so that a set will not do.
        fix: what a message advises for a single value.

    Raises:
        DataError: it is a text or another single value, a dictionary, a frame of several columns, an unordered set or
            an array of another number of dimensions; an id of a Series is missing, or an id is itself a list.
    """
    if type(ids) not in (list, tuple):  # which need no look, and of which there may be millions
        ids = _only_column(ids, name, ordered=ordered)
        _check_list(ids, name, _kind_of_list(ordered), (1,), ordered=ordered, fix=fix)
        missing = _first_missing(ids)
        if missing is not None:
            raise DataError(f"{name} has no id at position {missing}; leave out what is missing")
    values = _values(ids)
    for kind in set(map(type, values)):  # few, whatever the number of ids
        if issubclass(kind, COLLECTIONS):
            _check_flat(values, name, kind)
    return values


def _kind_of_list(ordered: bool) -> str:
    return "a list of item ids" if ordered else "a list of ids"


def _only_column(ids: Any, name: str, *, ordered: bool) -> Any:
    """The column of a frame that has one, as a Series; what is no frame as it is.

    Raises:
        DataError: the frame has several columns, or cannot be read.
    """
    if not is_frame(ids):
        return column_of(ids)
    frame = frame_of(ids)
    if frame.width != 1:
        wrong = f"{name} is of type {type(ids).__name__}, not {_kind_of_list(ordered)}"
        raise DataError(f"{wrong}; give one of its columns: {', '.join(frame.columns) or 'it has none'}")
    return frame.to_series()


def _check_flat(values: list[Any], name: str, kind: type) -> None:
    """Refuse values of a kind that holds others; an array without dimensions is a single value."""
    for position, value in enumerate(values):
        if type(value) is kind and not (isinstance(value, np.ndarray) and value.ndim == 0):
            raise DataError(
                f"{name} holds a value of type {kind.__name__} at position {position}, not an id; give one flat list"
            )


def _check_list(value: Any, name: str, what: str, dimensions: tuple[int, ...], *, ordered: bool, fix: str) -> None:
    """Refuse what is no list, in one sentence."""
    wrong = f"{name} is of type {type(value).__name__}, not {what}"
    if isinstance(value, Mapping):
        raise DataError(f"{wrong}; give its keys or its values as a list")
    if is_pandas(value) and getattr(value, "nlevels", 1) > 1:
        raise DataError(f"{wrong}; give one of its columns")
    if ordered and isinstance(value, set | frozenset):
        raise DataError(f"{wrong}; a set has no order")
    if isinstance(value, NO_LISTS) or not _is_iterable(value):
        raise DataError(f"{wrong}; {fix}")
    if getattr(value, "ndim", 1) not in dimensions:
        raise DataError(f"{wrong}; an array of {value.ndim} dimensions has too many")


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True


def _first_missing(ids: Any) -> int | None:
    """The first position without a value in a Series or an array that marks them."""
    if isinstance(ids, pl.Series):
        missing = (ids.is_null() | ids.is_nan() if ids.dtype.is_float() else ids.is_null()).fill_null(True).to_numpy()
    elif is_pandas(ids):
        missing = np.asarray(ids.isna())
    elif isinstance(ids, np.ma.MaskedArray):
        missing = np.ma.getmaskarray(ids)
    elif isinstance(ids, np.ndarray) and ids.dtype.kind == "f":
        missing = np.isnan(ids)
    else:
        return None
    return int(missing.argmax()) if missing.any() else None


def _values(ids: Any) -> list[Any]:
    """The elements as Python's own values, where the collection can tell."""
    if isinstance(ids, np.ndarray) and ids.dtype.kind not in "iubUO":
        return list(ids)  # a float keeps its precision, a time its unit
    for method in ("to_list", "tolist", "to_pylist"):
        if hasattr(ids, method):
            values: list[Any] = getattr(ids, method)()
            return values
    return list(ids)


def read_histories(histories: Any) -> tuple[Histories, pl.Series | None]:
    """Rows of ids, oldest first, and the user id of each row; None = its position.

    Args:
        histories: lists of item ids, or a frame user_id, item_id[, timestamp]; a pandas Series of lists has its users
            in its index.

    Raises:
        DataError: a history is not a list of ids, or the frame cannot be read.
    """
    if is_frame(histories):
        log = read_interactions(histories)
        if "timestamp" in log.columns:
            log = log.sort("timestamp", maintain_order=True)
        grouped = log.group_by("user_id", maintain_order=True).agg("item_id")
        return grouped["item_id"].to_list(), grouped["user_id"]
    histories = column_of(histories)
    _check_list(histories, "histories", "a list of histories", (1, 2), ordered=True, fix=ONE_USER)
    given = histories.to_pylist() if hasattr(histories, "to_pylist") else histories
    rows = [list_of_ids(row, f"history {i}", ordered=True, fix=ONE_USER) for i, row in enumerate(given)]
    index = getattr(histories, "index", None) if is_pandas(histories) else None
    users = None if index is None else canonical_ids(pl.Series("user_id", index.tolist(), pl.Object))
    return rows, users


def known_histories(vocabulary: Vocabulary, rows: Histories) -> tuple[Ragged, list[list[Any]]]:
    """The indices of the known items of each history, and the ids that are not known."""
    known, unknown = [], []
    for row in rows:
        indices, others = vocabulary.split_known(row)
        known.append(indices)
        unknown.append(others)
    return Ragged.from_lists(known), unknown


def users_histories(
    sequences: Sequences, user_ids: Any = None, *, rows: slice | Int64 = slice(None)
) -> tuple[Ragged, pl.Series]:
    """The histories of users of the log, with the users' own ids; without ids, those at some rows: the default is all.

    Raises:
        DataError: `user_ids` is not a list of ids.
        UnknownItemError: a user is not in the log.
    """
    return histories_at(sequences, rows if user_ids is None else rows_of_users(sequences, user_ids))


def histories_at(sequences: Sequences, rows: slice | Int64) -> tuple[Ragged, pl.Series]:
    """The histories of the users at some rows of the log, in any order, with the users' own ids."""
    if isinstance(rows, slice):
        first, last, _ = rows.indices(len(sequences))
        offsets = sequences.offsets[first : last + 1]
        histories = Ragged(np.asarray(sequences.items[offsets[0] : offsets[-1]]), offsets - offsets[0])
        return histories, sequences.user_ids[first:last]
    histories = Ragged.cut(sequences.items, sequences.offsets[:-1][rows], sequences.offsets[1:][rows])
    return histories, sequences.user_ids.gather(rows)


def rows_of_users(sequences: Sequences, user_ids: Any) -> Int64:
    """The rows of users in the log, in their order. A Series of texts is looked up without an object for each id.

    Raises:
        DataError: `user_ids` is not a list of ids.
        UnknownItemError: a user is not in the log.
    """
    user_ids = _only_column(user_ids, "user_ids", ordered=False)
    if not isinstance(user_ids, pl.Series) or user_ids.dtype != pl.String or user_ids.null_count():
        return np.array([sequences.row_of_user(user) for user in list_of_ids(user_ids, "user_ids")], np.int64)
    rows = _rows_of_texts(sequences.user_ids, user_ids)
    for place in np.flatnonzero(rows < 0).tolist():  # other spellings, such as 5.0, and users that are not there
        rows[place] = sequences.row_of_user(user_ids[place])
    return rows


def _rows_of_texts(ascending: pl.Series, texts: pl.Series) -> Int64:
    """Where texts stand among ascending ids; -1 for those that are not there in this spelling."""
    wanted, places = texts, np.arange(len(texts))
    if ascending.dtype == pl.Int64:
        numbers = texts.cast(pl.Int64, strict=False)
        places = np.flatnonzero((numbers.cast(pl.String) == texts).fill_null(False).to_numpy())
        wanted = numbers.gather(places)
    rows = np.full(len(texts), -1, np.int64)
    if len(ascending) and len(places):
        found = np.minimum(ascending.search_sorted(wanted).to_numpy().astype(np.int64), len(ascending) - 1)
        is_there = (ascending.gather(found) == wanted).to_numpy()
        rows[places[is_there]] = found[is_there]
    return rows

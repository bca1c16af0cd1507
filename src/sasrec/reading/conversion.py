"""Columns of a log in their one type: ids, times as numbers, types of events as text, weights. Errors name the row."""

from __future__ import annotations

import polars as pl

from sasrec.core.errors import DataError
from sasrec.core.event_types import LEAST_WEIGHT, MOST_WEIGHT
from sasrec.reading.ids import EXACT, MAX_ID_BYTES, are_integers, canonical_ids
from sasrec.reading.source_table import SourceTable
from sasrec.reading.times import TextKind, numbers_of

LOOKED_AT = 1000  # ids
MOST_TYPES = 255  # of events: they are kept as bytes
TYPE = "a type"  # what every event needs, for messages


def ids_in(table: SourceTable, column: str, needed: str = "a user and an item") -> pl.Series:
    """A column of ids in their one type (see `ids.canonical_ids`); `needed` is what every event needs, for messages.

    Raises:
        DataError: an id is missing, or the column holds no ids.
    """
    return canonical_ids(checked_ids(table, column, needed), first_row=table.first_row)


def checked_ids(table: SourceTable, column: str, needed: str = "a user and an item") -> pl.Series:
    """A column of ids as it is, but for white space around texts.

    Raises:
        DataError: an id is missing, or the column holds no ids.
    """
    values = table.frame[column]
    if values.dtype.is_nested() or values.dtype == pl.Binary:
        raise DataError(f"column {column!r} of {table.where} holds {values.dtype}; ids are integers or text")
    if table.is_text and values.dtype == pl.String and not are_integers(values):
        values = values.str.strip_chars(" \t\r")
    missing = values.is_null()
    if values.dtype == pl.String:
        missing = missing | _is_blank(values)
        if not table.is_text:  # texts have none
            _check_characters(table, values)
        _check_no_lists(table, values)
        _check_lengths(table, values)
    elif values.dtype.is_float():
        missing = missing | values.is_nan()
    if missing.any():
        row = int(missing.arg_true()[0])
        raise DataError(
            f"{table.place(row)} has nothing in column {column!r}; every event needs {needed} "
            "(--drop-missing leaves such events out)"
        )
    return values


def _is_blank(values: pl.Series) -> pl.Series:
    """(n,) whether a text is empty or white space; few are looked at, as most begin with a letter or a digit."""
    odd = (values < "!") | (values > "~")
    return odd & (values.str.strip_chars() == "") if odd.any() else odd


def _check_characters(table: SourceTable, ids: pl.Series) -> None:
    """Refuse ids with a NUL, which is also what half of a pair of surrogates in JSON is read as."""
    odd = ids.str.contains("\0", literal=True)
    if odd.any():
        row = int(odd.arg_true()[0])
        raise DataError(
            f"{table.place(row)} has {ids[row]!r} in column {ids.name!r}: a NUL or half a character; mend the id"
        )


def _check_lengths(table: SourceTable, ids: pl.Series) -> None:
    """Refuse ids that are whole texts."""
    lengths = ids.str.len_bytes()
    if (lengths > MAX_ID_BYTES).any():
        row = int((lengths > MAX_ID_BYTES).arg_true()[0])
        raise DataError(
            f"{table.place(row)} has an id of {lengths[row]:,} bytes in column {ids.name!r}, and {MAX_ID_BYTES:,} are "
            "the most; name the column of ids, or check the quotes before it"
        )


def _check_no_lists(table: SourceTable, ids: pl.Series) -> None:
    """Refuse lists that are written as text, as some programs do in CSV."""
    sample = ids.head(LOOKED_AT).drop_nulls()
    lists = sample.filter(sample.str.contains(r"^\[.*\]$"))
    several = lists.filter(lists.str.contains(r"[, ]"))
    if len(several) and len(lists) >= 0.9 * len(sample):
        raise DataError(
            f"column {ids.name!r} of {table.where} holds lists as text, such as {several[0]!r}; give one event a row, "
            "or lists in JSON or Parquet"
        )


def timestamps_in(table: SourceTable, column: str, kind: TextKind | None = None) -> pl.Series:
    """A column of times as numbers, whose texts are of a kind (see `times.numbers_of`).

    Raises:
        DataError: a value is missing, or is not a number or a date.
    """
    given = table.frame[column]
    if kind is not None and table.is_text:
        given = given.cast(pl.String)
    values = numbers_of(given, kind)
    if values is None:
        raise DataError(f"column {column!r} of {table.where} holds {given.dtype}, not numbers or dates")
    bad = values.is_null() if values.dtype.is_integer() else ~values.is_finite().fill_null(False)
    if bad.any():
        row = int(bad.arg_true()[0])
        if given[row] is None:
            raise DataError(
                f"{table.place(row)} has nothing in column {column!r}; every event needs a timestamp or none "
                "(--drop-missing leaves such events out)"
            )
        raise DataError(
            f"{table.place(row)} has {given[row]!r} in column {column!r}, which is not a number or a date; write times "
            "as numbers, or as 2024-01-31 12:00:00"
        )
    if given.dtype == pl.String and values.dtype.is_float():
        _check_exact(table, given, values)
    return values


def _check_exact(table: SourceTable, given: pl.Series, values: pl.Series) -> None:
    """Refuse integers that a decimal elsewhere in the column makes floats, which are too coarse for them."""
    coarse = (values.abs() >= EXACT["Float64"]) & given.str.contains(r"^\s*[+-]?\d+\s*$")
    if coarse.any():
        row = int(coarse.arg_true()[0])
        raise DataError(
            f"{table.place(row)} has {given[row]!r} in column {given.name!r}, which is not exact beside decimal or "
            "larger numbers; write all times as integers of at most 18 digits"
        )


def types_in(table: SourceTable, column: str) -> pl.Series:
    """A column of types of events, as text.

    Raises:
        DataError: a type is missing, or there are so many that the column holds something else.
    """
    types = ids_in(table, column, TYPE).cast(pl.String)
    check_types(types.n_unique(), types[0], column, table.where)
    return types


def check_types(n: int, first: str, column: str, where: str) -> None:
    """Raise DataError where a column holds so many different values that they are no types."""
    if n > MOST_TYPES:
        raise DataError(
            f"column {column!r} of {where} holds {n:,} different values, such as {first!r}, and {MOST_TYPES} "
            "types of events are the most; name the column of types (--event-column)"
        )


def weights_in(table: SourceTable, column: str) -> pl.Series:
    """A column of weights of events, as Float32.

    Raises:
        DataError: a weight is missing, is not a number, negative, too small or large to count with, or all are 0.
    """
    weights = checked_weights(table, column)
    check_weights(bool((weights > 0).any()), column, table.where)
    return weights


def check_weights(any_counts: bool, column: str, where: str) -> None:
    """Raise DataError unless any weight is above 0."""
    if not any_counts:
        raise DataError(f"all weights in column {column!r} of {where} are 0, so no event would train")


def checked_weights(table: SourceTable, column: str) -> pl.Series:
    """A column of weights of events, which all may be 0, as Float32.

    Raises:
        DataError: a weight is missing, is not a number, negative, too small or large to count with.
    """
    given = table.frame[column]
    if given.dtype != pl.String and not given.dtype.is_numeric() and given.dtype != pl.Boolean:
        raise DataError(f"column {column!r} of {table.where} holds {given.dtype}; weights are numbers")
    texts = given.str.strip_chars() if given.dtype == pl.String else given
    values = texts.cast(pl.Float64, strict=False)
    fits = (values == 0) | values.is_between(LEAST_WEIGHT, MOST_WEIGHT)
    bad = ~fits.fill_null(False)
    if bad.any():
        row = int(bad.arg_true()[0])
        told = "nothing" if given[row] is None else repr(given[row])
        raise DataError(
            f"{table.place(row)} has {told} in column {column!r}; a weight is 0 or a number from {LEAST_WEIGHT:g} to "
            f"{MOST_WEIGHT:g}"
        )
    return values.cast(pl.Float32)

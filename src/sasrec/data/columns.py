"""Find the user, item and time columns of a table by name, check their values, convert them. Errors name the row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from sasrec.core.errors import DataError
from sasrec.data.ids import canonical_ids
from sasrec.data.times import numbers_of

Wanted = Mapping[str, str | None]  # role -> the column's name as the caller gave it
KNOWN_NAMES = {  # as compared: lower case, letters and digits only
    "user": ["userid", "user", "uid", "reviewerid", "customerid", "customer", "visitorid", "sessionid", "session"],
    "item": [
        "itemid", "item", "iid", "movieid", "movie", "asin", "parentasin", "productid", "product", "sku", "articleid",
        "trackid", "songid", "bookid", "gameid", "newsid", "businessid",
    ],
    "timestamp": ["timestamp", "time", "ts", "unixreviewtime", "datetime", "date", "eventtime", "createdat"],
    "title": ["title", "movietitle", "name", "itemname", "productname", "description"],
}  # fmt: skip


@dataclass(frozen=True)
class SourceTable:
    """A frame with the user's own column names, and how to speak of its rows."""

    frame: pl.DataFrame
    where: str  # "the frame" or the file
    lines: pl.Series | int | None = None  # line of each row in the file, or of row 0; None = speak of 0-based rows
    is_text: bool = False  # spaces around values are padding

    def row(self, index: int) -> str:
        """How a message names a row."""
        if self.lines is None:
            return f"row {index} of {self.where}"
        line = self.lines + index if isinstance(self.lines, int) else self.lines[index]
        return f"line {line} of {self.where}"


def plain_name(name: str) -> str:
    """A column's name as it is compared: lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def choose_columns(columns: Sequence[str], where: str, wanted: Wanted) -> dict[str, str | None]:
    """The column for each role: the one asked for, else the first that has a usual name; only time may be absent."""
    return {role: _find_column(columns, where, role, name) for role, name in wanted.items()}


def _find_column(columns: Sequence[str], where: str, role: str, name: str | None) -> str | None:
    found = ", ".join(columns)
    if name is not None:
        if name not in columns:
            raise DataError(f"{where} has no column {name!r}; its columns are: {found}")
        return name
    plain = {plain_name(column): column for column in reversed(columns)}
    for known in KNOWN_NAMES[role]:
        if known in plain:
            return plain[known]
    if role == "timestamp":
        return None
    raise DataError(f"{where} has no {role} column that is recognised (name it); its columns are: {found}")


def log_of(table: SourceTable, wanted: Wanted) -> pl.DataFrame:
    """Pick, check and convert the columns."""
    chosen = choose_columns(table.frame.columns, table.where, wanted)
    user, item, time = chosen["user"], chosen["item"], chosen["timestamp"]
    assert user is not None
    assert item is not None
    if user == item:
        raise DataError(f"column {user!r} of {table.where} cannot be both the user and the item; name two columns")
    columns = {"user_id": ids_in(table, user), "item_id": ids_in(table, item)}
    if time is not None:
        columns["timestamp"] = timestamps_in(table, time)
    return pl.DataFrame(columns)


def ids_in(table: SourceTable, column: str) -> pl.Series:
    """A column of ids in their one type (see `ids.canonical_ids`).

    Raises:
        DataError: an id is missing, or the column holds no ids.
    """
    values = table.frame[column]
    if table.is_text and values.dtype == pl.String and values.cast(pl.Int64, strict=False).null_count():
        values = values.str.strip_chars(" \t\r")
    missing = values.is_null()
    if values.dtype == pl.String:
        missing = missing | (values == "")
    elif values.dtype.is_float():
        missing = missing | values.is_nan()
    if missing.any():
        row = int(missing.arg_true()[0])
        raise DataError(f"{table.row(row)} has nothing in column {column!r}; every event needs a user and an item")
    return canonical_ids(values)


def timestamps_in(table: SourceTable, column: str) -> pl.Series:
    """A column of times as numbers (see `times.numbers_of`).

    Raises:
        DataError: a value is missing, or is not a number or a date.
    """
    given = table.frame[column]
    values = numbers_of(given)
    if values is None:
        raise DataError(f"column {column!r} of {table.where} holds {given.dtype}, not numbers or dates")
    bad = values.is_null() if values.dtype.is_integer() else ~values.is_finite().fill_null(False)
    if bad.any():
        row = int(bad.arg_true()[0])
        if given[row] is None:
            raise DataError(f"{table.row(row)} has nothing in column {column!r}; every event needs a timestamp or none")
        raise DataError(f"{table.row(row)} has {given[row]!r} in column {column!r}, which is not a number or a date")
    return values

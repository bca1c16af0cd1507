"""Which library a frame or a column is of, and a Polars frame as one of that library; imports none of them itself."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import polars as pl

LIBRARIES = {"polars", "pandas", "pyarrow", "narwhals", "duckdb"}
NARWHALS = r"narwhals(\.stable\.v\d+)?"  # each has types of its own


def home_of(kind: type) -> str:
    """The package that a type stands in, such as pandas; _duckdb is duckdb."""
    return kind.__module__.partition(".")[0].lstrip("_")


def library_of(value: Any) -> str:
    """The one of LIBRARIES that has the type of a value, or one that it is made from; "" = none."""
    return next((name for name in map(home_of, type(value).__mro__) if name in LIBRARIES), "")


def is_pandas(value: Any) -> bool:
    """Whether this is a frame, a column or an index of pandas."""
    return library_of(value) == "pandas" and _is_named(value, "DataFrame", "Series", "Index")


def is_narwhals(value: Any) -> bool:
    """Whether this is a frame or a column of narwhals, which stands for one of another library."""
    return library_of(value) == "narwhals" and _is_named(value, "DataFrame", "LazyFrame", "Series")


def is_cursor(value: Any) -> bool:
    """Whether this has the rows of an SQL query, by Python's DB-API: a cursor, or a connection of DuckDB."""
    return callable(getattr(value, "fetchall", None)) and getattr(value, "description", None) is not None


def is_frame(value: Any) -> bool:
    """Whether this has rows and columns, also where it is lazy, or can be read once.

    A pandas, Polars or narwhals frame; a table, a record batch, a reader of them or a data set of PyArrow; a relation
    of DuckDB; a cursor with the result of a query; and what else has `__arrow_c_stream__` and is no column of these.
    """
    library = library_of(value)
    if isinstance(value, type):
        return False
    if library in ("polars", "pandas", "narwhals"):
        return _is_named(value, "DataFrame", "LazyFrame")
    if library == "pyarrow":
        return _is_named(value, "Table", "RecordBatch", "RecordBatchReader", "Dataset")
    return hasattr(value, "__arrow_c_stream__") or is_cursor(value)


def column_of(value: Any) -> Any:
    """A column of PyArrow as a Polars Series, one of narwhals as what it stands for; all else as it is."""
    value = value.to_native() if is_narwhals(value) else value
    is_arrow = library_of(value) == "pyarrow" and _is_named(value, "Array", "ChunkedArray")
    return pl.Series(value) if is_arrow else value


def like(given: Any, frame: pl.DataFrame) -> Any:
    """A frame of the library that something comes from.

    Args:
        given: what a caller gave: a frame, a column, or anything else.
        frame: the answer.

    Returns:
        A pandas frame, a PyArrow table, or a narwhals frame of the library that the given one stands for; of anything
        else, DuckDB's relations among them, the Polars frame itself. It is never lazy.
    """
    if is_pandas(given):
        return _to_pandas(frame)
    if is_narwhals(given):
        face = re.match(NARWHALS, type(given).__module__)
        assert face is not None
        return import_module(face[0]).from_native(like(given.to_native(), frame), eager_only=True)
    if library_of(given) == "pyarrow":
        return frame.to_arrow(compat_level=pl.CompatLevel.oldest())  # no views of texts, which few programs take
    return frame


def _to_pandas(frame: pl.DataFrame) -> Any:
    """The frame in pandas, by way of NumPy, so that PyArrow is not needed."""
    return import_module("pandas").DataFrame({name: frame[name].to_numpy() for name in frame.columns})


def _is_named(value: Any, *names: str) -> bool:
    """Whether the type of a value, or one that it is made from, has one of these names."""
    return any(base.__name__ in names for base in type(value).__mro__)

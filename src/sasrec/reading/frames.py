"""Frames of other libraries, and results of SQL queries, as Polars frames; PyArrow is needed only where they use it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import SchemaError

from sasrec.core.errors import DataError, first_line
from sasrec.reading.frame_kinds import home_of, is_cursor, is_frame, is_narwhals, is_pandas

ARROW_READERS = ("to_arrow_reader", "fetch_record_batch")  # of DuckDB's connections, from version 2 on and before
ARROW_TEXTS = ("string[pyarrow]", "large_string[pyarrow]")  # of pandas, whose texts PyArrow holds


def frame_of(source: Any) -> pl.DataFrame:
    """A frame of any library as one of Polars, its rows in their order; see `is_frame` for what is one.

    What is lazy is computed; what can be read once is read.

    Raises:
        DataError: it is no frame, has two columns of one name, or its library cannot compute it.
    """
    source = source.to_native() if is_narwhals(source) else source
    with _errors_of(source):
        if isinstance(source, pl.LazyFrame):
            return source.collect()
        if isinstance(source, pl.DataFrame):
            return source
        if is_frame(source):
            return _read(source)
        if hasattr(source, "__arrow_c_stream__") and not isinstance(source, type | pl.Series):
            with contextlib.suppress(TypeError, ValueError, SchemaError):  # a column, such as a pandas Series
                return pl.DataFrame(source)
    raise DataError(
        f"cannot read a log from {type(source).__name__}; give a path, a list of paths, or a frame (of Polars, pandas, "
        "PyArrow, DuckDB, narwhals, or with __arrow_c_stream__)"
    )


@contextlib.contextmanager
def _errors_of(source: Any) -> Iterator[None]:
    """What the source's own library, or Polars, has to say, as one sentence."""
    try:
        yield
    except Exception as error:
        own = {"polars", home_of(type(source))}
        if not isinstance(error, OSError | ImportError) and not own & set(map(home_of, type(error).__mro__)):
            raise
        kind = "lazy frame" if isinstance(source, pl.LazyFrame) else type(source).__name__
        raise DataError(f"cannot read the {kind}: {first_line(error)}") from error


def _read(source: Any) -> pl.DataFrame:
    """What `is_frame` names, but for Polars' own."""
    if is_pandas(source):
        source = _with_index(source)
        names = [str(name) for name in source.columns]
        _check_names(names)
        return pl.DataFrame({name: _from_pandas(source.iloc[:, j]) for j, name in enumerate(names)})
    if hasattr(source, "scanner"):  # a data set of PyArrow
        source = source.scanner().to_reader()
    if hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
        told = getattr(getattr(source, "schema", None), "names", None) or getattr(source, "columns", None)
        _check_names(list(told or []))
        try:
            return pl.DataFrame(source)
        except ImportError:  # relations of an older DuckDB need PyArrow for that
            if not is_cursor(source):
                raise
    return _of_cursor(source)


def _of_cursor(source: Any) -> pl.DataFrame:
    """The result of a query: as Arrow where DuckDB and PyArrow can, else row by row."""
    names = [str(column[0]) for column in source.description]
    _check_names(names)
    for name in ARROW_READERS:
        if hasattr(source, name):
            with contextlib.suppress(ImportError):  # it needs PyArrow
                import_module("pyarrow")
                return _of_arrow_reader(getattr(source, name))
    rows = source.fetchall()
    return pl.DataFrame({name: _of_values([row[j] for row in rows]) for j, name in enumerate(names)})


def _of_arrow_reader(reader: Callable[[], Any]) -> pl.DataFrame:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that a relation would save a copy
        return pl.DataFrame(reader())


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise DataError(f"the frame has two columns of one name; its columns are: {', '.join(names)}")


def _with_index(frame: Any) -> Any:
    """A pandas frame with the levels of its index that have a name as columns."""
    levels = [name for name in frame.index.names if name is not None and name not in frame.columns]
    return frame.reset_index(level=levels) if levels else frame


def _from_pandas(column: Any) -> pl.Series:
    """A pandas column as a Series; NaN, NaT and NA become null, zoned times UTC."""
    if column.dtype.kind == "M":
        return pl.Series(column.to_numpy("datetime64[us]"), nan_to_null=True)
    if column.dtype.kind in "iufb" and isinstance(column.dtype, np.dtype):
        return pl.Series(column.to_numpy(), nan_to_null=True)
    if str(column.dtype) in ARROW_TEXTS:  # whose own list takes ten times longer
        return pl.Series(column.array.__arrow_array__())
    missing = column.isna().to_numpy(bool)
    return _of_values([None if gone else value for value, gone in zip(column.tolist(), missing, strict=True)])


def _of_values(values: list[Any]) -> pl.Series:
    """Python's own values as a Series; None becomes null, and of mixed types all become text."""
    with contextlib.suppress(TypeError, OverflowError, pl.exceptions.PolarsError):  # a column of mixed types
        series = pl.Series(values)
        if series.dtype != pl.Object:
            return series
    return pl.Series([None if value is None else _text(value) for value in values])


def _text(value: object) -> str:
    """A value of any type as text; whole floats as the integers they stand for, as in columns of floats."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)

"""Frames of other libraries as Polars frames, without needing PyArrow."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import SchemaError

from sasrec.core.errors import DataError


def frame_of(source: Any) -> pl.DataFrame:
    """A Polars frame (also a lazy one), a pandas frame, or anything with `__arrow_c_stream__`.

    Raises:
        DataError: it is none of these, or has two columns of one name.
    """
    if isinstance(source, pl.LazyFrame):
        try:
            return source.collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"cannot read the lazy frame: {str(error).strip().splitlines()[0]}") from error
    if isinstance(source, pl.DataFrame):
        return source
    if type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "columns"):
        source = _with_index(source)
        names = [str(name) for name in source.columns]
        if len(set(names)) < len(names):
            raise DataError(f"the frame has two columns of one name; its columns are: {', '.join(names)}")
        return pl.DataFrame({name: _from_pandas(source.iloc[:, j]) for j, name in enumerate(names)})
    if hasattr(source, "__arrow_c_stream__") and not isinstance(source, type | pl.Series):
        with contextlib.suppress(TypeError, ValueError, ImportError, SchemaError):  # a column, such as a pandas Series
            return pl.DataFrame(source)
    raise DataError(
        f"cannot read a log from {type(source).__name__}; give a path, a list of paths, or a Polars or pandas frame"
    )


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
    missing = column.isna().to_numpy(bool)
    values = [None if gone else value for value, gone in zip(column.tolist(), missing, strict=True)]
    with contextlib.suppress(TypeError, OverflowError, pl.exceptions.PolarsError):  # a column of mixed types
        series = pl.Series(values)
        if series.dtype != pl.Object:
            return series
    return pl.Series([None if value is None else _text(value) for value in values])


def _text(value: object) -> str:
    """A value of any type as text; whole floats as the integers they stand for, as in columns of floats."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)

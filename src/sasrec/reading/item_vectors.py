"""Vectors of items: a .npy file or an array beside a table, or a column of lists, as one column of float vectors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sasrec.core.arrays import Float32
from sasrec.core.errors import DataError
from sasrec.reading.source_table import SourceTable

VECTOR = "item_vector"  # the column of vectors that were given as an array
MAX_DIM = 65536


def with_vectors(table: SourceTable, vectors: Any) -> SourceTable:
    """A table with an array, or that of a .npy file, as one more column.

    Raises:
        DataError: it is no array of as many rows of finite numbers.
    """
    where = str(vectors) if isinstance(vectors, str | os.PathLike) else "item_vectors"
    array = _loaded(Path(vectors)) if isinstance(vectors, str | os.PathLike) else _array(vectors, where)
    if array.ndim != 2 or not 1 <= array.shape[1] <= MAX_DIM or array.dtype.kind not in "fiu":
        raise DataError(
            f"{where} has shape {array.shape} and type {array.dtype}; give numbers, a row of them for each item"
        )
    if len(array) != len(table.frame):
        raise DataError(
            f"{where} has {len(array):,} rows, and {table.where} has {len(table.frame):,}; row i must be that of item i"
        )
    if VECTOR in table.frame.columns:
        raise DataError(f"{table.where} has a column {VECTOR!r} already; give its name in place of an array")
    single = _single(array)
    bad = ~np.isfinite(single).all(axis=1)
    if bad.any():
        raise DataError(
            f"row {int(np.flatnonzero(bad)[0])} of {where} has a value that is not a finite number; mend it"
        )
    return table.with_frame(table.frame.with_columns(_as_column(single)))


def _as_column(array: Float32) -> pl.Series:
    return pl.Series(VECTOR, array, dtype=pl.Array(pl.Float32, array.shape[1]))


def _loaded(path: Path) -> np.ndarray[Any, Any]:
    if not path.is_file():
        raise DataError(f"there is no file {path}; give a column of the items, or a .npy file")
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"{path} is not a .npy file of numbers; write it with numpy.save") from error
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path} holds several arrays; give a .npy file of one")
    return found


def _array(vectors: Any, where: str) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(vectors)
    except (TypeError, ValueError) as error:  # rows of different lengths
        raise DataError(f"{where} is not an array of numbers, a row for each item ({error})") from error


def _single(values: np.ndarray[Any, Any]) -> Float32:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def as_vectors(column: pl.Series, where: str) -> pl.Series:
    """A column of lists of numbers as vectors of one width; null stays null.

    Args:
        column: of List or Array.
        where: how messages speak of its table.

    Raises:
        DataError: it holds something else, widths differ, or a value is missing or not finite.
    """
    kind, name = column.dtype, column.name
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else None
    if not (isinstance(inner, pl.DataType) and inner.is_numeric()) or len(getattr(kind, "shape", ())) > 1:
        raise DataError(
            f"column {name!r} of {where} holds {kind}, and vectors are lists of numbers; name another column"
        )
    given = column.drop_nulls()
    given = given.cast(pl.List(inner))
    lengths = given.list.len()
    if not len(given):
        raise DataError(f"column {name!r} of {where} has no vector")
    width = int(lengths[0])
    if (lengths != width).any():
        other = int((lengths != width).arg_true()[0])
        row = int(column.is_not_null().arg_true()[other])
        raise DataError(
            f"row {row} of column {name!r} of {where} has a vector of {lengths[other]} numbers, and the first has "
            f"{width}; all must be as wide"
        )
    if not 1 <= width <= MAX_DIM:
        raise DataError(f"vectors in column {name!r} of {where} have {width:,} numbers; give 1 to {MAX_DIM:,}")
    flat = given.explode().cast(pl.Float64)
    values = _single(flat.fill_null(np.nan).to_numpy()).reshape(len(given), width)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        row = int(column.is_not_null().arg_true()[int(np.flatnonzero(bad)[0])])
        raise DataError(
            f"row {row} of column {name!r} of {where} has a vector with a value that is missing or not a finite "
            "number; mend it, or leave the whole vector out"
        )
    rows = np.zeros((len(column), width), np.float32)
    rows[column.is_not_null().to_numpy()] = values
    vectors = pl.Series(name, rows, dtype=pl.Array(pl.Float32, width))
    return vectors.set(column.is_null(), None) if column.null_count() else vectors


def vector_rows(column: pl.Series) -> tuple[Float32, np.ndarray[Any, Any]]:
    """(n, W) what `as_vectors` gave, zeros where null, and (n,) whether there is one."""
    known = column.is_not_null().to_numpy()
    width = column.dtype.size  # type: ignore[attr-defined]
    rows = np.zeros((len(column), width), np.float32)
    if known.any():
        rows[known] = column.drop_nulls().to_numpy().reshape(-1, width)
    return rows, known

"""Read a JSON object whose keys are item ids: {item_id: [values]}, {item_id: value} or {item_id: {column: value}}."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import polars as pl

from sasrec.core.errors import DataError
from sasrec.reading.columns import KNOWN_NAMES, plain_name
from sasrec.reading.json_logs import MAX_KEYS
from sasrec.reading.source_table import SourceTable
from sasrec.reading.textfiles import BOM, TextFile

TYPES = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}
ATTRIBUTES = "attributes"  # what the column of values is called, which have no name of their own
EXAMPLE = 'give {"17": ["red", "lego"], "18": ["blue"]}, or one object a line'


class _Object(list[tuple[str, Any]]):
    """A JSON object as pairs, so that keys which are there twice are seen."""


def items_of_object(text: TextFile) -> SourceTable | None:
    """The items of one object whose keys are ids; None when the text is not one object, or is one item.

    Raises:
        DataError: the values of the object are of different kinds.
    """
    if not text.head[0].lstrip().startswith("{"):
        return None
    try:
        told = json.loads(text.content.removeprefix(BOM), object_pairs_hook=_Object)
    except (ValueError, RecursionError):  # JSON lines, or nothing of ours
        return None
    ids = [key for key, _ in told]
    if any(plain_name(key) in {*KNOWN_NAMES["item"], "id"} for key in ids):
        return None
    if not ids:
        raise DataError(f"the object in {text.name} has no item; {EXAMPLE}")
    values = [value for _, value in told]
    frame = _columns_of(ids, values, text.name)
    return SourceTable(frame, text.name, lambda row: f"key {ids[row]!r} of {text.name}")


def _columns_of(ids: list[str], values: list[Any], name: str) -> pl.DataFrame:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {_Object}:
        return _of_objects(ids, values, name)
    if kinds == {list}:
        column = _of_lists(ids, values, name)
    elif kinds and kinds <= {str, int, float, bool}:
        column = _series(values)
    else:
        odd = next((key for key, value in zip(ids, values, strict=True) if type(value) is not type(values[0])), ids[0])
        raise DataError(f"key {odd!r} of {name} has a value of another kind than key {ids[0]!r}; {EXAMPLE}")
    return pl.DataFrame({"item_id": ids, ATTRIBUTES: column})


def _of_lists(ids: list[str], values: list[list[Any] | None], name: str) -> pl.Series:
    for key, value in zip(ids, values, strict=True):
        if any(isinstance(one, list) for one in value or ()):
            raise DataError(f"key {key!r} of {name} has lists or objects within its list; {EXAMPLE}")
    owners = [row for row, value in enumerate(values) for one in value or () if one is not None]
    flat = [one for value in values for one in value or () if one is not None]
    parts = pl.DataFrame({"row": pl.Series(owners, dtype=pl.Int64), "value": _series(flat)})
    lists = parts.group_by("row", maintain_order=True).agg("value")
    given = pl.Series([value is not None for value in values])
    rows = pl.DataFrame({"row": np.arange(len(values), dtype=np.int64)}).join(
        lists, "row", "left", maintain_order="left"
    )
    empty = pl.Series([[]], dtype=rows["value"].dtype)
    return rows["value"].zip_with(rows["value"].is_not_null() | ~given, empty.new_from_index(0, len(values)))


def _of_objects(ids: list[str], values: list[_Object | None], name: str) -> pl.DataFrame:
    rows: list[dict[str, Any]] = [dict(value or ()) for value in values]
    names = list(dict.fromkeys(key for row in rows for key in row if key != "item_id"))
    if len(names) > MAX_KEYS:
        raise DataError(f"the objects of {name} have {len(names):,} keys, and {MAX_KEYS:,} is the most; {EXAMPLE}")
    columns: dict[str, Any] = {"item_id": ids}
    for key in names:
        column = [row.get(key) for row in rows]
        if any(isinstance(value, _Object) for value in column):
            raise DataError(f"{key!r} of an item in {name} is an object of its own; {EXAMPLE}")
        is_list = any(isinstance(value, list) for value in column)
        lists = [value if value is None or isinstance(value, list) else [value] for value in column]
        columns[key] = _of_lists(ids, lists, name) if is_list else _series(column)
    return pl.DataFrame(columns)


def _series(values: list[Any]) -> pl.Series:
    """Values as a column; those of several types, or beyond 64 bits, as text."""
    kinds = {type(value) for value in values} - {type(None)}
    told = TYPES.get(next(iter(kinds))) if len(kinds) == 1 else pl.Float64 if kinds == {int, float} else None
    if told is not None:
        with contextlib.suppress(TypeError, OverflowError, pl.exceptions.PolarsError):
            return pl.Series(values, dtype=told, strict=kinds != {int, float})
    return pl.Series([None if value is None else _text(value) for value in values], dtype=pl.String)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

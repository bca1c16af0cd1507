"""Logs with a list of events a row, such as one JSON object a session, as one event a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import polars as pl

from sasrec.core.errors import DataError
from sasrec.reading.columns import KNOWN_NAMES, Wanted, plain_name
from sasrec.reading.notes import Notes
from sasrec.reading.source_table import SourceTable

Schema = Mapping[str, object]  # a column's name -> its type
LISTS_OF_ITEMS = {"items", "history", "sequence", "itemsequence", "itemhistory"} | {
    n + "s" for n in KNOWN_NAMES["item"]
}


def unnested(table: SourceTable, wanted: Wanted, notes: Notes) -> SourceTable:
    """One event a row; a table that has that already is given back.

    Args:
        table: a column of lists may hold items, with times in another list, or structs that are events.
        wanted: the columns that were asked for.
        notes: takes what the user should know.

    Raises:
        DataError: it is not clear which list is meant, or lists of one row differ in length.
    """
    arrays = [name for name, kind in table.frame.schema.items() if isinstance(kind, pl.Array)]
    if arrays:
        table = table.with_frame(table.frame.with_columns(pl.col(name).arr.to_list() for name in arrays))
    schema = dict(table.frame.schema)
    lists = {name: kind.inner for name, kind in schema.items() if isinstance(kind, pl.List)}
    if not lists or _has_item(schema, wanted):
        return table
    structs = [name for name, inner in lists.items() if isinstance(inner, pl.Struct)]
    if structs:
        name = _only(structs, [n for n in structs if _has_item(_fields(lists[n]), wanted)], table.where)
        exploded = _exploded(table, [name], notes)
        inner = exploded.frame[name].struct.unnest()
        outer = exploded.frame.select(c for c in exploded.frame.columns if c != name and c not in inner.columns)
        return exploded.with_frame(pl.concat([outer, inner], how="horizontal"))
    items = [n for n in lists if n == wanted.item or (not wanted.item and plain_name(n) in LISTS_OF_ITEMS)]
    if not items:
        return table
    name = _only(items, items, table.where)
    times = [n for n in lists if n == wanted.timestamp or plain_name(n) in _plurals(KNOWN_NAMES["timestamp"])]
    flat = _exploded(table, [name, *times[:1], *(n for n in wanted.of_events.values() if n in lists)], notes)
    names = {name: wanted.item or "item_id"} | dict.fromkeys(times[:1], wanted.timestamp or "timestamp")
    return flat.with_frame(flat.frame.rename(names))


def _plurals(names: list[str]) -> set[str]:
    return {name + "s" for name in names} | set(names)


def _fields(kind: object) -> Schema:
    return {field.name: field.dtype for field in kind.fields} if isinstance(kind, pl.Struct) else {}


def _has_item(columns: Schema, wanted: Wanted) -> bool:
    """Whether a column of items is there that holds one item a row."""
    usual = KNOWN_NAMES["item"]
    found = [n for n in columns if n == wanted.item or (not wanted.item and plain_name(n) in usual)]
    return any(not isinstance(columns[name], pl.List) for name in found)


def _only(found: list[str], fitting: list[str], where: str) -> str:
    names = fitting or found
    if len(names) > 1:
        raise DataError(f"{where} has several lists that could hold the events: {', '.join(names)}; keep one of them")
    return names[0]


def _exploded(table: SourceTable, columns: list[str], notes: Notes) -> SourceTable:
    """A row for each element of these lists, which belong together."""
    frame = table.frame
    lengths = [frame[name].list.len().fill_null(0) for name in columns]
    for name, length in zip(columns[1:], lengths[1:], strict=True):
        wrong = (length != lengths[0]).arg_true()
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{table.place(row)} has {lengths[0][row]} elements in {columns[0]!r} and {length[row]} in {name!r}; "
                "each item needs one of its own"
            )
    empty = int((lengths[0] == 0).sum())
    if empty:
        notes.warn(f"{table.where}: {empty} of {len(frame)} rows have no events; they are left out")
    flat = frame.with_row_index("row of source").filter(lengths[0] > 0).explode(columns)
    source = flat["row of source"]
    return replace(table, frame=flat.drop("row of source"), place=lambda row: table.place(int(source[row])))

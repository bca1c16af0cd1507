"""Read what is known of items, ids and titles and any attributes, from any of the forms that logs have.

What was understood is logged in one line. Lists stay lists; what is missing is null.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from sasrec.core.errors import DataError
from sasrec.core.forks import needs_threads_of
from sasrec.reading.columnar import kind_of, read_tables
from sasrec.reading.columns import KNOWN_NAMES, by_plain_name, find_column, plain_name
from sasrec.reading.conversion import ids_in
from sasrec.reading.datasets import DATASETS, titles_file
from sasrec.reading.frames import frame_of
from sasrec.reading.item_columns import attributes_of_frame, attributes_of_text, kind_in_words, split_type
from sasrec.reading.item_vectors import with_vectors
from sasrec.reading.json_items import items_of_object
from sasrec.reading.json_logs import is_json, read_json
from sasrec.reading.notes import Notes
from sasrec.reading.parsing import read_text
from sasrec.reading.sniffing import Form
from sasrec.reading.source_table import SourceTable, joined_frames
from sasrec.reading.sources import SourceFile, common_name, data_suffix, find_files, reading
from sasrec.reading.textfiles import TextFile
from sasrec.reading.titles import open_titles, titles_form

logger = logging.getLogger(__name__)
MAX_COLUMNS = 1000
SHOWN_COLUMNS = 12
RESERVED = ("item_index", "item_id", "count", "title")  # what a vocabulary calls its own
NO_HEADER = ["item_id", "title"]
GENRES = [  # the last columns of MovieLens 100K's u.item, 1 where a film is of the genre
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]  # fmt: skip


def read_items(
    source: Any,
    *,
    item_column: str | None = None,
    title_column: str | None = None,
    encoding: str | None = None,
    vectors: Any = None,
) -> pl.DataFrame:
    """Read what is known of items.

    Args:
        source: a path, a folder, a pattern or a list of these; a frame of any library, as `read_interactions`
            takes it; or the name of a data set. Files: CSV, TSV, RecBole .item, MovieLens' movies.dat,
            movies.csv and u.item, JSON lines, a JSON array of objects, a JSON object {item_id: [values]}, Parquet,
            Arrow; text may be compressed.
        item_column: the column of item ids; None = a usual name, else the first that ends in "id".
        title_column: the column of titles; None = a usual name, if there is one.
        encoding: of text; None = UTF-8 or UTF-16, else Latin-1 with a warning.
        vectors: an array (n, W) or a .npy file of one: row i is that of row i of the source; it becomes the column
            `item_vector`.

    Returns:
        item_id, title if there is one, and the attributes; each item once, in the order of the source.

    Raises:
        DataError: the source, a column or a vector cannot be read, or no row has an id.
    """
    needs_threads_of("Polars")
    if isinstance(source, str) and source in DATASETS and not Path(source).exists():
        source = titles_file(source)
    if isinstance(source, str | os.PathLike | list | tuple):
        files = find_files(source)
        with reading(f"items from {common_name(files)}"):
            table, types = _read_files(files, item_column, title_column, encoding)
    else:
        with reading("the frame of items"):
            table, types = SourceTable.of_rows(frame_of(source), "the frame of items"), {}
    if vectors is not None:
        table = with_vectors(table, vectors)
    with reading(f"items from {table.where}"):
        return _items_of(table, types, item_column, title_column)


def _read_files(
    files: Sequence[SourceFile], item: str | None, title: str | None, encoding: str | None
) -> tuple[SourceTable, dict[str, str]]:
    """All files as one table, and the types that RecBole's header gives to columns."""
    kind, where = kind_of(files[0], None), common_name(files)
    if kind in ("parquet", "arrow", "arrow stream"):
        return read_tables(files, kind), {}
    texts = [open_titles(file, encoding, any_length=True) for file in files]
    if kind == "jsonl" or is_json(texts[0].head):
        return joined_frames([items_of_object(text) or read_json(text) for text in texts], where), {}
    parts: list[SourceTable] = []
    types: dict[str, str] = {}
    for text, file in zip(texts, files, strict=True):
        form = _form_of(text, file, item, title)
        types |= _declared_types(text, form)
        table = read_text(text, form, form.columns, Notes())
        parts.append(_with_genres(table) if not form.has_header else table)
    return joined_frames(parts, where), types


def _form_of(text: TextFile, file: SourceFile, item: str | None, title: str | None) -> Form:
    """The form of a text; a usual name for ids or titles in its first line makes it a header."""
    usual = {*KNOWN_NAMES["item"], *KNOWN_NAMES["title"], "id"}
    first = [field.strip(' "\ufeff') for field in re.split(r"::|[\t,;|]", text.head[0])]
    names = [split_type(field)[0] for field in first if plain_name(split_type(field)[0]) in usual]
    is_typed = any(split_type(field)[1] for field in first)
    form = titles_form(text, file, item or next(iter(names), None), title)
    if form.has_header and data_suffix(file.place) == ".item" and is_typed:
        form = replace(form, name="inter")
    if not form.has_header:
        form = replace(form, columns=[*NO_HEADER, *(name.replace(" ", "_") for name in form.columns[2:])])
    for name in form.columns:
        if form.columns.count(name) > 1:
            raise DataError(f"{text.name} has two columns of the name {name!r}; rename one")
    return form


def _declared_types(text: TextFile, form: Form) -> dict[str, str]:
    if not form.has_header:
        return {}
    fields = text.head[0].split(form.separator or " ")
    found = map(split_type, fields)
    return {name: told for name, told in found if told is not None}


def _with_genres(table: SourceTable) -> SourceTable:
    """Names and lists for the columns of MovieLens' files without a header."""
    frame, names = table.frame, table.frame.columns
    if len(names) == 3 and frame["column_3"].str.contains(r"\|").any():
        return table.with_frame(frame.rename({"column_3": "genres"}))
    flags = names[-len(GENRES) :]
    if len(names) != 5 + len(GENRES) or not all(frame[name].is_in(["0", "1"]).all() for name in flags):
        return table
    genres = pl.concat_list(
        pl.when(pl.col(flag) == "1").then(pl.lit(genre)) for flag, genre in zip(flags, GENRES, strict=True)
    )
    told = [pl.col("column_3").alias("release_date"), pl.col("column_5").alias("url")]
    return table.with_frame(frame.select(*NO_HEADER, *told, genres.list.drop_nulls().alias("genres")))


def _items_of(table: SourceTable, types: dict[str, str], item: str | None, title: str | None) -> pl.DataFrame:
    """The table as item_id, title and attributes."""
    columns = table.frame.columns
    if len(columns) > MAX_COLUMNS:
        raise DataError(
            f"{table.where} has {len(columns):,} columns, and {MAX_COLUMNS:,} are the most; give vectors as one column "
            "of lists, or as a .npy file"
        )
    found, named = _id_and_title(table, item, title)
    n = len(table.frame)
    table = table.filter(_has_id(table.frame[found]))
    if not len(table.frame):
        raise DataError(f"{table.where} has no row with an id in column {found!r}; name the column of ids")
    others = table.frame.drop(found, *([named] if named else []))
    attributes = _attributes(others, types, table)
    frame = pl.DataFrame({"item_id": ids_in(table, found)})
    if named:
        titles = table.frame[named].cast(pl.String).str.strip_chars()
        frame = frame.with_columns(titles.set((titles == "").fill_null(False), None).alias("title"))
    frame = frame.hstack(_renamed(attributes, table.where)) if attributes.width else frame
    if frame.width == 1:
        raise DataError(f"{table.where} has ids in column {found!r} and nothing else; items need a title or attributes")
    once = frame.unique("item_id", keep="first", maintain_order=True)
    _say(table.where, once, (found, named), n - len(table.frame), frame)
    return once


def _id_and_title(table: SourceTable, item: str | None, title: str | None) -> tuple[str, str | None]:
    """The columns of ids and, if there is one, of titles."""
    columns, where = table.frame.columns, table.where
    if not columns or not len(table.frame):
        raise DataError(f"{where} has no items; it needs at least one row with an item id")
    plain = by_plain_name(columns)
    usual = any(name in plain for name in KNOWN_NAMES["item"])
    id_like = next((column for column in columns if plain_name(column).endswith("id")), None)
    try:
        found = find_column(columns, where, "item", item or (None if usual else id_like))
    except DataError as error:
        raise DataError(str(error).replace("--item-column", "item_column, --item-file-id")) from error
    if title is not None:
        named: str | None = find_column(columns, where, "title", title)
    else:
        named = next((plain[name] for name in KNOWN_NAMES["title"] if plain.get(name, found) != found), None)
        named = None if named is not None and table.frame[named].dtype != pl.String else named
    if named == found:
        raise DataError(f"column {found!r} of {where} cannot be both the ids and the titles; name two columns")
    if named is not None and table.frame[named].dtype.is_nested():
        raise DataError(f"column {named!r} of {where} holds {table.frame[named].dtype}; titles are text")
    return found, named


def _has_id(ids: pl.Series) -> pl.Series:
    if ids.dtype == pl.String:
        return (ids.str.strip_chars() != "").fill_null(False)
    return ids.is_not_null() & ids.is_not_nan() if ids.dtype.is_float() else ids.is_not_null()


def _attributes(frame: pl.DataFrame, types: dict[str, str], table: SourceTable) -> pl.DataFrame:
    """All other columns; those that came as text are typed by their values."""
    if not table.is_text:
        return attributes_of_frame(frame, table.where)
    made = [column.name for column in frame if column.dtype != pl.String]  # lists of genres, vectors
    typed = attributes_of_text(frame.drop(made), types, table.where)
    return pl.DataFrame([typed[name] if name in typed.columns else frame[name] for name in frame.columns])


def _renamed(attributes: pl.DataFrame, where: str) -> pl.DataFrame:
    """Attributes without the names that ids, titles and counts of events have."""
    taken = {name: f"{name}_of_item" for name in attributes.columns if name in RESERVED}
    for name, other in taken.items():
        own = ", ".join(RESERVED)
        logger.warning("%s: column %r is called %r here, as %s are sasrec's own names", where, name, other, own)
    return attributes.rename(taken)


def _say(where: str, items: pl.DataFrame, columns: tuple[str, str | None], n_without: int, rows: pl.DataFrame) -> None:
    """What was understood, and what was left out, in one line each."""
    found, named = columns
    told = [f"{name} {kind_in_words(kind)}" for name, kind in items.schema.items() if name not in ("item_id", "title")]
    more = f" and {len(told) - SHOWN_COLUMNS} more" if len(told) > SHOWN_COLUMNS else ""
    title = f", title = {named}" if named else ""
    listed = f"; attributes: {', '.join(told[:SHOWN_COLUMNS])}{more}" if told else ""
    logger.info("%s: %s items; item = %s%s%s", where, f"{len(items):,}", found, title, listed)
    if n_without:
        logger.warning("%s: rows without an item id, which are left out: %s", where, f"{n_without:,}")
    if len(items) < len(rows):
        twice = rows["item_id"].filter(rows["item_id"].is_duplicated())[0]
        logger.warning(
            "%s: rows that name an item again: %s, such as %r; the first row of each item stays",
            where, f"{len(rows) - len(items):,}", twice,
        )  # fmt: skip

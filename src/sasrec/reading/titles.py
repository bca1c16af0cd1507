"""Read item titles from any of the forms that logs have."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from sasrec.core.errors import DataError
from sasrec.core.forks import needs_threads_of
from sasrec.reading.columnar import FORMAT_OF_SUFFIX, kind_of, read_tables
from sasrec.reading.columns import KNOWN_NAMES, Wanted, find_column, plain_name
from sasrec.reading.conversion import ids_in
from sasrec.reading.json_logs import is_json, read_json
from sasrec.reading.notes import Notes
from sasrec.reading.parsing import read_text
from sasrec.reading.sniffing import NEARLY_ALL, Form, Head, find_header, split_lines, usual_width
from sasrec.reading.source_table import SourceTable, joined_frames
from sasrec.reading.sources import SourceFile, common_name, data_suffix, find_files, reading
from sasrec.reading.textfiles import EncodingError, TextFile

logger = logging.getLogger(__name__)


def read_titles(
    path: Path | str,
    item_column: str | None = None,
    title_column: str | None = None,
    encoding: str | None = None,
) -> pl.DataFrame:
    """Read item titles.

    Args:
        path: CSV, TSV, RecBole .item, JSON lines, Parquet or Arrow, compressed or not; without a header (movies.dat,
            u.item) the first column has the ids and the second the titles.
        item_column: the column of item ids; None = a usual name, else the first that ends in "id".
        title_column: the column of titles; None = a usual name.
        encoding: of text; None = UTF-8 or UTF-16, else Latin-1 with a warning.

    Returns:
        item_id, title; the first title of an item, items without one left out.

    Raises:
        DataError: the file or a column cannot be read.
    """
    needs_threads_of("Polars")
    files = find_files(path)
    with reading(f"titles from {common_name(files)}"):
        table, item, title = _read(files, item_column, title_column, encoding)
    known = table.filter(table.frame[item].is_not_null() & table.frame[title].is_not_null())
    titles = known.frame[title]
    if titles.dtype.is_nested():
        raise DataError(f"column {title!r} of {table.where} holds {titles.dtype}; titles are text (--title-column)")
    frame = pl.DataFrame({"item_id": ids_in(known, item), "title": titles.cast(pl.String).str.strip_chars()})
    return frame.filter(pl.col("title") != "").unique("item_id", keep="first", maintain_order=True)


def _read(
    files: Sequence[SourceFile], item: str | None, title: str | None, encoding: str | None
) -> tuple[SourceTable, str, str]:
    """A table, and its columns of ids and titles."""
    where, kind = common_name(files), kind_of(files[0], None)
    if kind in ("parquet", "arrow", "arrow stream"):
        table = read_tables(files, kind)
        return table, *choose_title_columns(table.frame.columns, where, item, title)
    texts = [open_titles(file, encoding) for file in files]
    if kind == "jsonl" or is_json(texts[0].head):
        table = joined_frames([read_json(text) for text in texts], where)
        return table, *choose_title_columns(table.frame.columns, where, item, title)
    forms = [titles_form(text, file, item, title) for text, file in zip(texts, files, strict=True)]
    chosen = [_columns_of(form, text.name, item, title) for form, text in zip(forms, texts, strict=True)]
    parts = [
        read_text(text, form, list(columns), Notes()) for text, form, columns in zip(texts, forms, chosen, strict=True)
    ]
    return joined_frames(parts, where), *chosen[0]


def open_titles(file: SourceFile, encoding: str | None, *, any_length: bool = False) -> TextFile:
    """The file as text; titles that are not UTF-8 are taken for Latin-1, as those of older data sets are."""
    if encoding is not None:
        return TextFile.open(file, encoding, any_length=any_length)
    try:
        text = TextFile.open(file, any_length=any_length)
        text.check_encoding()
    except EncodingError:
        logger.warning("%s is not UTF-8; it is read as Latin-1 (--encoding overrides)", file.name)
        return TextFile.open(file, "latin-1", any_length=any_length)
    return text


def titles_form(text: TextFile, file: SourceFile, item: str | None, title: str | None) -> Form:
    """The form of a text with ids and titles; without a header, its first two columns."""
    told = FORMAT_OF_SUFFIX.get(data_suffix(file.place))
    told = "inter" if data_suffix(file.place) == ".item" and ":token" in text.head[0] else told
    wanted = Wanted(told if told in ("csv", "inter") else None)
    header = find_header(Head(text.head), wanted, [name for name in (item, title) if name])
    if header is not None:
        return Form("inter" if told == "inter" else "table", header[0], header[1], True)
    separator, width = _separator(text)
    return Form("table", separator, ["item_id", "title", *(f"column {j}" for j in range(3, width + 1))], False)


def _separator(text: TextFile) -> tuple[str, int]:
    """What separates the fields of a file without a header, and how many they are; titles hold white space."""
    for separator in ("::", "\t", "|", ";", ","):
        width, share = usual_width(split_lines(text.head, separator))
        if width > 1 and share >= NEARLY_ALL:
            return separator, width
    raise DataError(
        f"{text.name} has no header and no separator that nearly all lines have; titles need an id and a title, "
        "separated by ::, tabs, bars, semicolons or commas"
    )


def _columns_of(form: Form, where: str, item: str | None, title: str | None) -> tuple[str, str]:
    return choose_title_columns(form.columns, where, item, title) if form.has_header else ("item_id", "title")


def choose_title_columns(columns: Sequence[str], where: str, item: str | None, title: str | None) -> tuple[str, str]:
    """The columns of ids and of titles.

    Args:
        columns: all there are.
        where: how messages speak of the table.
        item: the name asked for; None = a usual one, else the first that ends in "id".
        title: the name asked for; None = a usual one.

    Raises:
        DataError: one is not found.
    """
    usual = any(plain_name(column) in KNOWN_NAMES["item"] for column in columns)
    id_like = next((column for column in columns if plain_name(column).endswith("id")), None)
    found = find_column(columns, where, "item", item or (None if usual else id_like))
    named = find_column(columns, where, "title", title)
    if found == named:
        raise DataError(f"column {found!r} of {where} cannot be both the ids and the titles; name two columns")
    return found, named

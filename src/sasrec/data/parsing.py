"""Read a text file whose form is known into columns, and remember the line of each row for messages."""

from __future__ import annotations

import csv
import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from sasrec.core.errors import DataError
from sasrec.data.columns import SourceTable, Wanted, choose_columns
from sasrec.data.ids import written_length
from sasrec.data.sniffing import (
    QUOTED,
    TEXT_COLUMNS,
    TextFile,
    decoded,
    find_header,
    find_separator,
    form_by_width,
    split_lines,
)

logger = logging.getLogger(__name__)


def read_json_lines(text: TextFile) -> SourceTable:
    """One object a line; all lines are looked at for their keys and types, as a late one may bring a new key."""
    example = 'give one object a line, such as {"user_id": 1, "item_id": 2}'
    if not text.head[0].lstrip().startswith("{"):
        raise DataError(f"line {text.first_line} of {text.path} is not a JSON object; {example}")
    content = text.path.read_bytes() if text.content is None else text.content
    try:
        frame = pl.read_ndjson(content.removeprefix(b"\xef\xbb\xbf"), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{text.path} is not JSON lines ({str(error).splitlines()[0]}); {example}") from error
    return SourceTable(frame, str(text.path), text.first_line)


def read_text(text: TextFile, form: str | None, wanted: Wanted) -> SourceTable:
    """The columns of a text file: those that its first line names, else those of its form; None = told by its lines."""
    header = find_header(text, form, wanted)
    if header is not None:
        separator, names = header
        logger.info("%s: read with the column names of its first line: %s", text.path, ", ".join(names))
        needed = [name for name in choose_columns(names, str(text.path), wanted).values() if name is not None]
        return _read_named(text, separator, names, needed)
    separator = find_separator(text.head, form)
    if form in (None, "csv", "tsv"):
        form = form_by_width(text.path, split_lines(text.head, separator))
    columns = TEXT_COLUMNS.get(str(form))
    logger.info(
        "%s: read as %s (%s)", text.path, form, " ".join(columns or ["one user a line, then the items in order"])
    )
    if columns is None:
        return _read_sequences(text, separator)
    return _read_headerless(text, separator, columns)


def _read_named(text: TextFile, separator: str | None, names: list[str], needed: list[str]) -> SourceTable:
    """A file whose first line names its columns, read as text; of a delimited one only the columns that are needed."""
    if separator is None or separator == "::":
        return _read_lines(text, separator, names, header=True)
    return read_delimited(text, separator, names, needed, header=True)


def _read_headerless(text: TextFile, separator: str | None, columns: list[str]) -> SourceTable:
    """A file of bare values: integers at full speed when it is as regular as that, else as text."""
    integers = _read_integers(text, separator, columns)
    if integers is not None:
        return SourceTable(integers, str(text.path), 1, is_text=True)
    if separator in QUOTED:
        return read_delimited(text, separator, columns, columns, header=False)
    return _read_lines(text, separator, columns, header=False)


def _read_integers(text: TextFile, separator: str | None, columns: list[str]) -> pl.DataFrame | None:
    """The columns as Int64, or None when the text is anything but canonical integers with single separators.

    The size of the file tells: integers written canonically, one separator between and one newline after, add up to it;
    a leading zero, a second space or a carriage return does not. ("::" is read as ":" with empty columns between; a
    rating may be a decimal.)
    """
    width = len(separator or " ")
    names = list(itertools.chain.from_iterable([name, *(f"_{name}" for _ in range(width - 1))] for name in columns))
    names = names[: len(names) - (width - 1)]
    types = [pl.Int64 if name in columns and name != "rating" else pl.String for name in names]
    try:
        frame = pl.read_csv(
            text.source, has_header=False, separator=(separator or " ")[0], quote_char=None, new_columns=names,
            schema_overrides=types,
        )  # fmt: skip
    except pl.exceptions.PolarsError:
        return None
    if frame.width != len(names) or sum(frame.select(columns).null_count().row(0)):
        return None
    written = len(frame) * (1 + width * (len(columns) - 1)) + sum(written_length(frame[name]) for name in columns)
    return frame.select(columns) if text.size in (written, written - 1) else None


def _read_lines(text: TextFile, separator: str | None, columns: list[str], header: bool) -> SourceTable:
    """A file without quotes, as text: blank lines, and for white space also uneven or trailing space, do not matter."""
    regular = _read_regular(text, separator, columns) if separator != "::" else None
    if regular is not None:
        return SourceTable(regular[header:], str(text.path), 1 + header, is_text=True)
    lines = _lines(text, separator)[header:]
    line, split = pl.col("line"), separator or " "
    widths = lines.select(line.str.count_matches(split, literal=True))["line"] + 1
    wrong = (widths != len(columns)).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise _irregular(text.path, lines["number"][row], widths[row], columns)
    parts = lines.select(line.str.split_exact(split, len(columns) - 1).struct.rename_fields(columns)).unnest("line")
    return SourceTable(parts, str(text.path), lines["number"], is_text=True)


def _irregular(path: Path, line: int, width: int, columns: Sequence[str]) -> DataError:
    return DataError(
        f"line {line} of {path} has {width} field{'s' * (width != 1)} in place of {len(columns)} ({' '.join(columns)})"
    )


def _read_regular(text: TextFile, separator: str | None, columns: list[str]) -> pl.DataFrame | None:
    """The columns as text; None when spacing is uneven, a field is missing or there are blank lines."""
    try:
        frame = pl.read_csv(
            text.source, has_header=False, separator=separator or " ", quote_char=None, infer_schema=False
        )
    except pl.exceptions.PolarsError:
        return None
    if frame.width != len(columns) or sum(frame.null_count().row(0)):
        return None
    if separator is None and any(column.str.contains("\t", literal=True).any() for column in frame):
        return None
    frame.columns = columns
    return frame


def _lines(text: TextFile, separator: str | None) -> pl.DataFrame:
    """`line`s that are not blank, white space in them made one space, and their `number` in the file, from 1."""
    try:
        lines = pl.read_csv(  # NUL separates fields that do not exist in text
            text.source, has_header=False, separator="\0", quote_char=None, infer_schema=False, new_columns=["line"]
        )
    except pl.exceptions.PolarsError as error:
        content = text.path.read_bytes() if text.content is None else text.content
        for number, line in enumerate(content.split(b"\n"), 1):
            decoded(line, text.path, number)
        raise DataError(f"{text.path} is a binary file, or damaged: it has NUL bytes; give a text log") from error
    stripped = pl.col("line").str.strip_chars(" \r" if separator == "\t" else " \t\r")
    lines = lines.with_row_index("number", offset=1).with_columns(stripped).filter(pl.col("line") != "")
    return lines if separator else lines.with_columns(pl.col("line").str.replace_all("[ \t]+", " "))


def _read_sequences(text: TextFile, separator: str | None) -> SourceTable:
    """One user a line, then the items in order."""
    lines = _lines(text, separator)
    fields = lines["line"].str.split(separator or " ").list.eval(pl.element().filter(pl.element() != ""))
    frame = pl.DataFrame({"user_id": fields.list.get(0), "item_id": fields.list.slice(1), "number": lines["number"]})
    events = frame.filter(pl.col("item_id").list.len() > 0).explode("item_id")
    without = len(frame) - events["number"].n_unique()
    if without:
        logger.warning("%s: %d of %d lines have a user and no items; they are left out", text.path, without, len(frame))
    return SourceTable(events.drop("number"), str(text.path), events["number"], is_text=True)


def read_delimited(text: TextFile, separator: str, columns: list[str], needed: list[str], header: bool) -> SourceTable:
    """A file that may quote fields, as text; its last column is always read, so that too long a line is noticed."""
    keep = sorted({columns.index(name) for name in needed} | {len(columns) - 1})
    frame = _read_csv(text, separator, columns, keep, header)
    lines = pl.int_range(text.first_line + header, text.first_line + header + len(frame), eager=True)
    blank = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
    if blank.any():
        every = _read_csv(text, separator, columns, list(range(len(columns))), header)
        blank = every.select(pl.all_horizontal(pl.all().is_null())).to_series()
        frame, lines = frame.filter(~blank), lines.filter(~blank)
    return SourceTable(frame, str(text.path), lines, is_text=True)


def _read_csv(text: TextFile, separator: str, columns: list[str], keep: list[int], header: bool) -> pl.DataFrame:
    """Some of the columns, named as given."""
    quotes: list[str | None] = ['"'] if separator in QUOTED else ['"', None]  # a lone quote is usual in tab files
    if re.search(r":(token|float)", text.head[0]):
        quotes = [None]  # RecBole's files do not quote
    for quote in quotes:
        try:
            frame = pl.read_csv(
                text.source, separator=separator, has_header=header, columns=keep, infer_schema=False, quote_char=quote
            )
        except pl.exceptions.PolarsError as error:
            failure = error
            continue
        frame.columns = [columns[j] for j in keep]
        return frame
    raise _csv_error(text, separator, columns, failure) from failure


def _csv_error(text: TextFile, separator: str, columns: list[str], error: Exception) -> DataError:
    """Which line of a delimited file is the trouble."""
    content = text.path.read_bytes() if text.content is None else text.content
    lines = [decoded(line, text.path, number) for number, line in enumerate(content.split(b"\n"), 1)]
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if separator in QUOTED else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=separator, quoting=quoting)
    for row in reader:
        if len(row) > len(columns):
            return _irregular(text.path, reader.line_num, len(row), columns)
    return DataError(f"cannot read {text.path} ({str(error).splitlines()[0]}); check the quotes around its fields")

"""Read delimited text in which fields may be in quotes, so that no lone quote swallows rows.

Files whose every line is well formed by itself are read by Polars. All others are read by the csv module, strictly, and
a quoted field that takes in what looks like whole rows is refused.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from sasrec.core.errors import DataError
from sasrec.reading.notes import NeedsMemoryError
from sasrec.reading.sniffing import Form, split_lines
from sasrec.reading.source_table import SourceTable
from sasrec.reading.textfiles import TextFile, long_fields
from sasrec.reading.times import is_time


def without_quotes(column: pl.Expr) -> pl.Expr:
    """Fields that are in quotes as a whole, without them; a lone quote is part of the field."""
    inner = column.str.strip_chars(" ").str.extract(r'^"((?:[^"]|"")*)"$')
    return pl.coalesce(inner.str.replace_all('""', '"', literal=True), column)


def read_quoted(text: TextFile, form: Form, needed: Sequence[str]) -> SourceTable:
    """The columns that are needed of a file that has quotes.

    Raises:
        DataError: quotes are not closed, or close late; a line has too many or too few fields.
    """
    separator = re.escape(str(form.separator))
    field = f'(?:[^"{separator}]*|"(?:[^"]|"")*")'
    row = f"^{field}(?:{separator}{field}){{{len(form.columns) - 1}}}\r?$"  # well formed, with all its fields
    lines = text.lines()
    filled = lines.is_not_null()
    if lines.str.contains(row).fill_null(True).all() and filled.any():
        return _read_line_by_line(text, form, needed, lines, filled)
    if text.is_block:
        raise NeedsMemoryError(f"{text.name} has quotes around line ends or inside of fields")
    return _read_strictly(text, form, needed)


def _read_line_by_line(
    text: TextFile, form: Form, needed: Sequence[str], lines: pl.Series, filled: pl.Series
) -> SourceTable:
    """A file of which each line is a row or blank."""
    numbers = (filled.arg_true() + 1 + text.skipped)[form.has_header :].cast(pl.Int64)
    keep = sorted({form.columns.index(name) for name in needed} | {len(form.columns) - 1})
    source = text.source if filled.all() else "\n".join(lines.drop_nulls()).encode()
    frame = pl.read_csv(
        source, glob=False, separator=str(form.separator), has_header=form.has_header, columns=keep, infer_schema=False
    )
    if len(frame) != len(numbers):
        raise DataError(f"{text.name} has {len(numbers)} lines of events, and {len(frame)} were read; check its quotes")
    frame.columns = [form.columns[j] for j in keep]
    return SourceTable.of_lines(frame, text.name, numbers)


def _read_strictly(text: TextFile, form: Form, needed: Sequence[str]) -> SourceTable:
    """A file with fields that span lines, or with quotes inside of fields."""
    try:
        return _table_of(_records(text, form, text.content), text, form, needed)
    except DataError:
        if b'\\"' not in text.content:
            raise
    ends = re.escape(str(form.separator).encode())
    doubled = re.sub(rb'\\"(?!%s|\r?\n|\Z)' % ends, b'""', text.content)  # a quote before a separator closes its field
    return _table_of(_records(text, form, doubled), text, form, needed)


@dataclass(frozen=True)
class Record:
    """A row of a file with quotes."""

    fields: list[str]
    first_line: int
    last_line: int


def _records(text: TextFile, form: Form, content: bytes) -> Iterator[Record]:
    """The rows of the file, of as many fields as it has columns.

    Raises:
        DataError: quotes are not closed, or a line has another number of fields.
    """
    stream = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")
    reader = csv.reader(stream, delimiter=str(form.separator), strict=True, skipinitialspace=True)
    first = 1
    try:
        with long_fields():
            for fields in reader:
                if any(field.strip() for field in fields) or len(fields) == len(form.columns) > 1:
                    if len(fields) != len(form.columns):
                        raise form.irregular(text.name, first, len(fields))
                    yield Record(fields, first, reader.line_num)
                first = reader.line_num + 1
    except csv.Error as error:
        closes = f" and is not closed by line {reader.line_num}" if reader.line_num > first else ""
        raise DataError(
            f"line {first} of {text.name} has a quote that does not fit{closes}; check the quotes: a field that holds "
            'one is written in quotes, with the quote doubled, such as "12"" disc"'
        ) from error
    except UnicodeDecodeError:
        text.check_encoding()
        raise


def _table_of(records: Iterable[Record], text: TextFile, form: Form, needed: Sequence[str]) -> SourceTable:
    """The columns that are needed of these rows."""
    places = [form.columns.index(name) for name in needed]
    columns: list[list[str]] = [[] for _ in places]
    numbers = []
    rows = iter(records)
    if form.has_header:
        next(rows, None)
    looks = _look_of_rows(text, form, places)
    for record in rows:
        if record.last_line > record.first_line:
            _check_swallows_none(record, text, form, looks)
        for column, place in zip(columns, places, strict=True):
            column.append(record.fields[place])
        numbers.append(record.first_line)
    frame = pl.DataFrame(dict(zip(needed, columns, strict=True)), schema=dict.fromkeys(needed, pl.String))
    return SourceTable.of_lines(frame, text.name, pl.Series(numbers, dtype=pl.Int64))


def _look_of_rows(text: TextFile, form: Form, places: Sequence[int]) -> list[tuple[int, int]]:
    """What the fields of a row are like: the place of each column that is needed, and the kind of its values."""
    lines = [split_lines([line], form.separator)[0] for line in text.head[form.has_header :]]
    rows = [row for row in lines if len(row) == len(form.columns)]
    kinds = {place: [_kind(row[place]) for row in rows] for place in places}
    return [(place, max(set(k), key=k.count)) for place, k in kinds.items() if k]


def _kind(field: str) -> int:
    """0 = a number or time, 1 = a word, 2 = any text."""
    return 0 if is_time(field) else 1 if re.fullmatch(r"\S+", field) else 2


def _check_swallows_none(record: Record, text: TextFile, form: Form, looks: Sequence[tuple[int, int]]) -> None:
    """Refuse a row that goes on over lines which look like rows of their own."""
    for field in record.fields:
        for line in field.split("\n")[1:]:
            fields = split_lines([line], form.separator)[0] if line.strip() else []
            if len(fields) == len(form.columns) and all(_kind(fields[place]) <= kind for place, kind in looks):
                raise DataError(
                    f"line {record.first_line} of {text.name} opens a quote that closes only in line "
                    f"{record.last_line}, and what is between looks like rows; check the quotes, and double those "
                    "inside of a field"
                )

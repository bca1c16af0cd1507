"""Read a text log whose form is known into columns, and remember the line of each row for messages.

Every line becomes a row, or is refused with its number: what was read is counted against the lines of the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from sasrec.core.errors import DataError
from sasrec.reading.columns import KNOWN_NAMES, LISTS_BESIDE_ITEMS, plain_name
from sasrec.reading.ids import written_length
from sasrec.reading.notes import Notes
from sasrec.reading.quoting import read_quoted, without_quotes
from sasrec.reading.sniffing import QUOTED, Form
from sasrec.reading.source_table import SourceTable
from sasrec.reading.textfiles import TextFile


def _written(*names: str) -> str:
    """A pattern of names as headers write them: "user_id", "User ID", user-id:token."""
    spelt = "|".join("[ _.-]?".join(plain_name(name)) for name in names if plain_name(name))
    return f'(?i)^[" ]*({spelt})[" ]*(:[a-z_]+)?"?$' if spelt else "^$"


RULER = r"^[-=+:]{3,}$"
ANY_NAME = _written(*(name for names in KNOWN_NAMES.values() for name in names))


@dataclass
class LeftOut:
    """What is left out of a text, which may be read in blocks."""

    n_headers: int = 0
    first_header: str = ""  # the line
    n_empty: int = 0  # lines of a user without items
    n_lines: int = 0

    def tell(self, name: str, notes: Notes) -> None:
        """Warn of it, once all of the text has been read."""
        if self.n_headers:
            n = self.n_headers
            told = f", as do {n - 1} more line{'s' * (n > 2)}; they are" if n > 1 else "; it is"
            notes.warn(f"{self.first_header} repeats the header{told} left out")
        if self.n_empty:
            notes.warn(f"{name}: {self.n_empty} of {self.n_lines} lines have a user and no items; they are left out")


def read_text(text: TextFile, form: Form, needed: Sequence[str], notes: Notes) -> SourceTable:
    """The columns that are needed of a text file, as `read_block` finds them.

    Args:
        text: the file.
        form: its form.
        needed: names of columns; those of a sequence are user_id, item_id.
        notes: takes what the user should know.
    """
    left = LeftOut()
    table = read_block(text, form, needed, left)
    left.tell(text.name, notes)
    return table


def read_block(text: TextFile, form: Form, needed: Sequence[str], left: LeftOut) -> SourceTable:
    """The columns that are needed of a text file, or of a block of its lines.

    Args:
        text: the file.
        form: its form.
        needed: names of columns; those of a sequence are user_id, item_id.
        left: takes what is left out.

    Raises:
        DataError: a line does not have the fields of the form.
    """
    if form.name == "sequences":
        return _read_sequences(text, form.separator, left)
    if not form.has_header:
        integers = _read_integers(text, form, needed)
        if integers is not None:
            return SourceTable.of_lines(integers.select(needed), text.name, 1 + text.skipped)
    if form.separator is None or form.separator == "::":
        table = _read_lines(text, form)
    else:
        table = _read_delimited(text, form, needed)
    return _without_headers(table.with_frame(table.frame.select(needed)), form, left)


def _read_integers(text: TextFile, form: Form, needed: Sequence[str]) -> pl.DataFrame | None:
    """The columns as Int64, or None when the text is anything but canonical integers with single separators.

    The size of the file tells: integers written canonically, one separator between and one newline after, add up to it;
    a leading zero, a second space or a carriage return does not. ("::" is read as ":" with empty columns between; a
    rating may be a decimal.)
    """
    columns, separator = form.columns, form.separator
    width = len(separator or " ")
    names = list(itertools.chain.from_iterable([name, *(f"_{name}" for _ in range(width - 1))] for name in columns))
    names = names[: len(names) - (width - 1)]
    types = [pl.Int64 if name in needed else pl.String for name in names]
    try:
        frame = pl.read_csv(
            text.source, glob=False, has_header=False, separator=(separator or " ")[0], quote_char=None,
            new_columns=names, schema_overrides=types,
        )  # fmt: skip
    except pl.exceptions.PolarsError:
        return None
    if frame.width != len(names) or sum(frame.select(columns).null_count().row(0)):
        return None
    if any(frame[name].str.contains('"', literal=True).any() for name in columns if name not in needed):
        return None
    written = len(frame) * (1 + width * (len(columns) - 1)) + sum(written_length(frame[name]) for name in columns)
    return frame.select(columns) if text.size == written - (not text.ends_with_newline) else None


def _read_lines(text: TextFile, form: Form) -> SourceTable:
    """A file without quotes, as text: blank lines, and for white space also uneven or trailing space, do not matter."""
    columns, header = form.columns, form.has_header
    if text.counts("\0")[0]:
        raise text.nul()
    regular = _read_regular(text, form) if form.separator is None else None
    if regular is not None:
        return SourceTable.of_lines(_unquoted(regular[header:]), text.name, 1 + header + text.skipped)
    lines = _lines(text, form.separator)[header:]
    line, split = pl.col("line"), form.separator or " "
    widths = lines.select(line.str.count_matches(split, literal=True))["line"] + 1
    wrong = (widths != len(columns)).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise form.irregular(text.name, lines["number"][row], widths[row])
    names = _unique(columns)
    parts = lines.select(line.str.split_exact(split, len(columns) - 1).struct.rename_fields(names)).unnest("line")
    return SourceTable.of_lines(_unquoted(parts), text.name, lines["number"])


def _unique(columns: Sequence[str]) -> list[str]:
    """The names, of which a second one that is never read is called otherwise."""
    return [name if columns.index(name) == j else f"{name} {j}" for j, name in enumerate(columns)]


def _unquoted(frame: pl.DataFrame) -> pl.DataFrame:
    """Fields without the quotes around them, where any field has quotes."""
    quoted = any(column.str.contains('"', literal=True).any() for column in frame)
    return frame.with_columns(without_quotes(pl.col(name)) for name in frame.columns) if quoted else frame


def _read_regular(text: TextFile, form: Form) -> pl.DataFrame | None:
    """The columns as text; None when spacing is uneven, a field is missing or there are blank lines."""
    try:
        frame = pl.read_csv(
            text.source, glob=False, has_header=False, separator=form.separator or " ", quote_char=None,
            infer_schema=False,
        )  # fmt: skip
    except pl.exceptions.PolarsError:
        return None
    if frame.width != len(form.columns) or sum(frame.null_count().row(0)):
        return None
    if any(column.str.contains("\t", literal=True).any() for column in frame):
        return None
    frame.columns = _unique(form.columns)
    return frame


def _lines(text: TextFile, separator: str | None) -> pl.DataFrame:
    """`line`s that are not blank, white space in them made one space, and their `number` in the file, from 1."""
    stripped = pl.col("line").str.strip_chars(" \r" if separator == "\t" else " \t\r")
    lines = text.lines().to_frame("line").with_row_index("number", offset=1 + text.skipped)
    lines = lines.with_columns(stripped).filter(pl.col("line") != "")
    return lines if separator else lines.with_columns(pl.col("line").str.replace_all("[ \t]+", " "))


def _read_sequences(text: TextFile, separator: str | None, left: LeftOut) -> SourceTable:
    """One user a line, then the items in order."""
    lines = _lines(text, separator)
    fields = lines["line"].str.split(separator or " ").list.eval(pl.element().filter(pl.element() != ""))
    frame = pl.DataFrame({"user_id": fields.list.get(0), "item_id": fields.list.slice(1), "number": lines["number"]})
    first = [plain_name(field) for field in fields[0]]
    names_of_items = LISTS_BESIDE_ITEMS.union(KNOWN_NAMES["item"])
    if not text.skipped and first[0] in KNOWN_NAMES["user"] and first[1:2] and first[1] in names_of_items:
        raise DataError(
            f"line {lines['number'][0]} of {text.name} is a header, which sequences have none of; remove it"
        )
    events = frame.filter(pl.col("item_id").list.len() > 0).explode("item_id")
    left.n_empty += len(frame) - events["number"].n_unique()
    left.n_lines += len(frame)
    return SourceTable.of_lines(_unquoted(events.drop("number")), text.name, events["number"])


def _read_delimited(text: TextFile, form: Form, needed: Sequence[str]) -> SourceTable:
    """A file with single separators; quotes count where it has any, but in tab files no field spans lines."""
    assert form.separator is not None
    n_separators, n_quotes, n_nuls = text.counts(form.separator, '"', "\0")
    if n_nuls:
        raise text.nul()
    if n_quotes and form.separator in QUOTED and form.quotes:
        return read_quoted(text, form, needed)
    frame = _read_columns(text, form, needed)
    lines = pl.int_range(len(frame), eager=True) + (text.first_line + form.has_header + text.skipped)
    blank = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
    n_rows = len(frame) - int(blank.sum())
    if n_separators != (n_rows + form.has_header) * (len(form.columns) - 1):
        _check_widths(text, form)  # a blank line, or fields that are all empty, explain it, or a line that is refused
        blank = blank & text.lines().gather(lines - 1 - text.skipped).is_null()
    if blank.any():
        frame, lines = frame.filter(~blank), lines.filter(~blank)
    if n_quotes and form.quotes:
        frame = frame.with_columns(without_quotes(pl.col(name)) for name in frame.columns)
    return SourceTable.of_lines(frame, text.name, lines)


def _read_columns(text: TextFile, form: Form, needed: Sequence[str]) -> pl.DataFrame:
    """The columns that are needed and the last one, whose reading refuses lines that are too long."""
    keep = sorted({form.columns.index(name) for name in needed} | {len(form.columns) - 1})
    try:
        frame = pl.read_csv(
            text.source, glob=False, separator=form.separator or " ", has_header=form.has_header, columns=keep,
            infer_schema=False, quote_char=None,
        )  # fmt: skip
    except pl.exceptions.PolarsError as error:
        text.check_encoding()
        _check_widths(text, form)
        raise DataError(f"cannot read {text.name}: {str(error).splitlines()[0]}") from error
    frame.columns = [form.columns[j] for j in keep]
    return frame


def _check_widths(text: TextFile, form: Form) -> None:
    """Refuse the first line that has another number of fields than the form."""
    lines = text.lines().to_frame("line").with_row_index("number", offset=1 + text.skipped)
    lines = lines.filter(pl.col("line").str.strip_chars(" \r") != "")
    width = pl.col("line").str.count_matches(str(form.separator), literal=True) + 1
    wrong = lines.with_columns(width=width).filter(pl.col("width") != len(form.columns))
    if len(wrong):
        raise form.irregular(text.name, wrong["number"][0], wrong["width"][0])


def _without_headers(table: SourceTable, form: Form, left: LeftOut) -> SourceTable:
    """The rows that are no second header, as joined files have them in the middle.

    Raises:
        DataError: a row names other columns than the header, or there is no header, or a row is a ruler below one.
    """
    frame = table.frame
    rows = _rows_of_names(frame)
    if not len(rows):
        return table
    same = [pl.col(name).str.contains(_written(name)) for name in frame.columns]
    repeated = rows.filter(frame[rows].select(pl.all_horizontal(same)).to_series())
    if len(repeated) < len(rows) or not form.has_header:
        row = int(rows.filter(~rows.is_in(repeated.implode()))[0] if len(repeated) < len(rows) else rows[0])
        raise DataError(
            f"{table.place(row)} has {', '.join(map(repr, frame.row(row)))}, which looks like a header, not like an "
            "event; remove the line, or give the parts as files of their own"
        )
    left.n_headers += len(repeated)
    left.first_header = left.first_header or table.place(int(repeated[0]))
    return table.filter(~pl.int_range(len(frame), eager=True).is_in(repeated.implode()))


def _rows_of_names(frame: pl.DataFrame) -> pl.Series:
    """The rows of which each field names a column, or is a ruler such as ---."""
    rows = pl.int_range(len(frame) if frame.width > 1 else 0, eager=True)
    for name in frame.columns:
        if frame[name].dtype != pl.String or not len(rows):
            return rows.head(0)
        fields = frame[name] if len(rows) == len(frame) else frame[name].gather(rows)
        rows = rows.filter(fields.str.contains(f"{_written(name)}|{ANY_NAME}|{RULER}").fill_null(False))
    return rows

"""Recognise the form of a text file by its first lines: header or not, the separator, what each column is."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sasrec.core.errors import DataError
from sasrec.data.columns import KNOWN_NAMES, Wanted, plain_name

SNIFFED_LINES = 1000
SNIFFED_BYTES = 1 << 16
TEXT_COLUMNS = {  # of files without a header
    "pairs": ["user_id", "item_id"],
    "triples": ["user_id", "item_id", "timestamp"],
    "ratings": ["user_id", "item_id", "rating", "timestamp"],
}
FORMAT_OF_WIDTH = {len(columns): name for name, columns in TEXT_COLUMNS.items()}
QUOTED = (",", ";", "|")  # separators of files in which a quoted field may hold the separator


@dataclass(frozen=True)
class TextFile:
    """A text file, plain or gzipped: its first lines, and what Polars is to read."""

    path: Path
    content: bytes | None  # of a gzipped file, unpacked
    head: list[str]  # the first lines that are not blank
    first_line: int  # the number of head[0] in the file

    @classmethod
    def open(cls, path: Path) -> TextFile:
        """Unpack if need be, and look at the first lines.

        Raises:
            DataError: the file is binary, is not UTF-8 or has no lines.
        """
        with path.open("rb") as file:
            content = gzip.decompress(path.read_bytes()) if file.read(2) == b"\x1f\x8b" else None
        with path.open("rb") if content is None else io.BytesIO(content) as stream:
            if b"\0" in stream.read(SNIFFED_BYTES):
                raise DataError(f"{path} is a binary file; give a text, CSV, JSON lines or Parquet log")
            stream.seek(0)
            filled = ((number, line) for number, line in enumerate(stream, 1) if line.strip(b" \t\r\n\xef\xbb\xbf"))
            head = list(itertools.islice(filled, SNIFFED_LINES))
        if not head:
            raise DataError(f"{path} has only blank lines; it needs at least one line with a user and an item")
        lines = [decoded(line, path, number) for number, line in head]
        if "\r" in lines[0]:
            raise DataError(f"{path} ends its lines with a bare carriage return; convert the file to newlines")
        return cls(path, content, lines, head[0][0])

    @property
    def source(self) -> Path | bytes:
        """What Polars reads from."""
        return self.path if self.content is None else self.content

    @property
    def size(self) -> int:
        """Bytes of text."""
        return self.path.stat().st_size if self.content is None else len(self.content)


def decoded(line: bytes, path: Path, number: int) -> str:
    """A line as text, without its end.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"line {number} of {path} is not UTF-8 text; convert the file to UTF-8") from error


def find_header(text: TextFile, form: str | None, wanted: Wanted) -> tuple[str | None, list[str]] | None:
    """The separator and the column names of the first line; None when it is a line of values.

    It names columns when it holds a name that was asked for, one that only a column has ("userId"), two usual names
    ("user item"), or when it alone has no numbers where all other lines have them. Where the form asked for has
    no header, it must name both the user and the item.
    """
    if form == "sequences":
        return None
    asked = {name for name in wanted.values() if name}
    usual = {name for names in KNOWN_NAMES.values() for name in names}
    candidates = ["\t"] if form == "tsv" else ["\t", *QUOTED, "::", None]
    for separator in (s for s in candidates if s is None or s in text.head[0]):
        names = [column_name(field) for field in split_lines(text.head[:1], separator)[0]]
        known = [plain for plain in map(plain_name, names) if plain in usual]
        if form in TEXT_COLUMNS:
            if all(set(known) & set(KNOWN_NAMES[role]) for role in ("user", "item")):
                return separator, names
            continue
        if asked & set(names) or len(known) >= 2 or any(len(k) > 3 and k.endswith("id") for k in known):
            return separator, names
        if form == "inter" and len(names) > 1:
            return separator, names
    if form in TEXT_COLUMNS:
        return None
    separator = find_separator(text.head, form)
    rows = split_lines(text.head, separator)
    return (separator, [column_name(field) for field in rows[0]]) if _starts_with_names(rows) else None


def _starts_with_names(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row has no number, and some column has nothing else below it."""
    first, others = rows[0], rows[1:]
    if not others or any(map(_is_number, first)) or any(len(row) != len(first) for row in others):
        return False
    return any(all(_is_number(row[j]) for row in others) for j in range(len(first)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def column_name(field: str) -> str:
    """A name of a header without quotes and RecBole's type."""
    return re.sub(r":(token|token_seq|float|float_seq)$", "", field.strip(' "'))


def find_separator(head: Sequence[str], form: str | None) -> str | None:
    """What stands between fields: the first candidate that every line has; None = white space.

    A form with a known number of fields takes the first candidate that gives that many.
    Semicolons and bars count only where there is no white space, as they are also found inside ids. Tabs count as white
    space when they are doubled or irregular, or when they only set off the user of a sequence.
    """
    if form in ("tsv", "inter"):
        return "\t"
    width = len(TEXT_COLUMNS.get(str(form), []))
    for known in ("::", "\t", *QUOTED, None) if width else ():
        if all(known is None or known in line for line in head) and {len(row) for row in split_lines(head, known)} == {
            width
        }:
            return known
    candidates = (*QUOTED, "\t") if form == "csv" else ("::", "\t", *QUOTED)
    lines = head[:1] if form == "csv" else head  # a quoted line break may leave a line without separators
    for separator in candidates:
        if not all(separator in line for line in lines):
            continue
        if separator in (";", "|") and form != "csv" and re.search(r"[ \t]", head[0]):
            continue
        return None if separator == "\t" and _tabs_are_space(head, form) else separator
    return None


def _tabs_are_space(head: Sequence[str], form: str | None) -> bool:
    rows = split_lines(head, "\t")
    widths = {len(row) for row in rows}
    if form == "sequences":
        return widths == {2}
    regular = len(widths) == 1 and all(any(row[j] for row in rows) for j in range(len(rows[0])))
    return not regular and len({len(row) for row in split_lines(head, None)}) == 1


def split_lines(lines: Sequence[str], separator: str | None) -> list[list[str]]:
    """The fields of lines, stripped."""
    if separator is None:
        return [re.split(r"[ \t]+", line.strip(" \t")) for line in lines]
    if separator in QUOTED:
        rows = [row for row in csv.reader(lines, delimiter=separator, skipinitialspace=True) if row]
        rows = rows[:-1] if len(lines) == SNIFFED_LINES else rows  # a quoted field may go on beyond the last line
    else:
        rows = [line.split(separator) for line in lines]
    return [[field.strip() for field in row] for row in rows]


def form_by_width(path: Path, rows: Sequence[Sequence[str]]) -> str:
    """The form of a file without a header, by how many fields its lines have.

    Raises:
        DataError: no form has so many.
    """
    widths = {len(row) for row in rows}
    if widths == {1, 2}:
        return "pairs"  # in which some lines lack the item: an error with its line, rather than sequences of one
    if len(widths) > 1:
        return "sequences"
    (width,) = widths
    if width not in FORMAT_OF_WIDTH:
        raise DataError(
            f"{path} has {width} field{'s' * (width != 1)} on each line and no known column names; it needs 2 (user "
            "item), 3 (user item timestamp), 4 (user item rating timestamp) or a header; see --format and --user-column"
        )
    return FORMAT_OF_WIDTH[width]

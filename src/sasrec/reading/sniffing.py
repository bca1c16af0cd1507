"""Recognise the form of a text log by its first lines: the separator, whether there is a header, what each column is.

What nearly all lines say decides. A line that differs is an error with its number when the file is read.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sasrec.core.errors import DataError
from sasrec.reading.columns import KNOWN_NAMES, Wanted, plain_name
from sasrec.reading.notes import Notes
from sasrec.reading.textfiles import SNIFFED_LINES, long_fields
from sasrec.reading.times import is_time

TEXT_COLUMNS = {  # of files without a header
    "pairs": ["user_id", "item_id"],
    "triples": ["user_id", "item_id", "timestamp"],
    "ratings": ["user_id", "item_id", "rating", "timestamp"],
}
FORMAT_OF_WIDTH = {len(columns): name for name, columns in TEXT_COLUMNS.items()}
QUOTED = (",", ";", "|")  # separators of files in which a quoted field may hold the separator
NEARLY_ALL = 0.9
TWO_EVENTS = 8  # fields: a longer line is not two events that lost the line end between them
NAMES_OF_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars", "::": "::", None: "white space"}


@dataclass(frozen=True)
class Form:
    """How the lines of a text log are to be read."""

    name: str  # pairs, triples, ratings, sequences, table (named or positioned columns), inter
    separator: str | None  # None = white space
    columns: list[str]  # of each field; of sequences, none
    has_header: bool

    @property
    def quotes(self) -> bool:
        """Whether a field may be in quotes: RecBole's files do not quote."""
        return self.name != "inter"

    def irregular(self, name: str, line: int, width: int) -> DataError:
        """The error for a line of a file that has another number of fields."""
        n = len(self.columns)
        return DataError(
            f"line {line} of {name} has {width} field{'s' * (width != 1)} in place of {n} ({' '.join(self.columns)}); "
            "mend or remove it, or say --format if the file has another form"
        )


class Head:
    """The first lines of a text that are not blank, split once by each separator that is tried.

    Args:
        lines: without their ends.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self._rows: dict[str | None, list[list[str]]] = {}

    def rows(self, separator: str | None) -> list[list[str]]:
        """The fields of the lines."""
        if separator not in self._rows:
            self._rows[separator] = split_lines(self.lines, separator)
        return self._rows[separator]


def find_form(name: str, head: Head, wanted: Wanted, notes: Notes) -> Form:
    """The form of a file, or of several that are one log, by its first lines.

    Args:
        name: how messages speak of the file.
        head: its first lines.
        wanted: what the caller asked for.
        notes: takes what the user should know.

    Raises:
        DataError: the lines have no form that is known, or two could be meant.
    """
    form = wanted.format
    header = find_header(head, wanted, wanted.asked)
    if header is not None:
        separator, names = header
        typed = form == "inter" or bool(re.search(r":(token|float)(_seq)?\b", head.lines[0]))
        return Form("inter" if typed else "table", separator, wanted.named(names, name), True)
    separator = find_separator(head, form, len(wanted.positions))
    rows = head.rows(separator)
    if form == "sequences":
        return Form("sequences", separator, [], False)
    if wanted.positions:
        if usual_width(rows)[0] != len(wanted.positions):  # speak of the columns that there are
            rows = head.rows(find_separator(head, form))
        return Form("table", separator, wanted.named(["?"] * usual_width(rows)[0], name), False)
    if form in (None, "csv", "tsv"):
        form = _form_by_width(name, rows, separator, notes)
    return Form(str(form), separator, list(TEXT_COLUMNS.get(str(form), [])), False)


def find_header(head: Head, wanted: Wanted, asked: Collection[str]) -> tuple[str | None, list[str]] | None:
    """The separator and the column names of the first line; None when it is a line of values.

    It names columns when it holds a name that was asked for, one that only a column has ("userId"), two usual names
    ("user item"), or when it alone has no numbers where nearly all other lines have them. Where the form asked for has
    no header, it must name both the user and the item.

    Args:
        head: the first lines.
        wanted: what the caller said of the file.
        asked: names of columns that were asked for.
    """
    form = wanted.format
    if form == "sequences":
        return None
    candidates = ["\t"] if form == "tsv" else ["\t", *QUOTED, "::", None]
    first = head.lines[:1]
    for separator in (s for s in candidates if s is None or s in first[0]):
        names = [column_name(field) for field in split_lines(first, separator)[0]]
        if form in TEXT_COLUMNS:
            if _names_both(names):
                return separator, names
        elif not set(asked).isdisjoint(names) or are_names(names) or (form == "inter" and len(names) > 1):
            return separator, names
    if form in TEXT_COLUMNS:
        return None
    separator = find_separator(head, form, len(wanted.positions))
    rows = head.rows(separator)
    return (separator, [column_name(field) for field in rows[0]]) if _starts_with_names(rows, wanted) else None


def are_names(fields: Sequence[str]) -> bool:
    """Whether a line names columns: one that only a column has ("userId"), or two usual ones ("user item")."""
    usual = {name for names in KNOWN_NAMES.values() for name in names}
    known = [plain for plain in map(plain_name, fields) if plain in usual]
    return len(known) >= 2 or any(len(k) > 3 and k.endswith("id") for k in known)


def _names_both(names: Sequence[str]) -> bool:
    plain = set(map(plain_name, names))
    return all(plain & set(KNOWN_NAMES[role]) for role in ("user", "item"))


def _starts_with_names(rows: Sequence[Sequence[str]], wanted: Wanted) -> bool:
    """Whether the first row has no number, and some column has hardly anything else below it."""
    first = rows[0]
    others = [row for row in rows[1:] if len(row) == len(first)]
    if not others or any(is_number(field) or is_time(field) for field in first):
        return False
    if wanted.positions and "timestamp" in wanted.positions:  # the column of times tells
        place = wanted.positions.index("timestamp")
        return place < len(first) and bool(first[place]) and any(is_time(row[place]) for row in others)
    few = max(int((1 - NEARLY_ALL) * len(others)), 1 if len(others) > 2 else 0)
    return any(sum(not is_number(row[j]) for row in others) <= few for j in range(len(first)))


def is_number(text: str) -> bool:
    """Whether a field is a number, of any spelling."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def column_name(field: str) -> str:
    """A name of a header without quotes and RecBole's type."""
    return re.sub(r":(token|token_seq|float|float_seq)$", "", field.strip(' "\ufeff'))


def find_separator(head: Head, form: str | None, width: int = 0) -> str | None:
    """What stands between fields: the first candidate that gives nearly all lines as many fields; None = white space.

    A form with a known number of fields takes the candidate that gives most lines that many.
    Semicolons and bars count only where there is no white space, as they are also found inside ids. Tabs count as white
    space when they are doubled or irregular, or when they only set off the user of a sequence.
    """
    if form in ("tsv", "inter"):
        return "\t"
    width = width or len(TEXT_COLUMNS.get(str(form), []))
    if width:
        candidates: tuple[str | None, ...] = ("::", "\t", *QUOTED, None)
        return max(candidates, key=lambda s: _share_of(head, s, width))  # of equals the first
    fitting = {s: _regularity(head, s) for s in _candidates(head, form)}
    found = [s for s, share in fitting.items() if share >= NEARLY_ALL]
    best = found[0] if found else max(fitting, key=lambda s: fitting[s], default=None)
    if best in QUOTED and found:  # of semicolons with decimal commas between them, the semicolons
        best = max((s for s in found if s in QUOTED), key=lambda s: usual_width(head.rows(s))[0])
    if best in QUOTED and form != "csv" and fitting[best] < NEARLY_ALL <= _regularity(head, None):
        return None  # the ids hold it here and there
    return None if best == "\t" and _tabs_are_space(head, form) else best


def _candidates(head: Head, form: str | None) -> list[str]:
    """Separators that more than half of the lines have; in CSV, where a quoted field may take many lines, the first."""
    known = (*QUOTED, "\t") if form == "csv" else ("::", "\t", *QUOTED)
    first = head.lines[0] if form == "csv" else ""
    often = [s for s in known if s in first or sum(s in line for line in head.lines) > len(head.lines) / 2]
    return [s for s in often if not (s in (";", "|") and form != "csv" and re.search(r"[ \t]", head.lines[0]))]


def _share_of(head: Head, separator: str | None, width: int) -> float:
    rows = head.rows(separator)
    return sum(len(row) == width for row in rows) / len(rows)


def _regularity(head: Head, separator: str | None) -> float:
    """The share of lines that have the usual number of fields, which must be above 1."""
    width, share = usual_width(head.rows(separator))
    return share if width > 1 else 0.0


def _tabs_are_space(head: Head, form: str | None) -> bool:
    rows = head.rows("\t")
    width, share = usual_width(rows)
    if form == "sequences":
        return share >= NEARLY_ALL and width == 2
    usual = [row for row in rows if len(row) == width]
    regular = share >= NEARLY_ALL and all(any(row[j] for row in usual) for j in range(width))
    return not regular and _regularity(head, None) >= NEARLY_ALL


def usual_width(rows: Sequence[Sequence[str]]) -> tuple[int, float]:
    """The number of fields that most lines have, and their share of the lines."""
    width, times = Counter(map(len, rows)).most_common(1)[0]
    return width, times / len(rows)


def split_lines(lines: Sequence[str], separator: str | None) -> list[list[str]]:
    """The fields of lines, stripped."""
    if separator is None:
        return [re.split(r"[ \t]+", line.strip(" \t")) for line in lines]
    rows = _split_quoted(lines, separator) if separator in QUOTED else [line.split(separator) for line in lines]
    return [[field.strip() for field in row] for row in rows]


def _split_quoted(lines: Sequence[str], separator: str) -> list[list[str]]:
    """The fields of lines some of which may be in quotes, and go on in the next line."""
    with long_fields():
        alone = [next(csv.reader([line.replace("\r", " ")], delimiter=separator)) for line in lines]
    if not any('"' in line for line in lines):
        return alone
    whole = len(lines) < SNIFFED_LINES  # else the last row may go on
    with contextlib.suppress(csv.Error), long_fields():
        reader = csv.reader([line + "\n" for line in lines], delimiter=separator, skipinitialspace=True, strict=whole)
        rows = [row for row in reader if row]
        rows = rows if whole else rows[:-1]
        if rows and usual_width(rows)[1] >= usual_width(alone)[1]:
            return rows
    return alone


def _form_by_width(name: str, rows: Sequence[Sequence[str]], separator: str | None, notes: Notes) -> str:
    """The form of a file without a header, by how many fields its lines have.

    Raises:
        DataError: no form has so many, or the lines disagree and could mean two things.
    """
    width, share = usual_width(rows)
    if share > 0.5 or {len(row) for row in rows} == {1, 2}:
        width = max(width, 2) if share < 1 else width
        if width in FORMAT_OF_WIDTH:
            _check_no_list_of_items(name, rows, separator)
            return FORMAT_OF_WIDTH[width]
        what = f"{width} field{'s' * (width != 1)}"
        more = ["-"] * max(min(width, 12) - 3, 0) + ["..."] * (width > 12)
        example = ",".join(["user", "item", "timestamp", *more])
        raise DataError(
            f"{name} has {what} on each line and no known column names; say which they are (such as --columns "
            f"{example}), name those of its header (--user-column), or use --format sequences for one user a line"
        )
    undecided = share == 0.5 and max(map(len, rows)) <= TWO_EVENTS
    if undecided or len({row[0] for row in rows}) < NEARLY_ALL * len(rows):
        raise DataError(
            f"{name} has lines of {len({len(r) for r in rows})} different numbers of fields, and none is that of most; "
            "say --format sequences if each line is a user and their items, else mend it or separate its fields by tabs"
        )
    first = "; ".join(f"user {row[0]}: {', '.join(row[1:4])}{', ...' * (len(row) > 4)}" for row in rows[:2])
    notes.warn(
        f"{name}: its lines have different numbers of fields, so each is read as a user and their items ({first})",
        "say --format sequences if that is right, else name another --format or mend the lines",
    )
    return "sequences"


def _check_no_list_of_items(name: str, rows: Sequence[Sequence[str]], separator: str | None) -> None:
    """Refuse `user<tab>10 11 12`, which could mean one item with spaces or three items."""
    if separator != "\t" or len(rows[0]) != 2:
        return
    lists = [row for row in rows if " " in row[-1] and all(map(is_number, row[-1].split()))]
    if len(lists) > len(rows) / 2:
        raise DataError(
            f"{name} has fields such as {lists[0][-1]!r}, which could be one item or several; say --format sequences "
            "if each line is a user and their items, else --format pairs"
        )

"""Look whether what columns hold fits what they were taken for: refuse what cannot be right, warn of what is odd."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from sasrec.core.errors import DataError
from sasrec.reading.columns import KNOWN_NAMES, plain_name
from sasrec.reading.notes import Notes
from sasrec.reading.sniffing import Form, is_number
from sasrec.reading.source_table import SourceTable
from sasrec.reading.times import TimesSeen, is_date, is_time, unit_of

MISSING_WORDS = [
    "NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "Null", "null", "(null)", "\\N", "None", "none", "nan", "NaN", "NaT",
    "undefined",
]  # fmt: skip
ENOUGH_ROWS = 100  # of a file without a header, to tell times from ratings
MOSTLY = 0.9
FEW_WORDS = 3  # that a message shows
REVIEWER, PRODUCT = r"A[0-9A-Z]{11,20}", r"(B[0-9A-Z]{9}|\d{9}[0-9X])"  # ids of Amazon's users and items


def check_guess(name: str, form: Form, rows: Sequence[Sequence[str]]) -> None:
    """Refuse a guess about a file without a header that its columns contradict.

    Args:
        name: how messages speak of the file.
        form: pairs, triples or ratings.
        rows: the fields of its first lines.

    Raises:
        DataError: a column cannot be what it was taken for.
    """
    rows = [row for row in rows if len(row) == len(form.columns)]
    columns = dict(zip(form.columns, zip(*rows, strict=True), strict=True))
    reason = _contradiction(columns)
    if reason:
        guess = ",".join(name.removesuffix("_id") for name in form.columns)
        raise DataError(
            f"{name} would be read as {form.name} ({guess}), but {reason}; say what its columns are, such as --columns "
            f"{_suggested(list(columns.values()))}, or --format {form.name} if the guess is right"
        )


def _contradiction(columns: dict[str, tuple[str, ...]]) -> str:
    """Why the columns are not what they were taken for; "" = they may be."""
    for role in ("user", "item"):
        values = columns[f"{role}_id"]
        if _share(is_date, values) >= MOSTLY:
            return f"its {role}s are dates ({values[0]})"
    users, items, times = columns["user_id"], columns["item_id"], columns.get("timestamp", ())
    if users and plain_name(users[0]) in KNOWN_NAMES["user"]:
        return f"its first user is {users[0]!r}, as in a header whose other names are not recognised"
    if _matches(PRODUCT, users) and _matches(REVIEWER, items):
        return f"its users look like products ({users[0]}) and its items like users ({items[0]})"
    if "rating" in columns and _share(is_number, columns["rating"]) < 0.5:
        return f"its ratings are no numbers ({columns['rating'][0]})"
    if times and _share(is_time, times) < 0.5:
        return f"its times are no numbers or dates ({times[0]})"
    if _looks_like_times(items) and not _looks_like_times(times) and len(set(items)) > 0.5 * len(items):
        return f"its items look like times ({items[0]})"
    if len(times) >= ENOUGH_ROWS and _are_ratings(times):
        return f"its times all lie from 0 to 10, as ratings do ({times[0]})"
    return ""


def _share(fits: Callable[[str], bool], values: Sequence[str]) -> float:
    return sum(map(fits, values)) / max(len(values), 1)


def _matches(pattern: str, values: Sequence[str]) -> bool:
    return _share(lambda value: re.fullmatch(pattern, value) is not None, values) >= MOSTLY


def _looks_like_times(values: Sequence[str]) -> bool:
    numbers = pl.Series(values, dtype=pl.String).cast(pl.Float64, strict=False).drop_nulls()
    if len(numbers) < MOSTLY * len(values) or not len(values):
        return bool(values) and _share(is_date, values) >= MOSTLY
    return len(values) >= ENOUGH_ROWS and unit_of(numbers) is not None


def _are_ratings(values: Sequence[str]) -> bool:
    """Whether all values are 0, 0.5, 1, ... 10."""
    numbers = [float(value) for value in values if is_number(value)]
    alike = all(0 <= x <= 10 and 2 * x == int(2 * x) for x in numbers)
    return len(numbers) == len(values) and alike and len(set(numbers)) > 1


def _suggested(columns: Sequence[Sequence[str]]) -> str:
    """What the columns may be, for --columns."""
    roles = ["" for _ in columns]
    for j, values in enumerate(columns):
        if "timestamp" not in roles and _looks_like_times(values):
            roles[j] = "timestamp"
        elif "rating" not in roles and len(values) >= ENOUGH_ROWS and _are_ratings(values):
            roles[j] = "rating"
    swapped = len(columns) > 1 and _matches(PRODUCT, columns[0]) and _matches(REVIEWER, columns[1])
    ids = iter(["item", "user"] if swapped else ["user", "item"])
    return ",".join(role or next(ids, "-") for role in roles)


@dataclass
class MissingWords:
    """The ids of a column that are words for nothing, found piece by piece."""

    n: int = 0
    n_rows: int = 0
    found: list[str] = field(default_factory=list)  # the first few different ones

    def add(self, table: SourceTable, column: str) -> MissingWords:
        """Look at further rows."""
        words = missing_words(table, column)
        self.n_rows += len(words)
        n = int(words.sum())
        if n:
            self.n += n
            self.found += table.frame[column].filter(words).unique(maintain_order=True).to_list()
            self.found = list(dict.fromkeys(self.found))[:FEW_WORDS]
        return self

    def join(self, later: MissingWords) -> None:
        """Look at the rows that another has looked at, which come next."""
        self.n, self.n_rows = self.n + later.n, self.n_rows + later.n_rows
        self.found = list(dict.fromkeys(self.found + later.found))[:FEW_WORDS]


def note_odd_values(where: str, words: Mapping[str, MissingWords], times: TimesSeen | None, notes: Notes) -> None:
    """Warn of users and items that are words for nothing, and of times in two units or none.

    Args:
        where: the table.
        words: of users and items, as far as these are texts.
        times: what times are like; None = there are none.
        notes: takes the warnings.
    """
    for role, found in words.items():
        if found.n:
            listed = " or ".join(map(repr, found.found))
            notes.warn(
                f"{where}: {_percent(found.n / found.n_rows)} of the events have {listed} as {role}, which counts as "
                f"one {role}" + " each" * (len(found.found) > 1),
                "--drop-missing leaves them out",
            )
    if times is not None and times.n:
        _note_odd_times(where, times, notes)


def missing_words(table: SourceTable, column: str) -> pl.Series:
    """(n,) whether a column holds a word for a missing value."""
    values = table.frame[column]
    if values.dtype != pl.String:
        return pl.repeat(False, len(values), dtype=pl.Boolean, eager=True)
    return values.is_in(MISSING_WORDS).fill_null(False)


def _note_odd_times(where: str, times: TimesSeen, notes: Notes) -> None:
    unit, shares = times.unit, {unit: n / times.n for unit, n in times.within.items()}
    if unit is None:
        found = [u for u, share in shares.items() if share > 0.01]
        if len(found) > 1 and sum(shares.values()) >= MOSTLY:
            notes.warn(
                f"{where}: some times are in {found[0]} and some in {found[1]}, so the order of events is wrong",
                "write them in one unit",
            )
    elif unit in times.outside and not times.are_calendar_days:
        notes.warn(
            f"{where}: {_percent((times.n - times.within[unit]) / times.n)} of the times lie outside of 1990 to 2100 "
            f"in {unit}, such as {times.outside[unit]}",
            "they count as they are; mend them if they are not times",
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "less than 0.1 %"

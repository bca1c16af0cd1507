"""Times of a log as numbers: dates and ISO texts become seconds since 1970, numbers stay in the log's own unit."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import polars as pl

ISO_TIME = (  # date, then optionally hour:minute[:second[.fraction]] and Z or an offset from UTC
    r"^(\d{4}[-/]\d{2}[-/]\d{2})(?:[T ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d(?:[.,]\d+)?))?)?"
    r" ?(?:Z|UTC|GMT|([+-])([01]\d)(?::?([0-5]\d))?)?$"
)
OTHER_FORMS = {  # forms of public logs that read in one way only: a pattern, and its directives
    r"^[A-Z][a-z]{2} [A-Z][a-z]{2} \d{1,2} \d{2}:\d{2}:\d{2} [+-]\d{4} \d{4}$": "%a %b %d %H:%M:%S %z %Y",
    r"^[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} [+-]\d{4}$": "%a, %d %b %Y %H:%M:%S %z",
}
OTHER_DATES = (  # dates of forms that are not read, as 02/03/2024 has two meanings
    r"^\s*(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b|\d{1,2}[ /-][A-Z][a-z]{2}"
    r"|([A-Z][a-z]{2,8},? )?[A-Z][a-z]{2,8} \d{1,2},? \d{4}\b)"
)
TextKind = Literal["integers", "decimals", "dates"]
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
EARLIEST, LATEST = 631_152_000, 4_102_444_800  # 1990 and 2100 in seconds since 1970
FIRST_DAY, LAST_DAY = 19_900_101, 21_001_231  # the same as calendar days


def numbers_of(times: pl.Series, kind: TextKind | None = None) -> pl.Series | None:
    """Times as numbers: Int64 or Float64, null where a value is no time.

    Args:
        times: numbers (kept), dates and datetimes (seconds since 1970), or text of either.
        kind: what texts are; None = whichever more of them are.

    Returns:
        None where the column holds something else altogether, such as lists.
    """
    values = _parse_times(times, kind) if times.dtype == pl.String else times
    if values.dtype == pl.Date or isinstance(values.dtype, pl.Datetime):
        values = values.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    if values.dtype == pl.Null or values.dtype.is_decimal():
        values = values.cast(pl.Float64)
    if not values.dtype.is_numeric():
        return None
    return values.cast(pl.Int64 if values.dtype.is_integer() else pl.Float64, strict=False)


def holds_dates(times: pl.Series) -> bool:
    """Whether a column holds dates rather than numbers."""
    if times.dtype != pl.String:
        return times.dtype.is_temporal()
    return bool(len(times)) and is_date(str(times[0]))


def is_date(text: str) -> bool:
    """Whether a text is a date or a datetime of a form that is read."""
    text = text.strip()
    return len(text) >= 10 and not text.isdigit() and any(re.match(form, text) for form in (ISO_TIME, *OTHER_FORMS))


def is_time(text: str) -> bool:
    """Whether a text is a date, or a number that can be one."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return is_date(text)


def unit_of(values: pl.Series) -> str | None:
    """The unit in which nearly all values are times from 1990 to 2100; None = they are no such times."""
    return TimesSeen().add(values).unit


def is_calendar_day(values: pl.Series) -> bool:
    """Whether nearly all values are days written as numbers, such as 20240131."""
    return TimesSeen().add(values).are_calendar_days


class TimesSeen:
    """What the numbers of a column of times are like, found piece by piece."""

    def __init__(self) -> None:
        self.n, self.low, self.high = 0, math.nan, math.nan
        self.n_days = 0  # of them that are calendar days
        self.within = dict.fromkeys(UNITS, 0)  # how many are from 1990 to 2100 in this unit
        self.outside: dict[str, float] = {}  # the first that is not

    def add(self, values: pl.Series) -> TimesSeen:
        """Look at further numbers."""
        if not len(values):
            return self
        numbers = values.to_numpy()
        low, high = float(np.fmin.reduce(numbers)), float(np.fmax.reduce(numbers))
        self.n += len(values)
        self.low, self.high = float(np.fmin(self.low, low)), float(np.fmax(self.high, high))
        for unit, scale in UNITS.items():
            self._add_unit(unit, values, (low, high), (EARLIEST * scale, LATEST * scale))
        if high >= FIRST_DAY and low <= LAST_DAY:
            self.n_days += _n_calendar_days(values)
        return self

    def _add_unit(self, unit: str, values: pl.Series, span: tuple[float, float], bounds: tuple[int, int]) -> None:
        if bounds[0] <= span[0] and span[1] <= bounds[1]:
            self.within[unit] += len(values)
            return
        is_apart = span[1] < bounds[0] or span[0] > bounds[1]
        fits = None if is_apart else values.is_between(*bounds)
        self.within[unit] += 0 if fits is None else int(fits.sum())
        if unit not in self.outside and (fits is None or not fits.all()):
            self.outside[unit] = values[0] if fits is None else values[int((~fits).arg_true()[0])]

    def join(self, later: TimesSeen) -> None:
        """Look at what another has looked at, which comes next."""
        self.n, self.n_days = self.n + later.n, self.n_days + later.n_days
        self.low, self.high = float(np.fmin(self.low, later.low)), float(np.fmax(self.high, later.high))
        self.within = {unit: n + later.within[unit] for unit, n in self.within.items()}
        self.outside = {**later.outside, **self.outside}

    @property
    def unit(self) -> str | None:
        """The unit in which nearly all are times from 1990 to 2100; None = they are no such times."""
        return next((unit for unit, n in self.within.items() if self.n and n >= 0.9 * self.n), None)

    @property
    def are_calendar_days(self) -> bool:
        """Whether nearly all are days written as numbers, such as 20240131."""
        return self.n > 0 and self.n_days >= 0.9 * self.n


def _n_calendar_days(values: pl.Series) -> int:
    whole = values.cast(pl.Int64, strict=False)
    fits = values.is_between(FIRST_DAY, LAST_DAY) & (whole % 100).is_between(1, 31)
    return int((fits & (whole // 100 % 100).is_between(1, 12)).sum())


def shown_time(value: float, unit: str | None) -> str:
    """A time for people; a unit of None = a plain number."""
    if unit is None or not math.isfinite(value):
        return f"{value:g}" if isinstance(value, float) and not value.is_integer() else str(int(value))
    moment = datetime.fromtimestamp(value / UNITS[unit], UTC)
    return moment.strftime("%Y-%m-%d" if not value % (86_400 * UNITS[unit]) else "%Y-%m-%d %H:%M:%S")


def _integers(texts: pl.Series) -> pl.Series | None:
    """Texts as integers; None where any is none."""
    integers = texts.cast(pl.Int64, strict=False)
    if integers.null_count():
        integers = texts.str.strip_chars(" \t\r").cast(pl.Int64, strict=False)
    return None if integers.null_count() else integers


def _parse_times(texts: pl.Series, kind: TextKind | None) -> pl.Series:
    """Text as integers, else as decimals or dates, whichever more of it is; null where it is not."""
    integers = _integers(texts) if kind in (None, "integers") else None
    if integers is not None:
        return integers
    texts = texts.str.strip_chars(" \t\r")
    if kind == "dates":
        return _date_seconds(texts)
    decimals = texts.cast(pl.Float64, strict=False)
    if kind is not None:
        return decimals
    if decimals.null_count() <= len(texts) // 2:
        return decimals
    seconds = _date_seconds(texts)
    return decimals if decimals.null_count() <= seconds.null_count() else seconds


def _date_seconds(texts: pl.Series) -> pl.Series:
    """Seconds since 1970 of dates and datetimes; without an offset they are in UTC; null where it is neither."""
    seconds = _iso_seconds(texts)
    for pattern, form in OTHER_FORMS.items():
        if not seconds.null_count():
            break
        fitting = pl.when(texts.str.contains(pattern)).then(texts)
        moments = texts.to_frame("text").select(fitting.str.to_datetime(form, time_unit="us", strict=False))
        seconds = seconds.fill_null(moments.to_series().dt.epoch("us") / 1e6)
    return seconds


def _iso_seconds(texts: pl.Series) -> pl.Series:
    """Seconds since 1970 of ISO dates and datetimes; without an offset they are in UTC; null where it is neither."""
    names = ["date", "hour", "minute", "second", "sign", "offset_hour", "offset_minute"]
    groups = texts.str.extract_groups(ISO_TIME).struct.rename_fields(names).struct.unnest()
    number = {name: pl.col(name).cast(pl.Float64).fill_null(0) for name in names if name not in ("date", "sign")}
    number["second"] = pl.col("second").str.replace(",", ".", literal=True).cast(pl.Float64).fill_null(0)
    offset = number["offset_hour"] * 3600 + number["offset_minute"] * 60
    date = pl.col("date").str.replace_all("/", "-", literal=True)
    days = date.str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32)
    seconds = (
        days * 86400.0 + number["hour"] * 3600 + number["minute"] * 60 + number["second"]
        - pl.when(pl.col("sign") == "-").then(-offset).otherwise(offset)
    )  # fmt: skip
    return groups.select(seconds.alias("timestamp"))["timestamp"]

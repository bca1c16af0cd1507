"""Times of a log as numbers: dates and ISO texts become seconds since 1970, numbers stay in the log's own unit."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

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
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
EARLIEST, LATEST = 631_152_000, 4_102_444_800  # 1990 and 2100 in seconds since 1970
FIRST_DAY, LAST_DAY = 19_900_101, 21_001_231  # the same as calendar days


def numbers_of(times: pl.Series) -> pl.Series | None:
    """Times as numbers: Int64 or Float64, null where a value is no time.

    Args:
        times: numbers (kept), dates and datetimes (seconds since 1970), or text of either.

    Returns:
        None where the column holds something else altogether, such as lists.
    """
    values = _parse_times(times) if times.dtype == pl.String else times
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
    if not len(values):
        return None
    low, high = span_of(values)
    for unit, scale in UNITS.items():
        first, last = EARLIEST * scale, LATEST * scale
        if first <= low <= high <= last:
            return unit
        if low <= last and first <= high and values.is_between(first, last).sum() >= 0.9 * len(values):
            return unit
    return None


def span_of(values: pl.Series) -> tuple[float, float]:
    """The smallest and the largest of some numbers; NaN where all of them are NaN."""
    numbers = values.to_numpy()
    return float(np.fmin.reduce(numbers)), float(np.fmax.reduce(numbers))


def is_calendar_day(values: pl.Series) -> bool:
    """Whether nearly all values are days written as numbers, such as 20240131."""
    if not len(values):
        return False
    low, high = span_of(values)
    if high < FIRST_DAY or low > LAST_DAY:
        return False
    day, month = values.cast(pl.Int64, strict=False) % 100, values.cast(pl.Int64, strict=False) // 100 % 100
    fits = values.is_between(FIRST_DAY, LAST_DAY) & day.is_between(1, 31) & month.is_between(1, 12)
    return int(fits.sum()) >= 0.9 * len(values)


def shown_time(value: float, unit: str | None) -> str:
    """A time for people; a unit of None = a plain number."""
    if unit is None or not math.isfinite(value):
        return f"{value:g}" if isinstance(value, float) and not value.is_integer() else str(int(value))
    moment = datetime.fromtimestamp(value / UNITS[unit], UTC)
    return moment.strftime("%Y-%m-%d" if not value % (86_400 * UNITS[unit]) else "%Y-%m-%d %H:%M:%S")


def _parse_times(texts: pl.Series) -> pl.Series:
    """Text as integers, else as decimals or dates, whichever more of it is; null where it is not."""
    integers = texts.cast(pl.Int64, strict=False)
    if not integers.null_count():
        return integers
    texts = texts.str.strip_chars(" \t\r")
    integers, decimals = texts.cast(pl.Int64, strict=False), texts.cast(pl.Float64, strict=False)
    if not integers.null_count():
        return integers
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

"""Times of a log as numbers: dates and ISO texts become seconds since 1970, numbers stay in the log's own unit."""

from __future__ import annotations

import polars as pl

ISO_TIME = (  # date, then optionally hour:minute[:second[.fraction]] and Z or an offset from UTC
    r"^(\d{4}-\d{2}-\d{2})(?:[T ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?)?"
    r" ?(?:Z|UTC|([+-])(\d{2}):?(\d{2}))?$"
)


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


def _parse_times(texts: pl.Series) -> pl.Series:
    """Text as integers, else as decimals or ISO dates, whichever more of it is; null where it is not."""
    integers = texts.cast(pl.Int64, strict=False)
    if not integers.null_count():
        return integers
    texts = texts.str.strip_chars(" \t\r")
    integers, decimals = texts.cast(pl.Int64, strict=False), texts.cast(pl.Float64, strict=False)
    if not integers.null_count():
        return integers
    if decimals.null_count() <= len(texts) // 2:
        return decimals
    seconds = _iso_seconds(texts)
    return decimals if decimals.null_count() <= seconds.null_count() else seconds


def _iso_seconds(texts: pl.Series) -> pl.Series:
    """Seconds since 1970 of ISO dates and datetimes; without an offset they are in UTC; null where it is neither."""
    names = ["date", "hour", "minute", "second", "sign", "offset_hour", "offset_minute"]
    groups = texts.str.extract_groups(ISO_TIME).struct.rename_fields(names).struct.unnest()
    number = {name: pl.col(name).cast(pl.Float64).fill_null(0) for name in names if name not in ("date", "sign")}
    offset = number["offset_hour"] * 3600 + number["offset_minute"] * 60
    days = pl.col("date").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32)
    seconds = (
        days * 86400.0 + number["hour"] * 3600 + number["minute"] * 60 + number["second"]
        - pl.when(pl.col("sign") == "-").then(-offset).otherwise(offset)
    )  # fmt: skip
    return groups.select(seconds.alias("timestamp"))["timestamp"]

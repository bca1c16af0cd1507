"""Columns of a table of items as attributes: numbers, truth values, text and lists of these; what is missing is null.

Text has no types, so what all values of a column say decides: "12" is a number, "012" is text, and `A|B` is a list.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import polars as pl

from sasrec.core.errors import DataError
from sasrec.reading.checks import MISSING_WORDS

logger = logging.getLogger(__name__)
NO_VALUE = [*MISSING_WORDS, "(no genres listed)", ""]  # the words of MovieLens among them
BAR = r"[^\s|]\|[^\s|]"  # A|B is a list, "Brand | Name" is a text
ENOUGH_BARS = 0.05  # of the values
WHOLE, DECIMAL = (
    r"^-?(?:0|[1-9][0-9]{0,17})$",
    r"^[-+]?(?:(?:0|[1-9][0-9]*)?\.[0-9]+|(?:0|[1-9][0-9]*)\.?)(?:[eE][-+]?[0-9]+)?$",
)
WRITTEN_LIST = r"^\s*\[.*\]\s*$"
KINDS: dict[type[pl.DataType], str] = {
    pl.String: "text", pl.Boolean: "truth values", pl.Date: "dates", pl.Datetime: "times", pl.Time: "times of day",
    pl.Duration: "durations",
}  # fmt: skip


def kind_in_words(kind: pl.DataType) -> str:
    """What a column holds, for messages: "text", "whole numbers", "lists of text"."""
    if isinstance(kind, pl.Array):
        return f"vectors of width {kind.size}"
    if isinstance(kind, pl.List):
        return f"lists of {kind_in_words(kind.inner)}"  # type: ignore[arg-type]
    if kind.is_integer():
        return "whole numbers"
    return "numbers" if kind.is_numeric() else KINDS.get(type(kind), str(kind))


def attributes_of_text(frame: pl.DataFrame, types: Mapping[str, str], where: str) -> pl.DataFrame:
    """Columns of a text with the types that their values have, or that RecBole's header gives them.

    Args:
        frame: columns of text.
        types: token, token_seq, float or float_seq by column, of RecBole; others are told by their values.
        where: how messages speak of the file.

    Raises:
        DataError: a column that is declared to hold numbers has something else.
    """
    columns = []
    for column in frame:
        values = column.str.strip_chars()
        values = values.set(values.is_in(NO_VALUE).fill_null(False), None)
        told = types.get(column.name)
        columns.append(_typed(values, where) if told is None else _declared(values, told, where))
    return pl.DataFrame(columns)


def _declared(values: pl.Series, told: str, where: str) -> pl.Series:
    """A column of RecBole's atomic files: sequences are separated by blanks."""
    parts = values.str.split(" ").list.eval(pl.element().filter(pl.element() != "")) if "seq" in told else values
    if told.startswith("token"):
        return parts
    numbers = parts.cast(pl.List(pl.Float64) if "seq" in told else pl.Float64, strict=False)
    flat, given = (one.explode() if "seq" in told else one for one in (numbers, parts))
    wrong = flat.is_null() & given.is_not_null()
    if wrong.any():
        raise DataError(
            f"column {values.name!r} of {where} is declared as {told} and has {given.filter(wrong)[0]!r}, which is "
            "not a number; mend it, or declare the column as token"
        )
    return numbers


def _typed(values: pl.Series, where: str) -> pl.Series:
    """A column of text with the type that all of its values have."""
    filled = values.drop_nulls()
    if not len(filled):
        return values
    if filled.str.contains(WHOLE).all():
        return values.cast(pl.Int64)
    if filled.str.contains(DECIMAL).all():
        return values.cast(pl.Float64)
    if filled.str.contains(r"^(?i)(true|false)$").all():
        return values.str.to_lowercase() == "true"
    if filled.str.contains(BAR).sum() >= ENOUGH_BARS * len(filled):
        return _cut(values)
    if filled.str.contains(WRITTEN_LIST).all():
        logger.warning(
            "column %r of %s holds lists as text, such as %.60r, and is kept as text; write lists with bars (A|B), or "
            "in JSON or Parquet", values.name, where, filled[0],
        )  # fmt: skip
    return values


def _cut(values: pl.Series) -> pl.Series:
    """Texts such as A|B as lists."""
    parts = values.str.split("|").list.eval(pl.element().str.strip_chars())
    return parts.list.eval(pl.element().filter(pl.element() != ""))


def attributes_of_frame(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """Columns that have types as attributes; what is neither a value nor a list of values is left alone, and said."""
    columns, odd = [], []
    for column in frame:
        plain = _plain_kind(column)
        if plain is None:
            odd.append(f"{column.name} ({column.dtype})" if column.dtype != pl.Null else f"{column.name} (nothing)")
        else:
            columns.append(plain)
    if odd:
        listed = ", ".join(odd[:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
        logger.warning("%s: left alone, as these are neither values nor lists of values: %s", where, listed)
    return pl.DataFrame(columns) if columns else pl.DataFrame()


def _plain_kind(values: pl.Series) -> pl.Series | None:
    """A column as numbers, truth values, times, text or lists of these; None = it is none of them."""
    kind = values.dtype
    if isinstance(kind, pl.List | pl.Array):
        return _plain_list(values, kind)
    if kind in (pl.Categorical, pl.Enum):
        values, kind = values.cast(pl.String), pl.String()
    if kind == pl.String:
        stripped = values.str.strip_chars()
        return stripped.set((stripped == "").fill_null(False), None)
    if kind.is_float() or kind.is_decimal():
        return values.cast(pl.Float64, strict=False).fill_nan(None)
    if kind.is_integer():
        fitting = values.cast(pl.Int64, strict=False)
        return values.cast(pl.Float64) if fitting.null_count() > values.null_count() else fitting
    return values if kind.is_temporal() or kind == pl.Boolean else None


def _plain_list(values: pl.Series, kind: pl.List | pl.Array) -> pl.Series | None:
    inner = kind.inner
    if inner in (pl.Categorical, pl.Enum):
        values, inner = values.cast(pl.List(pl.String)), pl.String()
    fine = isinstance(inner, pl.DataType) and (inner.is_numeric() or inner in (pl.String, pl.Boolean))
    if isinstance(kind, pl.Array) and (len(kind.shape) > 1 or not fine or inner == pl.String):
        return _plain_list(values.arr.to_list(), pl.List(kind.inner)) if len(kind.shape) == 1 else None
    if fine and isinstance(inner, pl.DataType) and inner.is_decimal():
        return values.cast(pl.List(pl.Float64))
    return values if fine else None


def split_type(name: str) -> tuple[str, str | None]:
    """A name of RecBole's header without its type, and the type; None = it has none."""
    found = re.fullmatch(r"(.+):(token|token_seq|float|float_seq)", name.strip(' "\ufeff'))
    return (found[1], found[2]) if found else (name, None)

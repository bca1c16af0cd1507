"""Which ids are the same: "2969", 2969, 2969.0 and "2969.0" are one item, "02969" is another."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from sasrec.core.errors import DataError

EXACT = {"Float64": 2**53, "Float32": 2**24}  # from here on floats stand for several integers
WHOLE = r"^-?\d+\.0+$"  # as programs write integers that they keep as floats
WHOLE_NUMBER = re.compile(r"(0|-?[1-9][0-9]{0,18})(\.0+)?")
MAX_DECIMAL = 10**38
MAX_ID_BYTES = 4096  # an address of a page is an id, a text is none
LOOKED_AT = 1000  # of many, before all
MISSING = ("<NA>", "NaT")  # how pandas and NumPy write what is missing


def canonical_id(value: object, integers: bool) -> int | str:
    """One id in the vocabulary's own type.

    Args:
        value: an id as a caller gives it. A number is what a column of such numbers would hold.
        integers: whether the vocabulary's ids are integers. Then 2969, 2969.0, "2969" and "2969.0" are one id, while
            "02969" and "+2969" stay others. In a vocabulary of texts a text is as it is.

    Returns:
        The id; "" for what is missing (None, NaN) or bytes, as no id is empty.
    """
    known = _number_or_text(value)
    if isinstance(known, int):
        return known if integers else _digits(known)
    if not integers or isinstance(value, float | np.floating):  # a whole float that is text has lost digits
        return known
    whole = WHOLE_NUMBER.fullmatch(known)
    return int(whole[1]) if whole else known


def _number_or_text(value: object) -> int | str:
    """An id as a plain integer if it is a whole number, else as a plain text."""
    if isinstance(value, np.integer | np.bool_ | np.str_) or (isinstance(value, np.ndarray) and not value.ndim):
        value = value.item()
    if isinstance(value, str):
        return str.__str__(value)  # the content also of an enum
    if isinstance(value, bool):
        return str(value).lower()  # as in a column of truth values; never the integer 1
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float | np.floating | Decimal):
        return _of_fraction(value)
    return "" if value is None or isinstance(value, bytes) or str(value) in MISSING else str(value)


def _of_fraction(value: Any) -> int | str:
    """A float or a decimal: a whole one is an integer, if no other integer could be meant."""
    if value != value:
        return ""
    limit = MAX_DECIMAL if isinstance(value, Decimal) else EXACT["Float64"]
    if -limit < value < limit and value == int(value):
        return int(value)
    return str(value) if isinstance(value, Decimal) else str(pl.Series(np.array([value])).cast(pl.String)[0])


def _digits(number: int) -> str:
    """An integer as text; Python refuses to write very long ones, which are nobody's ids."""
    try:
        return str(number)
    except ValueError:
        return ""


def written_length(values: pl.Series) -> int:
    """Bytes that all values take together: texts as they are, integers when written canonically."""
    if not len(values):
        return 0
    if values.dtype == pl.String:
        return int(values.str.len_bytes().cast(pl.Int64).sum())
    numbers = values.to_numpy()
    low, high = int(numbers.min()), int(numbers.max())
    magnitude = np.abs(numbers).view(np.uint64) if low < 0 else numbers  # unsigned, for the magnitude of -2**63
    length = len(numbers) + (int((numbers < 0).sum()) if low < 0 else 0)
    power = 10
    while power <= max(high, -low):
        length += int(np.count_nonzero(magnitude >= magnitude.dtype.type(power)))
        power *= 10
    return length


def canonical_ids(ids: pl.Series, *, as_text: bool = False, first_row: int = 0) -> pl.Series:
    """Ids in their one type: Int64 when all are integers or canonical integer text, else String.

    Args:
        as_text: whether further ids of the column make all of them String.
        first_row: how messages count the first one.
        ids: any dtype, no nulls. "2969" is an integer, and so is the float 2969.0; "02969", "+1" are texts. "2969.0" is
            an integer where all ids of the column are whole numbers, as programs write them that keep them as floats.

    Raises:
        DataError: an id is missing, the column holds lists, structs or bytes, or floats too large to tell apart.
    """
    if ids.null_count():
        raise DataError(f"an id is missing in row {int(ids.is_null().arg_true()[0])} of column {ids.name!r}")
    if ids.dtype == pl.Int64:
        return ids.cast(pl.String) if as_text else ids
    if ids.dtype.is_nested() or ids.dtype == pl.Binary:
        raise DataError(f"column {ids.name!r} holds {ids.dtype}; ids are integers or text")
    if ids.dtype.is_float():
        ids = _float_texts(ids, first_row)
    if ids.dtype == pl.Object:
        ids = pl.Series(ids.name, [str(value) for value in ids])
    if as_text:
        return ids.cast(pl.String)
    if ids.dtype.is_integer():
        fitting = ids.cast(pl.Int64, strict=False)
        return ids.cast(pl.String) if fitting.null_count() else fitting
    texts = ids.cast(pl.String)
    if not are_integers(texts.head(LOOKED_AT).str.replace(r"\.0+$", "")):
        return texts
    numbers = texts.cast(pl.Int64, strict=False)
    if numbers.null_count() and numbers.null_count() == int(texts.str.contains(WHOLE).sum()):
        texts = texts.str.replace(r"\.0+$", "")
        numbers = texts.cast(pl.Int64, strict=False)
    # Integers in another spelling ("02969", "+1") are longer than their canonical text, so equal sums mean none is.
    if numbers.null_count() or written_length(numbers) != written_length(texts):
        return ids.cast(pl.String)
    return numbers


def are_integers(texts: pl.Series) -> bool:
    """Whether all texts are integers, of any spelling; that others are not shows mostly in the first ones."""
    return not any(part.cast(pl.Int64, strict=False).null_count() for part in (texts.head(LOOKED_AT), texts))


def _float_texts(ids: pl.Series, first_row: int) -> pl.Series:
    """Floats as ids: whole ones as the integers they stand for."""
    if ids.is_nan().any():
        raise DataError(f"an id is missing (NaN) in row {int(ids.is_nan().arg_true()[0])} of column {ids.name!r}")
    inexact = ids.abs() >= EXACT.get(str(ids.dtype), 2**11)
    if inexact.any():
        row = int(inexact.arg_true()[0])
        raise DataError(
            f"column {ids.name!r} holds {ids[row]:.0f} as a float in row {first_row + row}, which stands for several "
            "ids; give ids as integers or text"
        )
    numbers = ids.cast(pl.Int64, strict=False)
    whole = ids == ids.round()
    return numbers if whole.all() else numbers.cast(pl.String).zip_with(whole, ids.cast(pl.String))

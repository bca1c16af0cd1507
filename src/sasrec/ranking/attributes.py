"""The columns of items as arrays that conditions are asked of. In: a vocabulary; out: values, and which are there.

Numbers that are not finite (NaN, infinity) count as missing. Dates are texts such as "2024-01-31". A list column has
its values laid end to end; missing ones among them are left out.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec.core.arrays import Bool, Int64
from sasrec.data.vocabulary import Vocabulary
from sasrec.ranking.where import ColumnType

TEXTS = (pl.String, pl.Categorical, pl.Enum, pl.Date, pl.Datetime, pl.Time, pl.Null)
LARGEST = 2**63 - 1


class Values(NamedTuple):
    """Values of a column, or computed from columns: one for each item, or for each element of its items' lists.

    Arrays without dimensions are the same for all items.
    """

    values: NDArray[Any]  # numbers int64 or float64; texts int32, their places in `words`; truths bool
    is_there: Bool  # where False, the value means nothing
    words: pl.Series | None = None  # the distinct texts, in order
    rows: Int64 | None = None  # the item, from 0, of each element of lists, ascending; None = one value an item


class Attributes:
    """The columns of a vocabulary's items: `item_id`, `count`, `title` where there are titles, and all attributes.

    Args:
        vocabulary: whose items.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.n_items = len(vocabulary)
        self.has_own = vocabulary.attributes is not None  # beside those that every model has
        frame = vocabulary.to_frame().drop("item_index")
        columns = [*frame.columns[2:], *frame.columns[:2]]  # attributes first
        typed = {name: type_of(frame[name].dtype) for name in columns}
        self.types = {name: found for name, found in typed.items() if found is not None}
        self._frame = frame
        self._values: dict[str, Values] = {}
        self._lock = threading.Lock()

    def values(self, name: str) -> Values:
        """The values of a column; made when it is first asked for."""
        with self._lock:
            if name not in self._values:
                self._values[name] = _values_of(self._frame[name])
            return self._values[name]


def type_of(dtype: pl.DataType) -> ColumnType | None:
    """What a column of Polars holds; None = nothing that conditions can ask."""
    if isinstance(dtype, pl.List | pl.Array):
        inner = type_of(dtype.inner)  # type: ignore[arg-type]
        return None if inner is None or inner.is_list else ColumnType(inner.kind, is_list=True)
    if isinstance(dtype, pl.Boolean):
        return ColumnType("truth")
    if dtype.is_numeric():
        return ColumnType("number")
    return ColumnType("text") if isinstance(dtype, TEXTS) else None


def _values_of(series: pl.Series) -> Values:
    if not isinstance(series.dtype, pl.List | pl.Array):
        return _flat(series)
    lists = series.cast(pl.List(series.dtype.inner))
    frame = pl.DataFrame({"row": np.arange(len(series)), "value": lists})
    frame = frame.filter(pl.col("value").list.len() > 0).explode("value").drop_nulls("value")
    return _flat(frame["value"])._replace(rows=frame["row"].to_numpy())


def _flat(series: pl.Series) -> Values:
    """The values of a column without lists."""
    if isinstance(series.dtype, pl.Boolean):
        return Values(series.fill_null(value=False).to_numpy(), series.is_not_null().to_numpy())
    return _numbers(series) if series.dtype.is_numeric() else _texts(series.cast(pl.String))


def _numbers(series: pl.Series) -> Values:
    """Whole numbers stay exact, unless they are too large for 64 bits with a sign."""
    if series.dtype.is_integer() and int(series.max() or 0) <= LARGEST and int(series.min() or 0) >= -LARGEST - 1:  # type: ignore[arg-type]
        return Values(series.fill_null(0).cast(pl.Int64).to_numpy(), series.is_not_null().to_numpy())
    numbers = series.cast(pl.Float64).to_numpy()
    return Values(numbers, np.isfinite(numbers))


def _texts(series: pl.Series) -> Values:
    places = series.rank("dense").cast(pl.Int32).fill_null(0).to_numpy() - np.int32(1)
    return Values(places, places >= 0, series.drop_nulls().unique().sort())

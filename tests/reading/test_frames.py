"""Frames of Polars, pandas and others."""

from __future__ import annotations

import uuid
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from sasrec.core.errors import DataError
from sasrec.reading.readers import read_interactions

USERS, ITEMS = [1, 1, 2], [5, 6, 7]


def users_of(column: Any, **told: Any) -> list[Any]:
    kind = pl.DataFrame if isinstance(column, pl.Series) else pd.DataFrame
    return list(read_interactions(kind({"user": column, "item": ITEMS}), **told)["user_id"])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pl.Series(["a", "b", "a"], dtype=pl.Categorical), ["a", "b", "a"]),
        (pl.Series(["1", "2", "1"], dtype=pl.Enum(["2", "1"])), [1, 2, 1]),
        (pl.Series([Decimal("1.00"), Decimal("2.00"), Decimal("1.00")]), [1, 2, 1]),
        (pl.Series([1, 2**100, 3], dtype=pl.Int128), ["1", str(2**100), "3"]),
        (pl.Series([-0.0, 0.0, 2.0]), [0, 0, 2]),
        (pl.Series([date(2024, 1, 1)] * 3), ["2024-01-01"] * 3),
        (pd.array([1, 2, 2**60], dtype="Int64"), [1, 2, 2**60]),
        (pd.array([1, 2, 2**64 - 1], dtype="UInt64"), ["1", "2", str(2**64 - 1)]),
        (pd.Categorical([1, 2, 1]), [1, 2, 1]),
        (pd.Series([1, "a", 2.0], dtype=object), ["1", "a", "2"]),
        (pd.Series([1, "1", "01"], dtype=object), ["1", "1", "01"]),
        (pd.Series([1, 2**70, 3], dtype=object), ["1", str(2**70), "3"]),
        (np.array([1, 2, 3], np.float16), [1, 2, 3]),
        (pd.arrays.SparseArray([1, 2, 1]), [1, 2, 1]),
        ([uuid.UUID(int=1)] * 3, [str(uuid.UUID(int=1))] * 3),
    ],
)
def test_ids_of_any_type_are_integers_or_text(column: Any, expected: list[Any]) -> None:
    assert users_of(column) == expected


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([1.0, np.nan, 2.0]),
        pl.Series(["a", None, "b"], dtype=pl.Categorical),
        pl.Series(["a", "", "b"], dtype=pl.Categorical),
        pl.Series(["a", " ", "b"]),
        pd.array([1, None, 2], dtype="Int64"),
        pd.array(["a", pd.NA, "b"], dtype="string"),
        pd.Series(["a", None, 1], dtype=object),
    ],
)
def test_missing_ids_are_refused_or_dropped(column: Any) -> None:
    with pytest.raises(DataError, match="row 1 of the frame has nothing in column 'user'"):
        users_of(column)
    assert len(users_of(column, drop_missing=True)) == 2


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pl.Series([b"a", b"b", b"a"]), "Binary"),
        (pl.Series([{"a": 1}, {"a": 2}, {"a": 1}]), "Struct"),
        (pl.Series([[1], [2], [1]]), "List"),
    ],
)
def test_columns_that_hold_no_ids_are_refused(column: pl.Series, kind: str) -> None:
    with pytest.raises(DataError, match=f"column 'user' of the frame holds {kind}.*; ids are integers or text"):
        users_of(column)


@pytest.mark.parametrize(
    ("column", "seconds"),
    [
        ([date(2024, 1, 1)] * 3, 1704067200),
        (pd.to_datetime(["2024-01-01 01:00"] * 3).tz_localize("Europe/Paris"), 1704067200),
        (np.array(["2024-01-01"] * 3, "datetime64[s]"), 1704067200),
        (pd.Series([datetime(2024, 1, 1, 3, tzinfo=timezone(timedelta(hours=3)))] * 3, dtype=object), 1704067200),
        (pd.period_range("2024-01-01", periods=1).repeat(3), 1704067200),
        (pl.Series([datetime(2024, 1, 1)] * 3).cast(pl.Datetime("ns", "Asia/Tokyo")), 1704067200),
        (pl.Series([Decimal("1.5")] * 3), 1.5),
    ],
)
def test_times_of_any_type_are_numbers(column: Any, seconds: float) -> None:
    kind = pl.DataFrame if isinstance(column, pl.Series) else pd.DataFrame
    log = read_interactions(kind({"user": USERS, "item": ITEMS, "time": column}))
    assert log["timestamp"].to_list() == [seconds] * 3


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.Series([timedelta(1)] * 3), "column 'time' of the frame holds Duration"),
        (pl.Series([b"1"] * 3), "column 'time' of the frame holds Binary"),
        (pl.Series(["10:00"] * 3), "row 0 of the frame has '10:00' in column 'time', which is not a number or a"),
        (pl.Series([1, None, 2]), "row 1 of the frame has nothing in column 'time'"),
        (pd.to_datetime(["2024-01-01", None, "2024-01-02"]), "row 1 of the frame has nothing in column 'time'"),
    ],
)
def test_columns_that_hold_no_times_are_refused(column: Any, message: str) -> None:
    kind = pl.DataFrame if isinstance(column, pl.Series) else pd.DataFrame
    with pytest.raises(DataError, match=message):
        read_interactions(kind({"user": USERS, "item": ITEMS, "time": column}))


def test_named_index_is_a_column() -> None:
    frame = pd.DataFrame({"user": USERS, "item": ITEMS, "time": [3, 2, 1]})
    expected = read_interactions(frame)
    assert read_interactions(frame.set_index("user")).equals(expected)
    assert read_interactions(frame.set_index(["time", "item"])).equals(expected)
    assert read_interactions(frame.set_index("user", drop=False)).equals(expected)
    assert read_interactions(frame.set_axis([9, 9, 9])).equals(expected)


@pytest.mark.parametrize(
    "source",
    [None, True, 3, b"log.csv", {"user": [1]}, {"a"}, (x for x in "a"), np.zeros((2, 2)), [(1, 2)], [1, 2], pd,
     pl.DataFrame, pd.Series([1]), pl.Series([1]), pd.DataFrame({"user": [1]}).groupby("user"),
     [pl.DataFrame({"user": [1]})]],
    ids=lambda source: type(source).__name__,
)  # fmt: skip
def test_object_that_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(DataError, match=r"cannot read a log from [A-Za-z]+; give a path, a list of paths"):
        read_interactions(source)


def test_empty_frames_are_refused() -> None:
    with pytest.raises(DataError, match="the frame has no columns and no events"):
        read_interactions(pl.DataFrame())
    for frame in (pl.DataFrame({"user": [], "item": []}), pd.DataFrame({"user": [], "item": []})):
        with pytest.raises(DataError, match="the frame has no events"):
            read_interactions(frame)

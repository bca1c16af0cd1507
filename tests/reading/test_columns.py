"""Which column is what; times that are not read are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from sasrec.core.errors import DataError
from sasrec.reading.readers import read_interactions

Save = Callable[[str, str | bytes], Path]


@pytest.mark.parametrize("name", ["event_timestamp", "EventTime", "visit_date", "Time Stamp", "ts", "added_at", "when"])
def test_times_of_a_name_that_is_not_usual_are_read(name: str, save: Save) -> None:
    log = read_interactions(save("log.csv", f"user_id,item_id,{name}\n1,2,1700000300\n1,3,1700000200\n"))
    assert log["timestamp"].to_list() == [1700000300, 1700000200]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("foo", [1700000300, 1700000200]),
        ("foo", ["2024-01-02", "2024-01-01"]),
        ("foo", [20240102, 20240101]),
        ("foo", ["02/01/2024", "01/01/2024"]),
        ("foo", ["Jan 5, 2024", "Jan 4, 2024"]),
        ("when", ["5 Jan", "4 Jan"]),
        ("release_date", ["2024-01-02", "2024-01-01"]),
    ],
)
def test_column_that_looks_like_time_and_is_not_read_is_named(
    name: str, values: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    assert read_interactions(pl.DataFrame({"user": [1, 1], "item": [2, 3], name: values})).width == 2
    assert f"column '{name}' looks like time and is not read; the order of the rows counts; name the" in caplog.text


def test_nothing_is_said_of_columns_that_do_not_look_like_time(caplog: pytest.LogCaptureFixture) -> None:
    frame = pl.DataFrame({"user": [1, 1], "item": [2, 3], "price": [3.5, 4], "rank": [1, 2], "note": ["a", "12345"]})
    assert read_interactions(frame).width == 2
    assert "time" not in caplog.text


@pytest.mark.parametrize("coarse", [["2024-01-01"] * 2, [20240101] * 2])
@pytest.mark.parametrize("names", [("date", "timestamp_ms"), ("timestamp", "event_time")])
def test_finer_time_is_read(coarse: list[object], names: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    frame = pl.DataFrame({"user": [1, 1], "item": [2, 3], names[0]: coarse, names[1]: [1700000000300, 1700000000200]})
    assert read_interactions(frame)["timestamp"].to_list() == [1700000000300, 1700000000200]
    assert f"column '{names[0]}' looks like time and is not read; times are read from '{names[1]}'" in caplog.text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("user_id,asin,parent_asin", (1, 3)),
        ("user_id,item,item_id", (1, 3)),
        ("user_name,user_id,item", (2, 3)),
        ("session_id,user_id,item_id", (2, 3)),
        (" User ID ,x,ITEM", (1, 3)),
        (",user,item", (2, 3)),
    ],
)
def test_surer_name_wins(names: str, expected: tuple[int, int], save: Save) -> None:
    assert read_interactions(save("log.csv", f"{names}\n1,2,3\n")).rows() == [expected]


def test_column_cannot_be_two_things() -> None:
    frame = pl.DataFrame({"user": [1], "item": [2], "time": [3]})
    with pytest.raises(DataError, match="column 'user' of the frame cannot be both the time and an id"):
        read_interactions(frame, timestamp_column="user")
    with pytest.raises(DataError, match="cannot be both the user and the item"):
        read_interactions(frame, item_column="user")
    with pytest.raises(DataError, match="no column 'when'; its columns are: user, item, time"):
        read_interactions(frame, timestamp_column="when")

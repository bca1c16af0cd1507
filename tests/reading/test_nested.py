"""Lists of events a row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from sasrec.core.errors import DataError
from sasrec.reading.readers import read_interactions

Save = Callable[[str, str | bytes], Path]


def test_one_object_a_session_becomes_one_event_a_row(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        '{"session":1,"events":[{"aid":5,"ts":1700000000000,"type":"clicks"},{"aid":6,"ts":1700000000001}]}\n'
        '{"session":2,"events":[]}\n{"session":3,"events":[{"aid":7,"ts":1700000000002,"type":"orders"}]}\n'
    )
    log = read_interactions(save("log.jsonl", text))
    assert log.rows() == [(1, 5, 1700000000000), (1, 6, 1700000000001), (3, 7, 1700000000002)]
    assert "1 of 3 rows have no events; they are left out" in caplog.text


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"user": [1, 2], "items": [[5, 6], [7]], "timestamps": [[3, 2], [1]]}),
        pl.DataFrame({"user": [1, 1, 2], "item": [5, 6, 7], "timestamps": [3, 2, 1]}),
        pl.DataFrame({"user": [1, 2], "history": [[5, 6], [7]], "times": [[3, 2], [1]], "x": [[1], [2]]}),
        pl.DataFrame({"data": [[{"user": 1, "item": 5, "ts": 3}, {"user": 1, "item": 6, "ts": 2},
                                {"user": 2, "item": 7, "ts": 1}]]}),
    ],
)  # fmt: skip
def test_lists_of_items_and_times_belong_together(frame: pl.DataFrame, tmp_path: Path) -> None:
    frame.write_parquet(tmp_path / "log.parquet")
    expected = [(1, 5, 3), (1, 6, 2), (2, 7, 1)]
    told = {"timestamp_column": "timestamps"} if frame.schema.get("timestamps") == pl.Int64 else {}
    assert read_interactions(frame, **told).rows() == expected
    assert read_interactions(tmp_path / "log.parquet", **told).rows() == expected


def test_arrays_of_a_fixed_width_are_lists(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [1, 2], "items": pl.Series([[5, 6], [7, 8]], dtype=pl.Array(pl.Int64, 2))})
    frame.write_parquet(tmp_path / "log.parquet")
    for source in (frame, tmp_path / "log.parquet"):
        assert read_interactions(source).rows() == [(1, 5), (1, 6), (2, 7), (2, 8)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"user":1,"items":[1,2,3],"times":[3,2]}\n', "line 1 of .* has 3 elements in 'items' and 2 in 'times'"),
        ('{"user":1,"items":[1],"history":[3]}\n', "several lists that could hold the events: items, history"),
        ('{"user":1,"items":[1,null]}\n', "line 1 of .* has nothing in column 'item_id'"),
        ('{"user":1,"items":[[1,2],[3]]}\n', r"column 'item_id' of .* holds List\(Int64\)"),
        ('{"user":1,"other":[1,2]}\n', "has no item column that is recognised; its columns are: user, other"),
    ],
)
def test_lists_that_are_unclear_are_refused(text: str, message: str, save: Save) -> None:
    with pytest.raises(DataError, match=message):
        read_interactions(save("log.jsonl", text))


def test_list_beside_items_is_named_in_a_warning(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    text = "session_id:token\titem_id_list:token_seq\titem_id:token\n1\t1 2 3\t4\n"
    assert read_interactions(save("log.inter", text)).rows() == [(1, 4)]
    assert "items are read from 'item_id' alone; column 'item_id_list' may hold more of them" in caplog.text

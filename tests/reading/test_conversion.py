"""Columns of types and weights of events: how they are named, read and refused."""

import gzip
import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sasrec.core.errors import ConfigError, DataError
from sasrec.data.logs import Reading, load_log
from sasrec.reading.readers import read_interactions

SHOP = "user,item,type,w\nann,7,view,0.5\nann,9, purchase,2\nben,7,view,0\n"


def write(folder: Path, text: str, name: str = "shop.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_types_and_weights_are_read_where_their_columns_are_named(tmp_path: Path) -> None:
    log = read_interactions(write(tmp_path, SHOP), event_column="type", weight_column="w")
    assert log.schema == {"user_id": pl.String, "item_id": pl.Int64, "event": pl.String, "weight": pl.Float32}
    assert log["event"].to_list() == ["view", "purchase", "view"]
    assert log["weight"].to_list() == [0.5, 2, 0]
    assert read_interactions(write(tmp_path, SHOP)).columns == ["user_id", "item_id"]


@pytest.mark.parametrize("header", ["", "user,item,type,w\n"])
def test_words_of_columns_name_types_and_weights_by_position(tmp_path: Path, header: str) -> None:
    text = header + SHOP.partition("\n")[2]
    log = read_interactions(write(tmp_path, text), columns="user,item,event,weight")
    assert log["event"].to_list() == ["view", "purchase", "view"]
    assert log["weight"].to_list() == [0.5, 2, 0]


def test_types_that_are_numbers_are_their_texts(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [2, 3], "action": [4, 1]})
    assert read_interactions(frame, event_column="action")["event"].to_list() == ["4", "1"]


def test_types_of_lists_go_with_their_items(tmp_path: Path) -> None:
    text = '{"user": 1, "items": [5, 6], "types": ["view", "buy"]}\n{"user": 2, "items": [7], "types": ["buy"]}\n'
    log = read_interactions(write(tmp_path, text, "shop.jsonl"), event_column="types")
    assert log.rows() == [(1, 5, "view"), (1, 6, "buy"), (2, 7, "buy")]


def test_types_of_a_compressed_log_and_of_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "shop.csv.gz").write_bytes(gzip.compress(SHOP.encode()))
    assert read_interactions(tmp_path / "shop.csv.gz", event_column="type")["event"][1] == "purchase"
    for name in ("view", "buy"):
        folder = tmp_path / "log" / f"kind={name}"
        folder.mkdir(parents=True)
        pl.DataFrame({"user_id": [1], "item_id": [2]}).write_parquet(folder / "part.parquet")
    assert read_interactions(tmp_path / "log", event_column="kind")["event"].to_list() == ["buy", "view"]


def test_events_without_a_type_are_left_out_where_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, SHOP + "ben,9,,1\n")
    log = read_interactions(path, event_column="type", drop_missing=True)
    assert len(log) == 3
    assert "1 of 4 events lack a user, an item, a type or a weight and are left out" in caplog.text


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ("ben,9,,1", {"event_column": "type"}, "line 5 of .* has nothing in column 'type'; every event needs a"),
        ("ben,9,view,-1", {"weight_column": "w"}, "line 5 of .* has '-1' in column 'w'; a weight is 0 or a number"),
        ("ben,9,view,nan", {"weight_column": "w"}, "line 5 of .* has 'nan' in column 'w'"),
        ("ben,9,view,inf", {"weight_column": "w"}, "line 5 of .* has 'inf' in column 'w'"),
        ("ben,9,view,1e300", {"weight_column": "w"}, "line 5 of .* has '1e300' in column 'w'"),
        ("ben,9,view,much", {"weight_column": "w"}, "line 5 of .* has 'much' in column 'w'"),
        ("ben,9,view,", {"weight_column": "w"}, "line 5 of .* has (nothing|'') in column 'w'"),
        ("ben,9,view,1", {"event_column": "kind"}, "has no column 'kind'; its columns are: user, item, type, w"),
        ("ben,9,view,1", {"weight_column": "kind"}, "has no column 'kind'"),
        ("ben,9,view,1", {"event_column": "item"}, "column 'item' of .* cannot be both the item and the event"),
        ("ben,9,view,1", {"event_column": "w", "weight_column": "w"}, "cannot be both the event and the weight"),
    ],
)  # fmt: skip
def test_types_and_weights_that_cannot_be_used_are_refused(
    tmp_path: Path, rows: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_interactions(write(tmp_path, SHOP + rows + "\n"), **options)


def test_weights_that_are_all_0_are_refused() -> None:
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [2, 3], "w": [0, 0]})
    with pytest.raises(DataError, match="all weights in column 'w' of the frame are 0, so no event would train"):
        read_interactions(frame, weight_column="w")


def test_weights_that_are_dates_are_refused() -> None:
    frame = pl.DataFrame({"user_id": [1], "item_id": [2], "w": ["2024-01-31"]}).with_columns(pl.col("w").str.to_date())
    with pytest.raises(DataError, match="column 'w' of the frame holds Date; weights are numbers"):
        read_interactions(frame, weight_column="w")


def test_a_column_of_too_many_types_is_refused() -> None:
    frame = pl.DataFrame({"user_id": [1] * 300, "item_id": [2] * 300, "event": [f"e{i}" for i in range(300)]})
    with pytest.raises(
        DataError, match="holds 300 different values, such as 'e0', and 255 types of events are the most"
    ):
        read_interactions(frame, event_column="event")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ann 7 9\nben 7 9 8\ncid 9\n", "has a user a line and no columns, so event cannot be read"),
        ("ann 7\nben 9\n", "has no column 'type'; its columns are: user_id, item_id"),
    ],
)
def test_a_log_without_names_of_columns_has_none_of_types(tmp_path: Path, text: str, message: str) -> None:
    form = "sequences" if "8" in text else "pairs"
    with pytest.raises(DataError, match=message):
        read_interactions(write(tmp_path, text, "log.txt"), format=form, event_column="type")


def test_columns_by_position_exclude_names_of_types(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--columns says what each column is"):
        read_interactions(write(tmp_path, SHOP), columns="user,item,-,-", event_column="type")


def test_a_log_with_a_column_like_types_is_told_once_what_it_could_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        log = load_log(write(tmp_path, SHOP))
    told = [line for line in caplog.messages if "--event-column" in line]
    assert len(told) == 1
    assert "column 'type' is not read; if view, purchase are types of events, --event-column type reads them" in told[0]
    assert log.sequences.understanding is not None
    assert not log.sequences.understanding.notes
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load_log(write(tmp_path, SHOP), Reading(event_column="type"))
    assert "types of events: view (2), purchase (1)" in caplog.messages
    assert not any("--event-column" in line for line in caplog.messages)


def test_a_data_set_by_name_and_a_prepared_folder_take_no_column_of_types(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ml-100k has neither types nor weights of events"):
        load_log("ml-100k", Reading(event_column="type"))
    (tmp_path / "sequences").mkdir()
    with pytest.raises(ConfigError, match="--format, --columns and the like read a log file"):
        load_log(tmp_path, Reading(weight_column="w"))

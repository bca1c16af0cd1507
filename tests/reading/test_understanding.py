"""What is kept of how a log was read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from sasrec.data.logs import load_log
from sasrec.reading.notes import Note
from sasrec.reading.readers import read_log, wanted_columns
from sasrec.reading.understanding import Understanding, load_understanding, save_understanding, understand

Save = Callable[[str, str | bytes], Path]
ANY = wanted_columns(None, None, None, None, None, None, False)


def order_of(users: list[int], times: list[int]) -> str:
    frame = pl.DataFrame({"user_id": users, "item_id": [1] * len(users), "timestamp": times})
    return understand(frame, "a.csv", "pairs", columns={}).row_order


@pytest.mark.parametrize(
    ("users", "times", "order"),
    [
        ([1, 2, 1, 2], [5, 5, 6, 7], "oldest first"),
        ([1, 2, 1, 2], [7, 6, 6, 5], "newest first"),
        ([2, 2, 1, 1], [5, 6, 4, 7], "user by user, oldest first"),
        ([2, 2, 1, 1], [6, 5, 7, 4], "user by user, newest first"),
        ([1, 1, 2, 2, 1], [5, 6, 4, 7, 1], "not by time"),
        ([1, 1, 2, 2], [6, 5, 4, 7], "not by time"),
        ([1, 2, 3], [2, 1, 3], "not by time"),
    ],
)
def test_the_order_of_rows_is_told(users: list[int], times: list[int], order: str) -> None:
    assert order_of(users, times) == order


def test_an_order_of_the_first_thousand_rows_is_not_that_of_all() -> None:
    users = [user for user in range(600) for _ in range(2)]
    times = [time for user in range(600) for time in (1000 - user, 2000)]
    assert order_of(users, times) == "user by user, oldest first"
    assert order_of([*users, 0], [*times, 1]) == "not by time"


def test_pages_for_others_name_no_folder_of_the_log() -> None:
    read = Understanding(
        source="/data/shop/day 1/a.csv and 1 more file",
        form="csv",
        columns={},
        notes=[
            Note("/data/shop/day 1/a.csv and 1 more file: 'NA' as user", "mend it"),
            Note("line 3 of /data/shop/day 1/a.csv and line 4 of /data/shop/day-2/b.csv repeat the header"),
        ],
    )
    shown = read.without_folders
    assert shown.source == "a.csv and 1 more file"
    assert [str(note) for note in shown.notes] == [
        "'NA' as user; mend it",
        "line 3 of a.csv and line 4 of b.csv repeat the header",
    ]


def test_many_columns_that_are_left_alone_are_cut() -> None:
    read = Understanding(source="a", form="csv", columns={"user": "u", "item": "i"}, left_alone=list("abcdefghijk"))
    assert read.left_alone_line == "a, b, c, d, e, f, g, h and 3 more"
    assert read.columns_line == "user = u, item = i"


def test_a_description_of_an_earlier_version_is_read_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    read = Understanding(source="a", form="csv", columns={"user": "u", "item": "i"}, notes=[Note("odd", "mend it")])
    save_understanding(tmp_path, read)
    assert load_understanding(tmp_path) == read
    (tmp_path / "log.json").write_text('{"source": "a", "form": "csv", "columns": {}}')
    earlier = load_understanding(tmp_path)
    assert earlier is not None
    assert earlier.row_order == ""
    (tmp_path / "log.json").write_text('{"source": "a"')
    with pytest.raises(ValueError, match=r"log\.json"):
        load_understanding(tmp_path)


@pytest.mark.parametrize(
    ("text", "form", "times"),
    [
        ("user,item\n1,2\n", "a table with a header, separated by commas", "no time column: order of the file"),
        ("1 2\n2 3\n", "pairs without a header, separated by white space", "no time column: order of the file"),
        ("1::2::3::4\n2::3::4::5\n", "ratings without a header, separated by ::", "times as numbers"),
        ("user;item;date\n1;2;2024-01-31\n", "separated by semicolons", "times from dates, in seconds since 1970"),
        ("user|item|ts\n1|2|1700000000000\n", "separated by bars", "times in milliseconds since 1970"),
        ("user|item|ts\n1|2|20240131\n", "separated by bars", "times as numbers"),
        ('{"user":1,"item":2}\n', "JSON", "no time column: order of the file"),
    ],
)
def test_form_and_times_are_told(text: str, form: str, times: str, save: Save) -> None:
    understanding = read_log(save("log.txt", text), ANY)[1]
    assert form in understanding.form
    assert understanding.time_line == times


def test_log_is_told_in_three_lines(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sasrec")
    lines = load_log(save("log.csv", "user,item,ts,price\nu,x,1700000000,5\nu,y,1700086400,6\n")).lines
    assert lines[0].endswith("log.csv: 2 events of 1 users and 2 items, 2023-11-14 to 2023-11-15")
    assert lines[1] == (
        "read as a table with a header, separated by commas: user = user, item = item, timestamp = ts; times in "
        "seconds since 1970; left alone: price"
    )
    assert lines[2] == "first event as read: user u, item x, time 2023-11-14 22:13:20"
    assert all(line in caplog.text for line in lines)


def test_absence_of_times_is_told_once(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sasrec")
    load_log(save("log.csv", "user,item\nu,x\nu,y\n"))
    assert caplog.text.count("no time column: order of the file") == 1


def test_understanding_is_saved_and_loaded_and_may_be_absent_or_damaged(save: Save, tmp_path: Path) -> None:
    understanding = read_log(save("log.csv", "user,item,visited\nNA,x,2024-01-01\nu,y,2024-01-02\n"), ANY)[1]
    assert load_understanding(tmp_path) is None
    save_understanding(tmp_path, understanding)
    assert load_understanding(tmp_path) == understanding
    assert understanding.notes
    save("log.json", "{")
    with pytest.raises(ValueError, match=r"log.json: "):
        load_understanding(tmp_path)

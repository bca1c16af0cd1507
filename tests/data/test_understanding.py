"""What is said of a log that was read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sasrec.data.logs import load_log
from sasrec.data.readers import read_log, wanted_columns
from sasrec.data.understanding import load_understanding, save_understanding

Save = Callable[[str, str | bytes], Path]
ANY = wanted_columns(None, None, None, None, None, None, False)


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

"""What a log is like, for a terminal of 80 columns: odd ids and long lines do it no harm."""

from __future__ import annotations

import shlex
from pathlib import Path

import polars as pl
import pytest

from sasrec.data.logs import Reading, load_log
from sasrec.report.inspection import WIDTH, inspect_log


def test_long_and_odd_ids_stay_within_the_width_and_steer_no_terminal() -> None:
    odd = ["\x1b[31mred", "two\nlines", "x" * 500, "https://shop.example/products/012/a-name-that-is-long-indeed"]
    log = load_log(pl.DataFrame({"user_id": ["u" * 90] * 4, "item_id": odd, "timestamp": [1_700_000_000.5] * 4}))
    text = inspect_log(log, ["a.csv"], Reading()).to_text()
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\x1b" not in text
    assert "?[31mred" in text
    assert "two lines" in text
    assert "https://shop.e…" in text.partition("\n\nevents ")[0]
    assert "long-indeed" in text.partition("\n\nevents ")[0]


def test_a_long_command_keeps_flags_beside_their_values_and_is_what_was_given() -> None:
    log = load_log(pl.DataFrame({"user_id": [1], "item_id": [2]}))
    sources = [f"logs/part {n}.csv" for n in range(12)]
    reading = Reading(user_column="the user", k_core=5, one_pass=True, titles=Path("titles.csv"))
    found = inspect_log(log, sources, reading)
    lines = found.to_text().partition("To train on it\n")[2].splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    assert not [line for line in lines if line.removesuffix(" \\").endswith(("--user-column", "--titles", "--output"))]
    told = shlex.split("".join(line.removesuffix("\\") for line in lines))
    flags = ["--user-column", "the user", "--k-core", "5", "--one-pass", "--titles", "titles.csv"]
    assert told == ["sasrec", "train", *sources, *flags, "--output", "runs/log"] == found.command


def test_the_command_names_a_run_folder_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = load_log(pl.DataFrame({"user_id": [1], "item_id": [2]}))
    (tmp_path / "runs" / "log").mkdir(parents=True)
    (tmp_path / "runs" / "log-2").mkdir()
    assert inspect_log(log, ["log.csv"], Reading()).command[-1] == "runs/log-3"


def test_events_that_a_filter_dropped_are_told() -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 1, 1], "item_id": [2, 2, 3, 4]})
    text = inspect_log(load_log(frame, Reading(repeats="first")), ["a.csv"], Reading(repeats="first")).to_text()
    assert "events         3 of 4\n" in text


def test_a_log_that_cannot_be_split_is_all_train() -> None:
    found = inspect_log(load_log(pl.DataFrame({"user_id": [1, 2], "item_id": [2, 3]})), ["a.csv"], Reading())
    assert found.to_dict()["leave_one_out"] == {"train_events": 2, "valid_users": 0, "test_users": 0}

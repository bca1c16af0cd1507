"""A log from a file, a frame, a data set's name or a prepared folder; filters and titles on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sasrec.core.errors import ConfigError, DataError
from sasrec.data.logs import Reading, load_log, name_of
from sasrec.data.prepared import is_prepared, save_sequences, save_vocabulary

LINES = "1 10\n1 20\n1 10\n2 20\n2 10\n2 30\n3 30\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.2026.txt"
    path.write_text(LINES)
    return path


def test_a_file_is_named_after_itself_and_a_frame_is_a_log(file: Path) -> None:
    assert load_log(file).name == "shop"
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": ["a", "b"]})
    log = load_log(frame)
    assert (log.name, log.vocabulary.ids, log.sequences.facts.n_events) == ("log", ["a", "b"], 2)


def test_a_prepared_folder_is_the_log_that_it_was_written_from(file: Path, tmp_path: Path) -> None:
    log, folder = load_log(file), tmp_path / "prepared"
    folder.mkdir()
    assert not is_prepared(folder)
    save_vocabulary(folder, log.vocabulary)
    save_sequences(folder, log.sequences)
    again = load_log(folder)
    assert is_prepared(folder)
    assert (again.name, again.sequences.facts) == ("prepared", log.sequences.facts)
    np.testing.assert_array_equal(again.sequences.items, log.sequences.items)
    assert again.vocabulary.to_frame().equals(log.vocabulary.to_frame())
    with pytest.raises(ConfigError, match=r"filter a log file, and .*prepared is a prepared folder"):
        load_log(folder, Reading(k_core=2))


def test_repeats_go_before_rare_users_and_items_are_counted(file: Path) -> None:
    log = load_log(file, Reading(repeats="first", k_core=2))
    assert log.vocabulary.ids == [10, 20]  # 30 has one event once user 3, who has only one, is gone
    assert log.sequences.user_ids.to_list() == [1, 2]
    once = load_log(file, Reading(repeats="first", k_core=2, one_pass=True))
    assert once.vocabulary.ids == [10, 20, 30]
    with pytest.raises(DataError, match=r"no event is left after the 9-core filter of .*; use a smaller --k-core"):
        load_log(file, Reading(k_core=9))


def test_titles_of_a_file_or_a_frame_reach_the_vocabulary(file: Path, tmp_path: Path) -> None:
    (tmp_path / "titles.csv").write_text("item_id,title\n10,Ten\n30,Thirty\n")
    log = load_log(file, Reading(titles=tmp_path / "titles.csv"))
    assert log.vocabulary.titles_of(np.array([1, 2, 3])) == ["Ten", "20", "Thirty"]
    assert load_log(file).with_titles(None).vocabulary.titles is None


def test_column_names_are_passed_on_to_the_reader(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("who,what\nu,x\nu,y\n")
    log = load_log(tmp_path / "log.csv", Reading(user_column="who", item_column="what"))
    assert log.vocabulary.ids == ["x", "y"]


@pytest.mark.parametrize(
    ("sources", "name"),
    [
        ("logs/shop.2026.csv.gz", "shop"),
        ("logs/part-*.csv", "part"),
        ("log_*_pure.csv", "log-pure"),
        ("-", "log"),
        (["part-1.csv", "part-2.csv", "part-10.csv"], "part"),
        (["logs-2024-01.csv", "logs-2024-02.csv"], "logs-2024"),
        (["shop.csv", "films.csv"], "shop"),
        (["1.csv", "2.csv"], "1"),
        (["a/events.csv", "b/events.csv"], "events"),
    ],
)
def test_several_files_are_called_what_they_have_in_common_else_like_the_first(sources: object, name: str) -> None:
    assert name_of(sources) == name


def test_a_list_of_one_is_that_one_and_only_files_go_together(file: Path, tmp_path: Path) -> None:
    log, folder = load_log([file]), tmp_path / "prepared"
    folder.mkdir()
    save_vocabulary(folder, log.vocabulary)
    save_sequences(folder, log.sequences)
    assert load_log([str(folder)]).sequences.facts == log.sequences.facts
    with pytest.raises(ConfigError, match=r"prepared is a prepared folder, which is a log of its own; give it alone"):
        load_log([file, folder])
    with pytest.raises(ConfigError, match=r"ml-1m is the name of a data set, which is a log of its own; give it alone"):
        load_log(["ml-1m", str(file)])


def test_the_flags_of_a_reading_are_those_that_differ_from_the_defaults() -> None:
    assert Reading().flags == []
    reading = Reading(columns="-,user,item", drop_missing=True, k_core=5, titles=Path("t.csv"))
    assert reading.flags == ["--columns", "-,user,item", "--drop-missing", "--k-core", "5", "--titles", "t.csv"]


def test_a_folder_with_a_patterns_signs_in_its_name_is_read_itself(tmp_path: Path) -> None:
    for name, items in (("n1", ["a", "b"]), ("n[1]", ["c", "d"])):
        log = load_log(pl.DataFrame({"user_id": ["u", name], "item_id": items}))
        (tmp_path / name).mkdir()
        save_vocabulary(tmp_path / name, log.vocabulary)
        save_sequences(tmp_path / name, log.sequences)
    again = load_log(tmp_path / "n[1]")
    assert again.vocabulary.ids == ["c", "d"]
    assert again.sequences.user_ids.to_list() == ["n[1]", "u"]

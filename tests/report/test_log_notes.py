"""Each oddity of a log is told once, with what to do; a usual log has none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log

from sasrec.data.logs import Log, load_log
from sasrec.reading.notes import Note
from sasrec.report.log_notes import largest_user, most_popular, notes_of, twice_share

DAY = 86_400
START = 1_700_000_000


def usual(n_users: int = 200, n_items: int = 30) -> pl.DataFrame:
    """A log without anything odd: no ties, no short users, few repeats, oldest first."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(n_items)[:6] for _ in range(n_users)])
    users = np.repeat(np.arange(n_users), 6)
    return pl.DataFrame({"user_id": users, "item_id": items, "timestamp": START + np.arange(len(users)) * 1000})


def texts(log: Log | pl.DataFrame) -> list[str]:
    return [str(note) for note in notes_of(log if isinstance(log, Log) else load_log(log))]


def test_a_usual_log_has_no_notes() -> None:
    assert texts(usual()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"timestamp": pl.lit(START)},
            "all events have the same time, so only the order of the rows counts; --timestamp-column names another "
            "column of times",
        ),
        (
            {"timestamp": START + pl.col("user_id") * DAY},
            "100 % of events have the time of the user's event before; they keep the order of the rows; name a column "
            "of finer times (--timestamp-column), or make sure that the rows are in order",
        ),
        (
            {"user_id": pl.int_range(pl.len())},
            "1,200 of 1,200 users have one event only, and a single event tells of no order; is 'user_id' the user? "
            "--user-column names another column",
        ),
        (
            {"item_id": pl.int_range(pl.len())},
            "1,200 items share 1,200 events, so most have one or two, from which nothing is learned; is 'item_id' the "
            "item? --item-column names another column; --k-core 5 leaves rare items out",
        ),
        (
            {"item_id": pl.col("item_id") % 8},
            "there are only 8 items, so a list of 10 says little; check the item column (--item-column)",
        ),
        (
            {"item_id": pl.when(pl.int_range(pl.len()) % 3 == 0).then(99).otherwise("item_id")},
            "item 99 has 33.3 % of all events; leave it out before training if it stands for no item, such as a home "
            "page",
        ),
        (
            {"user_id": pl.when(pl.int_range(pl.len()) < 300).then(0).otherwise("user_id")},
            "user 0 has 25 % of all events; leave them out before training if this is a robot, or a word for users "
            "who are not known",
        ),
        (
            {"item_id": pl.int_range(pl.len()) // 2 % 30},
            "60 % of events have the item of the user's event before, which is easily predicted; --repeats "
            "consecutive keeps one of each, if they are reloads rather than choices",
        ),
    ],
)
def test_an_oddity_is_told_with_its_fix(changes: dict[str, Any], told: str) -> None:
    assert told in texts(usual().with_columns(**changes))


def test_rows_of_the_same_time_that_are_newest_first_are_probably_in_the_wrong_order() -> None:
    days = usual().with_columns(timestamp=START + pl.col("user_id") * DAY)
    told = [text for text in texts(days.sort("timestamp", descending=True)) if "newest first" in text]
    assert told == [
        "100 % of events have the time of the user's event before; they keep the order of the rows, which are newest "
        "first: probably the wrong order; sort the log by time, oldest first"
    ]
    assert not [text for text in texts(days) if "newest first" in text]


def test_short_users_are_counted_and_few_measured_users_too() -> None:
    log = pl.concat([usual(50), pl.DataFrame({"user_id": [900], "item_id": [1], "timestamp": [START]})])
    assert [text.partition(";")[0] for text in texts(log)] == [
        "1 of 51 users have fewer than 3 events",
        "metrics have wide intervals, because only 50 of the users can be measured",
    ]


def test_a_log_of_users_with_one_or_two_events_cannot_be_trained_on() -> None:
    assert any(text.startswith("no user has 3 events") for text in texts(usual().group_by("user_id").head(2)))


def test_without_times_the_rows_must_be_in_order() -> None:
    assert any(text.startswith("there is no time column") for text in texts(make_markov_log()))


def test_events_that_are_there_twice_are_told_by_user_item_and_time() -> None:
    log = usual()
    twice = load_log(pl.concat([log, log.head(120)]))
    assert twice_share(twice) == pytest.approx(120 / 1320)
    assert any(text.startswith("9.09 % of events are there before, with the same user") for text in texts(twice))
    assert twice_share(load_log(pl.concat([log, log.head(120)]).drop("timestamp"))) == 0


def test_repeats_are_told_where_they_change_what_is_recommended() -> None:
    again = usual().filter(pl.int_range(pl.len()) % 6 == 0).with_columns(pl.col("timestamp") + 10**7)
    assert any("so items that a user had stay in the lists" in text for text in texts(pl.concat([usual(), again])))


def test_the_largest_user_and_the_top_item_have_their_share() -> None:
    log = load_log(pl.DataFrame({"user_id": ["a", "a", "a", "b"], "item_id": [5, 7, 7, 7]}))
    titled = log.with_titles(pl.DataFrame({"item_id": [7], "title": ["Seven"]}))
    assert (largest_user(log).id, largest_user(log).share) == ("a", 0.75)
    assert (str(most_popular(log)), str(most_popular(titled)), most_popular(log).share) == ("7", "7: Seven", 0.75)


def test_few_titles_are_told() -> None:
    log = load_log(usual())
    titles = pl.DataFrame({"item_id": range(40), "title": [f"t{i}" for i in range(40)]})
    assert texts(log.with_titles(titles)) == []
    assert texts(log.with_titles(titles.head(3))) == [
        "only 3 of 30 items have a title; --title-item-column names the column of the titles' item ids"
    ]


def test_what_the_reader_noted_comes_first_without_folders() -> None:
    log = load_log(usual())
    read = log.sequences.understanding
    assert read is not None
    noted = replace(read, source="/data/shop/a.csv", notes=[Note("/data/shop/a.csv: odd", "mend it")])
    assert texts(replace(log, sequences=replace(log.sequences, understanding=noted))) == ["odd; mend it"]

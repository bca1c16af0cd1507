"""What is odd about a log that has been read, and what to do about it: for those who are about to train on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from sasrec.data.logs import FEW_TITLES, Log
from sasrec.data.splits import REPEAT_THRESHOLD
from sasrec.reading.checks import MISSING_WORDS
from sasrec.reading.columns import EVENT_NAMES, plain_name
from sasrec.reading.notes import Note
from sasrec.report.run_facts import shown
from sasrec.report.text import percent

NEARLY_ALL = 0.9
LARGE_USER, LARGE_ITEM = 0.1, 0.2  # shares of all events that one user or item seldom has
ENOUGH = 20  # users or items, of which one may be called large
FEW_USERS = 100  # whose metrics have wide intervals
FEW_ITEMS = 20
MANY_TWICE, MANY_IN_A_ROW = 0.01, 0.2


def notes_of(log: Log) -> list[Note]:
    """What the reader noted, then what the events themselves show."""
    understanding = log.sequences.understanding
    read = [] if understanding is None else understanding.without_folders.notes
    of_events = [*_of_users(log), *_of_items(log), *_of_times(log), *_of_repeats(log), *_of_types(log)]
    return [*read, *of_events, *_of_titles(log)]


@dataclass(frozen=True)
class Largest:
    """The user or the item with the most events."""

    id: int | str
    share: float  # of all events
    title: str | None = None

    def __str__(self) -> str:
        return shown(self.id if self.title is None else f"{self.id}: {self.title}")


def largest_user(log: Log) -> Largest:
    """The user with the most events."""
    lengths = np.diff(log.sequences.offsets)
    return Largest(log.sequences.user_ids[int(lengths.argmax())], float(lengths.max() / lengths.sum()))


def most_popular(log: Log) -> Largest:
    """The item with the most events."""
    row, counts, titles = int(log.vocabulary.counts.argmax()), log.vocabulary.counts, log.vocabulary.titles
    return Largest(log.vocabulary.ids[row], float(counts[row] / counts.sum()), None if titles is None else titles[row])


def in_a_row_share(log: Log) -> float:
    """Of events after a user's first, how many are of the same item as the event before."""
    items, offsets = log.sequences.items, log.sequences.offsets
    same = items[1:] == items[:-1]
    same[offsets[1:-1] - 1] = False  # across two users
    return int(same.sum()) / max(len(items) - len(log.sequences), 1)


def twice_share(log: Log) -> float:
    """How many events are there before with the same user, item and time; 0 where there are no times."""
    sequences = log.sequences
    if sequences.timestamps is None:
        return 0.0
    users = np.repeat(np.arange(len(sequences)), np.diff(sequences.offsets))
    events = pl.DataFrame({"user": users, "item": sequences.items, "time": sequences.timestamps})
    return 1 - events.n_unique() / len(events)


def _column(log: Log, role: str) -> str:
    """The column that a role was read from, as messages name it; "" where it is not known."""
    understanding = log.sequences.understanding
    return "" if understanding is None else understanding.columns.get(role, "")


def _of_types(log: Log) -> Iterator[Note]:
    understanding = log.sequences.understanding
    left_alone = [] if understanding is None or "event" in understanding.columns else understanding.left_alone
    columns = [column for column in left_alone if plain_name(column) in EVENT_NAMES]
    for column in columns[:1]:
        yield Note(
            f"column {column!r} may hold types of events, such as view and purchase; all events count alike",
            f"--event-column {column} reads them, and train --target-events says which are to be predicted",
        )


def _of_users(log: Log) -> Iterator[Note]:
    lengths = np.diff(log.sequences.offsets)
    n_users, n_short = len(lengths), log.sequences.facts.n_short_users
    n_single = int((lengths == 1).sum())
    if n_single >= NEARLY_ALL * n_users and n_users > 1:
        asked = f"is {_column(log, 'user')!r} the user? " if _column(log, "user") else ""
        yield Note(
            f"{n_single:,} of {n_users:,} users have one event only, and a single event tells of no order",
            f"{asked}--user-column names another column",
        )
    elif n_short:
        yield Note(
            f"{n_short:,} of {n_users:,} users have fewer than 3 events; leave_one_out measures none of them",
            "none is needed; --k-core 3 leaves them out, and items with fewer than 3 events",
        )
    if n_short == n_users:
        yield Note(
            "no user has 3 events, so leave-one-out can hold out none of them, and train refuses the log",
            "check the user column, or gather events over a longer time",
        )
    elif n_users - n_short < FEW_USERS:
        yield Note(
            f"metrics have wide intervals, because only {n_users - n_short:,} of the users can be measured",
            "train --seeds 5 shows how much of a difference is chance",
        )
    largest = largest_user(log)
    if n_users >= ENOUGH and largest.share > LARGE_USER and largest.id not in MISSING_WORDS:
        yield Note(
            f"user {largest} has {percent(largest.share)} of all events",
            "leave them out before training if this is a robot, or a word for users who are not known",
        )


def _of_items(log: Log) -> Iterator[Note]:
    facts = log.sequences.facts
    largest = most_popular(log)
    if facts.n_items > facts.n_events / 2:
        asked = f"is {_column(log, 'item')!r} the item? " if _column(log, "item") else ""
        yield Note(
            f"{facts.n_items:,} items share {facts.n_events:,} events, so most have one or two, from which nothing "
            "is learned",
            f"{asked}--item-column names another column; --k-core 5 leaves rare items out",
        )
    if facts.n_items < FEW_ITEMS:
        yield Note(
            f"there are only {facts.n_items} items, so a list of 10 says little",
            "check the item column (--item-column)",
        )
    elif largest.share > LARGE_ITEM:
        yield Note(
            f"item {largest} has {percent(largest.share)} of all events",
            "leave it out before training if it stands for no item, such as a home page",
        )


def _of_times(log: Log) -> Iterator[Note]:
    facts, understanding = log.sequences.facts, log.sequences.understanding
    times = log.sequences.timestamps
    if times is None:
        yield Note(
            "there is no time column, so the rows of a user must be oldest first; whether they are cannot be seen",
            "--timestamp-column names a column of times; else sort the log before",
        )
        return
    if len(times) > 1 and times.min() == times.max():
        yield Note(
            "all events have the same time, so only the order of the rows counts",
            "--timestamp-column names another column of times",
        )
        return
    if facts.tied_share and understanding is not None and "newest first" in understanding.row_order:
        yield Note(
            f"{percent(facts.tied_share)} of events have the time of the user's event before; they keep the order of "
            "the rows, which are newest first: probably the wrong order",
            "sort the log by time, oldest first",
        )
    elif facts.tied_share:
        yield Note(
            f"{percent(facts.tied_share)} of events have the time of the user's event before; they keep the order of "
            "the rows",
            "name a column of finer times (--timestamp-column), or make sure that the rows are in order",
        )


def _of_repeats(log: Log) -> Iterator[Note]:
    facts, twice, in_a_row = log.sequences.facts, twice_share(log), in_a_row_share(log)
    if twice > MANY_TWICE:
        yield Note(
            f"{percent(twice)} of events are there before, with the same user, item and time",
            "export the log without duplicates; --repeats consecutive drops those that follow each other",
        )
    if in_a_row > MANY_IN_A_ROW:
        yield Note(
            f"{percent(in_a_row)} of events have the item of the user's event before, which is easily predicted",
            "--repeats consecutive keeps one of each, if they are reloads rather than choices",
        )
    elif facts.repeat_share > REPEAT_THRESHOLD:
        yield Note(
            f"{percent(facts.repeat_share)} of events repeat an item that the user had, so items that a user had "
            "stay in the lists",
            "none is needed; --repeats first keeps one event per user and item",
        )


def _of_titles(log: Log) -> Iterator[Note]:
    n_items, n_titled = len(log.vocabulary), log.vocabulary.n_titled
    if log.vocabulary.titles is not None and n_titled < FEW_TITLES * n_items:
        yield Note(
            f"only {n_titled:,} of {n_items:,} items have a title",
            "--title-item-column names the column of the titles' item ids",
        )

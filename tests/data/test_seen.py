"""Events that an earlier model was trained on are known again in another log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from sasrec.core.config import EvalConfig
from sasrec.data.logs import Log
from sasrec.data.seen import seen_events
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import Split, split_sequences
from sasrec.data.targets import Targets


def read(histories: dict[Any, list[Any]], times: dict[Any, list[int]] | None = None) -> Log:
    frame = pl.DataFrame(
        {
            "user_id": [user for user, items in histories.items() for _ in items],
            "item_id": [item for items in histories.values() for item in items],
        }
    )
    if times is not None:
        frame = frame.with_columns(pl.Series("timestamp", [t for row in times.values() for t in row]))
    return Log(*build_sequences(frame), "made")


def trained_on(log: Log, train_ends: list[int]) -> Split:
    nothing = Targets(np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Split(log.sequences, np.array(train_ends), nothing, nothing, "made")


def seen(old: Log, train_ends: list[int], new: Log, refit: bool = False) -> list[int]:
    split = trained_on(old, train_ends)
    return seen_events(split, refit, old.vocabulary, new.sequences, new.vocabulary).tolist()


def test_the_train_part_of_a_user_is_seen_and_what_was_held_out_is_not() -> None:
    old = read({1: [5, 6, 7, 8], 2: [9, 5, 6]})
    new = read({1: [5, 6, 7, 8, 9], 2: [9, 5, 6, 7]})
    assert seen(old, [2, 5], new) == [0, 1, 5]
    assert seen(old, [2, 5], new, refit=True) == [0, 1, 2, 3, 5, 6, 7]


def test_users_and_items_are_known_by_id_and_those_that_are_gone_do_not_matter() -> None:
    old = read({1: [5, 6, 7], 2: [8, 5], 9: [6, 6]})
    new = read({"a": ["x", "5"], "2": ["5", "y"], "9": ["6", "z", "6"]})
    assert seen(old, [3, 5, 7], new) == [0, 2, 4]  # 2: 5; 9: 6 and 6; no user 1
    assert new.sequences.user_ids.to_list() == ["2", "9", "a"]


def test_of_a_users_events_of_one_item_as_many_are_seen_as_were_trained_on() -> None:
    old = read({1: [5, 5, 6, 5]})
    new = read({1: [5, 5, 6, 5, 5, 6]})
    assert seen(old, [3], new) == [0, 1, 2]


def test_with_times_a_log_whose_oldest_events_are_gone_keeps_its_new_targets() -> None:
    old = read({1: [5, 5, 5, 6]}, {1: [10, 20, 30, 40]})
    new = read({1: [5, 6, 5, 5]}, {1: [30, 40, 50, 60]})
    assert seen(old, [4], new) == [0, 1]
    assert seen(replace_times(old), [4], replace_times(new)) == [0, 1, 2, 3]  # without, the safe answer


def replace_times(log: Log) -> Log:
    return replace(log, sequences=replace(log.sequences, timestamps=None))


def test_times_in_another_unit_are_left_aside() -> None:
    old = read({1: [5, 6, 7, 8]}, {1: [10, 20, 30, 40]})
    new = read({1: [5, 6, 7, 8, 9]}, {1: [10_000, 20_000, 30_000, 40_000, 50_000]})
    assert seen(old, [4], new) == [0, 1, 2, 3]


def test_what_a_model_knows_from_the_one_it_began_from_is_seen_too() -> None:
    old = read({1: [5, 6, 7, 8]})
    known = replace(old, sequences=replace(old.sequences, seen=np.array([3])))
    assert seen(known, [2], read({1: [5, 6, 7, 8, 9]})) == [0, 1, 3]


@given(
    rows=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=8), min_size=1, max_size=5),
    more=st.data(),
)
def test_of_a_log_that_only_grew_exactly_the_train_part_is_seen(rows: list[list[int]], more: st.DataObject) -> None:
    added = [more.draw(st.lists(st.integers(1, 6), max_size=4)) for _ in rows]
    ends = [more.draw(st.integers(0, len(row))) for row in rows]
    old = read(dict(enumerate(rows)))
    new = read({user: row + extra for user, (row, extra) in enumerate(zip(rows, added, strict=True))})
    offsets, new_offsets = old.sequences.offsets, new.sequences.offsets
    expected = [int(new_offsets[user]) + place for user, end in enumerate(ends) for place in range(end)]
    assert seen(old, [int(offsets[user]) + end for user, end in enumerate(ends)], new) == expected


def test_seen_events_are_no_targets_of_a_split_and_are_counted() -> None:
    log = read({1: [1, 2, 3, 4], 2: [2, 3, 1], 3: [1, 2]})
    known = replace(log.sequences, seen=np.array([2, 6]))
    split = split_sequences(known, EvalConfig())
    assert split.valid.positions.tolist() == [5]
    assert split.test.positions.tolist() == [3]
    assert split.n_seen == (1, 1)
    assert split.train_ends.tolist() == split_sequences(log.sequences, EvalConfig()).train_ends.tolist()
    assert split.is_train(np.array([0, 1, 2, 4, 5, 8])).tolist() == [True, True, False, True, False, True]

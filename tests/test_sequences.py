"""Frames -> flat arrays: ids, order, splits."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasrec.config import EvalConfig
from sasrec.errors import DataError, UnknownItemError
from sasrec.interactions import read_interactions
from sasrec.sequences import (
    Ragged,
    Sequences,
    Targets,
    Vocabulary,
    build_sequences,
    hides_seen,
    split_leave_one_out,
    split_sequences,
    split_temporal,
)

rows_strategy = st.lists(st.lists(st.integers(1, 9), max_size=5), max_size=6)


def frame(rows: list[tuple[object, ...]], *names: str) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=list(names or ("user_id", "item_id")), orient="row")


def histories(sequences: Sequences, vocabulary: Vocabulary) -> dict[object, list[object]]:
    return {
        user: vocabulary.ids_of(np.asarray(sequences.history(row))).to_list()
        for row, user in enumerate(sequences.user_ids)
    }


@given(rows_strategy, st.integers(1, 4))
def test_ragged_rows_are_what_was_put_in(rows: list[list[int]], n: int) -> None:
    ragged = Ragged.from_lists(rows)
    assert [ragged.row(i).tolist() for i in range(len(ragged))] == rows
    assert [r.tolist() for r in map(ragged.last(n).row, range(len(rows)))] == [row[-n:] for row in rows]
    order = np.arange(len(rows))[::-1]
    assert [ragged.take(order).row(i).tolist() for i in range(len(rows))] == rows[::-1]
    assert ragged.row_of.tolist() == [i for i, row in enumerate(rows) for _ in row]


def test_events_without_timestamps_keep_their_input_order_within_each_user() -> None:
    log = frame([("b", 3), ("a", 9), ("b", 1), ("a", 2), ("b", 3)])
    assert histories(*build_sequences(log)) == {"a": [9, 2], "b": [3, 1, 3]}


def test_events_are_ordered_by_time_and_ties_keep_input_order() -> None:
    rows: list[tuple[object, ...]] = [(1, 50, 7), (1, 40, 5), (1, 30, 7), (1, 20, 5), (1, 10, 6)]
    log = frame(rows, "user_id", "item_id", "timestamp")
    sequences, vocabulary = build_sequences(log)
    assert histories(sequences, vocabulary) == {1: [40, 20, 10, 50, 30]}
    assert sequences.facts.tied_share == 2 / 4


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 3)), min_size=1))
def test_order_equals_a_stable_sort_of_each_user(rows: list[tuple[int, int, int]]) -> None:
    sequences, vocabulary = build_sequences(frame(list(rows), "user_id", "item_id", "timestamp"))
    expected = {u: [i for _, i, _ in sorted((r for r in rows if r[0] == u), key=lambda r: r[2])] for u, _, _ in rows}
    assert histories(sequences, vocabulary) == expected


def test_integer_users_and_items_are_in_numeric_order_and_texts_in_text_order() -> None:
    sequences, vocabulary = build_sequences(frame([(10, 100), (9, 20), (10, 3)]))
    assert sequences.user_ids.to_list() == [9, 10]
    assert vocabulary.item_ids.to_list() == [3, 20, 100]
    sequences, vocabulary = build_sequences(frame([("10", "x100"), ("9", "x20"), ("a", "x3")]))
    assert sequences.user_ids.to_list() == ["10", "9", "a"]
    assert vocabulary.item_ids.to_list() == ["x100", "x20", "x3"]


def test_sparse_and_negative_integer_ids_are_numbered_densely() -> None:
    sequences, vocabulary = build_sequences(frame([(10**15, -(10**12)), (-5, 7), (-5, 10**17)]))
    assert histories(sequences, vocabulary) == {-5: [7, 10**17], 10**15: [-(10**12)]}
    assert vocabulary.indices_of([-(10**12), 7, 10**17, 8]).tolist() == [1, 2, 3, 0]


def test_vocabulary_looks_up_integers_and_their_text_alike() -> None:
    vocabulary = Vocabulary(pl.Series([5, 2969]))
    assert [vocabulary.index_of(i) for i in (2969, "2969", 2969.0, "02969", "x", None, "")] == [2, 2, 2, 0, 0, 0, 0]
    texts = Vocabulary(pl.Series(["7", "x"]))
    assert [texts.index_of(i) for i in (7, "7", "x")] == [1, 1, 2]
    with pytest.raises(UnknownItemError, match=r"^item 'y' is not in the log this model was trained on \(2 items\)$"):
        texts.known_index("y")


def test_vocabulary_counts_events_and_survives_a_round_trip(tmp_path: Path) -> None:
    _, vocabulary = build_sequences(frame([(1, "a"), (1, "b"), (2, "a")]))
    assert vocabulary.counts.tolist() == [2, 1]
    titled = vocabulary.with_titles(pl.DataFrame({"item_id": ["b", "z"], "title": ["Bee", "Zed"]}))
    again = Vocabulary.from_frame(titled.to_frame())
    assert again.item_ids.to_list() == ["a", "b"]
    assert again.titles_of(np.array([1, 2], np.int32)) == ["a", "Bee"]


def test_known_vocabulary_keeps_its_numbers_and_refuses_other_items() -> None:
    vocabulary = Vocabulary(pl.Series([1, 2, 3, 4]))
    sequences, _ = build_sequences(frame([(1, 4), (1, 2)]), vocabulary)
    assert sequences.items.tolist() == [4, 2]
    with pytest.raises(DataError, match="1 items that the model's vocabulary lacks, such as 9"):
        build_sequences(frame([(1, 9)]), vocabulary)


def test_facts_tell_what_the_log_is_like() -> None:
    log = frame([(1, 5, 1), (1, 6, 1), (1, 5, 2), (2, 5, 2), (2, 5, 3)], "user_id", "item_id", "timestamp")
    facts = build_sequences(log)[0].facts
    assert (facts.n_events, facts.n_users, facts.n_items, facts.n_short_users) == (5, 2, 2, 1)
    assert facts.repeat_share == 2 / 3
    assert facts.tied_share == 1 / 3
    assert facts.has_timestamps


def test_fingerprint_changes_with_any_event_user_item_or_order() -> None:
    base: list[tuple[object, ...]] = [(1, 5), (1, 6), (2, 5)]
    changed: list[list[tuple[object, ...]]] = [
        base[::-1], [(1, 5), (1, 6), (3, 5)], [(1, 5), (1, 7), (2, 5)], [*base, (2, 6)], [(1, 5), (2, 6), (2, 5)]
    ]  # fmt: skip
    prints = {build_sequences(frame(rows))[0].facts.fingerprint for rows in [base, *changed]}
    assert len(prints) == 6
    assert build_sequences(frame(base))[0].facts.fingerprint == build_sequences(frame(list(base)))[0].facts.fingerprint


def test_saved_sequences_come_back_memory_mapped(tmp_path: Path) -> None:
    log = frame([("u", "a", 1.5), ("v", "b", 2.5), ("u", "b", 3.5)], "user_id", "item_id", "timestamp")
    sequences, _ = build_sequences(log)
    sequences.save(tmp_path)
    again = Sequences.load(tmp_path)
    assert isinstance(again.items, np.memmap)
    assert again.items.tolist() == sequences.items.tolist()
    assert again.timestamps is not None
    assert again.timestamps.tolist() == [1.5, 3.5, 2.5]
    assert again.facts == sequences.facts
    assert again.row_of_user("v") == 1
    with pytest.raises(UnknownItemError, match="user 'w' is not in the log"):
        again.row_of_user("w")


SIX = frame([(1, i) for i in (1, 2, 3, 4)] + [(2, i) for i in (5, 6, 7)] + [(3, i) for i in (1, 2)])


@pytest.mark.parametrize(("min_items", "users"), [(3, [0, 1]), (4, [0])])
def test_leave_one_out_takes_the_last_two_events_of_long_enough_users(min_items: int, users: list[int]) -> None:
    sequences, _ = build_sequences(SIX)
    split = split_leave_one_out(sequences, min_items)
    assert split.valid.users.tolist() == split.test.users.tolist() == users
    assert split.valid.items(sequences).tolist() == [3, 6][: len(users)]
    assert split.test.items(sequences).tolist() == [4, 7][: len(users)]
    train = [split.train.row(i).tolist() for i in range(3)]
    assert train == ([[1, 2], [5], [1, 2]] if min_items == 3 else [[1, 2], [5, 6, 7], [1, 2]])
    before = split.test.histories(sequences)
    assert [before.row(i).tolist() for i in range(len(users))] == [[1, 2, 3], [5, 6]][: len(users)]
    assert split.test.histories(sequences, last=1).values.tolist() == [3, 6][: len(users)]


def test_all_events_split_trains_on_everything() -> None:
    split = split_leave_one_out(build_sequences(SIX)[0]).all_events()
    assert split.train.lengths.tolist() == [4, 3, 2]
    assert len(split.valid) == len(split.test) == 0


TIMED = frame(
    [(1, 10, 1), (1, 11, 4), (1, 12, 6), (1, 13, 7), (2, 10, 2), (2, 11, 3), (3, 12, 5), (3, 13, 9), (3, 14, 9)],
    "user_id", "item_id", "timestamp",
)  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "valid", "test"),
    [
        ("first", [(0, 11)], [(0, 12), (2, 13)]),
        ("last", [(0, 11)], [(0, 13), (2, 14)]),
        ("all", [(0, 11)], [(0, 12), (0, 13), (2, 13), (2, 14)]),
    ],
)
def test_temporal_split_cuts_all_users_at_one_time(
    targets: str, valid: list[tuple[int, int]], test: list[tuple[int, int]]
) -> None:
    sequences, vocabulary = build_sequences(TIMED)
    split = split_temporal(sequences, valid_cut=4, test_cut=6, targets=targets)  # type: ignore[arg-type]

    def pairs(part: Targets) -> list[tuple[int, int]]:
        return list(zip(part.users.tolist(), vocabulary.ids_of(part.items(sequences)).to_list(), strict=True))

    assert pairs(split.valid) == valid  # user 3 had nothing before time 5
    assert pairs(split.test) == test
    assert split.train.lengths.tolist() == [1, 2, 0]
    assert split.test.histories(sequences).row(0)[:2].tolist() == [1, 2]


def test_temporal_split_by_fractions_and_its_errors() -> None:
    sequences, _ = build_sequences(TIMED)
    config = EvalConfig(split_method="temporal", valid_fraction=0.3, test_fraction=0.3)
    split = split_sequences(sequences, config)
    assert split.method == "temporal"
    times = sequences.timestamps
    assert times is not None
    cut = times[split.test.positions].min()
    assert times[split.valid.positions].max() < cut
    with pytest.raises(DataError, match="needs timestamps"):
        split_sequences(build_sequences(SIX)[0], config)
    with pytest.raises(DataError, match="leaves no test targets"):
        split_temporal(sequences, 4, 100)
    with pytest.raises(DataError, match="nothing to train on"):
        split_temporal(sequences, 0, 6)


def test_seen_items_are_hidden_unless_repeats_are_common_or_the_user_says() -> None:
    split = split_leave_one_out(build_sequences(SIX)[0])
    repeating = split_leave_one_out(build_sequences(frame([(1, 1), (1, 1), (1, 1), (1, 2)]))[0])
    assert hides_seen(split, EvalConfig())
    assert not hides_seen(repeating, EvalConfig())
    assert hides_seen(repeating, EvalConfig(filter_seen="yes"))
    assert not hides_seen(split, EvalConfig(filter_seen="no"))


@pytest.mark.data
def test_published_files_give_the_published_numbers_of_evaluated_users(shared: Path) -> None:
    sequences, vocabulary = build_sequences(read_interactions(shared / "data" / "Video.txt"))
    assert len(split_leave_one_out(sequences, 3).test) == 30_901
    assert len(split_leave_one_out(sequences, 4).test) == 30_629
    assert vocabulary.item_ids.to_list() == list(range(1, 23_716))
    assert dataclasses.asdict(split_leave_one_out(sequences).statistics)["n_items"] == 23_715

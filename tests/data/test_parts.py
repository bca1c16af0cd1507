"""A log that is looked at some users at a time gives what it gives as a whole."""

from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import train_of

from sasrec.core.errors import UnknownItemError
from sasrec.data import sequences as sequences_module
from sasrec.data.facts import repeat_share, row_slices
from sasrec.data.ragged import Ragged, offsets_of
from sasrec.data.sequences import Sequences, build_sequences
from sasrec.data.splits import Split, split_leave_one_out, split_temporal
from sasrec.ranking import scorers
from sasrec.ranking.scorers import LastItem


def made_log(n_users: int = 40, seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    n = 25 * n_users
    events = {"user_id": rng.integers(0, n_users, n), "item_id": rng.integers(0, 30, n), "timestamp": rng.random(n)}
    return build_sequences(pl.DataFrame(events))[0]


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 12))
def test_parts_cover_all_rows_in_order_and_hold_no_more_events_than_asked(lengths: list[int], n_events: int) -> None:
    offsets = offsets_of(np.array(lengths))
    parts = list(row_slices(offsets, n_events))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(len(lengths)))
    for part in parts:
        assert part.stop - part.start == 1 or sum(lengths[part]) <= n_events


def splits(log: Sequences) -> list[Split]:
    return [split_leave_one_out(log), *(split_temporal(log, 0.6, 0.8, which) for which in ("first", "last", "all"))]


def test_splits_counts_and_shares_do_not_depend_on_the_size_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = splits(made_log())
    told = [(split.repeat_share, split.facts.repeat_share, split.train_counts) for split in whole]
    monkeypatch.setattr(sequences_module, "PART_EVENTS", 70)
    log = made_log()
    assert len(list(log.parts())) > 10
    for split, before, (share, of_all, counts) in zip(splits(log), whole, told, strict=True):
        for name in ("valid", "test"):
            np.testing.assert_array_equal(split.part(name).positions, before.part(name).positions)
            np.testing.assert_array_equal(split.part(name).users, before.part(name).users)
        np.testing.assert_array_equal(split.train_ends, before.train_ends)
        np.testing.assert_array_equal(split.train_counts, counts)
        assert (split.repeat_share, split.facts.repeat_share) == (share, of_all)
        joined = [row.tolist() for part in split.train_parts() for row in map(part.row, range(len(part)))]
        assert joined == [train_of(split).row(row).tolist() for row in range(len(train_of(split)))]


def test_repeats_are_counted_within_users_whatever_the_parts() -> None:
    rows = Ragged.from_lists([[1, 2, 1], [2], [], [3, 3, 3]])
    halves = (rows.part(slice(0, 2)), rows.part(slice(2, 4)))
    assert repeat_share([rows], 3) == repeat_share(halves, 3) == 3 / 4


def test_followers_of_the_items_asked_about_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_leave_one_out(made_log())
    monkeypatch.setattr(sequences_module, "PART_EVENTS", 70)
    histories = split.test.take(np.arange(5)).histories(split.sequences)
    last = np.array([histories.row(row)[-1] for row in range(5)])
    everything = LastItem([train_of(split)], split.train_counts)
    asked = LastItem(split.train_parts(), split.train_counts, last)
    assert len(asked.pairs) < len(everything.pairs)
    np.testing.assert_array_equal(asked.scores(histories), everything.scores(histories))
    candidates = np.tile(np.arange(1, 31, dtype=np.int32), (5, 1))
    np.testing.assert_array_equal(
        asked.candidate_scores(histories, candidates), everything.candidate_scores(histories, candidates)
    )


def test_ranks_do_not_depend_on_how_many_followers_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_leave_one_out(made_log())
    histories, targets = split.test.histories(split.sequences), split.test.items(split.sequences)
    last_item = LastItem(split.train_parts(), split.train_counts)
    whole = [last_item.rank(histories, targets, hidden, "expected", 5) for hidden in (None, histories)]
    monkeypatch.setattr(scorers, "MOST_FOLLOWERS", 20)
    for (ranks, lists), hidden in zip(whole, (None, histories), strict=True):
        again = last_item.rank(histories, targets, hidden, "expected", 5)
        np.testing.assert_array_equal(again[0], ranks)
        np.testing.assert_array_equal(again[1], lists)


@pytest.mark.parametrize("ids", [[-7, 3, 2**62], ["", "a b", "ü"]])
def test_many_users_are_found_by_search_as_few_are_by_a_table(
    ids: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pl.DataFrame({"user_id": ids, "item_id": [1, 2, 3]})
    few = build_sequences(events)[0]
    many = replace(few)
    asked = [*ids, 3.0, "3", "03", 2**80, -(2**80), None, True, "zz", b"a"]

    def found(log: Sequences, value: object) -> int | None:
        try:
            return log.row_of_user(value)
        except UnknownItemError:
            return None

    rows = [found(few, value) for value in asked]
    monkeypatch.setattr(sequences_module, "MANY_USERS", 0)
    assert [found(many, value) for value in asked] == rows
    assert rows[:3] == [0, 1, 2]
    assert "_rows" not in vars(many)


@given(st.lists(st.lists(st.integers(0, 11), max_size=9), max_size=5), st.integers(1, 9), st.integers(0, 3))
def test_numbers_are_counted_in_place_whatever_the_pieces(parts: list[list[int]], piece: int, more: int) -> None:
    wanted = Counter(number for part in parts for number in part)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scorers, "PIECE", piece)
        found, counts = scorers._counted((np.array(part, np.int64) for part in parts), wanted.total() + more, 99)
    assert found.tolist() == [*sorted(wanted), 99]
    assert counts.tolist() == [wanted[number] for number in sorted(wanted)]

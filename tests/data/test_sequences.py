"""Frames -> flat arrays: ids, order, splits."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import train_of

from sasrec.core.config import EvalConfig
from sasrec.core.errors import ConfigError, DataError, UnknownItemError
from sasrec.data.ragged import Ragged
from sasrec.data.sequences import Sequences, build_sequences
from sasrec.data.splits import hides_seen, split_leave_one_out, split_sequences, split_temporal
from sasrec.data.targets import Targets
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.readers import read_interactions

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


def test_ids_as_integers_texts_and_floats_are_the_same_log() -> None:
    users, items = [10, 9, 10, 9, 10], [100, 20, 3, 3, 100]
    logs = [
        read_interactions(pl.DataFrame({"user_id": pl.Series(users).cast(u), "item_id": pl.Series(items).cast(i)}))
        for u in (pl.Int32, pl.String, pl.Float64)
        for i in (pl.UInt16, pl.String, pl.Float64)
    ]
    built = [build_sequences(log) for log in logs]
    assert len({sequences.facts.fingerprint for sequences, _ in built}) == 1
    for sequences, vocabulary in built:
        assert histories(sequences, vocabulary) == {9: [20, 3], 10: [100, 3, 100]}
        assert sequences.row_of_user("10") == sequences.row_of_user(10) == 1


def test_sparse_and_negative_integer_ids_are_numbered_densely() -> None:
    sequences, vocabulary = build_sequences(frame([(10**15, -(10**12)), (-5, 7), (-5, 10**17)]))
    assert histories(sequences, vocabulary) == {-5: [7, 10**17], 10**15: [-(10**12)]}
    assert vocabulary.indices_of([-(10**12), 7, 10**17, 8]).tolist() == [1, 2, 3, 0]


def test_vocabulary_looks_up_integers_and_their_text_alike() -> None:
    vocabulary = Vocabulary(pl.Series([5, 2969]))
    assert [vocabulary.index_of(i) for i in (2969, "2969", 2969.0, "02969", "x", None, "")] == [2, 2, 2, 0, 0, 0, 0]
    texts = Vocabulary(pl.Series(["7", "x"]))
    assert Vocabulary(pl.Series(["None"])).index_of(None) == 0
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
    assert again.counts.tolist() == [2, 1]
    assert Vocabulary.from_frame(titled.to_frame().reverse()).to_frame().equals(titled.to_frame())
    assert Vocabulary(vocabulary.item_ids).counts.tolist() == [0, 0]
    assert vocabulary.titles_of(np.array([2], np.int32)) == ["b"]


@pytest.mark.parametrize(("ids", "names"), [([5, 9], ["9", "5"]), (["5", "x"], [5, 9]), ([5, 9], ["9", "y"])])
def test_titles_meet_their_items_whether_ids_are_numbers_or_texts(ids: list[object], names: list[object]) -> None:
    titles = pl.DataFrame({"item_id": names, "title": [f"title of {name}" for name in names]})
    vocabulary = Vocabulary(pl.Series(ids, strict=False)).with_titles(titles)
    known = {str(name) for name in names}
    expected = [f"title of {i}" if str(i) in known else str(i) for i in ids]
    assert vocabulary.titles_of(np.array([1, 2], np.int32)) == expected


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
        base[::-1], [(1, 5), (1, 6), (3, 5)], [(1, 5), (1, 7), (2, 5)], [*base, (2, 6)], [(1, 5), (2, 6), (2, 5)],
        [(1, "5"), (1, "6x"), (2, "5")], [(1, "56"), (1, "x"), (2, "56")], [("1", 5), ("1", 6), ("2x", 5)],
    ]  # fmt: skip
    prints = {build_sequences(frame(rows))[0].facts.fingerprint for rows in [base, *changed]}
    assert len(prints) == 9


def test_fingerprint_is_of_the_log_and_not_of_how_users_are_interleaved_or_the_version_of_polars() -> None:
    rows: list[tuple[object, ...]] = [("u", 5), ("u", 6), ("v", 5)]
    fingerprints = {
        build_sequences(frame([rows[i] for i in order]))[0].facts.fingerprint
        for order in ([0, 1, 2], [0, 2, 1], [2, 0, 1])
    }
    assert fingerprints == {"30b39d886b68b3de3a2445b4c7b9e96b"}


def test_fingerprint_changes_with_times_even_when_their_order_does_not() -> None:
    def fingerprint(*times: float | None) -> str:
        log = frame([(1, 5), (1, 6), (1, 7)])
        log = log if times == (None,) else log.with_columns(timestamp=pl.Series(times))
        return build_sequences(log)[0].facts.fingerprint

    assert len({fingerprint(None), fingerprint(1, 2, 3), fingerprint(1, 2, 4), fingerprint(1.5, 2.0, 3.0)}) == 4


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 3)), min_size=1))
def test_facts_equal_a_count_by_hand(rows: list[tuple[int, int, int]]) -> None:
    facts = build_sequences(frame(list(rows), "user_id", "item_id", "timestamp"))[0].facts
    per_user = [sorted((r for r in rows if r[0] == u), key=lambda r: r[2]) for u in {u for u, _, _ in rows}]
    later = sum(len(events) - 1 for events in per_user)
    repeats = sum(len(events) - len({item for _, item, _ in events}) for events in per_user)
    tied = sum(a[2] == b[2] for events in per_user for a, b in itertools.pairwise(events))
    assert (facts.n_events, facts.n_users) == (len(rows), len(per_user))
    assert facts.n_items == len({item for _, item, _ in rows})
    assert facts.n_short_users == sum(len(events) < 3 for events in per_user)
    assert facts.repeat_share == pytest.approx(repeats / max(later, 1))
    assert facts.tied_share == pytest.approx(tied / max(later, 1))


def test_ties_and_short_users_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    build_sequences(frame([(1, 5, 1), (1, 6, 1), (2, 5, 2)], "user_id", "item_id", "timestamp"))
    assert "100.0 % of events share their timestamp" in caplog.text
    assert "2 of 2 users have fewer than 3 events; leave_one_out measures none of them" in caplog.text
    caplog.clear()
    build_sequences(frame([(1, 5, 1), (1, 6, 2), (1, 5, 3)], "user_id", "item_id", "timestamp"))
    assert not caplog.text


def test_log_without_events_is_refused() -> None:
    with pytest.raises(DataError, match="the log has no events"):
        build_sequences(frame([(1, 2)]).head(0))


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


def test_sequences_without_timestamps_are_saved_and_loaded_too(tmp_path: Path) -> None:
    sequences, _ = build_sequences(frame([(1, 5), (1, 6), (2, 5)]))
    sequences.save(tmp_path)
    again = Sequences.load(tmp_path)
    assert again.timestamps is None
    assert not again.facts.has_timestamps
    assert again.items.tolist() == [1, 2, 1]


@pytest.mark.parametrize("name", ["items.npy", "offsets.npy", "timestamps.npy", "users.parquet", "facts.json"])
def test_files_of_another_log_are_not_mixed_in(tmp_path: Path, name: str) -> None:
    for folder, n in (("one", 4), ("other", 3)):
        (tmp_path / folder).mkdir()
        log = pl.DataFrame({"user_id": range(n), "item_id": range(n), "timestamp": range(n)})
        build_sequences(log)[0].save(tmp_path / folder)
    (tmp_path / "one" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ValueError, match="not of one log"):
        Sequences.load(tmp_path / "one")


SIX = frame([(1, i) for i in (1, 2, 3, 4)] + [(2, i) for i in (5, 6, 7)] + [(3, i) for i in (1, 2)])


@pytest.mark.parametrize(("min_items", "users"), [(3, [0, 1]), (4, [0])])
def test_leave_one_out_takes_the_last_two_events_of_long_enough_users(min_items: int, users: list[int]) -> None:
    sequences, _ = build_sequences(SIX)
    split = split_leave_one_out(sequences, min_items)
    assert split.valid.users.tolist() == split.test.users.tolist() == users
    assert split.valid.items(sequences).tolist() == [3, 6][: len(users)]
    assert split.test.items(sequences).tolist() == [4, 7][: len(users)]
    train = [train_of(split).row(i).tolist() for i in range(3)]
    assert train == ([[1, 2], [5], [1, 2]] if min_items == 3 else [[1, 2], [5, 6, 7], [1, 2]])
    before = split.test.histories(sequences)
    assert [before.row(i).tolist() for i in range(len(users))] == [[1, 2, 3], [5, 6]][: len(users)]
    assert split.test.histories(sequences, last=1).values.tolist() == [3, 6][: len(users)]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=6), st.integers(3, 5))
def test_leave_one_out_is_each_long_users_list_cut_at_its_end(rows: list[list[int]], min_items: int) -> None:
    log = frame([(u, i) for u, row in enumerate(rows) for i in row])
    sequences, vocabulary = build_sequences(log)
    long = [u for u, row in enumerate(rows) if len(row) >= min_items]
    if not long:
        with pytest.raises(DataError, match=f"has {min_items} events or more"):
            split_leave_one_out(sequences, min_items)
        return
    split = split_leave_one_out(sequences, min_items)

    def ids(part: Ragged) -> list[list[int]]:
        return [vocabulary.ids_of(part.row(i)).to_list() for i in range(len(part))]

    assert ids(train_of(split)) == [row[:-2] if u in long else row for u, row in enumerate(rows)]
    for part, cut in ((split.valid, -2), (split.test, -1)):
        assert part.users.tolist() == long
        assert vocabulary.ids_of(part.items(sequences)).to_list() == [rows[u][cut] for u in long]
        assert ids(part.histories(sequences)) == [rows[u][:cut] for u in long]
        assert ids(part.histories(sequences, last=2)) == [rows[u][:cut][-2:] for u in long]
    trained = list(itertools.chain(*ids(train_of(split))))
    assert split.train_counts[1:].tolist() == [trained.count(i) for i in vocabulary.item_ids]
    assert split.statistics.mean_train_len == pytest.approx(np.mean([len(row) for row in ids(train_of(split))]))
    assert split.statistics.n_events == split.train_counts.sum()


def test_only_valid_and_test_are_parts_of_a_split() -> None:
    split = split_leave_one_out(build_sequences(SIX)[0])
    assert split.part("valid") is split.valid
    assert split.part("test") is split.test
    with pytest.raises(ConfigError, match="split 'train' is not one of valid, test"):
        split.part("train")


def test_all_events_split_trains_on_everything() -> None:
    split = split_leave_one_out(build_sequences(SIX)[0]).all_events()
    assert train_of(split).lengths.tolist() == [4, 3, 2]
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
    split = split_temporal(sequences, valid_cut=4, test_cut=6, targets=targets)

    def pairs(part: Targets) -> list[tuple[int, int]]:
        return list(zip(part.users.tolist(), vocabulary.ids_of(part.items(sequences)).to_list(), strict=True))

    assert pairs(split.valid) == valid  # user 3 had nothing before time 5
    assert pairs(split.test) == test
    assert train_of(split).lengths.tolist() == [1, 2, 0]
    assert split.test.histories(sequences).row(0)[:2].tolist() == [1, 2]


@pytest.mark.parametrize("targets", ["first", "last", "all"])
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=25),
    cuts=st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted),
)
def test_temporal_split_equals_each_user_cut_by_hand(
    targets: str, rows: list[tuple[int, int, int]], cuts: list[int]
) -> None:
    sequences, vocabulary = build_sequences(frame(list(rows), "user_id", "item_id", "timestamp"))
    by_user = [sorted((r for r in rows if r[0] == u), key=lambda r: r[2]) for u in sorted({u for u, _, _ in rows})]
    spans = {"valid": (cuts[0], cuts[1]), "test": (cuts[1], 99)}
    chosen = {"first": slice(0, 1), "last": slice(-1, None), "all": slice(None)}[targets]
    expected = {
        part: [
            (u, events[i][1], [item for _, item, _ in events[:i]])
            for u, events in enumerate(by_user)
            for i in [i for i, event in enumerate(events) if low <= event[2] < high][chosen]
            if i > 0
        ]
        for part, (low, high) in spans.items()
    }
    train = [[item for _, item, time in events if time < cuts[0]] for events in by_user]
    if not any(train) or not expected["valid"] or not expected["test"]:
        with pytest.raises(DataError, match=r"nothing to train on|leaves no (valid|test) targets"):
            split_temporal(sequences, *cuts, targets)
        return
    split = split_temporal(sequences, *cuts, targets)
    assert [vocabulary.ids_of(train_of(split).row(u)).to_list() for u in range(len(by_user))] == train
    for name, events in expected.items():
        part = split.part(name)
        before = part.histories(sequences)
        found = zip(part.users.tolist(), vocabulary.ids_of(part.items(sequences)), range(len(part)), strict=True)
        assert [(u, i, vocabulary.ids_of(before.row(row)).to_list()) for u, i, row in found] == events


def test_fractions_of_a_temporal_split_are_shares_of_the_events() -> None:
    log = pl.DataFrame({"user_id": [1, 2] * 5, "item_id": range(10), "timestamp": range(1, 11)})
    sequences, _ = build_sequences(log)
    by_fraction = EvalConfig(split_method="temporal", valid_fraction=0.2, test_fraction=0.2, temporal_targets="all")
    by_cut = EvalConfig(split_method="temporal", valid_cut=7, test_cut=9, temporal_targets="all")
    for config in (by_fraction, by_cut):
        split = split_sequences(sequences, config)
        assert sequences.timestamps is not None
        assert sorted(sequences.timestamps[split.valid.positions]) == [7, 8]
        assert sorted(sequences.timestamps[split.test.positions]) == [9, 10]
        assert split.statistics.n_events == 6


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


@pytest.mark.parametrize(("n_items", "hidden"), [(20, True), (19, False)])
def test_five_percent_of_repeats_still_hide_and_more_do_not(n_items: int, hidden: bool) -> None:
    log = frame([(1, i) for i in [*range(n_items), 0]])  # one of n_items later events is a repeat
    assert hides_seen(split_leave_one_out(build_sequences(log)[0]), EvalConfig()) == hidden


def test_published_files_give_the_published_numbers_of_evaluated_users(shared: Path) -> None:
    sequences, vocabulary = build_sequences(read_interactions(shared / "data" / "Video.txt"))
    assert len(split_leave_one_out(sequences, 3).test) == 30_901
    assert len(split_leave_one_out(sequences, 4).test) == 30_629
    assert vocabulary.item_ids.to_list() == list(range(1, 23_716))
    assert dataclasses.asdict(split_leave_one_out(sequences).statistics)["n_items"] == 23_715


def test_histories_of_ml_1m_are_the_lines_of_each_user_in_file_order(shared: Path) -> None:
    path = shared / "data" / "ml-1m.txt"
    sequences, vocabulary = build_sequences(read_interactions(path))
    split = split_leave_one_out(sequences)
    assert (len(sequences), len(vocabulary), split.statistics.n_events) == (6040, 3416, 999_611 - 2 * 6040)
    assert split.statistics.mean_train_len == pytest.approx(163.5, abs=0.05)
    rows = np.loadtxt(path, np.int64)
    for user in (0, 17, 6039):
        mine = rows[rows[:, 0] == sequences.user_ids[user], 1]
        assert vocabulary.ids_of(np.asarray(sequences.history(user))).to_list() == mine.tolist()

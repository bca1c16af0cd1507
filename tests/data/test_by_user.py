"""temporal_by_user: one cut in time, before which some users validate; beside a plain reading of what it says."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasrec.core.config import EvalConfig, ModelConfig, TemporalTargets, TrainConfig, from_dict, to_dict
from sasrec.core.errors import ConfigError, DataError
from sasrec.data import sequences as sequences_module
from sasrec.data.batches import TrainBatches
from sasrec.data.logs import Reading, load_log
from sasrec.data.sequences import Sequences, build_sequences
from sasrec.data.splits import Split, cut_after, split_sequences, split_temporal_by_user

Event = tuple[int, float, str]  # item index, time, type
Shown = dict[int, list[tuple[list[int], int]]]  # by user row: histories and targets


def sequences_of(*users: list[tuple[int, float]], types: list[list[str]] | None = None) -> Sequences:
    """Users 0, 1, ... with these items and times."""
    columns: dict[str, Any] = {
        "user_id": [user for user, events in enumerate(users) for _ in events],
        "item_id": [item for events in users for item, _ in events],
        "timestamp": [time for events in users for _, time in events],
    }
    if types is not None:
        columns["event"] = [word for row in types for word in row]
    return build_sequences(pl.DataFrame(columns))[0]


def shown(split: Split, part: str) -> Shown:
    targets = split.part(part)
    rows: Shown = {}
    histories = targets.histories(split.sequences)
    for i, (user, item) in enumerate(zip(targets.users, targets.items(split.sequences), strict=True)):
        rows.setdefault(int(user), []).append((histories.row(i).tolist(), int(item)))
    return rows


def train_of(split: Split) -> list[list[int]]:
    return [row.tolist() for part in split.train_parts() for row in map(part.row, range(len(part)))]


LOG = [
    [(1, 1), (2, 2), (3, 3), (4, 10)],
    [(2, 1), (3, 4), (1, 11), (4, 12)],
    [(3, 2), (1, 10), (2, 13)],  # one event before the cut: no training user
    [(4, 10), (1, 11), (3, 12)],  # none
    [(2, 5), (4, 6)],  # none after it
    [(1, 10)],
]


def test_known_answer_of_a_small_log() -> None:
    split = split_temporal_by_user(sequences_of(*LOG), 10, 1, 0, "last")
    (validating,) = split.valid.users.tolist()
    assert validating in (0, 1, 4)
    assert shown(split, "valid") == {validating: [{0: ([1, 2], 3), 1: ([2], 3), 4: ([2], 4)}[validating]]}
    before = {0: [1, 2, 3], 1: [2, 3], 4: [2, 4]}
    assert train_of(split) == [before.get(user, []) if user != validating else [] for user in range(6)]
    assert shown(split, "test") == {
        0: [([1, 2, 3], 4)], 1: [([2, 3, 1], 4)], 2: [([3, 1], 2)], 3: [([4, 1], 3)]
    }  # fmt: skip
    assert (split.cut, split.sampled_of, split.method) == (10, (3, 0), "temporal_by_user")


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ("first", {0: [([1, 2, 3], 4)], 1: [([2, 3], 1)], 2: [([3], 1)], 3: [([4], 1)]}),
        (
            "all",
            {
                0: [([1, 2, 3], 4)],
                1: [([2, 3], 1), ([2, 3, 1], 4)],
                2: [([3], 1), ([3, 1], 2)],
                3: [([4], 1), ([4, 1], 3)],
            },
        ),
    ],
)
def test_a_user_without_events_before_the_cut_has_the_second_one_as_first_target(
    targets: TemporalTargets, told: Shown
) -> None:
    assert shown(split_temporal_by_user(sequences_of(*LOG), 10, 1, 0, targets), "test") == told


def test_validating_users_are_drawn_by_the_seed_alone_and_all_may_be() -> None:
    sequences = sequences_of(*([(user % 3 + 1, 0), (user % 3 + 2, 1), (1, 9)] for user in range(30)))
    drawn = [tuple(split_temporal_by_user(sequences, 5, 4, seed).valid.users.tolist()) for seed in range(60)]
    assert drawn[3] == tuple(split_temporal_by_user(sequences, 5, 4, 3).valid.users.tolist())
    assert all(len(set(users)) == 4 and list(users) == sorted(users) for users in drawn)
    assert {user for users in drawn for user in users} == set(range(30))


# The oracle: loops over users, no arrays.


def plain_split(
    rows: list[list[Event]], cut: float, targets: str, types: tuple[str, ...]
) -> tuple[dict[int, list[int]], Shown, Shown]:
    """Training users' items, what each of those who may validate would be asked, and the test targets."""
    training: dict[int, list[int]] = {}
    valid: Shown = {}
    test: Shown = {}
    for user, events in enumerate(rows):
        items = [item for item, _, _ in events]
        before = [i for i, (_, time, _) in enumerate(events) if time < cut]
        wanted = [i for i, (_, _, kind) in enumerate(events) if not types or kind in types]
        if len(before) >= 2:
            training[user] = [items[i] for i in before]
            asked = [i for i in before if i in wanted and i > 0]
            if asked:
                valid[user] = [(items[: asked[-1]], items[asked[-1]])]
        after = [i for i in wanted if i not in before and i > 0]
        if after:
            chosen = {"first": after[:1], "last": after[-1:], "all": after}[targets]
            test[user] = [(items[:i], items[i]) for i in chosen]
    return training, valid, test


events = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 9), st.sampled_from(["view", "buy"])), min_size=1, max_size=7
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(events, min_size=1, max_size=8),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from(["first", "last", "all"]),
    st.booleans(),
    st.integers(0, 5),
)
def test_any_log_is_cut_as_loops_over_its_users_cut_it(
    log: list[list[tuple[int, int, str]]], cut: int, n: int, targets: TemporalTargets, typed: bool, seed: int
) -> None:
    log = [sorted(row, key=lambda event: event[1]) for row in log]
    known = {item: i for i, item in enumerate(sorted({item for row in log for item, _, _ in row}), 1)}
    rows = [[(known[item], float(time), kind) for item, time, kind in row] for row in log]
    sequences = sequences_of(
        *[[(item, time) for item, time, _ in row] for row in log], types=[[kind for *_, kind in row] for row in log]
    )
    types = ("buy",) if typed and "buy" in sequences.facts.event_types else ()
    training, may_validate, asked = plain_split(rows, cut, targets, types)
    try:
        split = split_temporal_by_user(sequences, cut, n, seed, targets, types)
    except (ConfigError, DataError):
        assert not may_validate or n > len(may_validate) or n >= len(training) or not asked
        return
    validating = split.valid.users.tolist()
    assert len(validating) == n
    assert shown(split, "valid") == {user: may_validate[user] for user in validating}
    assert shown(split, "test") == asked
    expected = [training.get(user, []) if user not in validating else [] for user in range(len(rows))]
    assert train_of(split) == expected
    trained = np.concatenate([np.arange(*ends) for ends in zip(sequences.offsets[:-1], split.train_ends, strict=True)])
    assert sequences.timestamps is not None
    assert (sequences.timestamps[trained.astype(int)] < cut).all()
    assert split.sampled_of[0] == len(may_validate)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=40), st.sampled_from([0.1, 0.05, 0.2, 0.3]))
def test_the_cut_tells_the_same_events_apart_as_the_quantile(times: list[int], share: float) -> None:
    sequences = sequences_of([(1, time) for time in times])
    quantile = np.quantile(times, 1 - share)
    if quantile == max(times):
        with pytest.raises(DataError, match="no event is later than the quantile"):
            cut_after(sequences, share)
        return
    cut = cut_after(sequences, share)
    assert [time < cut for time in times] == [time <= quantile for time in times]


def test_nanoseconds_are_cut_to_the_unit() -> None:
    base = 2**60
    sequences = sequences_of([(1, base), (2, base + 1), (3, base + 2), (4, base + 3)])
    assert cut_after(sequences, 0.3) == base + 3


def test_a_log_is_cut_alike_in_parts_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = sequences_of(*LOG)
    whole = split_temporal_by_user(sequences, 10, 2, 1, "all")
    monkeypatch.setattr(sequences_module, "PART_EVENTS", 2)
    parts = split_temporal_by_user(sequences, 10, 2, 1, "all")
    np.testing.assert_array_equal(whole.train_ends, parts.train_ends)
    assert (shown(whole, "valid"), shown(whole, "test")) == (shown(parts, "valid"), shown(parts, "test"))


def test_settings_cut_by_the_share_of_events_or_at_a_time() -> None:
    sequences = sequences_of(*LOG)
    config = EvalConfig(split_method="temporal_by_user", test_fraction=0.3, n_validating_users=1)
    assert sequences.timestamps is not None
    assert split_sequences(sequences, config).cut == cut_after(sequences, 0.3)
    at = EvalConfig(split_method="temporal_by_user", test_cut=5, n_validating_users=1, temporal_targets="last")
    split = split_sequences(sequences, at)
    assert (split.cut, split.temporal_targets) == (5, "last")
    assert shown(split, "test")[4] == [([2], 4)]


def test_a_batch_has_no_event_of_a_validating_user_and_none_from_the_cut_on() -> None:
    sequences = sequences_of(*LOG)
    split = split_temporal_by_user(sequences, 10, 1, 0)
    batches = TrainBatches(split, ModelConfig(max_seq_len=5), TrainConfig(batch_size=8, n_negatives=1))
    assert sorted(batches.users.tolist()) == sorted({0, 1, 4} - set(split.valid.users.tolist()))
    assert not set(batches.users.tolist()) & set(split.valid.users.tolist())


@pytest.mark.parametrize(
    ("cut", "n", "told"),
    [
        (
            10,
            3,
            "n_validating_users=3 is too many: of 3 users with two events before the cut, 3 can validate",
        ),
        (10, 1024, "n_validating_users=1024 is too many: of 3 users"),
        (1, 1, "no user has two events before the cut 1"),
        (99, 1, "no test targets from the cut 99 on"),
    ],
)
def test_what_leaves_nothing_is_refused(cut: float, n: int, told: str) -> None:
    with pytest.raises((ConfigError, DataError), match=told):
        split_temporal_by_user(sequences_of(*LOG), cut, n, 0)


def test_a_log_without_times_is_refused() -> None:
    sequences, _ = build_sequences(pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 2, 3]}))
    with pytest.raises(DataError, match="needs timestamps"):
        split_sequences(sequences, EvalConfig(split_method="temporal_by_user"))


@pytest.mark.parametrize(("targets", "n_targets"), [("last", 6110), ("first", 6110), ("all", 19235)])
def test_beauty_is_cut_as_time_to_split_cuts_it(shared: Path, targets: TemporalTargets, n_targets: int) -> None:
    """Its published hit rates are whole numbers of hits among so many targets."""
    log = load_log(shared / "data" / "Beauty-5core.raw.tsv", Reading(repeats="consecutive_again", k_core=5))
    assert log.sequences.facts.n_events == 198_502  # it is 5-core and has no repeats
    split = split_sequences(log.sequences, EvalConfig(split_method="temporal_by_user", temporal_targets=targets))
    assert (split.cut, len(split.test), len(split.valid)) == (1400025600, n_targets, 1024)
    published = {"last": 0.0633387888707037, "first": 0.0662847790507365, "all": 0.0979464517806082}[targets]
    assert published * n_targets == pytest.approx(round(published * n_targets), abs=1e-6)


def test_settings_tell_validating_users_where_they_are_set_only() -> None:
    assert "n_validating_users" not in to_dict(EvalConfig())
    config = EvalConfig(split_method="temporal_by_user", n_validating_users=7)
    assert from_dict(EvalConfig, to_dict(config)) == config

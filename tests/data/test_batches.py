"""Training batches: order, targets, negatives, the published padded form."""

import itertools
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log
from hypothesis import given
from hypothesis import strategies as st
from made import make_batches, train_of

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import DataError
from sasrec.core.isa import Native
from sasrec.data.batches import Batch, TrainBatches, seen_candidates
from sasrec.data.ragged import Ragged
from sasrec.data.sampling import NEGATIVES, SHUFFLE, generator, warn_of_full_rows
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import Split, split_leave_one_out


def split_of(rows: list[list[int]]) -> Split:
    users = [u for u, row in enumerate(rows) for _ in row]
    log = pl.DataFrame({"user_id": users, "item_id": [i for row in rows for i in row]})
    return split_leave_one_out(build_sequences(log)[0])


def batches(
    split: Split, max_seq_len: int = 50, batch_size: int = 32, n_negatives: int = 1, seed: int = 0
) -> TrainBatches:
    return make_batches(split, max_seq_len, batch_size, n_negatives, seed)


def published_sample(
    train: list[int], negatives: list[int], max_seq_len: int
) -> tuple[list[int], list[int], list[int]]:
    """What the published sampler makes of a user: walk back from the last train item, filling slots from the right."""
    seq, pos, neg = [0] * max_seq_len, [0] * max_seq_len, [0] * max_seq_len
    following, slot, negatives = train[-1], max_seq_len - 1, negatives[::-1]
    for item, negative in zip(reversed(train[:-1]), negatives, strict=False):
        seq[slot], pos[slot], neg[slot] = item, following, negative
        following, slot = item, slot - 1
        if slot < 0:
            break
    return seq, pos, neg


@pytest.mark.parametrize("max_seq_len", [3, 9, 20])
def test_padded_batch_equals_the_published_sampler_for_the_same_negatives(max_seq_len: int) -> None:
    split = split_of([list(range(1, n + 1)) for n in (3, 4, 5, 9, 14, 30)])
    for batch in batches(split, max_seq_len, batch_size=4).epoch(0):
        seq, pos, neg = batch.to_padded(max_seq_len)
        for row, user in enumerate(batch.users):
            mine = slice(batch.inputs.offsets[row], batch.inputs.offsets[row + 1])
            expected = published_sample(
                train_of(split).row(user).tolist(), batch.negatives[mine, 0].tolist(), max_seq_len
            )
            assert (seq[row].tolist(), pos[row].tolist(), neg[row].tolist()) == expected


@pytest.mark.parametrize("max_seq_len", [1, 4, 7, 20])
def test_padded_batch_of_any_width_keeps_the_newest_positions(max_seq_len: int) -> None:
    (batch,) = batches(split_of([list(range(1, n + 1)) for n in (4, 12)]), max_seq_len=9).epoch(0)
    wide, narrow = batch.to_padded(9), batch.to_padded(max_seq_len)
    for a, b in zip(wide, narrow, strict=True):
        assert b.shape == (2, max_seq_len)
        kept = min(9, max_seq_len)
        np.testing.assert_array_equal(b[:, -kept:], a[:, -kept:])
        assert not b[:, : max_seq_len - kept].any()


def test_epoch_has_each_user_with_two_train_items_once() -> None:
    split = split_of([[1, 2, 3], [1, 2, 3, 4], [1], [1, 2], [5, 6, 7, 8, 9]])
    source = batches(split, batch_size=2)
    assert source.steps_per_epoch == 2
    for epoch in (0, 1):
        users = np.concatenate([batch.users for batch in source.epoch(epoch)])
        assert sorted(users) == [1, 3, 4]
    assert source.positions_per_epoch == 1 + 1 + 2


def test_targets_are_the_next_train_items_and_never_valid_or_test() -> None:
    split = split_of([[1, 2, 3, 4, 5, 6]])
    (batch,) = batches(split, max_seq_len=2).epoch(0)
    assert batch.inputs.values.tolist() == [2, 3]
    assert batch.targets.tolist() == [3, 4]


@given(st.lists(st.integers(3, 30), min_size=2, max_size=9), st.integers(1, 12), st.integers(1, 4))
def test_positions_and_steps_of_an_epoch_are_those_counted_in_advance(
    lengths: list[int], max_seq_len: int, batch_size: int
) -> None:
    source = batches(split_of([list(range(1, n + 1)) for n in [*lengths, 4]]), max_seq_len, batch_size)
    epoch = list(source.epoch(3))
    assert len(epoch) == source.steps_per_epoch
    assert [batch.step for batch in epoch] == list(range(3 * len(epoch), 4 * len(epoch)))
    assert sum(len(batch.targets) for batch in epoch) == source.positions_per_epoch
    assert max(batch.inputs.lengths.max() for batch in epoch) <= max_seq_len


def test_order_changes_with_epoch_and_seed_and_not_otherwise() -> None:
    split = split_leave_one_out(build_sequences(make_markov_log())[0])

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate([b.users for b in batches(split, seed=seed).epoch(epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_epoch_begun_in_its_middle_draws_what_the_whole_epoch_draws() -> None:
    split = split_leave_one_out(build_sequences(make_markov_log())[0])
    whole = list(batches(split, n_negatives=3).epoch(2))
    rest = list(batches(split, n_negatives=3).epoch(2, first_step=4))
    assert [b.step for b in rest] == [b.step for b in whole[4:]]
    for a, b in zip(whole[4:], rest, strict=True):
        assert a.negatives.tolist() == b.negatives.tolist()
        assert a.inputs.values.tolist() == b.inputs.values.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"n_negatives": 1},
        {"n_negatives": 3, "negative_sampling": "popularity", "random_windows": 0.5, "order_noise": 2.5},
        {"n_negatives": 5, "shared_negatives": True, "negative_sampling": "popularity", "mask_seen": True},
        {"n_negatives": 0, "mask_seen": True, "random_windows": 0.5},
    ],
)
@pytest.mark.parametrize("rounds", [32, 1])  # 1: most come from what is left
def test_steps_that_are_made_at_once_are_those_made_one_by_one(settings: dict[str, Any], rounds: int) -> None:
    rng = np.random.default_rng(0)
    split = split_of([rng.permutation(25)[: rng.integers(4, 26)].tolist() for _ in range(76)])

    def epochs(steps_at_once: int) -> list[Batch]:
        source = make_batches(split, max_seq_len=9, batch_size=8, seed=0, **settings)
        assert source.steps_at_once > 3
        source.steps_at_once, source.drawer.rounds = steps_at_once, rounds
        return [batch for epoch in (0, 3) for batch in source.epoch(epoch, epoch)]

    together, alone = epochs(4), epochs(1)
    assert [b.step for b in together] == [b.step for b in alone] == [*range(10), *range(33, 40)]
    assert list(map(content, together)) == list(map(content, alone))


def content(batch: Batch) -> list[Any]:
    parts: list[Any] = [batch.users, batch.targets, batch.negatives, batch.inputs.values, batch.inputs.offsets]
    if batch.earlier is not None:
        parts += [batch.earlier.values, batch.earlier.offsets]
    return [part.tolist() for part in parts]


def test_few_steps_are_made_at_once_where_each_draws_much() -> None:
    split = split_leave_one_out(build_sequences(make_markov_log())[0])
    many = [batches(split, n_negatives=n).steps_at_once for n in (1, 100, 10_000)]
    assert many[0] > many[1] > many[2] == 1


def rows_of(batch: Batch) -> list[list[int]]:
    """Each row's inputs and its last target: the window that they were cut from."""
    last = np.split(batch.targets, batch.inputs.offsets[1:-1])
    rows = [[*batch.inputs.row(i).tolist(), int(last[i][-1])] for i in range(len(batch.users))]
    for row, targets in zip(rows, last, strict=True):
        assert row[1:] == targets.tolist()
    return rows


@pytest.mark.parametrize("order_noise", [0.0, 1.0, 1.5, 4.0])
def test_events_move_by_less_than_the_noise_on_their_order_and_stay_with_their_user(order_noise: float) -> None:
    split = split_of([list(range(1, n + 1)) for n in (3, 4, 9, 14, 30, 200)])
    source = make_batches(split, 50, 4, 1, 0, order_noise=order_noise)
    moves = []
    for epoch in range(30):
        for batch in source.epoch(epoch):
            for user, row in zip(batch.users, rows_of(batch), strict=True):
                window = train_of(split).row(user)[-51:].tolist()
                assert sorted(row) == window
                moves += [abs(place - window.index(item)) for place, item in enumerate(row)]
    assert max(moves) < max(order_noise, 1)
    assert max(moves) >= min(order_noise, 3) - 1


def test_noise_on_the_order_is_new_each_epoch_and_the_same_when_an_epoch_is_begun_in_its_middle() -> None:
    split = split_leave_one_out(build_sequences(make_markov_log())[0])
    source = make_batches(split, 50, 32, 0, 0, order_noise=2.5)
    whole, rest, other = (list(source.epoch(*at)) for at in ((2,), (2, 4), (3,)))
    assert [b.inputs.values.tolist() for b in rest] == [b.inputs.values.tolist() for b in whole[4:]]
    by_user = [
        {u: row for b in part for u, row in zip(b.users.tolist(), rows_of(b), strict=True)} for part in (whole, other)
    ]
    assert by_user[0].keys() == by_user[1].keys()
    users = by_user[0].keys()
    assert sum(by_user[0][u] != by_user[1][u] for u in users) > 0.6 * len(users)  # half and half: 3 in 4
    unmoved = sum(by_user[0][u] == train_of(split).row(u).tolist() for u in users) / len(users)
    assert unmoved == pytest.approx(0.5, abs=0.15)


def test_negatives_are_never_train_items_of_the_user() -> None:
    split = split_leave_one_out(build_sequences(make_markov_log(n_items=16))[0])
    for batch in batches(split, max_seq_len=3, n_negatives=4).epoch(0):
        for row, user in enumerate(batch.users):
            mine = batch.negatives[batch.inputs.offsets[row] : batch.inputs.offsets[row + 1]]
            assert mine.shape == (3, 4)
            assert not set(mine.ravel().tolist()) & set(train_of(split).row(user).tolist())
            assert mine.min() >= 1
            assert mine.max() <= 16


def test_shared_negatives_are_one_set_a_step_of_any_items_keyed_by_the_step() -> None:
    split = split_leave_one_out(build_sequences(make_markov_log(n_items=16))[0])
    train = TrainConfig(loss="sampled_softmax", n_negatives=300, shared_negatives=True, batch_size=64)
    whole = list(TrainBatches(split, ModelConfig(max_seq_len=9), train).epoch(1))
    for batch in whole:
        assert batch.negatives.shape == (300,)
        assert set(batch.negatives.tolist()) == set(range(1, 17))
    assert any((a.negatives != b.negatives).any() for a, b in itertools.pairwise(whole))
    rest = TrainBatches(split, ModelConfig(max_seq_len=9), train).epoch(1, first_step=2)
    assert [b.negatives.tolist() for b in rest] == [b.negatives.tolist() for b in whole[2:]]
    seq, _, neg = whole[0].to_padded(9)
    assert set(neg[seq > 0].tolist()) == {int(whole[0].negatives[0])}


def test_windows_of_long_users_end_anywhere_as_often_as_asked_and_are_full() -> None:
    split = split_of([list(range(1, 13)), [3, 5, 7, 9, 11]])  # 10 and 3 train events
    train = TrainConfig(loss="cross_entropy", random_windows=0.6, batch_size=2, seed=4)
    made = TrainBatches(split, ModelConfig(max_seq_len=6), train)
    ends = []
    for epoch in range(600):
        (batch,) = made.epoch(epoch)
        for row, user in enumerate(batch.users):
            inputs = batch.inputs.row(row).tolist()
            targets = batch.targets[batch.inputs.offsets[row] : batch.inputs.offsets[row + 1]].tolist()
            if user == 0:
                assert inputs == list(range(inputs[0], inputs[0] + 6))
                assert targets == list(range(inputs[0] + 1, inputs[0] + 7))
                ends.append(targets[-1])
            else:
                assert (inputs, targets) == ([3, 5], [5, 7])
    shares = np.bincount(ends, minlength=11)[7:] / 600  # a window of 6 inputs and their targets ends at 7, 8, 9 or 10
    assert shares == pytest.approx([0.15, 0.15, 0.15, 0.55], abs=0.06)
    again = TrainBatches(split, ModelConfig(max_seq_len=6), train)
    assert next(again.epoch(3)).targets.tolist() == next(made.epoch(3)).targets.tolist()


def test_batches_tell_what_a_user_had_before_the_window_if_seen_items_are_masked() -> None:
    split = split_of([[4, 8, 6, 9, 2, 7, 1, 5], [1, 2, 3, 4]])
    for windows in (0.0, 1.0):
        train = TrainConfig(loss="cross_entropy", mask_seen=True, random_windows=windows)
        for epoch in range(8):
            made = next(TrainBatches(split, ModelConfig(max_seq_len=2), train).epoch(epoch))
            assert made.earlier is not None
            for row, user in enumerate(made.users):
                before, window = made.earlier.row(row).tolist(), made.inputs.row(row).tolist()
                assert train_of(split).row(user)[: len(before) + len(window)].tolist() == before + window
    assert next(TrainBatches(split, ModelConfig(), TrainConfig()).epoch(0)).earlier is None


def test_candidates_that_the_user_has_had_do_not_compete_unless_they_are_the_target() -> None:
    made = Batch(
        users=np.arange(2),
        inputs=Ragged.from_lists([[5, 6, 5], [7]]),
        targets=np.array([6, 5, 9, 8], np.int32),
        negatives=np.zeros(0, np.int32),
        corrections=np.zeros(0, np.float32),
        step=0,
        earlier=Ragged.from_lists([[3, 9], []]),
    )
    candidates = np.array([5, 3, 8, 7, 5, 6, 9], np.int32)
    got = np.zeros((4, 7), int)
    got[seen_candidates(made, candidates)] = 1
    assert got.tolist() == [
        [1, 1, 0, 0, 1, 0, 1],  # had 3 9 5
        [0, 1, 0, 0, 0, 1, 1],  # had 3 9 5 6, and 5 is the target
        [1, 1, 0, 0, 1, 1, 0],  # 9 is the target
        [0, 0, 0, 1, 0, 0, 0],
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_negatives_by_popularity_come_as_often_as_items_do_in_train(shared: bool) -> None:
    rows = [[1, 2, 9, 9], [1, 3, 9, 9], [1, 4, 9, 9], [1, 2, 9, 9]]  # 9 is valid and test only
    split = split_of(rows)
    train = TrainConfig(
        loss="sampled_softmax", n_negatives=5000, shared_negatives=shared, batch_size=1, negative_sampling="popularity"
    )
    made = TrainBatches(split, ModelConfig(max_seq_len=9), train)
    n = len(split.train_counts)
    for batch in made.epoch(0):
        mine = set() if shared else set(train_of(split).row(int(batch.users[0])).tolist())
        expected = np.where(np.isin(np.arange(n), sorted(mine)), 0, split.train_counts)
        counts = np.bincount(batch.negatives.ravel(), minlength=n)
        assert not counts[expected == 0].any()
        share = 5000 * expected[expected > 0] / expected.sum()
        assert ((counts[expected > 0] - share) ** 2 / share).sum() < 16.3  # 99.9 % point at 3 degrees of freedom
    q = split.train_counts / split.train_counts.sum()
    np.testing.assert_allclose(made.corrections[q > 0], -np.log(5000 * q[q > 0]), rtol=1e-6)


def test_cross_entropy_draws_no_negatives(caplog: pytest.LogCaptureFixture) -> None:
    split = split_of([[1, 2, 3, 1, 2]])  # the user has every item in train, which a draw would warn of
    for loss, n_drawn in (("cross_entropy", 0), ("bce", 5)):
        warn_of_full_rows.cache_clear()
        train = TrainConfig(loss=loss, n_negatives=5)
        batch = next(TrainBatches(split, ModelConfig(max_seq_len=9), train).epoch(0))
        assert batch.negatives.shape == (len(batch.targets), n_drawn)
        assert batch.to_padded(9)[2].any() == bool(n_drawn)
        assert bool(caplog.records) == bool(n_drawn)


def test_numbers_of_each_purpose_seed_and_step_are_their_own() -> None:
    keys = [(0, SHUFFLE, 1), (0, NEGATIVES, 1), (1, SHUFFLE, 1), (0, SHUFFLE, 2)]
    draws = {key: generator(*key).integers(2**62) for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert draws == {key: generator(*key).integers(2**62) for key in keys}


# Items 8 and 9 are valid and test targets only, and item 3 is in the middle of what is trained on.
LATE = [[1, 2, 3, 4, 8, 9], [2, 4, 5, 9, 8], [1, 3, 5, 6, 7, 8, 9], [7, 6, 5, 8, 9]] * 30


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("core", [True, False])
def test_items_that_are_never_in_train_are_no_negatives_where_items_have_features(
    sampling: Any, shared: bool, core: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not core:
        monkeypatch.setattr("sasrec.data.sampling.load_native", lambda: Native("", None, "left out"))
    split = split_of(LATE)
    train = TrainConfig(n_negatives=5, shared_negatives=shared, negative_sampling=sampling, batch_size=16)
    plain, batches = (
        TrainBatches(split, ModelConfig(max_seq_len=9, n_features=n_features), train) for n_features in (0, 4)
    )
    drawn = np.concatenate([batch.negatives.ravel() for epoch in range(5) for batch in batches.epoch(epoch)])
    assert set(drawn.tolist()) == set(range(1, 8))
    for batch in batches.epoch(0):
        assert batch.candidates is not None
        assert batch.candidates.tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert batch.n_candidates(9) == 7
        for row in range(0 if shared else len(batch.users)):
            seen = train_of(split).row(int(batch.users[row]))
            mine = batch.negatives[batch.inputs.offsets[row] : batch.inputs.offsets[row + 1]]
            assert not np.isin(mine, seen).any()
    for batch in plain.epoch(0):
        assert batch.candidates is None
        assert batch.n_candidates(9) == 9
    if sampling == "uniform":
        assert plain.corrections[1] == pytest.approx(np.log((9 if shared else 8) / 5))
        np.testing.assert_allclose(batches.corrections[1:8], np.log((7 if shared else 6) / 5), rtol=1e-6)
    assert len(batches.corrections) == 10
    assert not batches.corrections[[0, 8, 9]].any()


def test_without_untrained_items_features_change_no_batch() -> None:
    split = split_of([[1, 2, 3, 4], [4, 3, 1, 2], [2, 1, 3, 4], [3, 4, 2, 1]] * 10)
    assert split.train_counts[1:].all()
    for loss in ("bce", "cross_entropy"):
        train = TrainConfig(loss=loss, batch_size=8)
        sides = [TrainBatches(split, ModelConfig(max_seq_len=9, n_features=n), train) for n in (0, 4)]
        for one, other in zip(*(side.epoch(0) for side in sides), strict=True):
            assert other.candidates is None
            assert np.array_equal(one.targets, other.targets)
            assert np.array_equal(one.negatives, other.negatives)


def test_all_events_train_what_the_split_holds_out() -> None:
    split = split_of(LATE)
    sides = [TrainBatches(part, ModelConfig(n_features=4), TrainConfig()) for part in (split, split.all_events())]
    candidates = [next(iter(side.epoch(0))).candidates for side in sides]
    assert candidates[0] is not None
    assert candidates[1] is None


def test_log_without_two_train_events_of_any_user_is_refused() -> None:
    with pytest.raises(DataError, match="no user has two events to train on"):
        batches(split_of([[1, 2, 3], [4, 5, 6]]))

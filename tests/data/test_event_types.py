"""Types and weights of events: how they are stored, what is held out by them, what trains and how much."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import train_of

from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.core.errors import CheckpointError, ConfigError, DataError
from sasrec.data.batches import Batch, TrainBatches, seen_candidates
from sasrec.data.event_types import event_weights
from sasrec.data.filters import filter_repeats
from sasrec.data.prepared import load_sequences, save_sequences, save_vocabulary
from sasrec.data.sequences import Sequences, build_sequences
from sasrec.data.splits import Split, hides_seen, split_leave_one_out, split_sequences, split_temporal
from sasrec.evaluation.candidates import draw_candidates

BUY = ("buy",)


def make_log(rows: list[str], **columns: Any) -> pl.DataFrame:
    """A user a text such as "5 9 5! 3 7!"; events with an exclamation mark are purchases, all others views."""
    events = [(user, word) for user, row in enumerate(rows) for word in row.split()]
    frame = pl.DataFrame(
        {
            "user_id": [user for user, _ in events],
            "item_id": [int(word.rstrip("!")) for _, word in events],
            "event": ["buy" if word.endswith("!") else "view" for _, word in events],
        }
    )
    return frame.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def sequences_of(*rows: str, **columns: Any) -> Sequences:
    return build_sequences(make_log(list(rows), **columns))[0]


def shown(split: Split, part: str) -> list[tuple[list[int], int]]:
    """Each target of a part, by index, after its history."""
    targets = split.part(part)
    histories = targets.histories(split.sequences)
    return [(histories.row(i).tolist(), int(item)) for i, item in enumerate(targets.items(split.sequences))]


def test_types_and_weights_follow_their_events_into_the_order_of_time() -> None:
    log = pl.DataFrame(
        {
            "user_id": [2, 1, 1], "item_id": [7, 8, 9], "timestamp": [1, 5, 3], "event": ["view", "buy", "view"],
            "weight": pl.Series([1, 2, 3], dtype=pl.Float32),
        }
    )  # fmt: skip
    sequences, _ = build_sequences(log)
    assert sequences.facts.event_types == {"buy": 1, "view": 2}
    assert sequences.facts.has_weights
    assert sequences.types is not None
    assert sequences.weights is not None
    assert sequences.types.tolist() == [1, 0, 1]
    assert sequences.weights.tolist() == [3, 2, 1]


def test_the_fingerprint_covers_types_and_weights_and_is_as_before_without_them() -> None:
    log = make_log(["1 2 3!", "2 1!"])
    weighted = log.with_columns(weight=pl.Series([1, 1, 1, 1, 2], dtype=pl.Float32))
    other_types = log.with_columns(event=pl.Series(["view", "view", "buy", "buy", "view"]))
    other_names = log.with_columns(pl.col("event").str.replace("buy", "cart"))
    plain = log.drop("event")
    frames = (log, weighted, weighted.drop("event"), other_types, other_names, plain)
    found = [build_sequences(frame)[0].facts.fingerprint for frame in frames]
    assert len(set(found)) == len(found)
    assert found[-1] == "ef7a6a46819f55fa944af9118db7d410"


def test_types_and_weights_are_stored_and_mapped(tmp_path: Path) -> None:
    weights = pl.Series([1, 0.5, 2, 1, 3], dtype=pl.Float32)
    sequences, vocabulary = build_sequences(make_log(["1 2 3!", "2 1!"], weight=weights))
    save_vocabulary(tmp_path, vocabulary)
    save_sequences(tmp_path, sequences)
    loaded = load_sequences(tmp_path)
    assert loaded is not None
    assert loaded.facts == sequences.facts
    assert isinstance(loaded.types, np.memmap)
    assert isinstance(loaded.weights, np.memmap)
    assert np.array_equal(loaded.types, sequences.types)
    assert np.array_equal(loaded.weights, sequences.weights)
    assert loaded.has_fingerprint_of(vocabulary)


def test_a_log_without_types_is_stored_as_before(tmp_path: Path) -> None:
    sequences, _ = build_sequences(make_log(["1 2 3!"]).drop("event"))
    sequences.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "facts.json",
        "items.npy",
        "offsets.npy",
        "users.parquet",
    ]
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert list(facts) == [
        "n_events", "n_users", "n_items", "repeat_share", "tied_share", "n_short_users", "has_timestamps",
        "fingerprint",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("event_types.npy", np.zeros(4, np.uint8)),
        ("event_types.npy", np.full(5, 2, np.uint8)),
        ("event_types.npy", np.zeros(5, np.int64)),
        ("event_types.npy", None),
        ("event_weights.npy", np.full(5, np.nan, np.float32)),
        ("event_weights.npy", np.full(5, -1, np.float32)),
        ("event_weights.npy", None),
    ],
)
def test_types_and_weights_that_are_not_those_of_the_log_are_damage(
    tmp_path: Path, name: str, array: np.ndarray[Any, Any] | None
) -> None:
    save_sequences(tmp_path, sequences_of("1 2 3!", "2 1!", weight=pl.Series([1] * 5, dtype=pl.Float32)))
    (tmp_path / "digests.json").unlink()
    (tmp_path / "sequences" / name).unlink()
    if array is not None:
        np.save(tmp_path / "sequences" / name, array)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_sequences(tmp_path)


def test_leave_one_out_holds_out_the_last_two_targets_and_views_between_them_are_history() -> None:
    split = split_leave_one_out(sequences_of("5 9 5! 3 7! 8", "1 2! 3", "4! 6! 2"), target_types=BUY)
    assert shown(split, "valid") == [([5, 9], 5)]
    assert shown(split, "test") == [([5, 9, 5, 3], 7)]
    assert [train_of(split).row(user).tolist() for user in range(3)] == [[5, 9], [1, 2, 3], [4, 6, 2]]


def test_targets_of_all_types_are_the_usual_split() -> None:
    sequences = sequences_of("1 2! 3 4 5!", "2 3!", "1 2 3")
    for min_items in (3, 4, 5):
        usual, named = (split_leave_one_out(sequences, min_items, types) for types in ((), ("view", "buy")))
        assert np.array_equal(usual.train_ends, named.train_ends)
        for part in ("valid", "test"):
            assert np.array_equal(usual.part(part).users, named.part(part).users)
            assert np.array_equal(usual.part(part).positions, named.part(part).positions)


def test_min_items_asks_for_events_of_any_type_before_the_first_target() -> None:
    sequences = sequences_of("1 2! 3!", "1 2 3! 4!", "1 2 3 4! 5!")
    assert [split_leave_one_out(sequences, n, BUY).valid.users.tolist() for n in (3, 4, 5)] == [[0, 1, 2], [1, 2], [2]]


def test_a_temporal_split_holds_out_targets_after_the_cut_and_keeps_views_as_history() -> None:
    times = [1, 2, 11, 12, 13, 21, 22, 3, 12, 24]
    sequences = sequences_of("1 2! 3 4! 5! 6 7!", "8 9! 3!", timestamp=times)
    split = split_temporal(sequences, 10, 20, "first", BUY)
    assert shown(split, "valid") == [([1, 2, 3], 4), ([8], 9)]
    assert shown(split, "test") == [([1, 2, 3, 4, 5, 6], 7), ([8, 9], 3)]
    assert [train_of(split).row(user).tolist() for user in range(2)] == [[1, 2], [8]]


words = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=12)
logs = st.lists(words, min_size=1, max_size=8)


@given(logs, st.booleans(), st.integers(1, 4), st.floats(0, 1))
def test_nothing_from_the_first_target_held_out_on_trains(
    rows: list[list[tuple[int, bool]]], temporal: bool, max_seq_len: int, windows: float
) -> None:
    texts = [" ".join(f"{item}{'!' * bought}" for item, bought in row) for row in rows]
    log = make_log(texts)
    log = log.with_columns(timestamp=pl.Series(np.arange(len(log)) * 7919 % 101))
    sequences, _ = build_sequences(log)
    config = EvalConfig(
        target_events="buy", split_method="temporal" if temporal else "leave_one_out", valid_cut=50, test_cut=80
    )
    train = TrainConfig(random_windows=windows, event_weights="view=0.5", batch_size=2, mask_seen=True)
    try:
        split = split_sequences(sequences, config)
        batches = TrainBatches(split, ModelConfig(max_seq_len=max_seq_len), train)
    except (DataError, ConfigError):  # too few purchases
        return
    assert split.is_target is not None
    for part in (split.valid, split.test):
        assert split.is_target[part.positions].all()
        assert (part.positions >= split.train_ends[part.users]).all()
    for batch in batches.epoch(0):
        for row, user in enumerate(batch.users):
            mine = slice(batch.inputs.offsets[row], batch.inputs.offsets[row + 1])
            window = [*batch.inputs.values[mine], batch.targets[mine][-1]]
            text = train_of(split).row(int(user)).tolist()
            assert any(window == text[i : i + len(window)] for i in range(len(text)))


@given(st.integers(0, 50), st.sampled_from([0.0, 2.5]), st.sampled_from(["view=0.25", "view=0", "view=1"]))
def test_a_position_has_the_weight_of_the_event_that_it_predicts(seed: int, noise: float, weights: str) -> None:
    rng = np.random.default_rng(seed)
    # Purchases are of even items and views of odd ones, so a target tells its type.
    rows = [" ".join(f"{x}{'!' * (x % 2 == 0)}" for x in rng.integers(1, 30, 14).tolist()) for _ in range(5)]
    sequences, vocabulary = build_sequences(make_log(rows))
    split = split_leave_one_out(sequences, target_types=BUY)
    config = TrainConfig(event_weights=weights, order_noise=noise, batch_size=3)
    view = float(weights.removeprefix("view="))
    for batch in TrainBatches(split, ModelConfig(max_seq_len=6), config).epoch(0):
        bought = np.array([int(id_) % 2 == 0 for id_ in vocabulary.ids_of(batch.targets)])
        expected = np.where(bought, 1, view).astype(np.float32)
        found = np.ones(len(expected), np.float32) if batch.weights is None else batch.weights
        assert np.array_equal(found, expected)
        assert batch.total_weight == pytest.approx(expected.sum())


def test_weights_of_events_multiply_those_of_their_types() -> None:
    sequences = sequences_of("1 2! 3 4!", weight=pl.Series([1, 2, 3, 0.5], dtype=pl.Float32))
    assert _weights(sequences, "view=0.5", ()) == [0.5, 2, 1.5, 0.5]
    assert _weights(sequences, "", BUY) == [0, 2, 0, 0.5]
    assert _weights(sequences, "view=0.5", BUY) == [0.5, 2, 1.5, 0.5]
    assert _weights(sequences, "", ()) == [1, 2, 3, 0.5]


def test_types_that_all_weigh_1_are_no_weights() -> None:
    sequences = sequences_of("1 2! 3")
    assert event_weights(sequences, "view=1", ()) is None
    assert event_weights(sequences, "view=1,buy=1", BUY) is None
    assert event_weights(sequences_of("1 2! 3"), "", ()) is None


def _weights(sequences: Sequences, text: str, targets: tuple[str, ...]) -> list[float]:
    found = event_weights(sequences, text, targets)
    assert found is not None
    return found.tolist()


def test_users_whose_windows_have_no_weight_are_left_out() -> None:
    sequences = sequences_of("1 2 3 4", "1! 2 3 4 5", "1 2! 3 4 5", "1 2 3 4! 5!", "1 2 3 4! 5! 6!")
    split = split_leave_one_out(sequences, target_types=BUY)
    model = ModelConfig(max_seq_len=2)
    assert TrainBatches(split, model, TrainConfig()).users.tolist() == [4]
    assert TrainBatches(split, model, TrainConfig(random_windows=0.5)).users.tolist() == [2, 4]
    assert TrainBatches(split, model, TrainConfig(event_weights="view=0.1")).users.tolist() == [0, 1, 2, 3, 4]


def batches_of(split: Split, **settings: Any) -> list[Batch]:
    return list(TrainBatches(split, ModelConfig(max_seq_len=3), TrainConfig(batch_size=2, **settings)).epoch(0))


def test_negatives_are_drawn_for_positions_of_weight_0_too() -> None:
    split = split_leave_one_out(sequences_of(*["1 2! 3 4! 5! 6! 7!"] * 5), target_types=BUY)
    some, all_ = (batches_of(split, event_weights=text) for text in ("view=0", "view=2"))
    for a, b in zip(some, all_, strict=True):
        assert np.array_equal(a.negatives, b.negatives)
        assert np.array_equal(a.inputs.values, b.inputs.values)


def test_negatives_of_a_user_are_of_what_was_not_bought() -> None:
    split = split_leave_one_out(sequences_of(*["1! 2 3! 4! 1! 3!"] * 60), target_types=BUY)
    drawn = np.concatenate([batch.negatives.ravel() for batch in batches_of(split, n_negatives=9)])
    assert set(drawn.tolist()) == {2}


def test_only_what_was_bought_is_masked() -> None:
    split = split_leave_one_out(sequences_of("1! 2 3! 4 5! 6! 2!"), target_types=BUY)
    (batch,) = batches_of(split, loss="cross_entropy", mask_seen=True, event_weights="view=1")
    assert batch.earlier is not None
    assert batch.seen is not None
    assert batch.earlier.values.tolist() == [1]
    assert batch.inputs.values.tolist() == [2, 3, 4]
    assert batch.seen.tolist() == [0, 3, 0]
    positions, columns = seen_candidates(batch, np.arange(1, 7, dtype=np.int32))
    assert list(zip(positions.tolist(), (columns + 1).tolist(), strict=True)) == [
        (0, 1),
        (1, 1),
        (1, 3),
        (2, 1),
        (2, 3),
    ]


def test_candidates_are_drawn_from_what_was_not_bought() -> None:
    split = split_leave_one_out(sequences_of(*["1! 2 3! 4! 1! 3!"] * 9), target_types=BUY)
    assert set(draw_candidates(split, "test", 50, "train", 0)[:, 1:].ravel().tolist()) == {2}


def test_repeats_of_targets_decide_whether_seen_items_are_hidden() -> None:
    viewed_often = sequences_of(*["1 1 1 2! 1 3! 1 4!"] * 3)
    assert not hides_seen(split_leave_one_out(viewed_often), EvalConfig())
    assert hides_seen(split_leave_one_out(viewed_often, target_types=BUY), EvalConfig())
    bought_often = split_leave_one_out(sequences_of(*["1 2! 3 2! 4 2!"] * 3), target_types=BUY)
    assert not hides_seen(bought_often, EvalConfig())
    assert bought_often.repeat_share == 0  # of what trains: one purchase


def test_a_training_on_all_events_keeps_the_targets() -> None:
    split = split_leave_one_out(sequences_of("1 2! 3! 4", "1 2 3!"), target_types=BUY)
    batches = TrainBatches(split.all_events(), ModelConfig(max_seq_len=5), TrainConfig(batch_size=2))
    (batch,) = batches.epoch(0)
    assert batch.weights is not None
    assert batch.total_weight == 3


def test_a_view_and_a_purchase_of_an_item_do_not_repeat_each_other() -> None:
    log = make_log(["1 1 1! 1! 2 1"])
    kept = {repeats: filter_repeats(log, repeats) for repeats in ("first", "last", "consecutive")}
    assert kept["first"].rows() == [(0, 1, "view"), (0, 1, "buy"), (0, 2, "view")]
    assert kept["last"].rows() == [(0, 1, "buy"), (0, 2, "view"), (0, 1, "view")]
    assert kept["consecutive"].rows() == [(0, 1, "view"), (0, 1, "buy"), (0, 2, "view"), (0, 1, "view")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_events": "cart"},
            r"target_events names 'cart', which no event is; the log has view \(4\), buy \(3\)",
        ),
        ({"event_weights": "cart=1"}, "event_weights names 'cart', which no event is; the log has view"),
        ({"event_weights": "view=0,buy=0"}, "event_weights=view=0,buy=0 leaves every type of event the weight 0"),
        ({"target_events": "buy", "event_weights": "buy=0"}, "leaves every type of event the weight 0"),
    ],
)
def test_types_that_the_log_has_not_are_refused_with_those_it_has(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_on(sequences_of("1 2! 3 4 5! 6 7!"), settings)


@pytest.mark.parametrize("settings", [{"target_events": "buy"}, {"event_weights": "buy=1"}])
def test_types_need_a_log_with_types(settings: dict[str, str]) -> None:
    sequences, _ = build_sequences(make_log(["1 2! 3!"]).drop("event"))
    with pytest.raises(ConfigError, match="names 'buy', and this log was read without types of events; name their col"):
        train_on(sequences, settings)


def test_a_log_without_two_targets_of_a_user_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"none of the 2 users has two events of buy after 1 of any type, .*; the log has"
    ):
        train_on(sequences_of("1 2 3!", "1! 2!"), {"target_events": "buy"})


def test_a_log_none_of_whose_train_positions_has_a_weight_is_refused() -> None:
    with pytest.raises(DataError, match="no train event after a user's first has a weight above 0"):
        train_on(sequences_of("1 2 3! 4!"), {"target_events": "buy"})


def train_on(sequences: Sequences, settings: dict[str, str]) -> None:
    """As far as batches."""
    split = split_sequences(sequences, EvalConfig(target_events=settings.get("target_events", "")))
    TrainBatches(split, ModelConfig(), TrainConfig(event_weights=settings.get("event_weights", "")))

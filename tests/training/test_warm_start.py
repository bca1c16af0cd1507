"""What comes along from an earlier model, where new items start, and what is refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from made import spread_weights

from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig, to_dict
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.data.logs import Log
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import split_sequences
from sasrec.engine.protocol import create_engine
from sasrec.model.weights import ITEM_TABLE, OUTPUT_TABLE, Weights
from sasrec.runs.folder import RunConfig
from sasrec.runs.record import InitFacts
from sasrec.training import warm_start
from sasrec.training.warm_start import Origin, check_same_init, read_origin, start_from

MODEL = ModelConfig(embedding_dim=4, n_blocks=1, max_seq_len=8, tied=False)


def read(histories: list[list[Any]]) -> Log:
    users = [user for user, items in enumerate(histories, 1) for _ in items]
    frame = pl.DataFrame({"user_id": users, "item_id": [item for items in histories for item in items]})
    return Log(*build_sequences(frame), "made")


OLD = read([[10, 20, 30, 40], [30, 20, 10, 50], [40, 50, 20, 10]])


def origin_of(log: Log = OLD, **changes: Any) -> Origin:
    """A model with other values in each row, and with moments."""
    model = replace(MODEL, **changes)
    n_items = len(log.vocabulary)
    # features decide where new items start, not which tables there are
    weights = spread_weights(replace(model, n_features=0), n_items)
    moments: Weights = {}
    for place, (name, value) in enumerate(weights.items()):
        moments[f"step/{name}"] = np.array(12, np.float32)
        moments[f"exp_avg/{name}"] = value / 3 + place
        moments[f"exp_avg_sq/{name}"] = value**2 + place
    for name in (ITEM_TABLE, OUTPUT_TABLE):
        for moment in ("exp_avg", "exp_avg_sq") if name in weights else ():
            moments[f"{moment}/{name}"][0] = 0
    config = RunConfig(model, TrainConfig(), EvalConfig(), "best", "yesterday", log.sequences.facts, "9")
    return Origin("runs/old", config, log.vocabulary, weights, moments, log.sequences)


def start(origin: Origin, log: Log, **settings: Any) -> tuple[Weights, Weights]:
    return start_from(origin, split_sequences(log.sequences, EvalConfig()), log.vocabulary, TrainConfig(**settings))


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("tied", [False, True])
def test_mapping_onto_the_same_items_changes_no_bit_of_weights_or_moments(engine: str, tied: bool) -> None:
    origin = origin_of(tied=tied)
    weights, moments = start(origin, OLD)
    made = create_engine(origin.config.model, 5, TrainConfig(engine=engine, threads=1), weights)
    made.load_optimizer_state(moments)
    for expected, found in ((origin.weights, made.weights()), (origin.moments, made.optimizer_state())):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_rows_go_by_item_id_whatever_the_order_and_type_of_ids() -> None:
    origin, log = origin_of(), read([["x", "30", "10", "50"], ["30", "20", "x", "10"], ["a", "30", "x", "50"]])
    assert log.vocabulary.ids == ["10", "20", "30", "50", "a", "x"]
    weights, moments = start(origin, log)
    for table in (ITEM_TABLE, OUTPUT_TABLE):
        np.testing.assert_array_equal(weights[table][:5], origin.weights[table][[0, 1, 2, 3, 5]])
        for moment in ("exp_avg", "exp_avg_sq"):
            name = f"{moment}/{table}"
            np.testing.assert_array_equal(moments[name][:5], origin.moments[name][[0, 1, 2, 3, 5]])
            assert not moments[name][5:].any()
    others = set(origin.weights) - {ITEM_TABLE, OUTPUT_TABLE}
    assert all((weights[name] == origin.weights[name]).all() for name in others)
    assert origin.facts(log.vocabulary) == InitFacts(version_of(origin), "yesterday", kept=4, new=2, gone=1)


def version_of(origin: Origin) -> str:
    return origin.facts(origin.vocabulary).model_version


def test_a_new_item_starts_at_the_mean_of_known_ones_near_its_train_events() -> None:
    # Train: 20 99 98 10 40 30 of user 1 and 99 50 of user 2. Near 99 are 20, 10, 40 and 50; 97 is in no train part.
    log = read([[20, 99, 98, 10, 40, 30, 10, 20], [99, 50, 97, 10]])
    origin = origin_of()
    weights, _ = start(origin, log)
    assert log.vocabulary.ids == [10, 20, 30, 40, 50, 97, 98, 99]
    for table in (ITEM_TABLE, OUTPUT_TABLE):
        old, new = origin.weights[table], weights[table]
        np.testing.assert_allclose(new[8], old[[2, 1, 4, 5]].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(new[7], old[[2, 1, 4, 3]].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(new[6], old[1:6].mean(axis=0), rtol=1e-6)
        assert not new[0].any()


def test_a_new_item_starts_at_zero_where_features_stand_for_it() -> None:
    weights, _ = start(origin_of(n_features=3), read([[20, 99, 10, 30], [40, 50, 30, 10]]))
    for table in (ITEM_TABLE, OUTPUT_TABLE):
        assert not weights[table][6].any()
        assert weights[table][1:6].any(axis=1).all()


@pytest.mark.parametrize("tied", [False, True])
def test_a_scale_shrinks_the_rows_of_items_and_nothing_else(tied: bool) -> None:
    log, origin = read([[20, 99, 10, 30], [40, 50, 30, 10]]), origin_of(tied=tied)
    (whole, moments), (shrunk, same) = (start(origin, log, init_scale=scale) for scale in (1.0, 0.5))
    assert {ITEM_TABLE} <= {name for name in whole if (whole[name] != shrunk[name]).any()} <= {ITEM_TABLE, OUTPUT_TABLE}
    for table in {ITEM_TABLE, OUTPUT_TABLE} & set(whole):
        np.testing.assert_array_equal(shrunk[table], whole[table] / 2)
    for name, value in moments.items():
        np.testing.assert_array_equal(same[name], value)


@pytest.mark.parametrize("chunk", [2, 2**15])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n_features", [0, 3])
def test_smoothing_brings_rows_nearer_to_the_mean_of_those_near_their_train_events(
    tied: bool, n_features: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_start, "CHUNK", chunk)
    # Nothing stands near 60, and 70 is in no train part; 20 stands near itself, which does not count.
    log = read([[20, 99, 20, 10, 40, 30, 10, 20], [60, 70, 10], [40, 50, 50, 99, 10, 20]])
    origin = origin_of(tied=tied, n_features=n_features)
    (plain, moments), (smooth, same) = (start(origin, log, init_smoothing=share) for share in (0.0, 0.25))
    trained = [log.vocabulary.indices_of(row).tolist() for row in ([20, 99, 20, 10, 40, 30], [60], [40, 50, 50, 99])]
    for name, expected in plain.items():
        if name in (ITEM_TABLE, OUTPUT_TABLE):
            rows = {item: near_by(item, trained) for item in range(1, 9)}
            means = np.stack([expected[near].mean(axis=0) if near else expected[i] for i, near in rows.items()])
            assert sum(map(bool, rows.values())) == 6
            assert np.abs(means - expected[1:]).max() > 0.1
            expected = np.vstack([expected[:1], 0.75 * expected[1:] + 0.25 * means])
        np.testing.assert_allclose(smooth[name], expected, rtol=1e-6, err_msg=name)
    for name, value in moments.items():
        np.testing.assert_array_equal(same[name], value)
    both, _ = start(origin, log, init_smoothing=0.25, init_scale=0.5)
    np.testing.assert_array_equal(both[ITEM_TABLE], smooth[ITEM_TABLE] / 2)


def near_by(item: int, histories: list[list[int]]) -> list[int]:
    """The other items up to three places from an item's events, as often as they stand there."""
    return [
        other
        for items in histories
        for place, here in enumerate(items)
        for other in items[max(0, place - 3) : place + 4]
        if here == item != other
    ]


def test_moments_stay_behind_where_they_are_not_wanted_and_nothing_is_missed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    weights, moments = start(origin_of(), OLD, init_moments=False)
    assert moments == {}
    assert all((weights[name] == value).all() for name, value in origin_of().weights.items())
    start(replace(origin_of(), moments={}), OLD, init_moments=False)
    assert caplog.messages == ["begins from runs/old: 5 items kept, none new, 0 gone"] * 2


def test_what_came_along_is_said_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    start(origin_of(), read([[20, 99, 10, 30], [10, 50, 30, 98]]))
    assert caplog.messages == [
        "begins from runs/old: 4 items kept, 2 new (1 from items near them in train, the others from the mean), 1 gone"
    ]
    caplog.clear()
    start(replace(origin_of(), moments={}, sequences=None), OLD)
    assert caplog.messages == [
        "begins from runs/old: 5 items kept, none new, 0 gone",
        "runs/old has no training state any more, so Adam's moments begin at 0",
        "runs/old has no histories, so targets that it was trained on cannot be told and left out",
    ]


def test_the_model_is_the_origins_and_the_preset_sets_training_only() -> None:
    origin, preset = origin_of(), TrainConfig(max_epochs=42, patience=7, learning_rate=0.5)
    model, train = origin.settings(preset, {"embedding_dim": 4, "batch_size": 8})
    assert model == origin.config.model
    assert to_dict(train) == to_dict(preset) | {"max_epochs": 11}
    assert origin.settings(preset, {"max_epochs": 42})[1] == preset


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embedding_dim": 8}, "embedding_dim=8 does not fit runs/old, whose model has embedding_dim=4"),
        ({"tied": True}, "tied=True does not fit runs/old, whose model has tied=False"),
        ({"dropout": 0.9}, "dropout=0.9 does not fit runs/old, whose model has dropout=0.2"),
        ({"n_heads": 3}, "n_heads=3 does not divide embedding_dim=4"),
    ],
)
def test_another_setting_of_the_model_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        origin_of().settings(TrainConfig(), given)


def test_a_log_without_any_of_its_items_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"none of the 5 items of runs/old \(ids such as 10; the log's .* 'sku-1'\)"):
        origin_of().facts(read([["sku-1", "sku-2", "sku-3"]]).vocabulary)


@pytest.mark.parametrize(
    ("saved", "now", "message"),
    [
        (None, "a", "this run did not begin from another one; leave --init out"),
        ("a", None, r"this run began from a model of old \(version a\); give the same --init again"),
        ("a", "b", "began from the model version a, and --init gives b"),
    ],
)
def test_a_run_goes_on_with_the_model_it_began_from_only(saved: str | None, now: str | None, message: str) -> None:
    facts = {version: InitFacts(version, "old", 1, 0, 0) for version in "ab"}
    with pytest.raises(ConfigError, match=message):
        check_same_init(facts[saved] if saved else None, facts[now] if now else None)
    check_same_init(None, None)
    check_same_init(facts["a"], facts["a"])


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"there is no run folder {tmp_path}/none"):
        read_origin(tmp_path / "none")
    (tmp_path / "sasrec.pth").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="is a file, and a training begins from a run folder; sasrec convert"):
        read_origin(tmp_path / "sasrec.pth")

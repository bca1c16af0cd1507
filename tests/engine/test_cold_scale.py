"""Rows of items that nothing was learnt of get more where answers are computed; training and other rows stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cold_rule import placed
from made import make_features, spread_weights
from step_features import LOSSES, N_ITEMS, candidates_of, features_of, make_batch, model_of

from sasrec.core.arrays import Bool, Float32
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.isa import load_native
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged
from sasrec.engine.protocol import Engine, create_engine
from sasrec.model.folding import fold, without_features
from sasrec.model.weights import FEATURE_TABLE, ITEM_TABLE, OUTPUT_TABLE, Weights

pytestmark = [
    pytest.mark.skipif(load_native().module is None, reason=load_native().why),
    pytest.mark.usefixtures("torch_on_one_thread", "isa"),
]

SCALE = 1.3
SIDES = [(engine, tied) for engine in ("native", "torch") for tied in (True, False)]


def trained_items() -> Bool:
    trained = np.zeros(N_ITEMS + 1, bool)
    trained[candidates_of(N_ITEMS)] = True
    return trained


def engine_of(model: ModelConfig, engine: Any, **train: Any) -> Engine:
    """With made-up weights, in which items that are no candidates have no own embedding."""
    weights = spread_weights(model, N_ITEMS)
    for name in {ITEM_TABLE, OUTPUT_TABLE} & set(weights):
        weights[name][~trained_items()] = 0
    config = TrainConfig(engine=engine, threads=2, **train)
    return create_engine(model, N_ITEMS, config, weights, features=features_of(model))


@pytest.mark.parametrize(("engine", "tied"), SIDES)
@pytest.mark.parametrize("kind", ["features", "vectors", "both"])
def test_rows_of_cold_items_are_as_the_rule_says_and_no_other_row_changes(kind: str, engine: str, tied: bool) -> None:
    model, trained = model_of(kind, tied=tied), trained_items()
    before, after = (engine_of(replace(model, cold_scale=scale), engine) for scale in (0.0, SCALE))
    weights, table = before.weights(), after.item_table()
    assert np.array_equal(table[trained], before.item_table()[trained])
    assert not np.array_equal(table, before.item_table())
    own = weights[ITEM_TABLE if tied else OUTPUT_TABLE]
    np.testing.assert_allclose(table, placed(before.item_table() - own, own, SCALE), rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(value, after.weights()[name]) for name, value in weights.items())


@pytest.mark.parametrize(("engine", "tied"), SIDES)
def test_a_history_reads_the_same_row_and_one_without_cold_items_has_the_same_bits(engine: str, tied: bool) -> None:
    model = model_of("both", tied=tied)
    before, after = (engine_of(replace(model, cold_scale=scale), engine) for scale in (0.0, SCALE))
    warm, any_item = (make_batch(TrainConfig(), all_compete).inputs for all_compete in (False, True))
    assert np.array_equal(before.encode(warm), after.encode(warm))
    assert not np.array_equal(before.encode(any_item), after.encode(any_item))


@pytest.mark.parametrize("tied", [True, False])
def test_both_engines_and_the_folded_weights_agree(tied: bool) -> None:
    model = model_of("both", tied=tied, cold_scale=SCALE)
    native, torch = (engine_of(model, engine) for engine in ("native", "torch"))
    histories = make_batch(TrainConfig(), True).inputs
    np.testing.assert_allclose(native.item_table(), torch.item_table(), rtol=1e-5, atol=1e-6)
    folded = fold(native.weights(), features_of(model), model)
    np.testing.assert_allclose(native.item_table(), folded[ITEM_TABLE if tied else OUTPUT_TABLE], rtol=1e-5, atol=1e-6)
    plain = create_engine(without_features(model), N_ITEMS, native.train_config, folded)
    np.testing.assert_allclose(plain.item_table(), native.item_table(), rtol=1e-5, atol=1e-6)
    largest = np.abs(torch.encode(histories)).max()
    tolerance = (2e-2 if load_native().module.bf16 else 1e-5) * largest
    assert np.abs(native.encode(histories) - torch.encode(histories)).max() < tolerance
    assert np.abs(plain.encode(histories) - native.encode(histories)).max() < tolerance


@pytest.mark.parametrize(("engine", "tied"), SIDES)
@pytest.mark.parametrize("loss", ["bce_shared", "cross_entropy", "gbce"])
def test_training_has_the_same_bits_whatever_the_scale(loss: str, engine: str, tied: bool) -> None:
    """Also where the answers are asked for between steps, as valid does."""

    def trained(scale: float) -> tuple[Weights, float]:
        model = model_of("both", tied=tied, cold_scale=scale)
        built = engine_of(model, engine, feature_dropout=0.3, l2_embedding=0.01, **LOSSES[loss])
        for step in range(3):
            built.item_table()
            built.forward_backward(make_batch(built.train_config, False, step))
            built.item_table()
            built.optimizer_step(0.01)
            built.update_average(0.5)
        return {**built.weights(), **built.optimizer_state()}, built.pop_loss()

    (first, loss_of_first), (second, loss_of_second) = trained(0.0), trained(SCALE)
    assert loss_of_first == loss_of_second
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_an_item_of_which_a_step_has_learnt_is_cold_no_longer(engine: str) -> None:
    """A batch in which all items compete, as after new events of an item."""
    sides = []
    for scale in (0.0, SCALE):
        built = engine_of(model_of("both", cold_scale=scale), engine, loss="cross_entropy")
        for _ in range(2):  # the first step, too, reads rows as they are trained on
            built.forward_backward(make_batch(built.train_config, True))
            built.optimizer_step(0.01)
        sides.append(built.item_table())
    assert np.array_equal(*sides)


def test_items_without_features_have_rows_of_their_own_only_and_no_scale() -> None:
    model = ModelConfig(embedding_dim=20, cold_scale=SCALE)
    weights = spread_weights(model, N_ITEMS)
    weights[ITEM_TABLE][5] = 0
    for engine in ("native", "torch"):
        built = create_engine(model, N_ITEMS, TrainConfig(engine=engine), weights)
        assert np.array_equal(built.item_table(), weights[ITEM_TABLE])


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_any_number_of_threads_gives_the_same_bits_and_more_items_change_no_row(engine: str) -> None:
    model, features = model_of("both", embedding_dim=7, cold_scale=SCALE), make_features(5_000, 40, 19)
    weights = spread_weights(model, 5_000)
    weights[ITEM_TABLE][1::3] = 0

    def table(threads: int, n_items: int = 5_000) -> Float32:
        some = weights | {ITEM_TABLE: weights[ITEM_TABLE][: n_items + 1]}
        told = ItemFeatures(features.values.part(slice(0, n_items + 1)), 40, features.vectors[: n_items + 1])
        train = TrainConfig(engine=engine, threads=threads)
        return create_engine(model, n_items, train, some, features=told).item_table()

    whole, plain = table(3), create_engine(replace(model, cold_scale=0), 5_000, TrainConfig(engine=engine), weights,
                                           features=features).item_table()  # fmt: skip
    own = weights[ITEM_TABLE]
    np.testing.assert_allclose(whole, placed(plain - own, own, SCALE), rtol=1e-5, atol=1e-6)
    if engine == "native":
        assert np.array_equal(whole, table(1))
    weights[ITEM_TABLE][4_000:] = 0  # as items that are added later
    assert np.allclose(table(3)[:4_000], table(3, 3_999), rtol=1e-6, atol=0)
    if engine == "native":
        assert np.array_equal(table(3)[:4_000], table(2, 3_999))


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_of_a_large_catalogue_every_nth_item_is_looked_at(engine: str) -> None:
    n_items, cold = 40_000, np.arange(7, 40_000, 1_000)
    model, features = ModelConfig(embedding_dim=4, n_features=30, cold_scale=SCALE), make_features(n_items, 30)
    weights = spread_weights(model, n_items)
    weights[ITEM_TABLE][cold] = 0
    train = TrainConfig(engine=engine, threads=2)
    plain = create_engine(replace(model, cold_scale=0), n_items, train, weights, features=features).item_table()
    table, own = create_engine(model, n_items, train, weights, features=features).item_table(), weights[ITEM_TABLE]
    told = plain - own
    warm = np.flatnonzero(own.any(axis=1) & (features.values.lengths > 0))
    assert 16_384 < len(warm) < 2 * 16_384
    np.testing.assert_allclose(table, placed(told, own, SCALE, warm[::2]), rtol=1e-5, atol=1e-6)
    folded = fold(weights, features, model)[ITEM_TABLE]
    np.testing.assert_allclose(table, folded, rtol=1e-5, atol=1e-6)


def tables_of(own: list[list[float]], told: list[list[float]]) -> list[Float32]:
    """Of both engines and of folded weights, for items of which each has a feature of its own with this embedding."""
    n_items, dim = len(own), len(own[0])
    features = ItemFeatures(Ragged.from_lists([[], *([item] for item in range(n_items))]), n_items, None)
    model = ModelConfig(embedding_dim=dim, n_features=n_items, cold_scale=SCALE)
    weights = spread_weights(model, n_items)
    weights[ITEM_TABLE][1:], weights[FEATURE_TABLE][:] = own, told
    engines = [
        create_engine(model, n_items, TrainConfig(engine=engine), weights, features=features)
        for engine in ("native", "torch")
    ]
    return [*(engine.item_table()[1:] for engine in engines), fold(weights, features, model)[ITEM_TABLE][1:]]


def test_an_item_told_as_another_leans_to_what_was_learnt_of_that_one_and_one_unlike_all_to_nothing() -> None:
    own, told = [[2.0, 0], [-2, 0], [0, 0], [0, 0]], [[0.0, 4], [0, -2], [0, 1], [1, 0]]
    like = np.array([2 / 1.3, 1])
    wanted = [like * SCALE * (3 / np.linalg.norm(like)) ** 0.5, np.array([1, 0]) * SCALE * 3**0.5]
    for table in tables_of(own, told):
        assert np.array_equal(table[:2], [[2, 4], [-2, -2]])
        np.testing.assert_allclose(table[2:], wanted, rtol=1e-6)


def test_a_row_that_comes_to_nothing_is_zero_and_finite() -> None:
    """What was learnt of the item like it is just the opposite of what is told of it."""
    for table in tables_of([[-1.3, 0], [1.3, 0], [0, 0]], [[2.0, 0], [-2, 0], [1, 0]]):
        assert np.isfinite(table).all()
        assert np.abs(table[2]).max() < 1e-3


def test_torch_makes_rows_for_answers_once_after_each_change_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model_of("both", cold_scale=SCALE), "torch")
    made, tables = [], engine.model.tables

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(kwargs)
        return tables(*args, **kwargs)

    monkeypatch.setattr(engine.model, "tables", counted)
    histories = make_batch(TrainConfig(), True).inputs

    def answers() -> tuple[Float32, Float32]:
        made.clear()
        both = engine.encode(histories), engine.item_table().copy()
        assert np.array_equal(both[0], engine.encode(histories))
        assert len(made) == 1
        return both

    weights, first = engine.weights(), answers()
    engine.forward_backward(make_batch(engine.train_config, False))
    engine.optimizer_step(0.01)
    engine.update_average(0.5)
    stepped = answers()
    engine.load_weights(weights)
    assert all(map(np.array_equal, answers(), first))
    engine.swap_average()
    assert all(map(np.array_equal, answers(), stepped))


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_where_no_item_was_trained_rows_stay(engine: str) -> None:
    model, train = model_of("both", cold_scale=SCALE), TrainConfig(engine=engine)
    weights = spread_weights(model, N_ITEMS)
    weights[ITEM_TABLE][:] = 0
    table = create_engine(model, N_ITEMS, train, weights, features=features_of(model)).item_table()
    plain = fold(weights, features_of(model), replace(model, cold_scale=0))[ITEM_TABLE]
    np.testing.assert_allclose(table, plain, rtol=1e-5, atol=1e-6)
    assert np.array_equal(plain, fold(weights, features_of(model), model)[ITEM_TABLE])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "cold_scale=-1.0 is too small; the least is 0"),
        (1e3, "cold_scale=1000.0 is too large; the most is 100"),
        (float("nan"), "cold_scale=nan is not a finite number"),
        (float("inf"), "cold_scale=inf is not a finite number"),
        ("long", "cold_scale='long' is not of type float"),
    ],
)
def test_a_scale_that_is_none_is_refused_in_one_sentence(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ModelConfig(cold_scale=value)
    assert str(refused.value) == message

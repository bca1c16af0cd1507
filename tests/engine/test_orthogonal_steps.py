"""Steps of item tables that are equally long in all directions: their formula, both engines, resumed and shared."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from made import make_features, spread_weights
from step_features import make_batch, model_of
from worlds import ThreadWorld, in_world

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.isa import load_float32, load_native
from sasrec.core.world import Pulse
from sasrec.engine.native import NativeEngine
from sasrec.engine.orthogonal import turning
from sasrec.engine.shared_steps import SharedSteps
from sasrec.engine.torch_engine import TorchEngine
from sasrec.model.weights import ITEM_TABLE, OUTPUT_TABLE, Weights

N_ITEMS = 97
TRAIN = TrainConfig(threads=2, orthogonal_steps=True, learning_rate=0.01)
TABLES = (ITEM_TABLE, OUTPUT_TABLE)
Engines = TorchEngine | NativeEngine

pytestmark = [
    pytest.mark.skipif(load_native().module is None, reason=load_native().why),
    pytest.mark.usefixtures("torch_on_one_thread"),
]


def shape_of(wiring: str, **settings: Any) -> ModelConfig:
    """A model of ids with one table or two ("one", "two"), or with features of items and vectors besides."""
    if wiring == "features":
        return model_of("both", **settings)
    shape = {"embedding_dim": 20, "max_seq_len": 70, "dropout": 0.0, "tied": wiring == "one"}
    return ModelConfig(**{**shape, **settings})


def make_engine(kind: type[Engines], model: ModelConfig, train: TrainConfig, n_items: int = N_ITEMS) -> Engines:
    features = make_features(n_items, model.n_features, model.vector_dim) if model.has_features else None
    engine = kind(model, n_items, train, features=features)
    engine.load_weights(spread_weights(model, n_items))
    return engine


def take_steps(engine: Engines, n_steps: int, first: int = 0, n_items: int = N_ITEMS) -> Engines:
    for step in range(first, first + n_steps):
        engine.forward_backward(make_batch(engine.train_config, True, step=step, n_items=n_items))
        engine.optimizer_step(engine.train_config.learning_rate)
    return engine


def plain_steps(engine: Engines) -> Weights:
    """Adam's last step of each table in float64, by the moments that it left, without the learning rate."""
    state, steps = engine.optimizer_state(), {}
    for name in TABLES:
        if f"step/{name}" not in state:
            continue
        t, mean, square = (state[f"{kind}/{name}"].astype(np.float64) for kind in ("step", "exp_avg", "exp_avg_sq"))
        train = engine.train_config
        steps[name] = mean / (1 - train.adam_beta1**t) / (np.sqrt(square / (1 - train.adam_beta2**t)) + 1e-8)
    return steps


def turned(step: Any) -> Any:
    """The step by its singular vectors, of which all get the same length: the mean square of those they had."""
    left, lengths, right = np.linalg.svd(step, full_matrices=False)
    mean = (lengths**2).sum() / step.shape[1]
    return left * (lengths / np.sqrt(lengths**2 / mean + 1e-5)) @ right


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", [TorchEngine, NativeEngine])
@pytest.mark.parametrize("wiring", ["one", "two", "features"])
@pytest.mark.parametrize("dim", [20, 64, 72])
def test_tables_move_by_the_orthogonal_factor_of_adams_step(kind: type[Engines], wiring: str, dim: int) -> None:
    engine = take_steps(make_engine(kind, shape_of(wiring, embedding_dim=dim), TRAIN), 2)
    before = engine.weights()
    take_steps(engine, 1, first=2)
    expected, after = plain_steps(engine), engine.weights()
    assert set(expected) == set(TABLES if wiring == "two" else (ITEM_TABLE,))
    for name, step in expected.items():
        moved = before[name] - after[name]
        np.testing.assert_allclose(moved, 0.01 * turned(step), rtol=0, atol=1e-5, err_msg=name)
        lengths = np.linalg.svd(moved, compute_uv=False)
        assert lengths.max() < 1.01 * lengths.min()
        assert np.linalg.norm(moved) == pytest.approx(0.01 * np.linalg.norm(step), rel=1e-3)
        assert not after[name][0].any()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", [TorchEngine, NativeEngine])
def test_all_other_weights_move_as_without(kind: type[Engines]) -> None:
    model = shape_of("features")
    plain, engine = (make_engine(kind, model, replace(TRAIN, orthogonal_steps=on)) for on in (False, True))
    start = plain.weights()
    expected, got = (take_steps(each, 1).weights() for each in (plain, engine))
    assert not np.array_equal(expected[ITEM_TABLE], got[ITEM_TABLE])
    for name in set(expected) - {ITEM_TABLE}:
        np.testing.assert_array_equal(expected[name], got[name], err_msg=name)
        assert not np.array_equal(got[name], start[name]), name


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("wiring", ["one", "features"])
@pytest.mark.parametrize("train", [{}, {"clip_norm": 0.05, "weight_decay": 1.0}, {"l2_embedding": 0.01}])
def test_both_engines_go_the_same_way(wiring: str, train: dict[str, float]) -> None:
    if load_native().module.bf16:
        pytest.skip("this variant rounds to bf16")
    model = shape_of(wiring)
    reference, core = (make_engine(kind, model, replace(TRAIN, **train)) for kind in (TorchEngine, NativeEngine))
    expected, got = (take_steps(engine, 5).weights()[ITEM_TABLE] for engine in (reference, core))
    assert np.linalg.norm(expected - got) < 1e-3 * np.linalg.norm(expected - spread_weights(model, N_ITEMS)[ITEM_TABLE])


@pytest.mark.parametrize("first", [TorchEngine, NativeEngine])
@pytest.mark.parametrize("second", [TorchEngine, NativeEngine])
def test_a_run_goes_on_from_what_was_saved(first: type[Engines], second: type[Engines]) -> None:
    model = shape_of("two")
    whole, saved = (take_steps(make_engine(first, model, TRAIN), 3) for _ in range(2))
    resumed = make_engine(second, model, TRAIN)
    resumed.load_weights(saved.weights())
    resumed.load_optimizer_state(saved.optimizer_state())
    expected, got = (take_steps(engine, 3, first=3).weights() for engine in (whole, resumed))
    for name in TABLES:
        if first is second:
            np.testing.assert_array_equal(expected[name], got[name], err_msg=name)
        else:
            assert np.abs(expected[name] - got[name]).max() < (0.03 if load_native().module.bf16 else 1e-4), name


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("threads", [2, 3, 17])
def test_number_of_threads_changes_no_bit_of_a_tables_step(threads: int) -> None:
    """Given the same gradients, of which some do go by threads."""
    engines = [make_engine(NativeEngine, shape_of("two"), replace(TRAIN, threads=n), 2000) for n in (1, threads)]
    for step in range(3):
        for engine in engines:
            engine.forward_backward(make_batch(TRAIN, True, step=step, n_items=2000))
        one, other = (engine.core for engine in engines)
        other.gradient()[:] = one.gradient()
        for table, (rows, values) in enumerate(one.table_gradients()):
            other.sum_gradients(table, [(rows, values)])
        for engine in engines:
            engine.optimizer_step(0.01)
    expected, got = (engine.weights() for engine in engines)
    for name in expected:
        np.testing.assert_array_equal(expected[name], got[name], err_msg=name)


@functools.cache
def after_steps_of_few_rows(isa: str, threads: int, reads: bool) -> tuple[Weights, Weights]:
    """Weights and optimizer state after steps that each touch few of many items."""
    engine = make_engine(NativeEngine, shape_of("features", tied=False), replace(TRAIN, threads=threads), 2000)
    assert engine.isa == isa
    for step in range(20):
        take_steps(engine, 1, step, 2000)
        engine.update_average(0.9)
        if reads:
            engine.weights()
    return engine.weights(), engine.optimizer_state()


@pytest.mark.parametrize("threads", [1, 2])
def test_who_reads_weights_in_between_changes_no_bit(isa: str, threads: int) -> None:
    for expected, got in zip(*(after_steps_of_few_rows(isa, threads, reads) for reads in (False, True)), strict=True):
        assert expected.keys() == got.keys()
        for key in expected:
            np.testing.assert_array_equal(expected[key], got[key], err_msg=key)


@pytest.mark.parametrize("kind", [TorchEngine, NativeEngine])
def test_processes_that_share_steps_stay_alike_and_go_the_way_of_one(kind: type[Engines]) -> None:
    model = shape_of("one")

    def trained(world: ThreadWorld | None) -> Weights:
        config = replace(TRAIN, threads=1 + (world.rank if world else 0), learning_rate=1e-3)
        extra = {"native": load_float32()} if kind is NativeEngine else {}
        engine = kind(model, N_ITEMS, config, **extra)
        engine.load_weights(spread_weights(model, N_ITEMS))
        steps = engine if world is None else SharedSteps(engine, world, Pulse(world))
        for step in range(4):
            steps.forward_backward(make_batch(config, True, step=step))
            engine.optimizer_step(1e-3)
        return engine.weights()

    alone, shared = trained(None), in_world(3, trained)
    for found in shared:
        np.testing.assert_array_equal(found[ITEM_TABLE], shared[0][ITEM_TABLE])
        np.testing.assert_allclose(found[ITEM_TABLE], alone[ITEM_TABLE], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", [TorchEngine, NativeEngine])
def test_fewer_rows_than_dimensions_move_no_further_than_the_floor_lets_them(kind: type[Engines]) -> None:
    """Directions that no row has are not made up of rounding."""
    model = shape_of("one", embedding_dim=64)
    engine = make_engine(kind, model, TRAIN, 9)
    before = engine.weights()[ITEM_TABLE]
    after = take_steps(engine, 1, n_items=9).weights()[ITEM_TABLE]
    step = plain_steps(engine)[ITEM_TABLE]
    np.testing.assert_allclose(before - after, 0.01 * turned(step), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", [TorchEngine, NativeEngine])
def test_a_learning_rate_of_0_moves_nothing(kind: type[Engines]) -> None:
    engine = make_engine(kind, shape_of("features"), replace(TRAIN, learning_rate=0.0))
    before = engine.weights()
    for name, values in take_steps(engine, 2).weights().items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)


def test_turning_leaves_what_is_orthogonal_and_what_is_not_finite() -> None:
    step = torch.linalg.qr(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))[0]
    torch.testing.assert_close(turning(3 * step), torch.eye(8), rtol=0, atol=1e-4)
    assert not (torch.zeros(5, 8) @ turning(torch.zeros(5, 8))).any()
    step[3, 2] = torch.nan
    torch.testing.assert_close(turning(step), torch.eye(8))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", [TorchEngine, NativeEngine])
def test_gradients_that_are_no_numbers_end_neither_in_a_hang_nor_in_an_error(kind: type[Engines]) -> None:
    model = shape_of("one")
    engine = make_engine(kind, model, TRAIN)
    engine.load_weights({name: np.full_like(value, np.nan) for name, value in engine.weights().items()})
    assert np.isnan(take_steps(engine, 2).weights()[ITEM_TABLE][1:]).any()


def test_lazy_adam_is_refused_beside_it() -> None:
    with pytest.raises(ConfigError, match="orthogonal_steps moves every row, and lazy_adam leaves rows behind"):
        TrainConfig(orthogonal_steps=True, lazy_adam=True)

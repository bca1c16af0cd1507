"""Weights of positions: both engines compute the same weighted loss, and positions of weight 0 are as if not there."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from made import spread_weights
from numpy.typing import NDArray
from step_batches import LENGTHS, LOSSES, N_ITEMS, make_batch, some_weights

from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.core.isa import load_native
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import split_sequences
from sasrec.engine.native import NativeEngine
from sasrec.engine.torch_engine import TorchEngine
from sasrec.model.weights import Weights
from sasrec.training.trainer import train

pytestmark = pytest.mark.skipif(load_native().module is None, reason=load_native().why)

MODEL = ModelConfig(embedding_dim=24, max_seq_len=70, dropout=0.0, activation="identity", block="post_norm")
ENGINES = [TorchEngine, NativeEngine]


def make_engine(kind: type[TorchEngine | NativeEngine], config: TrainConfig) -> TorchEngine | NativeEngine:
    engine = kind(MODEL, N_ITEMS, config)
    engine.load_weights(spread_weights(MODEL, N_ITEMS))
    return engine


def gradients_of(engine: TorchEngine | NativeEngine) -> Weights:
    if isinstance(engine, NativeEngine):
        return engine.gradients()
    return {name: p.grad.numpy().copy() for name, p in engine.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", LOSSES)
def test_both_engines_have_the_weighted_loss_and_its_gradients(isa: str, loss: str) -> None:
    config = TrainConfig(threads=2, **LOSSES[loss])
    batch, tolerance = make_batch(config, some_weights()), 5e-2 if load_native().module.bf16 else 1e-5
    reference, core = (make_engine(kind, config) for kind in ENGINES)
    for engine in (reference, core):
        engine.forward_backward(batch)
    expected, got = gradients_of(reference), gradients_of(core)
    for name, gradient in expected.items():
        assert np.abs(gradient - got[name]).max() < tolerance * np.abs(gradient).max(), name
    assert core.pop_loss() == pytest.approx(reference.pop_loss(), rel=max(tolerance, 1e-6))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_weighted_loss_is_the_mean_of_single_positions_by_their_weights(loss: str) -> None:
    config, weights = TrainConfig(threads=1, **LOSSES[loss]), some_weights()
    engine = make_engine(TorchEngine, config)
    single = np.zeros(len(weights))
    for i in np.flatnonzero(weights):
        only = np.zeros_like(weights)
        only[i] = 5
        engine.forward_backward(make_batch(config, only))
        single[i] = engine.pop_loss()
    engine.forward_backward(make_batch(config, weights))
    assert engine.pop_loss() == pytest.approx(np.average(single, weights=weights), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ENGINES)
def test_equal_weights_are_no_weights(kind: type[TorchEngine | NativeEngine], loss: str) -> None:
    config = TrainConfig(threads=1, **LOSSES[loss])
    answers = []
    for weights in (None, np.full(sum(LENGTHS), 1, np.float32), np.full(sum(LENGTHS), 4, np.float32)):
        engine = make_engine(kind, config)
        engine.forward_backward(make_batch(config, weights))
        answers.append((engine.pop_loss(), gradients_of(engine)))
    for value, gradients in answers[1:]:
        assert value == pytest.approx(answers[0][0], rel=1e-6)
        for name, gradient in answers[0][1].items():
            assert np.allclose(gradient, gradients[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("kind", "lazy"), [(TorchEngine, False), (NativeEngine, False), (NativeEngine, True)])
def test_positions_of_weight_0_are_as_if_not_there_to_the_bit(
    kind: type[TorchEngine | NativeEngine], loss: str, lazy: bool
) -> None:
    config = TrainConfig(threads=2, clip_norm=0.05, l2_embedding=1e-4, lazy_adam=lazy, **LOSSES[loss])
    runs = []
    for others in (0, 1, 2):
        engine = make_engine(kind, config)
        for seed in range(5):
            engine.forward_backward(make_batch(config, some_weights(seed), seed, others))
            engine.optimizer_step(1e-2)
        runs.append((engine.pop_loss(), engine.weights(), engine.optimizer_state()))
    for loss_sum, weights, state in runs[1:]:
        assert loss_sum == runs[0][0]
        for found, expected in ((weights, runs[0][1]), (state, runs[0][2])):
            assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_a_batch_whose_weights_have_no_positive_sum_is_refused(
    kind: type[TorchEngine | NativeEngine], weight: float
) -> None:
    config = TrainConfig(threads=1)
    engine, batch = make_engine(kind, config), make_batch(config, np.full(sum(LENGTHS), weight, np.float32))
    with pytest.raises(ValueError, match="weights of a batch must not be negative, and must have a positive sum"):
        engine.forward_backward(batch)
    assert engine.pop_loss() == 0


@pytest.mark.parametrize("weights", [np.zeros(3, np.float32), np.full(sum(LENGTHS), -1, np.float32)])
def test_the_core_checks_weights_by_itself(weights: NDArray[np.float32]) -> None:
    config = TrainConfig(threads=1)
    batch, engine = make_batch(config, None), NativeEngine(MODEL, N_ITEMS, config)
    with pytest.raises(ValueError, match=r"one weight for each input|weights must not be negative"):
        engine.core.forward_backward(
            items=batch.inputs.values, offsets=batch.inputs.offsets, sequence_keys=batch.users.astype(np.uint64),
            step_key=0, targets=batch.targets, negatives=batch.negatives, earlier=np.zeros(0, np.int32),
            earlier_offsets=np.zeros(0, np.int64), loss="bce", positive_weight=1.0, corrections=batch.corrections,
            l2_embedding=0.0, weights=weights, seen=np.zeros(0, np.int32),
        )  # fmt: skip


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("item", [-1, N_ITEMS + 1])
def test_seen_items_that_do_not_exist_are_refused_or_hide_nothing(
    kind: type[TorchEngine | NativeEngine], item: int
) -> None:
    config = TrainConfig(threads=1, loss="cross_entropy", mask_seen=True)
    batch = make_batch(config, None)
    assert batch.seen is not None
    wrong = replace(batch, seen=np.full(len(batch.seen), item, np.int32))
    engine = make_engine(kind, config)
    if kind is NativeEngine:
        with pytest.raises(ValueError, match="item"):
            engine.forward_backward(wrong)
    else:
        engine.forward_backward(wrong)


def late_views(n_users: int = 4) -> pl.DataFrame:
    """Users who buy early and then only look: what a window of 3 sees trains nothing."""
    rows = [(user, item + 1, "buy" if item < 4 else "view") for user in range(n_users) for item in range(20)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "event"], orient="row")


@pytest.mark.parametrize("name", ["torch", "native"])
def test_a_step_whose_weights_sum_to_0_changes_nothing(name: str) -> None:
    sequences, _ = build_sequences(late_views())
    split = split_sequences(sequences, EvalConfig())
    model = ModelConfig(embedding_dim=8, n_blocks=1, max_seq_len=3)
    config = TrainConfig(
        engine=name, batch_size=1, max_epochs=3, event_weights="view=0", random_windows=1e-9, ema_decay=0.9,
        l2_embedding=0.1, weight_decay=0.1, threads=1,
    )  # fmt: skip
    engine = {"torch": TorchEngine, "native": NativeEngine}[name](model, sequences.n_items, config)
    before = engine.weights()
    result = train(engine, split, model, config, EvalConfig())
    after = engine.weights()
    assert all(np.array_equal(before[weight], after[weight]) for weight in before)
    assert engine.optimizer_state() == {}
    assert not engine.has_average
    assert [line.train_loss for line in result.history] == [0, 0, 0]

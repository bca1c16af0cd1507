"""Steps that processes share: their gradients are those of the whole batch, and all end in the same weights."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made import make_features, spread_weights
from numpy.typing import NDArray
from step_batches import LOSSES, N_ITEMS, make_batch, some_weights
from worlds import ThreadWorld, in_world

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.isa import load_float32, load_native
from sasrec.core.world import Pulse
from sasrec.data.batches import Batch
from sasrec.data.item_features import ItemFeatures
from sasrec.data.shares import share_of
from sasrec.engine.native import NativeEngine
from sasrec.engine.shared_steps import SharedSteps
from sasrec.engine.torch_engine import TorchEngine
from sasrec.model.weights import Weights

pytestmark = pytest.mark.skipif(load_native().module is None, reason=load_native().why)

N_FEATURES, VECTOR_DIM = 11, 5
PLAIN = ModelConfig(embedding_dim=24, max_seq_len=70, dropout=0.3, n_heads=2)
MODELS = {
    "tied": PLAIN,
    "untied": replace(PLAIN, tied=False, block="post_norm"),
    "features": replace(PLAIN, n_features=N_FEATURES, vector_dim=VECTOR_DIM),
    "features_untied": replace(PLAIN, n_features=N_FEATURES, vector_dim=VECTOR_DIM, tied=False),
}
SIZES = [2, 3, 12]  # with twelve processes some have no row


def features_of(model: ModelConfig) -> ItemFeatures | None:
    return make_features(N_ITEMS, N_FEATURES, VECTOR_DIM) if model.has_features else None


def make_native(model: ModelConfig, config: TrainConfig) -> NativeEngine:
    engine = NativeEngine(model, N_ITEMS, config, native=load_float32(), features=features_of(model))
    engine.load_weights(spread_weights(model, N_ITEMS))
    return engine


def make_torch(model: ModelConfig, config: TrainConfig) -> TorchEngine:
    engine = TorchEngine(replace(model, dropout=0.0), N_ITEMS, config, features=features_of(model))
    engine.load_weights(spread_weights(model, N_ITEMS))
    return engine


def gradients_of(engine: NativeEngine | TorchEngine) -> Weights:
    if isinstance(engine, NativeEngine):
        return engine.gradients()
    return {name: p.grad.numpy().copy() for name, p in engine.model.named_parameters() if p.grad is not None}


def assert_close(found: Weights, expected: Weights, tolerance: float = 2e-5) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= tolerance * max(np.abs(values).max(), 1e-6), name


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def only_some(weighted: bool) -> NDArray[np.float32] | None:
    """Weights of which those of the first row and of the last three are 0."""
    if not weighted:
        return None
    weights = some_weights()
    weights[:1] = weights[-14:] = 0
    return weights


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("make", [make_native, make_torch])
def test_gradients_of_shares_add_up_to_those_of_the_batch(make: Any, model: str, loss: str, weighted: bool) -> None:
    config = TrainConfig(threads=1, l2_embedding=1e-3, feature_dropout=0.4, **LOSSES[loss])
    batch = make_batch(config, only_some(weighted))
    whole = make(MODELS[model], config)
    whole.forward_backward(batch)
    total: Weights = {}
    loss_sum = 0.0
    for rank in range(3):
        share = share_of(batch, rank, 3)
        if share is None:
            continue
        engine = make(MODELS[model], config)
        engine.forward_backward(share)
        loss_sum += engine.pop_loss() * share.total_weight
        for name, gradient in gradients_of(engine).items():
            total[name] = total.get(name, 0) + gradient
    assert_close(total, gradients_of(whole))
    assert loss_sum / batch.total_weight == pytest.approx(whole.pop_loss(), rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loss", ["bce", "sampled_softmax_shared", "cross_entropy"])
@pytest.mark.parametrize("model", ["untied", "features"])
@pytest.mark.parametrize("make", [make_native, make_torch])
def test_every_process_has_the_sum_to_the_bit(make: Any, model: str, loss: str, size: int) -> None:
    config = TrainConfig(threads=1, l2_embedding=1e-3, feature_dropout=0.4, **LOSSES[loss])
    batch = make_batch(config, only_some(True))
    whole = make(MODELS[model], config)
    whole.forward_backward(batch)

    def body(world: ThreadWorld) -> tuple[float, Weights]:
        engine = make(MODELS[model], config)
        steps = SharedSteps(engine, world, Pulse(world))
        steps.forward_backward(batch)
        return steps.pop_loss(), gradients_of(engine)

    loss_mean, found = whole.pop_loss(), in_world(size, body)
    for value, gradients in found:
        assert value == found[0][0] == pytest.approx(loss_mean, rel=1e-6)
        assert_close(gradients, gradients_of(whole))
        assert_same(gradients, found[0][1])


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_steps_of_a_large_catalogue_go_by_touched_rows_or_whole_tables_alike(dense: bool, lazy: bool) -> None:
    n_items = 60 if dense else 4000  # rows wait for their steps where few are touched
    config = TrainConfig(threads=2, lazy_adam=lazy, clip_norm=0.1, weight_decay=0.01, n_negatives=3)
    model = replace(PLAIN, tied=False)

    def batch_of(step: int) -> Batch:
        batch, rng = make_batch(replace(config, n_negatives=2), None, step), np.random.default_rng(step)
        items = [rng.integers(1, n_items + 1, np.shape(part)).astype(np.int32) for part in
                 (batch.inputs.values, batch.targets, np.empty((len(batch.targets), 3)))]  # fmt: skip
        return replace(batch, inputs=replace(batch.inputs, values=items[0]), targets=items[1], negatives=items[2])

    def trained(world: ThreadWorld | None) -> tuple[Weights, Weights, Weights]:
        engine = NativeEngine(model, n_items, config, native=load_float32())
        steps = engine if world is None else SharedSteps(engine, world, Pulse(world))
        for step in range(6):
            steps.forward_backward(batch_of(step))
            engine.optimizer_step(1e-3)
            engine.update_average(0.9)
        return engine.weights(), engine.optimizer_state(), engine.gradients()

    alone, shared = trained(None), in_world(3, trained)
    for found in shared:
        for got, first in zip(found, shared[0], strict=True):
            assert_same(got, first)
        for name, values in alone[0].items():  # six steps of 1e-3; Adam makes steps of rounding where gradients are 0
            np.testing.assert_allclose(found[0][name], values, rtol=0, atol=1e-4, err_msg=name)
            np.testing.assert_allclose(found[1][f"average/{name}"], alone[1][f"average/{name}"], rtol=0, atol=1e-4)


def test_a_batch_of_one_row_leaves_other_processes_without_work() -> None:
    config = TrainConfig(threads=1)
    whole = make_batch(config, None)
    one = replace(
        whole,
        users=whole.users[:1],
        inputs=whole.inputs.part(slice(0, 1)),
        targets=whole.targets[:1],
        negatives=whole.negatives[:1],
    )

    def body(world: ThreadWorld) -> Weights:
        engine = make_native(PLAIN, config)
        steps = SharedSteps(engine, world, Pulse(world))
        for _ in range(2):
            steps.forward_backward(one)
            engine.optimizer_step(1e-3)
        return engine.weights()

    alone = make_native(PLAIN, config)
    for _ in range(2):
        alone.forward_backward(one)
        alone.optimizer_step(1e-3)
    for weights in in_world(3, body):
        assert_same(weights, alone.weights())


def test_the_core_refuses_rows_that_are_none_of_its_tables() -> None:
    engine = make_native(PLAIN, TrainConfig(threads=1))
    engine.core.clear_gradients()
    rows, values = engine.core.table_gradients()[0]
    assert (rows.shape[0], values.shape[0]) == (0, 0)
    assert not engine.core.gradient().any()
    width = values.shape[1]
    for wrong in (0, N_ITEMS + 1, -1):
        with pytest.raises(ValueError, match=r"is not in 1\.\.97"):
            engine.core.sum_gradients(0, [(np.array([wrong], np.int32), np.zeros((1, width), np.float32))])
    with pytest.raises(ValueError, match="values must be"):
        engine.core.sum_gradients(0, [(np.array([1], np.int32), np.zeros((1, width + 1), np.float32))])
    with pytest.raises(ValueError, match="no such table"):
        engine.core.sum_gradients(2, [])
    with pytest.raises(ValueError, match="whole_weight must be finite"):
        engine.forward_backward(replace_weight(make_batch(TrainConfig(threads=1), None), np.inf))


def replace_weight(batch: Batch, weight: float) -> Batch:
    share = share_of(batch, 0, 2)
    assert share is not None
    assert share.share is not None
    return replace(share, share=replace(share.share, weight=weight))


def test_rows_and_values_of_tables_are_views_that_outlive_nothing_else() -> None:
    engine, batch = make_native(PLAIN, TrainConfig(threads=1)), make_batch(TrainConfig(threads=1), None)
    engine.forward_backward(batch)
    rows, values = engine.core.table_gradients()[0]
    expected = engine.gradients()["item_embedding.weight"]
    assert not rows.flags.owndata
    np.testing.assert_array_equal(values[:, :24], expected[rows])
    flat = engine.core.gradient()
    flat[:] = 0
    assert not engine.gradients()["position_embedding.weight"].any()
    del engine
    assert len(rows) == len(values)  # the engine lives as long as what is seen of it

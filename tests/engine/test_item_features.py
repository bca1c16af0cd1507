"""Items with features on both engines: the same gradients, the same items left out, one folded table for all else."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import make_features, spread_weights
from step_features import (
    KINDS,
    LOSSES,
    N_ITEMS,
    WIRINGS,
    candidates_of,
    features_of,
    make_batch,
    model_of,
)

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.isa import load_float32, load_native
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged
from sasrec.engine.id_dropout import ids_kept, step_key
from sasrec.engine.native import NativeEngine
from sasrec.engine.protocol import Engine, create_engine
from sasrec.engine.torch_engine import TorchEngine
from sasrec.model.folding import fold, without_features
from sasrec.model.weights import ITEM_TABLE, OUTPUT_TABLE, Weights

pytestmark = [
    pytest.mark.skipif(load_native().module is None, reason=load_native().why),
    pytest.mark.usefixtures("torch_on_one_thread"),
]


def gradients_of(engine: TorchEngine | NativeEngine) -> Weights:
    if isinstance(engine, NativeEngine):
        return engine.gradients()
    return {name: p.grad.numpy().copy() for name, p in engine.model.named_parameters() if p.grad is not None}


def largest_errors(expected: Weights, got: Weights) -> dict[str, float]:
    """Of each tensor, the largest difference relative to its largest value."""
    assert set(expected) == set(got)
    return {
        name: float(np.abs(expected[name] - got[name]).max() / max(np.abs(expected[name]).max(), 1e-6))
        for name in expected
    }


@dataclass(frozen=True)
class Question:
    """A model with made-up weights, and a batch."""

    model: ModelConfig
    train: TrainConfig
    all_compete: bool

    def put_to(self, engine: TorchEngine | NativeEngine) -> tuple[float, Weights]:
        engine.load_weights(spread_weights(self.model, N_ITEMS))
        engine.forward_backward(make_batch(self.train, self.all_compete))
        return engine.pop_loss(), gradients_of(engine)


@functools.cache
def answer_of_torch(question: Question) -> tuple[float, Weights]:
    """Computed once for all variants."""
    return question.put_to(TorchEngine(question.model, N_ITEMS, question.train, features=features_of(question.model)))


@pytest.mark.parametrize("feature_dropout", [0.0, 0.4])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["features", "vectors", "both"])
@pytest.mark.parametrize(("block", "tied"), WIRINGS)
def test_gradients_of_every_loss_are_those_of_torch(
    isa: str, block: str, tied: bool, kind: str, loss: str, feature_dropout: float
) -> None:
    train = TrainConfig(threads=2, feature_dropout=feature_dropout, **LOSSES[loss])
    all_compete = feature_dropout == 0 and block in ("sasrec", "ligr")
    question = Question(model_of(kind, block=block, tied=tied), train, all_compete)
    expected_loss, expected = answer_of_torch(question)
    got_loss, got = question.put_to(NativeEngine(question.model, N_ITEMS, train, features=features_of(question.model)))
    tolerance = 5e-2 if load_native().module.bf16 else 1e-5
    errors = largest_errors(expected, got)
    assert max(errors.values()) < tolerance, max((error, name) for name, error in errors.items())
    assert got_loss == pytest.approx(expected_loss, rel=max(tolerance, 1e-6))


@settings(max_examples=30)
@given(
    n_items=st.integers(1, 400),
    dim=st.integers(4, 150),
    n_features=st.integers(0, 70),
    vector_dim=st.integers(0, 40),
    threads=st.integers(1, 3),
    loss=st.sampled_from(["bce", "cross_entropy"]),
    tied=st.booleans(),
    feature_dropout=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_any_sizes_give_the_gradients_of_torch(
    n_items: int,
    dim: int,
    n_features: int,
    vector_dim: int,
    threads: int,
    loss: Any,
    tied: bool,
    feature_dropout: float,
) -> None:
    model = ModelConfig(
        embedding_dim=dim, n_blocks=0, max_seq_len=9, dropout=0.0, tied=tied, n_features=n_features,
        vector_dim=vector_dim,
    )  # fmt: skip
    train = TrainConfig(threads=threads, loss=loss, feature_dropout=feature_dropout)
    features = make_features(n_items, n_features, vector_dim) if model.has_features else None
    reference = TorchEngine(model, n_items, train, features=features)
    core = NativeEngine(model, n_items, train, native=load_float32(), features=features)
    batch = make_batch(train, True, n_items=n_items, lengths=(3, 9, 1))
    for engine in (reference, core):
        engine.load_weights(spread_weights(model, n_items))
        engine.forward_backward(batch)
    expected, got = gradients_of(reference), gradients_of(core)
    largest = max(np.abs(g).max() for g in expected.values())
    for name in expected:
        assert np.abs(expected[name] - got[name]).max() <= 2e-5 * max(np.abs(expected[name]).max(), 0.2 * largest), name


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("tied", [True, False])
def test_both_engines_leave_out_the_same_items_which_no_gradient_reaches(tied: bool) -> None:
    model, train = model_of("features", tied=tied), TrainConfig(threads=2, loss="cross_entropy", feature_dropout=0.5)
    features = features_of(model)
    left_out = {}
    for step in (3, 4):
        kept = ids_kept(features, 0.5, step_key(train.seed, step))
        for engine in both_engines(model, train):
            engine.forward_backward(make_batch(train, True, step=step))
            table = gradients_of(engine)[ITEM_TABLE if tied else OUTPUT_TABLE]
            assert np.array_equal(table[1:].any(axis=1), kept[1:])
        left_out[step] = ~kept
    assert (left_out[3] != left_out[4]).any()


def both_engines(model: ModelConfig, train: TrainConfig, n_items: int = N_ITEMS) -> list[TorchEngine | NativeEngine]:
    features = features_of(model, n_items)
    engines = [
        TorchEngine(model, n_items, train, features=features),
        NativeEngine(model, n_items, train, features=features),
    ]
    for engine in engines:
        engine.load_weights(spread_weights(model, n_items))
    return engines


def test_share_of_items_left_out_is_the_probability_and_steps_are_independent() -> None:
    features = ItemFeatures(Ragged.from_lists([[], *[[0]] * 20_000]), 1)
    kept = np.stack([ids_kept(features, 0.3, step_key(5, step)) for step in range(20)])[:, 1:]
    assert kept.mean() == pytest.approx(0.7, abs=0.004)
    assert np.corrcoef(kept[1:].ravel(), kept[:-1].ravel())[0, 1] == pytest.approx(0, abs=0.01)
    assert np.corrcoef(kept[:, 1:].ravel(), kept[:, :-1].ravel())[0, 1] == pytest.approx(0, abs=0.01)
    assert (kept != np.stack([ids_kept(features, 0.3, step_key(6, step)) for step in range(20)])[:, 1:]).any()


@pytest.mark.parametrize("kind", ["features", "vectors", "both"])
def test_an_item_without_features_is_never_left_out(kind: str) -> None:
    model = model_of(kind)
    features = features_of(model)
    assert not features.described[0]
    assert features.described.any()
    assert not features.described[1:].all()
    assert np.array_equal(ids_kept(features, 1.0, 99), ~features.described)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_and_its_folded_weights_give_the_same_answers(kind: str, tied: bool) -> None:
    model, train = model_of(kind, tied=tied), TrainConfig(threads=2, feature_dropout=0.5)
    histories = make_batch(train, True).inputs
    features = features_of(model)
    for engine in both_engines(model, train):
        weights = engine.weights()
        folded = fold(weights, features, model)
        plain = replace(train, engine="torch" if engine.name == "torch" else "native")
        again = create_engine(without_features(model), N_ITEMS, plain, folded)
        np.testing.assert_allclose(engine.item_table(), again.item_table(), rtol=1e-5, atol=1e-6)
        assert not engine.item_table()[0].any()
        expected, got = again.encode(histories), engine.encode(histories)
        rounding = load_native().module.bf16 and engine.name == "native"
        assert np.abs(expected - got).max() < (2e-2 if rounding else 1e-5) * np.abs(expected).max()
        assert all(np.array_equal(weights[name], value) for name, value in engine.weights().items())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("tied", [True, False])
def test_encoding_sees_every_change_of_the_weights(tied: bool) -> None:
    model, train = model_of("both", tied=tied), TrainConfig(threads=2, feature_dropout=0.7)
    features, batch = features_of(model), make_batch(train, True)

    def is_folded(engine: Engine) -> bool:
        table = fold(engine.weights(), features, model)[ITEM_TABLE if tied else OUTPUT_TABLE]
        fresh = create_engine(model, N_ITEMS, replace(train, engine=engine.name), engine.weights(), features=features)
        same = np.array_equal(engine.encode(batch.inputs), fresh.encode(batch.inputs))
        return same and np.allclose(engine.item_table(), table, rtol=1e-5, atol=1e-6)

    for engine in both_engines(model, train):
        assert is_folded(engine)
        engine.forward_backward(batch)
        assert is_folded(engine)
        engine.optimizer_step(0.1)
        assert is_folded(engine)
        engine.update_average(0.5)
        engine.forward_backward(batch)
        engine.optimizer_step(0.1)
        engine.update_average(0.5)
        features_before = engine.encode(batch.inputs)
        engine.swap_average()
        assert is_folded(engine)
        assert not np.allclose(engine.encode(batch.inputs), features_before)
        engine.swap_average()
        assert np.array_equal(engine.encode(batch.inputs), features_before)
        engine.load_weights(spread_weights(model, N_ITEMS, seed=5))
        assert is_folded(engine)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_do_not_depend_on_the_number_of_threads_where_those_of_rows_do_not(loss: str, tied: bool) -> None:
    """One row is one thread's work; what comes before and after it is shared by all."""
    model = model_of("both", tied=tied)
    gradients = []
    for threads in (1, 2, 3, 5):
        train = TrainConfig(threads=threads, feature_dropout=0.3, l2_embedding=0.01, **LOSSES[loss])
        engine = NativeEngine(model, N_ITEMS, train, spread_weights(model, N_ITEMS), features=features_of(model))
        engine.forward_backward(make_batch(train, True, lengths=(60,)))
        gradients.append(engine.gradients())
    for other in gradients[1:]:
        assert all(np.array_equal(gradients[0][name], other[name]) for name in other)


@pytest.mark.parametrize("loss", ["bce", "cross_entropy"])
@pytest.mark.parametrize("threads", [1, 3])
def test_training_gives_the_same_bits_at_every_run(isa: str, loss: str, threads: int) -> None:
    model = model_of("both", dropout=0.3, tied=False)
    train = TrainConfig(threads=threads, feature_dropout=0.3, **LOSSES[loss])
    first, second = (after_steps(NativeEngine(model, N_ITEMS, train, features=features_of(model))) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def after_steps(engine: Engine, n_steps: int = 5, all_compete: bool = True, first: int = 0) -> Weights:
    for step in range(first, first + n_steps):
        engine.forward_backward(make_batch(engine.train_config, all_compete, step=step))
        engine.optimizer_step(engine.train_config.learning_rate)
    return without_key_biases(engine.weights())


def without_key_biases(weights: Weights) -> Weights:
    """Softmax does not see a bias on keys: its gradient is rounding alone, which Adam blows up to whole steps."""
    return {
        name: value[len(value) // 2 :] if name.endswith("key_value.bias") else value for name, value in weights.items()
    }


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    "settings", [{}, {"clip_norm": 0.05}, {"l2_embedding": 0.01}, {"l2_embedding": 0.1, "clip_norm": 1.0}]
)
@pytest.mark.parametrize("tied", [True, False])
def test_steps_with_clipping_and_l2_move_the_weights_as_torch_does(settings: dict[str, float], tied: bool) -> None:
    model = model_of("both", tied=tied)
    train = TrainConfig(threads=2, learning_rate=0.01, feature_dropout=0.2, **settings)
    reference, core = both_engines(model, train)
    got = after_steps(core)
    if load_native().module.bf16:
        pytest.skip("this variant rounds to bf16")
    expected = after_steps(reference)
    for name in expected:  # Adam's first steps are +- the learning rate, whatever the gradient, where it is nearly zero
        assert np.quantile(np.abs(expected[name] - got[name]), 0.98) < 2e-4, name
        assert np.abs(expected[name] - got[name]).max() < 0.02, name


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_l2_is_of_the_items_own_table_alone(engine: Any) -> None:
    model = model_of("both", tied=False)
    train = TrainConfig(threads=1, engine=engine, feature_dropout=1.0)
    gradients = []
    for l2 in (0.0, 0.5):
        settings, weights = replace(train, l2_embedding=l2), spread_weights(model, N_ITEMS)
        pulled = create_engine(model, N_ITEMS, settings, weights, features=features_of(model), native=load_float32())
        pulled.forward_backward(make_batch(train, True))
        gradients.append(gradients_of(pulled))
    plain, pulled_gradients = gradients
    for name in plain:
        expected = spread_weights(model, N_ITEMS)[name] if name == ITEM_TABLE else np.zeros_like(plain[name])
        np.testing.assert_allclose(pulled_gradients[name] - plain[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.usefixtures("isa")
def test_a_run_started_on_one_engine_goes_on_on_the_other() -> None:
    model, train = model_of("both"), TrainConfig(threads=2, feature_dropout=0.3, learning_rate=1e-3)
    reference, core = both_engines(model, train)
    after_steps(reference, 3)
    core.load_weights(reference.weights())
    core.load_optimizer_state(reference.optimizer_state())
    assert core.optimizer_state().keys() == reference.optimizer_state().keys()
    expected, got = (after_steps(engine, 3, first=3) for engine in (reference, core))
    for name in expected:
        assert np.abs(expected[name] - got[name]).max() < (5e-3 if load_native().module.bf16 else 1e-4), name


MANY = 2000  # items, of which a step touches few


@functools.cache
def run_of_steps(isa: str, lazy: bool, threads: int, n_steps: int, how: str) -> tuple[Weights, Weights]:
    """Weights and optimizer state after steps that each touch few of many items."""
    model = model_of("both", tied=False, dropout=0.2)
    train = TrainConfig(threads=threads, lazy_adam=lazy, feature_dropout=0.3)
    engine = NativeEngine(model, MANY, train, features=make_features(MANY, model.n_features, model.vector_dim))
    assert engine.isa == isa
    for step in range(n_steps):
        engine.forward_backward(make_batch(train, True, step=step % 7, n_items=MANY, lengths=(5, 3, 2)))
        engine.optimizer_step(0.003 if step % 2 else 0.001)
        if step % 5:
            engine.update_average(0.9)
        if how == "weights after each step":
            engine.weights()
        elif how == "encodes at times" and step % 37 == 0:
            engine.encode(Ragged.from_lists([[1, 2, 3]]))
        elif how == "saved and loaded at times" and step % 37 == 0:
            weights, state = engine.weights(), engine.optimizer_state()
            engine = NativeEngine(model, MANY, train, weights, features=engine.features)
            engine.load_optimizer_state(state)
    return engine.weights(), engine.optimizer_state()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("how", ["nothing else", "encodes at times", "saved and loaded at times"])
def test_rows_that_wait_for_their_steps_end_with_the_same_bits(isa: str, threads: int, how: str) -> None:
    """Who reads weights after each step lets no row wait; more than 256 steps are kept for no row."""
    runs = [run_of_steps(isa, False, threads, 300, either) for either in ("weights after each step", how)]
    for expected, got in zip(*runs, strict=True):
        assert expected.keys() == got.keys()
        assert all(np.array_equal(expected[name], got[name]) for name in expected)


def test_lazy_adam_ends_near_dense_adam(isa: str) -> None:
    model = model_of("both", tied=False)
    start = NativeEngine(
        model, MANY, TrainConfig(threads=1), features=make_features(MANY, model.n_features, model.vector_dim)
    ).weights()
    dense, lazy = (run_of_steps(isa, lazy, 2, 30, "nothing else")[0] for lazy in (False, True))
    names = ("item_embedding.weight", "output_embedding.weight", "feature_embedding.weight", "vector_projection.weight")
    for name in names:
        moved = np.linalg.norm(dense[name] - start[name])
        share = 0.1 if load_native().module.bf16 else 0.02
        assert np.linalg.norm(dense[name] - lazy[name]) < share * moved, name


@pytest.mark.parametrize("loss", ["bce_shared", "cross_entropy", "cross_entropy_unseen", "gbce"])
@pytest.mark.parametrize("engine", ["torch", "native"])
def test_items_that_are_no_candidates_start_at_zero_and_stay_there(loss: str, engine: Any) -> None:
    model, train = model_of("both", tied=False), TrainConfig(threads=2, engine=engine, **LOSSES[loss])
    trained = np.zeros(N_ITEMS + 1, bool)
    trained[candidates_of(N_ITEMS)] = True
    built = create_engine(model, N_ITEMS, train, features=features_of(model), trained=trained)
    weights = after_steps(built, all_compete=False)
    for name in (ITEM_TABLE, OUTPUT_TABLE):
        assert np.array_equal(weights[name].any(axis=1), trained)
    table = built.item_table()
    described = features_of(model).described & ~trained
    assert described.any()
    assert table[described].any(axis=1).all()  # their features have learnt all the same


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_candidates_that_are_all_items_are_as_good_as_none(engine: Any) -> None:
    model = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=0.0)
    train = TrainConfig(threads=2, engine=engine, loss="cross_entropy")
    batch = make_batch(train, True)
    gradients = []
    for candidates in (None, np.arange(1, N_ITEMS + 1, dtype=np.int32)):
        built = create_engine(model, N_ITEMS, train, spread_weights(model, N_ITEMS), native=load_float32())
        built.forward_backward(replace(batch, candidates=candidates))
        gradients.append(gradients_of(built))
    assert max(largest_errors(*gradients).values()) < 1e-6


FEATURES = make_features(5, 3, 2)
OTHERS = "the model is of 5 items with n_features=3 and vector_dim=2, and features are given of "


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "the model was made for items with n_features=3 and vector_dim=2, and no features of items are given"),
        (make_features(5, 3, 0), OTHERS + "5 items with n_features=3 and vector_dim=0"),
        (make_features(5, 4, 2), OTHERS + "5 items with n_features=4 and vector_dim=2"),
        (make_features(6, 3, 2), OTHERS + "6 items with n_features=3 and vector_dim=2"),
    ],
)
@pytest.mark.parametrize("engine", ["torch", "native"])
def test_features_that_are_not_those_of_the_model_are_refused(
    engine: Any, given: ItemFeatures | None, message: str
) -> None:
    model = ModelConfig(embedding_dim=8, n_features=3, vector_dim=2)
    train = TrainConfig(threads=1, engine=engine)
    weights = create_engine(model, 5, train, features=FEATURES).weights()
    for ask in (lambda: create_engine(model, 5, train, features=given), lambda: fold(weights, given, model)):
        with pytest.raises(ConfigError, match=f"^{message}$"):
            ask()


def test_features_of_a_model_without_any_are_refused() -> None:
    message = (
        "^the model is of 5 items with n_features=0 and vector_dim=0, and features are given of 5 items with "
        "n_features=3 and vector_dim=2$"
    )
    with pytest.raises(ConfigError, match=message):
        create_engine(ModelConfig(embedding_dim=8), 5, TrainConfig(threads=1), features=FEATURES)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"feature_offsets": np.array([0, 0, 1, 1, 1, 1])}, ValueError, "one row of features for each item"),
        ({"feature_offsets": np.array([0, 1, 1, 1, 1, 1, 1])}, ValueError, "padding has no features"),
        ({"feature_values": np.array([3], np.int32)}, ValueError, "a feature is not in 0..n_features - 1"),
        ({"feature_values": np.array([-1], np.int32)}, ValueError, "a feature is not in 0..n_features - 1"),
        ({"feature_values": np.array([0], np.int64)}, TypeError, "feature_values must be an array of int32 in C order"),
        ({"feature_offsets": None}, TypeError, "feature_offsets must be an array of int64 in C order"),
        ({"vectors": np.zeros((6, 3), np.float32)}, ValueError, r"vectors must be \(n_items \+ 1, vector_dim\)"),
        ({"vectors": np.zeros((6, 4), np.float32)[:, ::2]}, TypeError, "vectors must be an array of float32 in C ord"),
        ({"n_features": -1}, ValueError, "sizes are out of range"),
        ({"vector_dim": 1 << 20}, ValueError, "sizes are out of range"),
    ],
)
@pytest.mark.usefixtures("isa")
def test_arrays_of_features_that_do_not_fit_are_refused_before_anything_is_read(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = ModelConfig(embedding_dim=8, n_features=3, vector_dim=2)
    good = {
        "feature_offsets": np.array([0, 0, 1, 1, 1, 1, 1]),
        "feature_values": np.array([2], np.int32),
        "vectors": np.zeros((6, 2), np.float32),
    }

    def build(**more: Any) -> None:
        load_native().module.Engine(
            block="sasrec", n_items=5, embedding_dim=8, n_blocks=0, n_heads=1, ffn_dim=8, max_seq_len=4, dropout=0.0,
            norm_eps=1e-8, relu=True, tied=True, threads=1, lazy_adam=False,
            **{"n_features": 3, "vector_dim": 2, "weights": list(shapes.items()), **good, **more},
        )  # fmt: skip

    shapes = {name: value.shape for name, value in spread_weights(replace(model, n_blocks=0, max_seq_len=4), 5).items()}
    build()
    with pytest.raises(error, match=message):
        build(**change)

"""The compiled core: the same numbers as torch, whatever the shape; the same bits at every run."""

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import make_markov_log, variants
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made import spread_weights
from numpy.typing import NDArray
from torch import Tensor

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.isa import load_float32, load_native
from sasrec.data.batches import Batch, TrainBatches
from sasrec.data.ragged import Ragged
from sasrec.data.sampling import generator
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import split_leave_one_out
from sasrec.engine.id_dropout import random_words, step_key
from sasrec.engine.native import NativeEngine
from sasrec.engine.torch_engine import TorchEngine
from sasrec.model.weights import Weights, initial_weights

BLOCKS = ["sasrec", "post_norm", "pre_norm", "ligr"]
LENGTHS = (1, 5, 33, 7, 60, 3, 2, 12, 1, 1)

pytestmark = [
    pytest.mark.skipif(load_native().module is None, reason=load_native().why),
    pytest.mark.usefixtures("torch_on_one_thread"),
]


@functools.cache
def make_batch(
    lengths: tuple[int, ...],
    n_items: int,
    n_negatives: int = 1,
    seed: int = 0,
    step: int = 3,
    shared: bool = False,
    mask_seen: bool = False,
) -> Batch:
    rng = np.random.default_rng(seed)
    inputs = Ragged.from_lists([rng.integers(1, n_items + 1, n).astype(np.int32) for n in lengths])
    n = len(inputs.values)
    targets = rng.integers(1, n_items + 1, n).astype(np.int32)
    negatives = rng.integers(1, n_items + 1, n_negatives if shared else (n, n_negatives)).astype(np.int32)
    corrections = rng.standard_normal(n_items + 1).astype(np.float32)
    rows = [rng.integers(1, n_items + 1, n).astype(np.int32) for n in rng.integers(0, 9, len(lengths))]
    earlier = Ragged.from_lists(rows) if mask_seen else None
    return Batch(np.arange(len(lengths)) * 7, inputs, targets, negatives, corrections, step, earlier)


LOSSES: dict[str, dict[str, Any]] = {
    "bce_shared": {"loss": "bce", "n_negatives": 70, "shared_negatives": True},
    "gbce": {"loss": "gbce", "n_negatives": 5, "gbce_t": 0.9},
    "gbce_shared": {"loss": "gbce", "n_negatives": 33, "shared_negatives": True},
    "sampled_softmax": {"loss": "sampled_softmax", "n_negatives": 1},
    "sampled_softmax_many": {"loss": "sampled_softmax", "n_negatives": 37},
    "sampled_softmax_shared": {"loss": "sampled_softmax", "n_negatives": 150, "shared_negatives": True},
    "cross_entropy": {"loss": "cross_entropy"},
    "bce_shared_unseen": {"loss": "bce", "n_negatives": 70, "shared_negatives": True, "mask_seen": True},
    "sampled_softmax_shared_unseen": {
        "loss": "sampled_softmax", "n_negatives": 150, "shared_negatives": True, "mask_seen": True
    },
    "cross_entropy_unseen": {"loss": "cross_entropy", "mask_seen": True},
}  # fmt: skip


def batch_for(train: TrainConfig, lengths: tuple[int, ...], n_items: int, seed: int = 0, step: int = 3) -> Batch:
    return make_batch(lengths, n_items, train.negatives_drawn, seed, step, train.shared_negatives, train.mask_seen)


@functools.cache
def made_weights(config: ModelConfig, n_items: int) -> Weights:
    return spread_weights(config, n_items)


def engines(config: ModelConfig, n_items: int, **train: Any) -> tuple[TorchEngine, NativeEngine]:
    settings, weights = TrainConfig(threads=2, **train), made_weights(config, n_items)
    reference = TorchEngine(config, n_items, settings)
    reference.load_weights(weights)
    return reference, NativeEngine(config, n_items, settings, weights)


def gradients_of(engine: TorchEngine | NativeEngine) -> Weights:
    if isinstance(engine, NativeEngine):
        return engine.gradients()
    return {name: p.grad.numpy().copy() for name, p in engine.model.named_parameters() if p.grad is not None}


class Answer(NamedTuple):
    """What an engine makes of a batch."""

    loss: float
    gradients: Weights
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """A model with made-up weights, and a batch."""

    model: ModelConfig
    train: TrainConfig
    lengths: tuple[int, ...]
    n_items: int
    output_size: float = 0.0  # of the largest value of the output table; 0 = whatever was made up

    def weights(self) -> Weights:
        weights = made_weights(self.model, self.n_items)
        if not self.output_size:
            return weights
        table = weights["output_embedding.weight"]
        return {**weights, "output_embedding.weight": table * (self.output_size / np.abs(table).max())}

    def put_to(self, engine: TorchEngine | NativeEngine) -> Answer:
        batch = batch_for(self.train, self.lengths, self.n_items)
        engine.load_weights(self.weights())
        engine.forward_backward(batch)
        return Answer(engine.pop_loss(), gradients_of(engine), engine.encode(batch.inputs))


@functools.cache
def answer_of_torch(question: Question) -> Answer:
    """Computed once for all variants."""
    return question.put_to(TorchEngine(question.model, question.n_items, question.train))


def answer_in_float64(question: Question) -> Answer:
    """Of torch, whose own rounding is as large as the core's: both are amplified where a norm's variance is small."""
    engine = TorchEngine(question.model, question.n_items, question.train)
    engine.model.double()
    torch.set_default_dtype(torch.float64)
    try:
        return question.put_to(engine)
    finally:
        torch.set_default_dtype(torch.float32)


def answer_of_core(question: Question) -> Answer:
    return question.put_to(NativeEngine(question.model, question.n_items, question.train, question.weights()))


def largest_errors(expected: Weights, got: Weights) -> dict[str, float]:
    """Of each tensor, the largest difference relative to its largest value."""
    assert set(expected) == set(got)
    return {
        name: float(np.abs(expected[name] - got[name]).max() / max(np.abs(expected[name]).max(), 1e-6))
        for name in expected
    }


def without_key_biases(weights: Weights) -> Weights:
    """Softmax does not see a bias on keys: its gradient is rounding alone, which Adam blows up to whole steps."""
    return {
        name: value[len(value) // 2 :] if name.endswith("key_value.bias") else value for name, value in weights.items()
    }


def expect_the_answer_of_torch(question: Question, tolerance: float) -> None:
    expected, got = answer_of_torch(question), answer_of_core(question)
    errors = largest_errors(expected.gradients, got.gradients)
    assert max(errors.values()) < tolerance, max((error, name) for name, error in errors.items())
    assert got.loss == pytest.approx(expected.loss, rel=max(tolerance, 1e-6))
    difference = np.abs(expected.features - got.features).max()
    assert difference < max(tolerance, 2e-6) * np.abs(expected.features).max()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("shape", "lengths", "n_negatives"),
    [
        ({"embedding_dim": 50}, LENGTHS, 1),
        ({"embedding_dim": 24, "n_heads": 3, "ffn_dim": 40}, LENGTHS, 3),
        ({"embedding_dim": 64, "n_heads": 2, "tied": False, "max_seq_len": 300}, (300, 250, 5, 17), 1),
        ({"embedding_dim": 16, "n_blocks": 3, "activation": "identity"}, LENGTHS, 2),
        ({"embedding_dim": 32, "n_blocks": 0}, LENGTHS, 1),
    ],
)
def test_gradients_and_features_are_those_of_torch(
    isa: str, block: str, shape: dict[str, Any], lengths: tuple[int, ...], n_negatives: int
) -> None:
    config = ModelConfig(**{"block": block, "max_seq_len": 70, "dropout": 0.0, **shape})
    if load_native().module.bf16:  # a value near zero falls on the other side of ReLU, and takes its gradient with it
        config = replace(config, activation="identity")
    question = Question(config, TrainConfig(threads=2, n_negatives=n_negatives), lengths, 97)
    expect_the_answer_of_torch(question, 5e-2 if load_native().module.bf16 else 1e-5)


@settings(max_examples=40, deadline=None)
@given(
    block=st.sampled_from(BLOCKS),
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    head_dim=st.integers(4, 40),
    n_heads=st.integers(1, 3),
    ffn_dim=st.integers(0, 70),
    n_items=st.integers(1, 500),
    max_seq_len=st.integers(1, 300),
    tied=st.booleans(),
)
@example(  # of a unit's gradient torch has 1.5e-4 wrong in float32, and the core half of that
    block="sasrec", lengths=[31, 204, 1], head_dim=4, n_heads=1, ffn_dim=2, n_items=31, max_seq_len=255, tied=False
)
def test_any_shape_gives_the_gradients_of_torch(
    block: str,
    lengths: list[int],
    head_dim: int,
    n_heads: int,
    ffn_dim: int,
    n_items: int,
    max_seq_len: int,
    tied: bool,
) -> None:
    config = ModelConfig(
        block=block,
        embedding_dim=head_dim * n_heads,
        n_heads=n_heads,
        ffn_dim=ffn_dim,
        max_seq_len=max_seq_len,
        n_blocks=1,
        dropout=0.0,
        tied=tied,
    )
    question = Question(config, TrainConfig(threads=2), tuple(min(n, max_seq_len) for n in lengths), n_items)
    native = NativeEngine(config, n_items, question.train, question.weights(), load_float32())
    expected, got = answer_in_float64(question).gradients, question.put_to(native).gradients
    largest = max(np.abs(g).max() for g in expected.values())
    for name in expected:
        assert np.abs(expected[name] - got[name]).max() < 2e-5 * max(np.abs(expected[name]).max(), 0.2 * largest), name


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("block", "tied"), [("sasrec", True), ("post_norm", False), ("pre_norm", True), ("ligr", False)]
)
def test_every_loss_of_every_block_has_the_gradients_of_torch(isa: str, loss: str, block: str, tied: bool) -> None:
    config = ModelConfig(block=block, embedding_dim=50, max_seq_len=70, dropout=0.0, tied=tied)
    if load_native().module.bf16:
        config = replace(config, activation="identity")
    question = Question(config, TrainConfig(threads=2, **LOSSES[loss]), LENGTHS, 211)
    expect_the_answer_of_torch(question, 5e-2 if load_native().module.bf16 else 1e-5)


@pytest.mark.parametrize(
    "loss", ["sampled_softmax_shared", "cross_entropy", "sampled_softmax_shared_unseen", "cross_entropy_unseen"]
)
@pytest.mark.parametrize("n_items", [1, 2, 63, 64, 65, 1000, 40_000])  # of so many the scores are made again
@pytest.mark.parametrize("lengths", [(1,), (2, 1), (130, 130, 7)])
def test_candidates_of_any_number_and_positions_of_any_number_give_the_gradients_of_torch(
    isa: str, loss: str, n_items: int, lengths: tuple[int, ...]
) -> None:
    config = ModelConfig(embedding_dim=24, max_seq_len=130, n_blocks=1, dropout=0.0, activation="identity")
    question = Question(config, TrainConfig(threads=2, **LOSSES[loss]), lengths, n_items)
    expected, got = answer_of_torch(question), answer_of_core(question)
    largest = max(np.abs(g).max() for g in expected.gradients.values())
    tolerance = 5e-2 if load_native().module.bf16 else 2e-5
    for name, gradient in expected.gradients.items():
        bound = tolerance * max(np.abs(gradient).max(), 0.2 * largest, 0.05)  # of one item all are zero
        assert np.abs(gradient - got.gradients[name]).max() < bound, name
    assert got.loss == pytest.approx(expected.loss, rel=max(tolerance, 1e-6), abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [12.0, 300.0])
def test_losses_are_those_of_torch_for_extreme_scores(isa: str, loss: str, size: float) -> None:
    config = ModelConfig(embedding_dim=20, max_seq_len=70, n_blocks=1, dropout=0.0, tied=False, activation="identity")
    question = Question(config, TrainConfig(threads=2, **LOSSES[loss]), LENGTHS, 211, output_size=size)
    expected, got = answer_of_torch(question), answer_of_core(question)
    assert np.abs(expected.features @ question.weights()["output_embedding.weight"].T).max() > 2 * size
    tolerance = 5e-2 if load_native().module.bf16 else 1e-5
    assert got.loss == pytest.approx(expected.loss, rel=tolerance)
    assert all(np.isfinite(gradient).all() for gradient in got.gradients.values())
    if not load_native().module.bf16:
        errors = largest_errors(expected.gradients, got.gradients)
        assert max(errors.values()) < 2e-5 * size, errors  # scores of hundreds have errors of size * 1e-7


@functools.cache
def trained_model(config: ModelConfig, train: TrainConfig, seed: int) -> tuple[Weights, Batch, Weights]:
    """Weights that have been trained for eight epochs on floats, the next batch, and the gradients of torch there."""
    log = make_markov_log(n_users=120, n_items=150, randomness=0.5, length=40, seed=seed)
    batches = TrainBatches(split_leave_one_out(build_sequences(log)[0]), config, train)
    engine, reference = NativeEngine(config, 150, train, native=load_float32()), TorchEngine(config, 150, train)
    for epoch in range(8):
        for batch in batches.epoch(epoch):
            engine.forward_backward(batch)
            engine.optimizer_step(train.learning_rate)
    batch = next(iter(batches.epoch(8)))
    reference.load_weights(engine.weights())
    reference.forward_backward(batch)
    return engine.weights(), batch, gradients_of(reference)


@pytest.mark.parametrize("isa", [isa for isa in variants() if isa in ("amx", "avx512_bf16")], indirect=True)
@pytest.mark.parametrize("loss", ["bce_shared", "sampled_softmax", "cross_entropy"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rounding_to_bf16_costs_a_trained_model_under_three_per_cent_of_any_gradient(
    isa: str, block: str, loss: str, seed: int
) -> None:
    """Without ReLU, where rounding moves values near zero to its other side (docs/engine.md, Faithfulness)."""
    config = ModelConfig(block=block, embedding_dim=50, max_seq_len=40, dropout=0.0, activation="identity")
    train = TrainConfig(threads=2, batch_size=40, learning_rate=3e-3, **LOSSES[loss])
    weights, batch, expected = trained_model(config, train, seed)
    engine = NativeEngine(config, 150, train, weights)
    engine.forward_backward(batch)
    expected, got = without_key_biases(expected), without_key_biases(engine.gradients())
    errors = {name: np.linalg.norm(expected[name] - got[name]) / np.linalg.norm(expected[name]) for name in expected}
    assert max(errors.values()) < 0.03, max((error, name) for name, error in errors.items())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_loss_gives_the_same_bits_at_every_run(isa: str, loss: str, threads: int) -> None:
    def run() -> Weights:
        config = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=0.3)
        engine = NativeEngine(config, 99, TrainConfig(threads=threads, **LOSSES[loss]))
        for step in range(3):
            engine.forward_backward(batch_for(engine.train_config, LENGTHS * 4, 99, step, step))
            engine.optimizer_step(engine.train_config.learning_rate)
        return engine.weights()

    first, second = run(), run()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("loss", LOSSES)
def test_another_number_of_threads_gives_the_gradients_to_rounding_for_every_loss(isa: str, loss: str) -> None:
    config = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=0.3)
    gradients = []
    for threads in (1, 3):
        train = TrainConfig(threads=threads, **LOSSES[loss])
        engine = NativeEngine(config, 99, train, made_weights(config, 99))
        engine.forward_backward(batch_for(train, LENGTHS * 4, 99))
        gradients.append(without_key_biases(engine.gradients()))
    errors = largest_errors(*gradients)
    assert max(errors.values()) < (2e-2 if load_native().module.bf16 else 1e-5), errors


@pytest.mark.usefixtures("isa")
def test_a_loss_can_change_from_step_to_step() -> None:
    """What one loss keeps for the next step must not disturb another."""
    config = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=0.0)
    used = NativeEngine(config, 99, TrainConfig(threads=2), made_weights(config, 99))
    for loss in [*LOSSES, *reversed(LOSSES)]:
        train = TrainConfig(threads=2, **LOSSES[loss])
        batch = batch_for(train, LENGTHS, 99)
        fresh = NativeEngine(config, 99, train, used.weights())
        used.train_config = train
        for engine in (used, fresh):
            engine.forward_backward(batch)
        expected, got = fresh.gradients(), used.gradients()
        assert all(np.array_equal(expected[name], got[name]) for name in expected), loss


def row_factors(step: int, sequence: int, site: int, length: int, width: int, p: float) -> np.ndarray:
    """(length, width) dropout factors of the rows of a sequence at a site."""
    threshold = round(p * 65536)
    columns = np.arange(width)
    counters = np.arange(length)[:, None] * (-(-width // 32) * 16) + columns // 32 * 16 + columns % 16
    words = random_words(step, sequence, site, counters)
    halves = np.where(columns % 32 < 16, words & np.uint32(0xFFFF), words >> np.uint32(16))
    return np.where(halves >= threshold, np.float32(65536 / (65536 - threshold)), np.float32(0))


def attention_factors(step: int, sequence: int, site: int, length: int, max_seq_len: int, p: float) -> np.ndarray:
    """(length, length) dropout factors of attention weights."""
    threshold = round(p * 65536)
    rows = np.arange(length)[:, None]
    words = random_words(step, sequence, site, rows // 2 * max_seq_len + np.arange(length))
    halves = np.where(rows % 2 == 0, words & np.uint32(0xFFFF), words >> np.uint32(16))
    return np.where(halves >= threshold, np.float32(65536 / (65536 - threshold)), np.float32(0))


class FedDropout(torch.nn.Module):
    """Takes the place of model.Dropout and multiplies by factors that are handed in, call after call."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: list[np.ndarray] = []
        self.rng = None

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.from_numpy(self.factors.pop(0).copy())
        assert factor.numel() == x.numel()
        return x * factor.view(x.shape)


@functools.cache
def gradients_of_torch_with_masks_of_the_core(question: Question) -> Weights:
    """Both rows are as long, so that the plain engine keeps their order."""
    config, (length, _) = question.model, question.lengths
    batch, p = batch_for(question.train, question.lengths, question.n_items), config.dropout
    reference = TorchEngine(config, question.n_items, question.train)
    step = step_key(0, batch.step)
    users = [int(user) for user in batch.users]

    def rows(site: int, width: int) -> np.ndarray:
        return np.stack([row_factors(step, user, site, length, width, p) for user in users])

    fed = FedDropout()
    fed.factors.append(rows(0, 40))
    for i in range(config.n_blocks):
        site = (i + 1) * 1024
        heads = [
            attention_factors(step, user, site + 16 + head, length, config.max_seq_len, p)
            for user in users
            for head in range(2)
        ]
        fed.factors.append(np.stack(heads))
        if config.block == "ligr":
            fed.factors.append(rows(site, 40))
        fed.factors.append(rows(site + 1, 70))
        fed.factors.append(rows(site + 2, 40))
    for module in reference.model.modules():
        if hasattr(module, "dropout"):
            module.dropout = fed
    reference.load_weights(question.weights())
    reference.forward_backward(batch)
    assert not fed.factors
    return gradients_of(reference)


@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_with_dropout_are_those_of_torch_with_the_same_masks(isa: str, block: str) -> None:
    config = ModelConfig(
        block=block,
        embedding_dim=40,
        n_heads=2,
        ffn_dim=70,
        max_seq_len=24,
        dropout=0.3,
        activation="identity",
    )
    question = Question(config, TrainConfig(threads=2), (21, 21), 50)
    expected, got = gradients_of_torch_with_masks_of_the_core(question), answer_of_core(question).gradients
    errors = largest_errors(expected, got)
    tolerance = 5e-2 if load_native().module.bf16 else 1e-5
    assert max(errors.values()) < tolerance, max((error, name) for name, error in errors.items())


def test_share_of_dropped_values_is_the_probability_and_neighbours_are_independent() -> None:
    kept = np.stack([row_factors(step, 3, 1025, 200, 64, 0.2) > 0 for step in range(20)])
    assert kept.mean() == pytest.approx(0.8, abs=0.004)
    for one, other in ((kept[:, 1:], kept[:, :-1]), (kept[..., 1:], kept[..., :-1]), (kept[1:], kept[:-1])):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] == pytest.approx(0, abs=0.01)
    assert np.corrcoef(kept[..., :16].ravel(), kept[..., 16:32].ravel())[0, 1] == pytest.approx(0, abs=0.01)


def weights_after_five_steps(engine: TorchEngine | NativeEngine) -> Weights:
    engine.load_weights(made_weights(engine.config, 40))
    for step in range(5):
        engine.forward_backward(make_batch(LENGTHS, 40, seed=step, step=step))
        engine.optimizer_step(engine.train_config.learning_rate)
    return without_key_biases(engine.weights())


@functools.cache
def weights_of_torch_after_five_steps(config: ModelConfig, train: TrainConfig) -> Weights:
    return weights_after_five_steps(TorchEngine(config, 40, train))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    "train",
    [{"clip_norm": 0.05}, {"l2_embedding": 0.01}, {"l2_embedding": 0.1, "clip_norm": 1.0}, {"weight_decay": 5.0}],
)
@pytest.mark.parametrize("tied", [True, False])
def test_steps_with_clipping_l2_and_decay_move_the_weights_as_torch_does(train: dict[str, float], tied: bool) -> None:
    config = ModelConfig(embedding_dim=20, n_heads=2, max_seq_len=70, dropout=0.0, tied=tied)
    settings = TrainConfig(threads=2, learning_rate=0.01, **train)
    got = weights_after_five_steps(NativeEngine(config, 40, settings))
    if load_native().module.bf16:
        pytest.skip("this variant rounds to bf16")
    expected = weights_of_torch_after_five_steps(config, settings)
    for name in expected:  # Adam's first steps are +- the learning rate, whatever the gradient, where it is nearly zero
        assert np.quantile(np.abs(expected[name] - got[name]), 0.98) < 2e-4, name
        assert np.abs(expected[name] - got[name]).max() < 0.02, name


@pytest.mark.usefixtures("isa")
def test_weight_decay_shrinks_the_matrices_of_blocks_and_nothing_else() -> None:
    config = ModelConfig(block="ligr", embedding_dim=20, n_heads=2, ffn_dim=24, max_seq_len=70, dropout=0.0)
    for kind in (TorchEngine, NativeEngine):
        decayed, plain = (weights_after_a_step(kind, config, decay) for decay in (2.0, 0.0))
        before = made_weights(config, 40)
        for name in plain:
            is_matrix = name.startswith("blocks.") and "norm" not in name and plain[name].ndim == 2
            lost = 0.05 * 2.0 * before[name] if is_matrix else np.zeros_like(before[name])
            np.testing.assert_allclose(plain[name] - decayed[name], lost, rtol=1e-4, atol=1e-6, err_msg=name)


def weights_after_a_step(kind: type[TorchEngine | NativeEngine], config: ModelConfig, weight_decay: float) -> Weights:
    engine = kind(config, 40, TrainConfig(threads=1, weight_decay=weight_decay))
    engine.load_weights(made_weights(config, 40))
    engine.forward_backward(make_batch(LENGTHS, 40))
    engine.optimizer_step(0.05)
    return engine.weights()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("tied", [True, False])
def test_average_of_the_weights_is_that_of_its_formula_and_trades_places_with_them(tied: bool) -> None:
    config = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=0.0, tied=tied)
    for engine in engines(config, 40):
        expected: Weights = {}
        for step, decay in enumerate([0.5, 0.9, 0.75]):
            engine.forward_backward(make_batch(LENGTHS, 40, seed=step, step=step))
            engine.optimizer_step(0.01)
            engine.update_average(decay)
            now = engine.weights()
            expected = {n: decay * expected[n] + (1 - decay) * now[n] if expected else now[n] for n in now}
        features = engine.encode(Ragged.from_lists([[3, 4, 5]]))
        engine.swap_average()
        for name, value in engine.weights().items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.abs(engine.encode(Ragged.from_lists([[3, 4, 5]])) - features).max() > 1e-4
        engine.swap_average()
        assert all((engine.weights()[name] == now[name]).all() for name in now)
        np.testing.assert_array_equal(engine.encode(Ragged.from_lists([[3, 4, 5]])), features)


@pytest.mark.usefixtures("isa")
def test_average_goes_with_the_optimizer_state_from_engine_to_engine() -> None:
    config = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=0.0)
    pair = engines(config, 40)
    for first, second in (pair, pair[::-1]):
        first.forward_backward(make_batch(LENGTHS, 40))
        for _ in range(2):
            first.optimizer_step(0.01)
            first.update_average(0.5)
        state = first.optimizer_state()
        second.load_optimizer_state(state)
        again = second.optimizer_state()
        assert {name for name in state if name.startswith("average/")} == {f"average/{n}" for n in first.weights()}
        assert all((again[name] == state[name]).all() for name in state)


@pytest.mark.usefixtures("isa")
def test_a_run_started_on_one_engine_goes_on_on_the_other() -> None:
    config = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=0.0)
    reference, native = engines(config, 40)
    batches = [make_batch(LENGTHS, 40, seed=step, step=step) for step in range(6)]
    for batch in batches[:3]:
        reference.forward_backward(batch)
        reference.optimizer_step(reference.train_config.learning_rate)
    native.load_weights(reference.weights())
    native.load_optimizer_state(reference.optimizer_state())
    again = NativeEngine(config, 40, TrainConfig(threads=1))
    again.load_weights(native.weights())
    again.load_optimizer_state(native.optimizer_state())
    assert native.optimizer_state().keys() == reference.optimizer_state().keys()
    for batch in batches[3:]:
        for engine in (reference, native, again):
            engine.forward_backward(batch)
            engine.optimizer_step(engine.train_config.learning_rate)
    tolerance = 5e-3 if load_native().module.bf16 else 1e-4
    for engine in (native, again):
        got = without_key_biases(engine.weights())
        for name, expected in without_key_biases(reference.weights()).items():
            assert np.abs(expected - got[name]).max() < tolerance, name


def train_a_little(threads: int, dropout: float = 0.3, steps: int = 4) -> Weights:
    config = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=dropout)
    engine = NativeEngine(config, 40, TrainConfig(threads=threads, seed=5))
    for step in range(steps):
        engine.forward_backward(make_batch(LENGTHS * 4, 40, seed=step, step=step))
        engine.optimizer_step(engine.train_config.learning_rate)
    return engine.weights()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_run_gives_the_same_bits(isa: str, threads: int) -> None:
    first, second = train_a_little(threads), train_a_little(threads)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_another_number_of_threads_gives_the_same_numbers_to_rounding(isa: str) -> None:
    def differences(steps: int) -> dict[str, NDArray[np.float32]]:
        one, three = (without_key_biases(train_a_little(threads, steps=steps)) for threads in (1, 3))
        return {name: np.abs(one[name] - three[name]) for name in one}

    for name, difference in differences(steps=1).items():  # sums are taken in another order, and nothing else differs
        assert difference.max() < 5e-7, name
    for name, difference in differences(steps=4).items():
        assert difference.max() < 5e-4, name
        if not load_native().module.bf16:  # else a weight that is rounded the other way moves what it makes by 2**-9
            assert np.median(difference) < 1e-6, name


@pytest.mark.usefixtures("isa")
def test_dropout_depends_on_seed_and_step_and_not_on_the_variant() -> None:
    losses = {}
    for seed, step in ((0, 3), (0, 4), (1, 3)):
        engine = NativeEngine(ModelConfig(embedding_dim=20, max_seq_len=70), 40, TrainConfig(threads=1, seed=seed))
        engine.load_weights(made_weights(engine.config, 40))
        engine.forward_backward(make_batch(LENGTHS, 40, step=step))
        losses[seed, step] = engine.pop_loss()
    assert len(set(losses.values())) == 3


def test_features_do_not_depend_on_what_else_is_encoded(isa: str) -> None:
    config = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=0.5)
    engine = NativeEngine(config, 40, TrainConfig(threads=2))
    histories = make_batch((*LENGTHS * 5, 300), 40).inputs
    together = engine.encode(histories)
    for row in (0, 4, 17, 50):
        alone = engine.encode(Ragged.from_lists([histories.row(row)]))[0]
        assert np.abs(alone - together[row]).max() < 1e-5 * np.abs(alone).max()


@pytest.mark.parametrize("dim", [16, 50, 64])
@pytest.mark.parametrize("block", BLOCKS)
def test_one_block_gives_the_same_bits_whatever_else_is_encoded(isa: str, block: str, dim: int) -> None:
    # Attention of the last block looks at one sequence at a time; nothing else may depend on a row's neighbours.
    config = ModelConfig(embedding_dim=dim, max_seq_len=70, n_blocks=1, block=block)
    engine = NativeEngine(config, 40, TrainConfig(threads=2))
    histories = make_batch((*LENGTHS * 5, 300), 40).inputs
    together = engine.encode(histories)
    for row in range(len(histories)):
        np.testing.assert_array_equal(engine.encode(Ragged.from_lists([histories.row(row)]))[0], together[row])


@pytest.mark.usefixtures("isa")
def test_calls_from_several_threads_at_once_give_what_they_give_alone() -> None:
    engine = NativeEngine(ModelConfig(embedding_dim=20, max_seq_len=70), 40, TrainConfig(threads=2))
    histories = [make_batch(LENGTHS * 5, 40, seed=seed).inputs for seed in range(8)]
    alone = [engine.encode(h) for h in histories]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(engine.encode, histories))
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.usefixtures("isa")
def test_only_the_newest_items_of_a_long_history_count() -> None:
    engine = NativeEngine(ModelConfig(embedding_dim=20, max_seq_len=7), 40, TrainConfig(threads=1))
    history = np.arange(1, 31, dtype=np.int32)
    whole, recent = (engine.encode(Ragged.from_lists([h])) for h in (history, history[-7:]))
    assert np.array_equal(whole, recent)


@pytest.mark.usefixtures("isa")
def test_training_learns_a_log_that_can_be_learnt() -> None:
    config = ModelConfig(embedding_dim=16, max_seq_len=10, dropout=0.1)
    engine = NativeEngine(config, 20, TrainConfig(threads=2, learning_rate=0.01))
    rng = np.random.default_rng(0)
    losses = []
    for step in range(150):
        starts = rng.integers(0, 20, 32)
        rows = (starts[:, None] + np.arange(11)) % 20 + 1  # item i is followed by i + 1
        inputs = Ragged.from_lists(list(rows[:, :-1].astype(np.int32)))
        targets = rows[:, 1:].ravel().astype(np.int32)
        negatives = ((targets - 1 + rng.integers(1, 20, len(targets))) % 20 + 1).astype(np.int32)[:, None]
        engine.forward_backward(Batch(np.arange(32), inputs, targets, negatives, np.zeros(21, np.float32), step))
        engine.optimizer_step(engine.train_config.learning_rate)
        losses.append(engine.pop_loss())
    assert losses[0] > 1.2
    assert np.mean(losses[-5:]) < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.array([1, 2, 99], np.int32)}, "item index 99 is not in 1..40"),
        ({"targets": np.array([1, 0, 2], np.int32)}, "item index 0 is not in 1..40"),
        ({"targets": np.array([1, 2], np.int32)}, "one target for each input"),
        ({"negatives": np.ones((2, 1), np.int32)}, "negatives must be"),
        ({"negatives": np.full((3, 1), 41, np.int32)}, "item index 41 is not in 1..40"),
        ({"negatives": np.array([1, 2, 77], np.int32)}, "item index 77 is not in 1..40"),
        ({"negatives": np.ones((3, 0), np.int32)}, "this loss needs negatives"),
        ({"negatives": np.ones(0, np.int32)}, "this loss needs negatives"),
        ({"earlier": Ragged.from_lists([[41], [3]])}, "item index 41 is not in 1..40"),
        ({"earlier": Ragged.from_lists([[4, 3]])}, "one row of earlier items for each row"),
        ({"inputs": Ragged(np.array([1, 2, 3], np.int32), np.array([0, 2]))}, "offsets must end with"),
        ({"inputs": Ragged(np.array([1, 2, 3], np.int32), np.array([0, 0, 3]))}, "row 0 is empty"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_is_read(change: dict[str, object], message: str) -> None:
    engine = NativeEngine(ModelConfig(embedding_dim=16, max_seq_len=5), 40, TrainConfig(threads=2))
    inputs = Ragged(np.array([1, 2, 3], np.int32), np.array([0, 2, 3]))
    batch = Batch(
        np.arange(2), inputs, np.array([1, 2, 3], np.int32), np.ones((3, 1), np.int32), np.zeros(41, np.float32), 0
    )
    with pytest.raises(ValueError, match=message):
        engine.forward_backward(replace(batch, **change))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attention_output": False},
            r"weight blocks.0.ffn_norm.weight has shape \(16\), and the core needs \(16, 16\)",
        ),
        ({"padding": "attended"}, r"position_embedding.weight has shape \(6, 16\), and the core needs \(5, 16\)"),
    ],
)
def test_weights_that_the_core_does_not_have_are_named(settings: dict[str, object], message: str) -> None:
    config = ModelConfig(embedding_dim=16, max_seq_len=5, **settings)
    with pytest.raises(ValueError, match=message):
        NativeEngine(config, 40, TrainConfig(threads=1))


def test_a_fork_and_a_thread_can_use_an_engine() -> None:
    code = """
import os, threading
import numpy as np
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.engine.native import NativeEngine
from sasrec.data.ragged import Ragged
engine = NativeEngine(ModelConfig(embedding_dim=20, max_seq_len=70), 40, TrainConfig(threads=2))
histories = Ragged.from_lists([np.arange(1, 31, dtype=np.int32)] * 50)
first = engine.encode(histories)
pid = os.fork()
same = np.array_equal(engine.encode(histories), first)
if pid == 0:
    os._exit(0 if same else 1)
thread = threading.Thread(target=lambda: engine.encode(histories))
thread.start()
thread.join()
assert same and os.waitpid(pid, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("torch_first", [True, False])
def test_torch_and_the_core_share_one_thread_setting_in_one_process(torch_first: bool) -> None:
    code = f"""
import sys
if {torch_first}: import torch
import numpy as np
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.engine.native import NativeEngine
from sasrec.data.ragged import Ragged
assert {torch_first} == ("torch" in sys.modules)
config, train = ModelConfig(embedding_dim=20, max_seq_len=70), TrainConfig(threads=1)
native = NativeEngine(config, 40, train)
from sasrec.core.threads import set_threads
from sasrec.engine.torch_engine import TorchEngine
reference = TorchEngine(config, 40, train)
set_threads(native.threads)
import torch
assert native.threads == native.core.threads == torch.get_num_threads() == 1
histories = Ragged.from_lists([np.arange(1, 31, dtype=np.int32)] * 50)
for _ in range(3):
    assert np.abs(native.encode(histories) - reference.encode(histories)).max() < 0.05
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_native_engine_imports_no_torch() -> None:
    code = """
import sys
import numpy as np
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.engine.protocol import create_engine
from sasrec.data.ragged import Ragged
engine = create_engine(ModelConfig(embedding_dim=20, max_seq_len=9), 40, TrainConfig(threads=1))
engine.encode(Ragged.from_lists([[1, 2, 3]]))
assert engine.name == "native" and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={**os.environ, "SASREC_ISA": ""})


@functools.cache
def run_of_steps(
    isa: str,
    n_steps: int,
    n_items: int,
    lazy: bool,
    tied: bool = True,
    threads: int = 2,
    saves: bool = False,
    reads_more: bool = False,
) -> Weights:
    """Weights after steps that each touch few of many items; before each, others may be read and not trained on."""
    config = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=0.0, tied=tied)
    train = TrainConfig(threads=threads, lazy_adam=lazy, learning_rate=0.003)
    engine = NativeEngine(config, n_items, train)
    assert engine.isa == isa
    for step in range(n_steps):
        if reads_more:
            engine.forward_backward(make_batch((4, 4), n_items, seed=step % 23, step=step))
        engine.forward_backward(make_batch((5, 3, 2), n_items, seed=step % 41, step=step))
        engine.optimizer_step(engine.train_config.learning_rate)
        if saves and step == n_steps // 2:
            weights, state = engine.weights(), engine.optimizer_state()
            engine = NativeEngine(config, n_items, train)
            engine.load_weights(weights)
            engine.load_optimizer_state(state)
    return without_key_biases(engine.weights())


@functools.cache
def weights_and_state(
    isa: str, tied: bool, threads: int, n_steps: int, averages: bool, reads: str
) -> tuple[Weights, Weights]:
    """After steps that each touch few of many items, and updates of the average after most of them."""
    config = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=0.2, tied=tied)
    engine = NativeEngine(config, 2000, TrainConfig(threads=threads, learning_rate=0.003))
    assert engine.isa == isa
    for step in range(n_steps):
        engine.forward_backward(make_batch((5, 3, 2), 2000, seed=step % 7, step=step))
        engine.optimizer_step(0.003 if step % 2 else 0.001)
        if reads == "weights before the average":
            engine.weights()
        if averages and step % 5 != 3:
            engine.update_average(0.9 if step % 3 else 0.99)
            if step % 50 == 0:
                engine.update_average(0.5)
        if reads == "weights after each step" or (reads == "weights at times" and step % 37 == 0):
            engine.weights()
        elif reads == "the average at times" and averages and step % 37 == 0:
            engine.swap_average()
            engine.encode(Ragged.from_lists([[1, 2, 3]]))
            engine.swap_average()
        elif reads == "the optimizer's state at times" and step % 37 == 0:
            engine.load_optimizer_state(engine.optimizer_state())
    return engine.weights(), engine.optimizer_state()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("threads", "n_steps"), [(1, 600), (2, 300)])
@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize(
    "reads",
    [
        "never",
        "weights before the average",
        "weights at times",
        "the average at times",
        "the optimizer's state at times",
    ],
)
def test_rows_that_wait_for_their_steps_and_averages_end_with_the_same_bits(
    isa: str, tied: bool, threads: int, n_steps: int, averages: bool, reads: str
) -> None:
    """Who reads weights after each step lets no row wait; more than 256 steps are kept for no row."""
    runs = [weights_and_state(isa, tied, threads, n_steps, averages, how) for how in ("weights after each step", reads)]
    for expected, got in zip(*runs, strict=True):
        assert expected.keys() == got.keys()
        assert all(np.array_equal(expected[name], got[name]) for name in expected)


@pytest.mark.usefixtures("isa")
def test_average_begun_late_has_the_rows_that_waited() -> None:
    config = ModelConfig(embedding_dim=20, max_seq_len=70, dropout=0.0)
    engine = NativeEngine(config, 2000, TrainConfig(threads=2))
    for step in range(20):
        engine.forward_backward(make_batch((5, 3, 2), 2000, seed=step, step=step))
        engine.optimizer_step(0.003)
    engine.update_average(0.9)
    engine.swap_average()
    average = engine.weights()
    engine.swap_average()
    weights = engine.weights()
    assert all(np.array_equal(weights[name], average[name]) for name in weights)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(  # missing a few steps, and more than the window
    ("n_steps", "n_items", "threads"), [(30, 60, 2), (700, 40, 1)]
)
def test_lazy_adam_ends_near_dense_adam(isa: str, tied: bool, n_steps: int, n_items: int, threads: int) -> None:
    if n_steps > 100 and load_native().module.bf16:
        pytest.skip("rounding to bf16 alone sends so long a run another way")
    start = initial_weights(ModelConfig(embedding_dim=20, max_seq_len=70, tied=tied), n_items, generator(0))
    dense, lazy = (run_of_steps(isa, n_steps, n_items, lazy, tied, threads) for lazy in (False, True))
    for name in ("item_embedding.weight", "norm.weight", *([] if tied else ["output_embedding.weight"])):
        moved = np.linalg.norm(dense[name] - start[name])
        share = 0.02 if n_steps < 100 and not load_native().module.bf16 else 0.1
        assert np.linalg.norm(dense[name] - lazy[name]) < share * moved, name


def test_lazy_adam_goes_on_after_a_save_as_if_there_had_been_none(isa: str) -> None:
    """A save makes rows catch up in two parts, which rounds otherwise; bf16 carries that much further."""
    start = without_key_biases(initial_weights(ModelConfig(embedding_dim=20, max_seq_len=70), 200, generator(0)))
    plain, resumed = (run_of_steps(isa, 60, 200, lazy=True, saves=saves) for saves in (False, True))
    for name in plain:
        if load_native().module.bf16:
            assert np.linalg.norm(plain[name] - resumed[name]) < 0.1 * np.linalg.norm(plain[name] - start[name]), name
        else:
            assert np.abs(plain[name] - resumed[name]).max() < 1e-3 * max(1.0, np.abs(plain[name]).max()), name


def test_lazy_adam_moves_rows_alike_that_were_read_in_between(isa: str) -> None:
    """A row that is read stands further than its moments, until a gradient reaches it."""
    start = without_key_biases(initial_weights(ModelConfig(embedding_dim=20, max_seq_len=70), 200, generator(0)))
    plain, read = (run_of_steps(isa, 60, 200, lazy=True, reads_more=reads_more) for reads_more in (False, True))
    share = 0.1 if load_native().module.bf16 else 1e-3
    for name in plain:
        assert np.linalg.norm(plain[name] - read[name]) < share * np.linalg.norm(plain[name] - start[name]), name


def test_missed_steps_in_closed_form_are_dense_adam_with_zero_gradients() -> None:
    config = ModelConfig(embedding_dim=16, max_seq_len=5, dropout=0.0, n_blocks=0)
    dense, lazy = (
        NativeEngine(config, 500, TrainConfig(threads=1, lazy_adam=lazy, learning_rate=0.01)) for lazy in (False, True)
    )
    start = dense.weights()["item_embedding.weight"]
    inputs = Ragged(np.array([3, 4], np.int32), np.array([0, 2]))
    for step in range(300):
        negative = np.full((2, 1), 6 + step, np.int32)  # each touched once, and then no more
        batch = Batch(np.arange(1), inputs, np.array([4, 5], np.int32), negative, np.zeros(501, np.float32), step)
        for engine in (dense, lazy):
            engine.forward_backward(batch)
            engine.optimizer_step(engine.train_config.learning_rate)
    expected, got = (engine.weights()["item_embedding.weight"] for engine in (dense, lazy))
    moved = np.abs(expected - start)[6:300]
    assert (np.abs(expected - got)[6:300] < 0.01 * moved + 1e-5).all()
    assert moved.min(axis=0).max() > 1e-3

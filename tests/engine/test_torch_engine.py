"""The torch engine: steps, state, layout."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from conftest import make_markov_log
from made import make_batches
from reference import Reference

from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.core.errors import CheckpointError
from sasrec.data.batches import Batch, TrainBatches
from sasrec.data.ragged import Ragged
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import split_leave_one_out
from sasrec.engine.device import ON_CPU, Way
from sasrec.engine.layout import length_groups
from sasrec.engine.protocol import create_engine
from sasrec.engine.torch_engine import TorchEngine
from sasrec.evaluation.protocols import evaluate
from sasrec.model.sasrec import Group
from sasrec.ranking.scorers import ModelScorer

MODEL = ModelConfig(embedding_dim=16, n_blocks=1, max_seq_len=10, dropout=0.2)
SPLIT = split_leave_one_out(build_sequences(make_markov_log())[0])


def first_batch(n_negatives: int = 1, batch_size: int = 64) -> Batch:
    return next(make_batches(SPLIT, 10, batch_size, n_negatives, 0).epoch(0))


def engine_of(model: ModelConfig = MODEL, way: Way = ON_CPU, **train: object) -> TorchEngine:
    return TorchEngine(model, SPLIT.sequences.n_items, TrainConfig(threads=1, **train), way)


@pytest.mark.parametrize("padding", ["none", "attended", "zeroed"])
def test_encoding_in_small_pieces_changes_nothing(padding: str) -> None:
    config = ModelConfig(embedding_dim=16, max_seq_len=10, padding=padding)
    engine, pieces = engine_of(config), engine_of(config, Way(encode_tokens=25))
    histories = SPLIT.test.histories(SPLIT.sequences).take(slice(0, 50))
    np.testing.assert_allclose(pieces.encode(histories), engine.encode(histories), rtol=1e-4, atol=1e-5)
    assert pieces.encode(histories.take(slice(0, 0))).shape == (0, 16)


@pytest.mark.parametrize("block", ["sasrec", "post_norm", "pre_norm", "ligr"])
@pytest.mark.parametrize("padding", ["none", "attended", "zeroed"])
def test_loss_equals_the_equations_written_in_numpy(block: str, padding: str) -> None:
    width = 14
    settings = {"block": block, "padding": padding, "n_heads": 2, "embedding_dim": 16, "max_seq_len": width}
    engine = engine_of(ModelConfig(**settings, dropout=0.0))
    reference = Reference(engine.weights(), block, n_heads=2)
    batch = mixed_batch()
    engine.forward_backward(batch)
    table, losses = engine.item_table().astype(np.float64), []
    for row in range(len(batch.users)):
        mine = batch.inputs.row(row)
        slots = np.arange(width)
        items = np.concatenate([np.zeros(width - len(mine), np.int64), mine])
        if padding == "none":
            features = reference.features(mine, slots[-len(mine) :])
        else:
            positions = slots if padding == "zeroed" else (slots + 1) * (items > 0)
            features = reference.features(items, positions, zero=padding == "zeroed")[-len(mine) :]
        part = slice(batch.inputs.offsets[row], batch.inputs.offsets[row + 1])
        positive = (features * table[batch.targets[part]]).sum(-1)
        negative = np.einsum("td,tnd->tn", features, table[batch.negatives[part]])
        losses.append(np.logaddexp(0, -positive) + np.logaddexp(0, negative).sum(-1))
    assert engine.pop_loss() == pytest.approx(np.concatenate(losses).mean(), rel=1e-4)


def mixed_batch() -> Batch:
    """Rows of 1 to 12 inputs, two negatives each."""
    lengths = [4, 9, 5, 15, 4, 7]
    items = np.random.default_rng(0).integers(0, 29, sum(lengths))
    log = pl.DataFrame({"user_id": np.repeat(range(6), lengths), "item_id": items})
    split = split_leave_one_out(build_sequences(log)[0])
    (batch,) = make_batches(split, 14, 8, 2, 0).epoch(0)
    assert sorted(batch.inputs.lengths) == [1, 1, 2, 4, 6, 12]
    return batch


@pytest.mark.parametrize("n_negatives", [1, 3])
def test_loss_is_the_mean_over_positions_of_each_user_alone(n_negatives: int) -> None:
    engine = engine_of(ModelConfig(embedding_dim=16, max_seq_len=10, dropout=0.0))
    batch = first_batch(n_negatives, batch_size=16)
    engine.forward_backward(batch)
    found = engine.pop_loss()
    table, total = engine.item_table().astype(np.float64), 0.0
    for row in range(len(batch.users)):
        items, start = batch.inputs.row(row), batch.inputs.offsets[row]
        for j in range(len(items)):
            position = Ragged.from_lists([items[: j + 1]])
            here = encode_at(engine, position, len(items) - j - 1)
            total += np.logaddexp(0, -here @ table[batch.targets[start + j]])
            total += np.logaddexp(0, table[batch.negatives[start + j]] @ here).sum()
    assert found == pytest.approx(total / len(batch.targets), rel=1e-4)


LOSSES: dict[str, dict[str, object]] = {
    "bce": {"loss": "bce", "n_negatives": 2},
    "bce_shared": {"loss": "bce", "n_negatives": 20, "shared_negatives": True},
    "gbce": {"loss": "gbce", "n_negatives": 4, "gbce_t": 0.9},
    "sampled_softmax": {"loss": "sampled_softmax", "n_negatives": 4},
    "sampled_softmax_shared": {"loss": "sampled_softmax", "n_negatives": 40, "shared_negatives": True},
    "cross_entropy": {"loss": "cross_entropy"},
    "bce_shared_unseen": {"loss": "bce", "n_negatives": 20, "shared_negatives": True, "mask_seen": True},
    "sampled_softmax_shared_unseen": {
        "loss": "sampled_softmax", "n_negatives": 40, "shared_negatives": True, "mask_seen": True
    },
    "cross_entropy_unseen": {"loss": "cross_entropy", "mask_seen": True},
}  # fmt: skip


def batch_for(engine: TorchEngine) -> Batch:
    return next(TrainBatches(SPLIT, engine.config, engine.train_config).epoch(0))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_loss_of_an_engine_is_its_formula_on_the_scores_of_each_position(loss: str, tied: bool) -> None:
    train = LOSSES[loss]
    engine = engine_of(ModelConfig(embedding_dim=16, max_seq_len=10, dropout=0.0, tied=tied), batch_size=16, **train)
    batch = batch_for(engine)
    engine.forward_backward(batch)
    table, total, config = engine.item_table().astype(np.float64), 0.0, engine.train_config
    seen = seen_at_each_position(batch) if config.mask_seen else [[]] * len(batch.targets)
    n_left_out = 0
    for position, (here, target) in enumerate(zip(features_of(engine, batch), batch.targets, strict=True)):
        scores, wanted = table @ here, int(target)
        drawn = batch.negatives if batch.negatives.ndim == 1 else batch.negatives[position]
        drawn = drawn[drawn != wanted]
        n_left_out += int(np.isin(drawn, seen[position]).sum())
        drawn = drawn[~np.isin(drawn, seen[position])]
        if config.loss == "cross_entropy":
            others = np.setdiff1d(np.arange(1, 31), [wanted, *seen[position]])
            n_left_out += 29 - len(others)
            total += np.logaddexp.reduce([scores[wanted], *scores[others]]) - scores[wanted]
        elif config.loss == "sampled_softmax":
            stood_for = 30 if config.shared_negatives else 29
            corrected = scores[drawn] + np.log(stood_for / config.n_negatives)
            total += np.logaddexp.reduce([scores[wanted], *corrected]) - scores[wanted]
        else:
            beta = 1 - 0.9 * (1 - 4 / 29) if config.loss == "gbce" else 1
            total += beta * np.logaddexp(0, -scores[wanted]) + np.logaddexp(0, scores[drawn]).sum()
    assert engine.pop_loss() == pytest.approx(total / len(batch.targets), rel=1e-4)
    assert (n_left_out > 100) == config.mask_seen


def seen_at_each_position(batch: Batch) -> list[list[int]]:
    """What the user of each position had before its target, from the log itself."""
    log = SPLIT.sequences
    seen = []
    for user, length in zip(batch.users, batch.inputs.lengths, strict=True):
        last = range(SPLIT.train_ends[user] - length, SPLIT.train_ends[user])  # where each position's history ends
        seen += [log.items[log.offsets[user] : end].tolist() for end in last]
    return seen


def features_of(engine: TorchEngine, batch: Batch) -> list[np.ndarray]:
    return [
        encode_at(engine, Ragged.from_lists([items[: j + 1]]), len(items) - j - 1)
        for items in (batch.inputs.row(row) for row in range(len(batch.users)))
        for j in range(len(items))
    ]


@pytest.mark.parametrize("most", [1, 30 * 7, 30 * 10_000])
@pytest.mark.parametrize("mask_seen", [True, False])
def test_cross_entropy_does_not_depend_on_how_many_scores_exist_at_once(most: int, mask_seen: bool) -> None:
    def gradients(most: int) -> tuple[float, dict[str, torch.Tensor]]:
        engine = engine_of(way=Way(full_scores=most), batch_size=16, loss="cross_entropy", mask_seen=mask_seen)
        engine.forward_backward(batch_for(engine))
        return engine.pop_loss(), {n: p.grad for n, p in engine.model.named_parameters() if p.grad is not None}

    (loss, whole), (other, parts) = gradients(1 << 22), gradients(most)
    assert other == pytest.approx(loss, rel=1e-6)
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, parts[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["sampled_softmax_shared_unseen", "cross_entropy_unseen"])
def test_seen_items_are_masked_also_where_products_are_rounded_as_on_cuda(loss: str) -> None:
    losses = []
    for rounded in (False, True):
        engine = engine_of(ModelConfig(embedding_dim=16, max_seq_len=10, dropout=0.0), batch_size=16, **LOSSES[loss])
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            losses.append(engine._loss(batch_for(engine)).item())
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("tied", [True, False])
def test_padding_is_no_candidate_of_cross_entropy(tied: bool) -> None:
    engine = engine_of(ModelConfig(embedding_dim=16, max_seq_len=10, tied=tied), loss="cross_entropy")
    engine.forward_backward(batch_for(engine))
    engine.optimizer_step(engine.train_config.learning_rate)
    assert not engine.item_table()[0].any()
    assert (engine.item_table()[1:] != 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["torch", "auto"])
def test_markov_log_is_learnt_with_every_loss(loss: str, name: str) -> None:
    train = TrainConfig(threads=1, engine=name, batch_size=50, learning_rate=0.01, **LOSSES[loss])
    engine = create_engine(MODEL, 30, train)
    batches, losses = TrainBatches(SPLIT, MODEL, train), []
    for epoch in range(25):
        for batch in batches.epoch(epoch):
            engine.forward_backward(batch)
            engine.optimizer_step(engine.train_config.learning_rate)
        losses.append(engine.pop_loss())
    assert losses[-1] < 0.7 * losses[0]
    result = evaluate(ModelScorer(engine, 10), SPLIT, "test", EvalConfig(filter_seen="no"), baselines=False)
    assert result.metrics["hr@10"]["value"] > 0.8  # chance is 1 / 3


def encode_at(engine: TorchEngine, history: Ragged, shift: int) -> np.ndarray:
    """Features of a history whose last item stands `shift` positions before the end, as inside a training row."""
    items = torch.from_numpy(history.values.astype(np.int64))
    last = engine.config.max_seq_len - 1 - shift
    positions = torch.arange(last - len(items) + 1, last + 1)
    engine.model.eval()
    with torch.no_grad():
        features = engine.model(items, positions, [Group(1, len(items), torch.tensor([len(items) - 1]))])
    return features[-1].double().numpy()


def test_pop_loss_averages_over_positions_since_the_last_call() -> None:
    engine = engine_of()
    batches = list(make_batches(SPLIT, 10, 64, 1, 0).epoch(0))
    losses = []
    for batch in batches:
        engine.forward_backward(batch)
        losses.append(engine.pop_loss())
    for batch in batches:
        engine.forward_backward(batch)
    weights = [len(batch.targets) for batch in batches]
    assert engine.pop_loss() == pytest.approx(np.average(losses, weights=weights), rel=1e-5)


def test_gradient_does_not_depend_on_how_rows_are_grouped() -> None:
    lengths = [3, 9, 5, 12, 4, 7]
    log = pl.DataFrame(
        {"user_id": np.repeat(range(6), lengths), "item_id": np.random.default_rng(0).integers(0, 15, sum(lengths))}
    )
    split = split_leave_one_out(build_sequences(log)[0])
    (batch,) = make_batches(split, 10, 8, 1, 0).epoch(0)
    config = ModelConfig(embedding_dim=8, max_seq_len=10, dropout=0.0)

    def gradients(n_groups: int, overhead: float) -> dict[str, torch.Tensor]:
        assert len(length_groups(np.sort(batch.inputs.lengths), overhead)) == n_groups
        engine = TorchEngine(config, split.sequences.n_items, TrainConfig(threads=1), Way(group_overhead=overhead))
        engine.forward_backward(batch)
        return {name: p.grad for name, p in engine.model.named_parameters() if p.grad is not None}

    one, each = gradients(1, 1e9), gradients(5, 0)
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, each[name], rtol=1e-4, atol=1e-6)


def test_weights_and_optimizer_state_are_all_that_a_run_is() -> None:
    batches = list(make_batches(SPLIT, 10, 32, 1, 0).epoch(0))

    def advance(engine: TorchEngine, some: list[Batch]) -> None:
        for batch in some:
            engine.forward_backward(batch)
            engine.optimizer_step(engine.train_config.learning_rate)

    whole, first, second = engine_of(), engine_of(), engine_of(seed=0)
    advance(whole, batches)
    advance(first, batches[:3])
    second.load_weights(first.weights())
    second.load_optimizer_state(first.optimizer_state())
    advance(second, batches[3:])
    for name, weight in whole.weights().items():
        np.testing.assert_array_equal(weight, second.weights()[name], err_msg=name)


def test_dropout_depends_on_the_step_and_nothing_before_it() -> None:
    a, b, batch = engine_of(), engine_of(), first_batch()
    a.forward_backward(batch)
    a.pop_loss()
    a.forward_backward(batch)
    b.forward_backward(batch)
    assert a.pop_loss() == b.pop_loss()


def test_dropout_differs_by_step_and_by_seed() -> None:
    batch = first_batch()
    losses = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        engine = engine_of(seed=seed)
        engine.load_weights(engine_of().weights())
        engine.forward_backward(replace(batch, step=step))
        losses.append(engine.pop_loss())
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3


def test_same_seed_gives_bitwise_the_same_weights_and_another_seed_others() -> None:
    a, b, other = (engine_of(seed=seed).weights() for seed in (3, 3, 4))
    assert {name: w.tobytes() for name, w in a.items()} == {name: w.tobytes() for name, w in b.items()}
    assert not np.array_equal(a["item_embedding.weight"], other["item_embedding.weight"])


def test_weights_in_and_out_are_copies() -> None:
    engine, batch = engine_of(), first_batch()
    taken = engine.weights()
    kept = {name: w.copy() for name, w in taken.items()}
    engine.forward_backward(batch)
    engine.optimizer_step(engine.train_config.learning_rate)
    state = engine.optimizer_state()
    moments = {name: w.copy() for name, w in state.items()}
    engine.forward_backward(batch)
    engine.optimizer_step(engine.train_config.learning_rate)
    for name, weight in kept.items():
        np.testing.assert_array_equal(taken[name], weight)
    for name, moment in moments.items():
        np.testing.assert_array_equal(state[name], moment)
    engine.load_weights(taken)
    taken["norm.bias"][:] = 7
    np.testing.assert_array_equal(engine.weights()["norm.bias"], kept["norm.bias"])


def test_item_table_of_an_untied_model_is_its_output_table() -> None:
    engine = engine_of(ModelConfig(embedding_dim=16, max_seq_len=10, tied=False))
    np.testing.assert_array_equal(engine.item_table(), engine.weights()["output_embedding.weight"])
    assert engine.item_table().shape == (SPLIT.sequences.n_items + 1, 16)


def test_steps_are_those_of_adam_with_the_given_decay() -> None:
    engine = engine_of(adam_beta1=0.7, adam_beta2=0.95, learning_rate=0.01)
    expected = {name: w.astype(np.float64) for name, w in engine.weights().items()}
    first, second = ({name: np.zeros(w.shape) for name, w in expected.items()} for _ in range(2))
    for t, batch in enumerate(make_batches(SPLIT, 10, 50, 1, 0).epoch(0), 1):
        engine.forward_backward(batch)
        for name, parameter in engine.model.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.double().numpy()
            first[name] = 0.7 * first[name] + 0.3 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            spread = np.sqrt(second[name] / (1 - 0.95**t)) + 1e-8
            expected[name] -= 0.01 * first[name] / (1 - 0.7**t) / spread
        engine.optimizer_step(engine.train_config.learning_rate)
        for name, weight in engine.weights().items():
            np.testing.assert_allclose(weight, expected[name], rtol=0, atol=1e-5, err_msg=name)


def test_l2_pulls_item_embeddings_towards_zero() -> None:
    batch = first_batch()
    plain, pulled = engine_of(), engine_of(l2_embedding=0.5)
    for engine in (plain, pulled):
        engine.forward_backward(batch)
    difference = pulled.model.item_embedding.weight.grad - plain.model.item_embedding.weight.grad
    torch.testing.assert_close(difference, plain.model.item_embedding.weight.detach(), rtol=1e-3, atol=1e-5)
    assert plain.pop_loss() == pulled.pop_loss()
    for (name, a), b in zip(plain.model.named_parameters(), pulled.model.parameters(), strict=True):
        assert name == "item_embedding.weight" or torch.equal(a.grad, b.grad)


def test_clipping_bounds_the_norm_of_the_gradient() -> None:
    engine = engine_of(clip_norm=1e-3)
    engine.forward_backward(first_batch())
    engine.optimizer_step(engine.train_config.learning_rate)
    norms = [p.grad.norm() for p in engine.model.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("clip_norm", [0.0, 1e6])
def test_gradient_below_the_bound_is_left_alone(clip_norm: float) -> None:
    engine = engine_of(clip_norm=clip_norm)
    engine.forward_backward(first_batch())
    before = [p.grad.clone() for p in engine.model.parameters() if p.grad is not None]
    engine.optimizer_step(engine.train_config.learning_rate)
    assert all(torch.equal(p.grad, g) for p, g in zip(engine.model.parameters(), before, strict=True))


def test_first_adam_step_moves_each_weight_by_the_learning_rate() -> None:
    engine = engine_of(learning_rate=0.01)
    before = engine.weights()
    engine.forward_backward(first_batch())
    gradients = {n: p.grad.numpy() for n, p in engine.model.named_parameters() if p.grad is not None}
    engine.optimizer_step(engine.train_config.learning_rate)
    for name, weight in engine.weights().items():
        large = np.abs(gradients[name]) > 1e-4
        step = before[name] - weight
        np.testing.assert_allclose(step[large], 0.01 * np.sign(gradients[name][large]), rtol=1e-2)


@pytest.mark.parametrize("padding", ["attended", "zeroed"])
def test_published_padding_can_be_trained_on(padding: str) -> None:
    engine = engine_of(ModelConfig(embedding_dim=16, max_seq_len=12, padding=padding))
    losses = []
    for epoch in range(12):
        for batch in make_batches(SPLIT, 12, 64, 1, 0).epoch(epoch):
            engine.forward_backward(batch)
            engine.optimizer_step(engine.train_config.learning_rate)
        losses.append(engine.pop_loss())
    assert losses[-1] < losses[0]


def test_weights_of_another_model_are_refused() -> None:
    engine = engine_of()
    weights = engine.weights()
    with pytest.raises(CheckpointError, match=r"missing \['norm.bias'\]"):
        engine.load_weights({k: v for k, v in weights.items() if k != "norm.bias"})
    with pytest.raises(CheckpointError, match=r"missing \[\], unexpected \['wings'\]"):
        engine.load_weights({**weights, "wings": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"norm\.bias has shape \(3,\), and the configuration needs \(16,\)"):
        engine.load_weights({**weights, "norm.bias": np.zeros(3, np.float32)})

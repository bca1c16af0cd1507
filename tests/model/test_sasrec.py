"""Invariants of the model, on made histories and on real ones."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from made import make_batches

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.data.ragged import Ragged
from sasrec.data.sampling import generator
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import split_leave_one_out
from sasrec.engine.device import ON_CPU, Way
from sasrec.engine.torch_engine import TorchEngine
from sasrec.model.sasrec import BLOCKS, Dropout, Group, SASRec
from sasrec.reading.readers import read_interactions

N_ITEMS, LENGTH = 40, 12
VARIANTS: dict[str, dict[str, object]] = {
    **{block: {"block": block} for block in BLOCKS},
    "heads": {"n_heads": 4},
    "untied": {"tied": False},
    "no attention output": {"attention_output": False},
    "wide ffn": {"ffn_dim": 40},
    "no blocks": {"n_blocks": 0},
    "identity": {"activation": "identity"},
}


def make_engine(variant: str = "sasrec", n_items: int = N_ITEMS, way: Way = ON_CPU, **settings: object) -> TorchEngine:
    config = ModelConfig(**{"embedding_dim": 16, "max_seq_len": LENGTH, **VARIANTS[variant], **settings})
    engine = TorchEngine(config, n_items, TrainConfig(threads=1), way)
    weights = engine.weights()
    rng = np.random.default_rng(1)
    for name, weight in weights.items():
        weight += rng.standard_normal(weight.shape).astype(np.float32) * 0.2
        if name.endswith("embedding.weight") and "position" not in name:
            weight[0] = 0
    engine.load_weights(weights)
    return engine


def made_histories(n: int = 60) -> Ragged:
    rng = np.random.default_rng(2)
    return Ragged.from_lists([rng.integers(1, N_ITEMS + 1, rng.integers(1, 20)).tolist() for _ in range(n)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_equals_single_and_order_of_rows_does_not_matter(variant: str) -> None:
    engine, histories = make_engine(variant), made_histories()
    together = engine.encode(histories)
    alone = np.concatenate([engine.encode(histories.take(slice(i, i + 1))) for i in range(len(histories))])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(histories))
    np.testing.assert_allclose(engine.encode(histories.take(order)), together[order], rtol=1e-4, atol=1e-5)


def all_features(engine: TorchEngine, items: list[int], width: int) -> np.ndarray:
    """(n, D) features of all positions of one history, padded on the right to a width."""
    n = len(items)
    padded = torch.tensor(items + [0] * (width - n))
    last = engine.config.max_seq_len
    positions = torch.tensor([*range(last - n, last), *[0] * (width - n)])
    engine.model.eval()
    with torch.no_grad():
        return engine.model(padded, positions, [Group(1, width, torch.tensor([n - 1]))])[:n].numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_does_not_change_features(variant: str) -> None:
    engine = make_engine(variant)
    bare, padded = all_features(engine, [3, 4, 5], 3), all_features(engine, [3, 4, 5], 11)
    np.testing.assert_allclose(bare, padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_changing_an_item_does_not_change_features_before_it(variant: str) -> None:
    engine = make_engine(variant)
    items = [5, 9, 2, 7, 7, 1, 3]
    before = all_features(engine, items, 7)
    for t in range(7):
        changed = all_features(engine, [*items[:t], 30, *items[t + 1 :]], 7)
        np.testing.assert_allclose(changed[:t], before[:t], rtol=1e-4, atol=1e-5)
        assert np.abs(changed[t] - before[t]).max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoding_the_last_position_equals_the_last_of_all_positions(variant: str) -> None:
    engine, items = make_engine(variant), [5, 9, 2, 7, 7, 1, 3]
    last = engine.encode(Ragged.from_lists([items, [4]]))[0]
    np.testing.assert_allclose(last, all_features(engine, items, 7)[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_attention_gives_the_features_of_the_one_that_is_written_out(variant: str) -> None:
    written, fused = make_engine(variant), make_engine(variant, way=Way(fused_attention=True))
    items, histories = [5, 9, 2, 7, 7, 1, 3], made_histories()
    np.testing.assert_allclose(fused.encode(histories), written.encode(histories), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(all_features(fused, items, 9), all_features(written, items, 9), rtol=1e-4, atol=1e-5)


def test_only_the_last_max_seq_len_items_count() -> None:
    engine, items = make_engine(), list(range(1, 31))
    full, recent = engine.encode(Ragged.from_lists([items, items[-LENGTH:]]))
    np.testing.assert_array_equal(full, recent)


@pytest.mark.parametrize("block", BLOCKS)
def test_invariants_hold_on_real_histories(block: str, shared: Path) -> None:
    sequences, vocabulary = build_sequences(read_interactions(shared / "data" / "ml-1m.txt"))
    engine = make_engine(block, len(vocabulary), max_seq_len=200)
    split = split_leave_one_out(sequences)
    histories = split.test.histories(sequences).take(slice(0, 300))
    together = engine.encode(histories)
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_allclose(engine.encode(histories.take(order)), together[order], rtol=1e-3, atol=1e-4)
    for i in range(0, 300, 60):
        alone = engine.encode(histories.take(slice(i, i + 1)))[0]
        np.testing.assert_allclose(together[i], alone, rtol=1e-3, atol=1e-4)
    items = histories.row(int(np.argmin(np.abs(histories.lengths - 60))))[-100:].tolist()
    features = all_features(engine, items, len(items))
    np.testing.assert_allclose(all_features(engine, items, 200), features, rtol=1e-3, atol=1e-4)
    for t in range(0, len(items), 20):
        changed = all_features(engine, [*items[:t], len(vocabulary), *items[t + 1 :]], len(items))
        np.testing.assert_allclose(changed[:t], features[:t], rtol=1e-3, atol=1e-4)
        assert np.abs(changed[t] - features[t]).max() > 1e-3


@pytest.mark.parametrize("variant", [*BLOCKS, "untied"])
def test_padding_row_stays_zero_while_training(variant: str) -> None:
    log = pl.DataFrame({"user_id": [u for u in range(9) for _ in range(8)], "item_id": list(range(1, 37)) * 2})
    split = split_leave_one_out(build_sequences(log)[0])
    engine = make_engine(variant, split.sequences.n_items)
    for batch in make_batches(split, LENGTH, 3, 2, 0).epoch(0):
        engine.forward_backward(batch)
        for table in (engine.model.item_embedding, engine.model.output_embedding):
            assert table.weight.grad is not None
            assert not table.weight.grad[0].any()
            assert table.weight.grad.any()
        engine.optimizer_step(engine.train_config.learning_rate)
    weights = engine.weights()
    assert (weights["item_embedding.weight"][0] == 0).all()
    assert (engine.item_table()[0] == 0).all()
    assert np.abs(weights["item_embedding.weight"][1:]).min(1).max() > 0


@pytest.mark.parametrize(("padding", "stays_zero"), [("attended", True), ("zeroed", False), ("none", False)])
def test_only_the_published_padding_has_a_position_of_its_own_that_stays_zero(padding: str, stays_zero: bool) -> None:
    log = pl.DataFrame({"user_id": [1] * 12 + [2] * 6, "item_id": [*range(12), *range(6)]})
    split = split_leave_one_out(build_sequences(log)[0])
    config = ModelConfig(embedding_dim=8, max_seq_len=9, padding=padding)
    engine = TorchEngine(config, split.sequences.n_items, TrainConfig(threads=1))
    (batch,) = make_batches(split, 9, 3, 1, 0).epoch(0)
    engine.forward_backward(batch)
    engine.optimizer_step(engine.train_config.learning_rate)
    row = engine.weights()["position_embedding.weight"][0]
    assert (not row.any()) == stays_zero


@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_agree_with_finite_differences(block: str) -> None:
    config = ModelConfig(block=block, embedding_dim=4, n_heads=2, max_seq_len=5, dropout=0.0)
    model = SASRec(config, 6, generator(0)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    items, positions = torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor([2, 3, 4, 3, 4, 0])
    groups = [Group(2, 3, torch.tensor([2, 1]))]

    def loss() -> torch.Tensor:
        return model(items, positions, groups)[[0, 1, 2, 3, 4]].square().mul(torch.arange(1.0, 5.0)).sum()

    loss().backward()
    for name, parameter in model.named_parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad
        assert gradient is not None
        for i in range(0, flat.numel(), max(1, flat.numel() // 5)):
            if "embedding" in name and i < 4:
                continue  # padding rows get no gradient
            old = flat[i].item()
            with torch.no_grad():
                flat[i] = old + 1e-6
                up = loss()
                flat[i] = old - 1e-6
                down = loss()
                flat[i] = old
            assert gradient.view(-1)[i].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-4, abs=1e-5), name


def test_scores_are_dot_products_with_the_output_table() -> None:
    engine = make_engine("untied")
    features = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    table = torch.from_numpy(engine.item_table())
    items = torch.tensor([[1, 2], [3, 4], [5, 6]])
    expected = torch.einsum("td,tnd->tn", features, table[items])
    torch.testing.assert_close(engine.model.scores(features, items), expected)
    torch.testing.assert_close(engine.model.scores(features, items[:, 0]), expected[:, 0])


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_dropout_keeps_the_right_share_and_the_mean(p: float) -> None:
    dropout = Dropout(p)
    dropout.rng = generator(0)
    x = torch.ones(400, 501)
    y = dropout(x)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)
    assert y.unique().tolist() == [0, pytest.approx(1 / (1 - p), rel=1e-4)]
    dropped = (y == 0).float()
    spread = (p * (1 - p)) ** 0.5
    assert (dropped.mean(0) - p).abs().max().item() < 5 * spread / 400**0.5  # no stripes by column, nor by row
    assert (dropped.mean(1) - p).abs().max().item() < 5 * spread / 501**0.5
    flat = dropped.view(-1) - p
    for distance in (1, 2, 3, 4, 501):
        together = (flat[:-distance] * flat[distance:]).mean().item() / spread**2
        assert abs(together) < 5 / flat.numel() ** 0.5  # neighbours are dropped independently
    dropout.eval()
    assert dropout(x) is x


def test_gradient_passes_through_dropout_where_the_value_does() -> None:
    dropout = Dropout(0.5)
    dropout.rng = generator(0)
    x = torch.ones(9, 7, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.equal(y.detach())


@pytest.mark.parametrize("block", BLOCKS)
def test_dropout_acts_on_embeddings_attention_and_both_maps_of_the_feed_forward(block: str) -> None:
    shapes: list[tuple[int, ...]] = []
    config = ModelConfig(block=block, embedding_dim=8, n_heads=2, ffn_dim=12, n_blocks=1)
    model = SASRec(config, 9, generator(0)).train()
    model.dropout.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2]), [Group(1, 3, torch.tensor([2]))])
    branch = [(3, 8)] if block == "ligr" else []
    assert shapes == [(3, 8), (2, 3, 3), *branch, (3, 12), (3, 8)]


def test_dropout_does_nothing_when_encoding() -> None:
    engine, histories = make_engine(dropout=0.9), made_histories(8)
    np.testing.assert_array_equal(engine.encode(histories), make_engine(dropout=0.0).encode(histories))


def test_dropout_masks_follow_from_their_generator_alone() -> None:
    dropout, x = Dropout(0.5), torch.ones(50, 7)
    masks = []
    for seed in (1, 1, 2):
        dropout.rng = generator(seed)
        masks.append(dropout(x))
    assert masks[0].equal(masks[1])
    assert not masks[0].equal(masks[2])


@pytest.mark.parametrize("tied", [True, False])
def test_tied_model_has_one_table(tied: bool) -> None:
    model = SASRec(ModelConfig(embedding_dim=8, tied=tied), 9, generator(0))
    assert (model.output_embedding is model.item_embedding) == tied
    assert ("output_embedding.weight" in dict(model.named_parameters())) != tied


def test_number_of_weights_of_the_published_model_is_the_published_one() -> None:
    model = SASRec(ModelConfig(embedding_dim=50, max_seq_len=200, padding="attended"), 3416, generator(0))
    block = 2 * 2 * 50 + 3 * 50 * 50 + 3 * 50 + 50 * 50 + 50 + 2 * (50 * 50 + 50)
    assert sum(p.numel() for p in model.parameters()) == 3417 * 50 + 201 * 50 + 2 * block + 100

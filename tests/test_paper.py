"""Parity: with the paper's equations in NumPy, with the published code's module structure, with its own checkpoints."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import Reference

from sasrec.converting import convert
from sasrec.core.arrays import Float32
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.data.ragged import Ragged
from sasrec.engine.torch_engine import TorchEngine
from sasrec.model.published import LAYOUTS, Weights, dump_published, read_published
from sasrec.model.sasrec import Group
from sasrec.reading.readers import read_interactions
from sasrec.recommender import Recommender

N_ITEMS, DIM, LENGTH = 20, 8, 6


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for each other on a busy machine make these tests twenty times slower."""
    monkeypatch.setattr("sasrec.core.threads.usable_cpus", lambda: 1)


def random_engine(config: ModelConfig, seed: int = 0) -> TorchEngine:
    """An engine whose every weight, biases and norms too, is random and large enough to matter."""
    engine = TorchEngine(config, N_ITEMS, TrainConfig(seed=seed, threads=1))
    rng = np.random.default_rng(seed)
    weights = {name: rng.standard_normal(w.shape).astype(np.float32) * 0.5 for name, w in engine.weights().items()}
    if config.padding == "none":
        weights["item_embedding.weight"][0] = 0
    engine.load_weights(weights)
    return engine


@pytest.mark.parametrize("block", ["sasrec", "post_norm", "pre_norm", "ligr"])
@pytest.mark.parametrize(("n_heads", "attention_output"), [(1, True), (2, True), (4, False)])
def test_features_equal_the_equations_written_in_numpy(block: str, n_heads: int, attention_output: bool) -> None:
    config = ModelConfig(
        block=block,
        embedding_dim=DIM, max_seq_len=LENGTH, n_heads=n_heads, attention_output=attention_output, dropout=0.3,
    )  # fmt: skip
    engine = random_engine(config)
    reference = Reference(engine.weights(), block, n_heads)
    rows = [[3], [1, 2, 3, 4, 5, 6], [7, 7], [9, 8, 7, 6, 5, 4, 3, 2, 1]]
    features = engine.encode(Ragged.from_lists(rows))
    for row, found in zip(rows, features, strict=True):
        recent = np.array(row[-LENGTH:])
        expected = reference.features(recent, np.arange(LENGTH - len(recent), LENGTH))[-1]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("block", ["sasrec", "post_norm", "pre_norm", "ligr"])
def test_features_of_all_positions_equal_the_equations(block: str) -> None:
    config = ModelConfig(block=block, embedding_dim=DIM, max_seq_len=LENGTH, n_heads=2, ffn_dim=12)
    engine = random_engine(config)
    engine.model.eval()
    items, positions = np.array([3, 9, 9, 1]), np.arange(LENGTH - 4, LENGTH)
    group = Group(1, 4, torch.tensor([3]))
    with torch.no_grad():
        found = engine.model(torch.from_numpy(items), torch.from_numpy(positions), [group])
    expected = Reference(engine.weights(), block, n_heads=2).features(items, positions)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_equal_the_equations_with_their_padding(layout: str) -> None:
    settings = LAYOUTS[layout]
    config = ModelConfig(**settings, embedding_dim=DIM, max_seq_len=LENGTH, dropout=0.3)
    engine = random_engine(config)
    reference = Reference(engine.weights(), settings["block"], relu=settings["activation"] == "relu")
    rows = [[3], [1, 2, 3, 4, 5, 6, 7], [7, 7, 9]]
    for row, found in zip(rows, engine.encode(Ragged.from_lists(rows)), strict=True):
        items = np.zeros(LENGTH, np.int64)
        items[-len(row[-LENGTH:]) :] = row[-LENGTH:]
        slots = np.arange(LENGTH)
        positions = slots if settings["padding"] == "zeroed" else (slots + 1) * (items != 0)
        expected = reference.features(items, positions, zero=settings["padding"] == "zeroed")[-1]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


class PublishedModel(torch.nn.Module):
    """The published module structure, restated: what its state dicts load into."""

    def __init__(self, layout: str, n_heads: int = 1, n_blocks: int = 2) -> None:
        super().__init__()
        self.layout = layout
        rows = LENGTH if layout == "pmixer-2020" else LENGTH + 1
        self.item_emb = torch.nn.Embedding(N_ITEMS + 1, DIM)
        self.pos_emb = torch.nn.Embedding(rows, DIM)
        norms = [torch.nn.LayerNorm(DIM, eps=1e-8) for _ in range(2 * n_blocks + 1)]
        self.attention_layernorms = torch.nn.ModuleList(norms[:n_blocks])
        self.forward_layernorms = torch.nn.ModuleList(norms[n_blocks:-1])
        self.last_layernorm = norms[-1]
        self.attention_layers = torch.nn.ModuleList(torch.nn.MultiheadAttention(DIM, n_heads) for _ in range(n_blocks))
        self.forward_layers = torch.nn.ModuleList()
        for _ in range(n_blocks):
            layer = torch.nn.Module()
            layer.conv1, layer.conv2 = torch.nn.Conv1d(DIM, DIM, 1), torch.nn.Conv1d(DIM, DIM, 1)
            self.forward_layers.append(layer)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """(L,) left-padded items -> (D,) last features."""
        real = items != 0
        slots = torch.arange(LENGTH)
        positions = slots if self.layout == "pmixer-2020" else (slots + 1) * real
        keep = real[:, None].float() if self.layout == "pmixer-2020" else torch.ones(LENGTH, 1)
        x = (self.item_emb(items) * math.sqrt(DIM) + self.pos_emb(positions)) * keep
        mask = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)
        layers = (self.attention_layernorms, self.attention_layers, self.forward_layernorms, self.forward_layers)
        for norm1, attention, norm2, forward in zip(*layers, strict=True):
            x = self.block(x, mask, norm1, attention, norm2, forward) * keep
        return self.last_layernorm(x)[-1]

    def block(self, x, mask, norm1, attention, norm2, forward):
        def attend(query, context):
            return attention(query[:, None], context[:, None], context[:, None], attn_mask=mask)[0][:, 0]

        def transform(h):
            hidden = forward.conv1(h.T[None])
            hidden = hidden if self.layout == "pmixer-2020" else hidden.relu()
            return forward.conv2(hidden)[0].T

        if self.layout == "pmixer-2025":
            h = norm1(x + attend(x, x))
            return norm2(h + transform(h))
        if self.layout == "pmixer-2025-norm-first":
            h = norm1(x)
            x = x + attend(h, h)
            return x + transform(norm2(x))
        query = norm1(x)
        h = norm2(query + attend(query, x))
        return h + transform(h)


@pytest.mark.parametrize("n_heads", [1, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_checkpoint_loads_into_the_published_modules_and_gives_the_same_features(
    layout: str, n_heads: int, tmp_path: Path
) -> None:
    config = ModelConfig(**LAYOUTS[layout], embedding_dim=DIM, max_seq_len=LENGTH, n_heads=n_heads, dropout=0.0)
    engine = random_engine(config)
    path = tmp_path / f"model.head={n_heads}.pth"
    path.write_bytes(dump_published(engine.config, engine.weights(), layout))
    model = PublishedModel(layout, n_heads)
    model.load_state_dict(torch.load(path, weights_only=True))
    for row in ([3], [1, 2, 3, 4, 5, 6], [7, 7, 9]):
        items = torch.zeros(LENGTH, dtype=torch.long)
        items[-len(row) :] = torch.tensor(row)
        expected = model(items).detach().numpy()
        np.testing.assert_allclose(engine.encode(Ragged.from_lists([row]))[0], expected, rtol=1e-4, atol=2e-5)
    again = read_published(path, layout)
    assert again.n_items == N_ITEMS
    assert again.config.n_heads == n_heads
    assert_equal_weights(again.weights, engine.weights())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_model_of_real_positions_written_back_agrees_on_histories_that_need_no_padding(
    layout: str, tmp_path: Path
) -> None:
    settings = {**LAYOUTS[layout], "padding": "none"}
    engine = random_engine(ModelConfig(**settings, embedding_dim=DIM, max_seq_len=LENGTH))
    path = tmp_path / "model.pth"
    path.write_bytes(dump_published(engine.config, engine.weights(), layout))
    model = PublishedModel(layout)
    model.load_state_dict(torch.load(path, weights_only=True))
    full = [6, 5, 4, 3, 2, 1]
    expected = engine.encode(Ragged.from_lists([full]))[0]
    np.testing.assert_allclose(model(torch.tensor(full)).detach().numpy(), expected, rtol=1e-4, atol=2e-5)


def assert_equal_weights(a: Weights, b: Weights) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


CHECKPOINTS = {
    "601": ("SASRec.epoch=601.lr=0.001.layer=2.head=1.hidden=50.maxlen=200.pth", "pmixer-2020", "pmixer_094fcb5_601"),
    "720": ("SASRec.epoch=720.lr=0.001.layer=2.head=1.hidden=50.maxlen=200.pth", "pmixer-2021", "pmixer_33bc1d8_720"),
    "860": ("SASRec.epoch=860.lr=0.001.layer=2.head=1.hidden=50.maxlen=200.pth", "pmixer-2021", "pmixer_33bc1d8_860"),
    "post-norm": (
        "Snikem-postnorm-SASRec.epoch=100.lr=0.001.layer=2.head=1.hidden=50.maxlen=200.pth", "pmixer-2025",
        "snikem_100",
    ),
}  # fmt: skip
FIGURES = {  # strict ranks: sampled NDCG@10, HR@10; full ranking NDCG@10, HR@10
    "601": (0.5680, 0.8083, 0.1130, 0.2141),
    "720": (0.5911, 0.8199, 0.1339, 0.2510),
    "860": (0.5940, 0.8205, 0.1353, 0.2520),
    "post-norm": (0.5822, 0.8129, 0.1247, 0.2379),
}


Published = Callable[[str], Recommender]


@pytest.fixture(scope="module")
def published(shared: Path) -> Published:
    """Published checkpoints on their log; an engine computes the features of the same histories once."""
    log = read_interactions(shared / "data" / "ml-1m.txt")

    @cache
    def convert_one(name: str) -> Recommender:
        file, layout, _ = CHECKPOINTS[name]
        recommender = convert(shared / "reference" / file, layout, log)
        encode, known = recommender.engine.encode, {}

        def encode_once(histories: Ragged) -> Float32:
            key = (histories.values.tobytes(), histories.offsets.tobytes())
            if key not in known:
                known[key] = encode(histories)
            return known[key]

        recommender.engine.encode = encode_once
        return recommender

    return convert_one


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_checkpoint_gives_the_published_features_logits_and_figures(
    name: str, shared: Path, published: Published
) -> None:
    recommender = published(name)
    expected = np.load(shared / "reference" / f"{CHECKPOINTS[name][2]}_test.npz")
    features = recommender.engine.encode(Ragged.from_lists([row[row > 0] for row in expected["seqs"]]))
    np.testing.assert_allclose(features, expected["feat"], rtol=0, atol=1e-4)
    logits = features @ recommender.engine.item_table().T
    np.testing.assert_allclose(logits[:, 1:], expected["logits"][:, 1:], rtol=0, atol=1e-4)
    candidates = shared / "reference" / "ml1m_candidates_seed42.npz"
    sampled = recommender.evaluate(protocol="sampled", candidates=candidates, ties="strict", baselines=False)
    np.testing.assert_array_equal(sampled.per_user["rank"] - 1, expected["sampled_rank_seed42"])
    full = recommender.evaluate(protocol="full", ties="strict", baselines=False)
    found = [result.metrics[m]["value"] for result in (sampled, full) for m in ("ndcg@10", "hr@10")]
    np.testing.assert_allclose(found, FIGURES[name], rtol=0, atol=3.4e-4)


@pytest.mark.slow
def test_the_same_item_drawn_again_is_an_exact_tie(shared: Path, published: Published) -> None:
    """181 users have their target drawn again; strict and pessimistic ranks differ for them and nobody else."""
    recommender = published("860")
    path = shared / "reference" / "ml1m_candidates_seed42.npz"
    drawn = np.load(path)["test"]
    again = (drawn[:, 1:] == drawn[:, :1]).sum(1)
    ranks = {
        ties: recommender.evaluate(protocol="sampled", candidates=path, ties=ties, baselines=False).per_user["rank"]
        for ties in ("strict", "expected", "pessimistic")
    }
    assert (again > 0).sum() == 181
    np.testing.assert_array_equal(ranks["pessimistic"] - ranks["strict"], again)
    np.testing.assert_array_equal(ranks["expected"] - ranks["strict"], again / 2)

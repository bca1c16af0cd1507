"""The torch engine on a CUDA device beside the same engine on the CPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_markov_log

import sasrec
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.data.batches import TrainBatches
from sasrec.data.ragged import Ragged
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import split_leave_one_out
from sasrec.engine.device import ON_CUDA, Way
from sasrec.engine.prefetch import batches_for
from sasrec.engine.torch_engine import TorchEngine
from sasrec.ranking.device_index import DeviceIndex
from sasrec.ranking.index import PlainIndex

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or it is hidden: pytest -m gpu"),
]

MODEL = ModelConfig(embedding_dim=16, n_blocks=1, max_seq_len=10, dropout=0.0)  # each device draws dropout for itself
FLOAT32 = replace(ON_CUDA, bf16=False)
SPLIT = split_leave_one_out(build_sequences(make_markov_log())[0])
HISTORIES = Ragged.from_lists([[1, 2, 3], [4], list(range(1, 13))])


def trained(train: TrainConfig, epochs: int, way: Way | None = None) -> tuple[TorchEngine, list[float]]:
    """An engine after so many epochs, and the loss of each."""
    engine, batches, losses = TorchEngine(MODEL, 30, train, way), TrainBatches(SPLIT, MODEL, train), []
    for epoch in range(epochs):
        for batch in batches_for(engine, batches.epoch(epoch)):
            engine.forward_backward(batch)
            engine.optimizer_step(train.learning_rate)
        losses.append(engine.pop_loss())
    return engine, losses


def test_the_same_weights_give_the_features_of_the_cpu() -> None:
    cpu, cuda = (TorchEngine(MODEL, 30, TrainConfig(threads=1, device=device)) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(cuda.encode(HISTORIES), cpu.encode(HISTORIES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss": "cross_entropy"}, {"orthogonal_steps": True}],
    ids=["bce", "cross_entropy", "orthogonal_steps"],
)
def test_an_epoch_in_float32_has_the_loss_and_features_of_the_cpu(settings: dict[str, Any]) -> None:
    train = TrainConfig(threads=1, batch_size=50, learning_rate=0.01, **settings)
    (cpu, expected), (cuda, found) = (
        trained(replace(train, device=device), 1, way) for device, way in (("cpu", None), ("cuda", FLOAT32))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(cuda.encode(HISTORIES), cpu.encode(HISTORIES), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"loss": "cross_entropy"}], ids=["bce", "cross_entropy"])
def test_an_epoch_has_the_loss_of_the_cpu_to_the_rounding_of_bf16(settings: dict[str, Any]) -> None:
    train = TrainConfig(threads=1, batch_size=50, learning_rate=0.01, **settings)
    (cpu, expected), (cuda, found) = (trained(replace(train, device=device), 3) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(found, expected, rtol=3e-3)
    a, b = cpu.encode(HISTORIES).ravel(), cuda.encode(HISTORIES).ravel()
    assert a @ b > 0.995 * np.linalg.norm(a) * np.linalg.norm(b)


def test_the_device_ranks_as_the_cpu_with_ties_and_hidden_items() -> None:
    rng = np.random.default_rng(0)
    table, features = (rng.integers(-3, 4, (n, 16)).astype(np.float32) for n in (2001, 70))  # exact, with many ties
    targets = rng.integers(1, 2001, 70).astype(np.int32)
    hidden = Ragged.from_lists([rng.integers(1, 2001, 30).tolist() for _ in range(70)])
    plain, index = PlainIndex(table), DeviceIndex(table, "cuda", block_bytes=4 * 2001 * 16)
    answers = [
        (*made.rank(features, targets, hidden, "expected", 20), *made.top_k(features, 20, hidden=hidden))
        for made in (index, plain)
    ]
    for mine, theirs in zip(*answers, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_run_goes_to_cuda_and_back(tmp_path: Path) -> None:
    settings = {"embedding_dim": 16, "n_blocks": 1, "max_seq_len": 10, "max_epochs": 2, "threads": 1}
    there = sasrec.fit(make_markov_log(), preset="paper", device="cuda", output=tmp_path / "run", **settings)
    assert there.engine.name == "torch"
    here, again = sasrec.load(tmp_path / "run"), sasrec.load(tmp_path / "run", device="cuda")
    for rec in (here, again):  # the core may multiply bf16
        np.testing.assert_allclose(rec.features([[1, 2, 3]]), there.features([[1, 2, 3]]), rtol=0.02, atol=0.02)

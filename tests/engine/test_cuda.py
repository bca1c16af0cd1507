"""The torch engine on a CUDA device beside the same engine on the CPU."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_markov_log

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.data.batches import TrainBatches
from sasrec.data.ragged import Ragged
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import split_leave_one_out
from sasrec.engine.torch_engine import TorchEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
]

MODEL = ModelConfig(embedding_dim=16, n_blocks=1, max_seq_len=10, dropout=0.0)  # each device draws dropout for itself
SPLIT = split_leave_one_out(build_sequences(make_markov_log())[0])
HISTORIES = Ragged.from_lists([[1, 2, 3], [4], list(range(1, 13))])


def trained(train: TrainConfig, epochs: int) -> tuple[TorchEngine, list[float]]:
    """An engine after so many epochs, and the loss of each."""
    engine, batches, losses = TorchEngine(MODEL, 30, train), TrainBatches(SPLIT, MODEL, train), []
    for epoch in range(epochs):
        for batch in batches.epoch(epoch):
            engine.forward_backward(batch)
            engine.optimizer_step(train.learning_rate)
        losses.append(engine.pop_loss())
    return engine, losses


def test_the_same_weights_give_the_features_of_the_cpu() -> None:
    cpu, cuda = (TorchEngine(MODEL, 30, TrainConfig(threads=1, device=device)) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(cuda.encode(HISTORIES), cpu.encode(HISTORIES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"loss": "cross_entropy"}], ids=["bce", "cross_entropy"])
def test_an_epoch_has_the_loss_of_the_cpu_to_the_rounding_of_bf16(settings: dict[str, Any]) -> None:
    train = TrainConfig(threads=1, batch_size=50, learning_rate=0.01, **settings)
    (cpu, expected), (cuda, found) = (trained(replace(train, device=device), 3) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(found, expected, rtol=3e-3)
    a, b = cpu.encode(HISTORIES).ravel(), cuda.encode(HISTORIES).ravel()
    assert a @ b > 0.995 * np.linalg.norm(a) * np.linalg.norm(b)

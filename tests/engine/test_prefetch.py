"""Batches that a thread makes ahead: the same ones, in order, and no thread is left behind."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import make_markov_log

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.data.batches import TrainBatches
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import split_leave_one_out
from sasrec.engine.device import ON_CPU, ON_CUDA, Way
from sasrec.engine.prefetch import batches_for
from sasrec.engine.protocol import create_engine
from sasrec.engine.torch_engine import TorchEngine

SPLIT = split_leave_one_out(build_sequences(make_markov_log())[0])
MODEL = ModelConfig(embedding_dim=16, n_blocks=1, max_seq_len=10, dropout=0.2)
FLOAT32 = replace(ON_CUDA, bf16=False)


def threads_of_batches() -> int:
    return sum(thread.name == "sasrec-ahead" for thread in threading.enumerate())


def trained(way: Way, settings: dict[str, Any]) -> TorchEngine:
    train = TrainConfig(threads=1, batch_size=30, **settings)
    engine, batches = TorchEngine(MODEL, SPLIT.sequences.n_items, train, way), TrainBatches(SPLIT, MODEL, train)
    for epoch in range(2):
        for batch in batches_for(engine, batches.epoch(epoch)):
            engine.forward_backward(batch)
            engine.optimizer_step(0.01)
    return engine


@pytest.mark.parametrize("settings", [{}, {"loss": "cross_entropy", "mask_seen": True}], ids=["bce", "cross_entropy"])
def test_training_with_batches_made_ahead_ends_in_the_same_weights(settings: dict[str, Any]) -> None:
    now, ahead = trained(replace(FLOAT32, ahead=0), settings), trained(FLOAT32, settings)
    for name, weight in now.weights().items():
        np.testing.assert_array_equal(ahead.weights()[name], weight, err_msg=name)
    assert threads_of_batches() == 0


def test_a_batch_is_computed_from_what_was_made_of_it_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainConfig(threads=1, batch_size=30)
    engine = TorchEngine(MODEL, SPLIT.sequences.n_items, train, FLOAT32)
    first, second = list(TrainBatches(SPLIT, MODEL, train).epoch(0))[:2]
    made: list[int] = []
    make = engine.tensors_of
    monkeypatch.setattr(engine, "tensors_of", lambda batch: made.append(batch.step) or make(batch))
    engine.take(first, make(first))
    engine.forward_backward(first)
    assert made == []
    engine.take(first, make(first))
    engine.forward_backward(second)
    assert made == [1]


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_on_the_cpu_batches_are_left_as_they_are(engine: Any) -> None:
    batches = iter(())
    made = create_engine(MODEL, 5, TrainConfig(threads=1, engine=engine, device="cpu"))
    assert batches_for(made, batches) is batches
    assert ON_CPU.ahead == 0

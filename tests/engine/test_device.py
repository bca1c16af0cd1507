"""Which device a setting names, how a run is served elsewhere, and a GPU's way on CPU tensors beside the plain one."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_markov_log
from made import make_features

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.isa import load_native
from sasrec.data.batches import Batch, TrainBatches
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import split_leave_one_out
from sasrec.engine import device
from sasrec.engine.device import ON_CPU, ON_CUDA, Way, device_of, name_of, to_copy, to_device, to_serve, way_on
from sasrec.engine.protocol import create_engine
from sasrec.engine.torch_engine import TorchEngine

FLOAT32 = replace(ON_CUDA, bf16=False)  # what a GPU does, without its rounding
SPLIT = split_leave_one_out(build_sequences(make_markov_log())[0])
N_ITEMS = SPLIT.sequences.n_items
HISTORIES = SPLIT.test.histories(SPLIT.sequences).take(slice(0, 60))
MODEL = ModelConfig(embedding_dim=16, n_blocks=2, n_heads=2, max_seq_len=10, dropout=0.0)
LOSSES: dict[str, dict[str, Any]] = {
    "bce": {"n_negatives": 3},
    "bce_shared_unseen": {"n_negatives": 20, "shared_negatives": True, "mask_seen": True},
    "sampled_softmax": {"loss": "sampled_softmax", "n_negatives": 4},
    "cross_entropy": {"loss": "cross_entropy"},
    "cross_entropy_unseen": {"loss": "cross_entropy", "mask_seen": True},
}
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def batch_of(model: ModelConfig, train: TrainConfig) -> Batch:
    return next(TrainBatches(SPLIT, model, train).epoch(0))


def step(way: Way, model: ModelConfig, train: TrainConfig) -> tuple[TorchEngine, float]:
    """An engine with the gradients of a step, and its loss."""
    features = make_features(N_ITEMS, 5) if model.has_features else None
    engine = TorchEngine(model, N_ITEMS, train, way, features)
    engine.forward_backward(batch_of(model, train))
    return engine, engine.pop_loss()


def check_gradients(model: ModelConfig, train: TrainConfig) -> None:
    (plain, expected), (fused, found) = (step(way, model, train) for way in (ON_CPU, FLOAT32))
    assert found == pytest.approx(expected, rel=1e-5)
    for (name, a), b in zip(plain.model.named_parameters(), fused.model.parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-5 * a.grad.abs().max().item(), msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_has_the_loss_and_gradients_of_the_plain_way(loss: str) -> None:
    check_gradients(MODEL, TrainConfig(threads=1, batch_size=40, **LOSSES[loss]))


@pytest.mark.parametrize("block", ["sasrec", "post_norm", "pre_norm", "ligr"])
@pytest.mark.parametrize("padding", ["none", "attended", "zeroed"])
def test_a_step_of_every_block_and_padding_is_the_plain_one(block: str, padding: str) -> None:
    model = replace(MODEL, block=block, padding=padding)
    check_gradients(model, TrainConfig(threads=1, batch_size=40))
    plain, fused = (TorchEngine(model, N_ITEMS, TrainConfig(threads=1), way) for way in (ON_CPU, FLOAT32))
    np.testing.assert_allclose(fused.encode(HISTORIES), plain.encode(HISTORIES), rtol=1e-4, atol=1e-5)


def test_a_step_of_items_with_features_is_the_plain_one() -> None:
    check_gradients(replace(MODEL, n_features=5), TrainConfig(threads=1, batch_size=40, feature_dropout=0.3))


def test_bf16_moves_a_loss_by_its_rounding_only() -> None:
    train = TrainConfig(threads=1, batch_size=40, loss="cross_entropy")
    expected, found = (step(way, MODEL, train)[1] for way in (FLOAT32, ON_CUDA))
    assert found == pytest.approx(expected, rel=0.01)
    assert found != expected


def test_a_rectangle_of_one_group_is_made_of_each_batch() -> None:
    engine = TorchEngine(MODEL, N_ITEMS, TrainConfig(threads=1), FLOAT32)
    inputs = batch_of(MODEL, TrainConfig(batch_size=40)).inputs
    (group,) = engine._layout(inputs).groups
    assert (group.n_rows, group.seq_len) == (40, inputs.lengths.max())


@pytest.mark.parametrize("loss", ["bce", "cross_entropy"])
def test_dropout_of_a_device_depends_on_the_step_alone(loss: str) -> None:
    train, model = TrainConfig(threads=1, batch_size=40, loss=loss), replace(MODEL, dropout=0.3)
    batch, other = list(TrainBatches(SPLIT, model, train).epoch(0))[:2]
    a, b = (TorchEngine(model, N_ITEMS, train, FLOAT32) for _ in range(2))
    losses = []
    for engine, batches in ((a, [other, batch]), (b, [batch])):
        for each in batches:
            engine.forward_backward(each)
            losses.append(engine.pop_loss())
    assert losses[1] == losses[2]
    plain = step(ON_CPU, MODEL, replace(train, seed=0))[1]
    assert losses[2] != plain  # something was dropped


@no_cuda
def test_auto_is_the_cpu_where_torch_sees_no_cuda_device() -> None:
    assert device_of("auto") == device_of("cpu") == torch.device("cpu")
    assert way_on(torch.device("cpu")) is ON_CPU
    assert name_of(torch.device("cpu")) == torch.backends.cpu.get_cpu_capability().lower()


def test_auto_is_cuda_where_torch_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("auto") == torch.device("cuda")
    assert device_of("cuda:1") == torch.device("cuda:1")
    assert way_on(torch.device("cuda:1")) is ON_CUDA
    with pytest.raises(ConfigError, match=r"^device='cuda:2': there are CUDA devices 0 to 1 only$"):
        device_of("cuda:2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu!", "device='tpu!' is not a device; use auto, cpu, cuda or cuda:N"),
        ("meta", "device='meta' is not supported; use auto, cpu, cuda or cuda:N"),
        pytest.param("cuda", "device='cuda': this torch sees no CUDA device; use device=cpu or auto", marks=no_cuda),
    ],
)
def test_what_is_no_device_here_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        device_of(name)


def test_int32_goes_to_a_device_as_the_index_of_a_tensor() -> None:
    cpu = torch.device("cpu")
    assert to_device(np.array([3, 1], np.int32), cpu).dtype == torch.int64
    assert to_device(np.array([0.5], np.float32), cpu).dtype == torch.float32
    assert to_device(np.arange(6).reshape(2, 3).T, cpu).tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("trained", "device", "expected"),
    [
        ({"device": "cuda"}, None, {"device": "auto", "engine": "auto"}),
        ({"device": "cpu"}, None, {"device": "auto", "engine": "auto"}),
        ({"device": "cpu"}, "cuda:1", {"device": "cuda:1", "engine": "auto"}),
        ({"engine": "native"}, None, {"device": "auto", "engine": "native"}),
        ({"engine": "native"}, "cuda", {"device": "cuda", "engine": "auto"}),
        ({"engine": "torch", "device": "cuda"}, None, {"device": "auto", "engine": "torch"}),
        ({"lazy_adam": True}, "cuda", {"device": "cuda", "lazy_adam": False}),
    ],
)
def test_a_run_is_served_where_it_is_and_not_as_it_was_trained(
    trained: dict[str, Any], device: str | None, expected: dict[str, Any]
) -> None:
    served = to_serve(TrainConfig(threads=3, seed=7, **trained), device)
    assert {name: getattr(served, name) for name in expected} == expected
    assert (served.seed, served.threads) == (7, 3)
    assert to_serve(served, threads=1).threads == 1


def test_a_run_of_torch_is_served_by_the_core_where_torch_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert to_serve(TrainConfig(engine="torch", device="cuda")).engine == "auto"
    assert to_copy(TrainConfig(engine="torch")).engine == "auto"


def test_a_copy_keeps_its_device_where_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cuda = TrainConfig(device="cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert to_copy(on_cuda).device == "auto"
    assert to_copy(TrainConfig(device="cpu")).device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert to_copy(on_cuda) == on_cuda
    monkeypatch.setitem(sys.modules, "torch", None)
    assert to_copy(on_cuda).device == "auto"


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
@pytest.mark.parametrize("there_is_one", [True, False])
def test_a_driver_changes_what_is_said_and_not_who_computes(
    there_is_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = tmp_path / "version"
    if there_is_one:
        driver.touch()
    monkeypatch.setattr(device, "DRIVER", driver)
    with caplog.at_level(logging.INFO, "sasrec"):
        assert create_engine(MODEL, 5, TrainConfig(threads=1)).name == "native"
    assert ("1 threads; NVIDIA's driver is here, and device=cuda computes there" in caplog.text) == there_is_one
    caplog.clear()
    with caplog.at_level(logging.INFO, "sasrec"):
        create_engine(MODEL, 5, TrainConfig(threads=1, device="cpu"))
    assert "driver" not in caplog.text

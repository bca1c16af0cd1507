"""A run goes from one device to another: trained in a GPU's way, served by the core, gone on with elsewhere, and back.

There is no GPU in these tests: the torch engine works in a GPU's way on CPU tensors, and a run is made to say that it
was trained on CUDA.
"""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_markov_log
from made import SETTINGS, without

import sasrec
from sasrec.core.config import TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.isa import load_float32, load_native
from sasrec.engine import torch_engine
from sasrec.engine.device import ON_CUDA
from sasrec.engine.torch_engine import TorchEngine
from sasrec.export.onnx import _in_float32
from sasrec.ranking.device_index import DeviceIndex
from sasrec.runs.folder import RunFolder

FLOAT32 = replace(ON_CUDA, bf16=False)
EXACT: dict[str, Any] = {**SETTINGS, "preset": "paper", "dropout": 0.0, "report": False}
HISTORIES = [[1, 2, 3], [7], [5, 9, 4, 8]]
what_auto_takes = "native" if load_native().module else "torch"


@contextmanager
def a_gpus_way() -> Iterator[None]:
    """Engines made meanwhile work as on CUDA, in float32, on CPU tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_engine, "way_on", lambda device: FLOAT32)
        yield


def trained(output: Path | None = None, **settings: Any) -> sasrec.Recommender:
    options = {name: value for name, value in EXACT.items() if name != "report"}
    return sasrec.fit(make_markov_log(n_users=120), output=output, **{**options, "engine": "torch", **settings})


def of_cuda(folder: Path, engine: Any = "auto") -> None:
    """Make a run say that it was trained on CUDA."""
    run = RunFolder.open(folder)
    config = run.load_config()
    run.save_config(replace(config, train=replace(config.train, engine=engine, device="cuda")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained in a GPU's way, which says so."""
    folder = tmp_path_factory.mktemp("runs") / "cuda"
    with a_gpus_way():
        trained(folder)
    of_cuda(folder)
    return folder


def on_device(served: sasrec.Recommender) -> sasrec.Recommender:
    """The same model in a GPU's way."""
    model, vocabulary = served.config.model, served.vocabulary
    engine = TorchEngine(model, len(vocabulary), TrainConfig(threads=1), FLOAT32)
    engine.load_weights(served.engine.weights())
    return sasrec.Recommender(engine, vocabulary, served.config, served.sequences)


def test_training_and_measuring_in_a_gpus_way_give_the_plain_results() -> None:
    with a_gpus_way():
        fused = trained()
    plain = trained()
    assert isinstance(fused.next_items.index, DeviceIndex)
    assert not isinstance(plain.next_items.index, DeviceIndex)
    assert fused.train_result is not None
    assert plain.train_result is not None
    for a, b in zip(fused.train_result.history, plain.train_result.history, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-4)
    np.testing.assert_allclose(fused.features(HISTORIES), plain.features(HISTORIES), rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(fused.results, plain.results, strict=True):
        for name, metric in theirs.metrics.items():
            assert mine.metrics[name]["value"] == pytest.approx(metric["value"], abs=0.01), name


def test_a_run_of_cuda_is_loaded_where_there_is_none_and_gives_the_same_lists(run: Path) -> None:
    served = sasrec.load(run)
    assert served.engine.name == what_auto_takes
    assert served.config.train.device == "cuda"  # how it was trained is not forgotten
    there = on_device(served)
    mine, theirs = (rec.recommend(HISTORIES, k=5) for rec in (served, there))
    np.testing.assert_allclose(mine["score"], theirs["score"], rtol=0.02, atol=0.02)  # the core may multiply bf16
    for split in ("valid", "test"):
        a, b = (rec.evaluate(split, baselines=False).metrics["ndcg@10"]["value"] for rec in (served, there))
        assert a == pytest.approx(b, abs=0.02)


def test_a_device_that_is_asked_for_is_not_replaced(run: Path) -> None:
    assert sasrec.load(run, device="cpu").engine.name == what_auto_takes
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"^device='cuda': this torch sees no CUDA device"):
            sasrec.load(run, device="cuda")


def test_a_copy_of_a_model_on_cuda_computes_where_it_is_unpacked(run: Path) -> None:
    served = sasrec.load(run)
    served.engine.train_config = replace(served.engine.train_config, device="cuda:0")
    packed = pickle.dumps(served)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        copy = pickle.loads(packed)
    assert copy.engine.train_config.device == "auto"
    assert copy.recommend(HISTORIES).equals(served.recommend(HISTORIES))


def test_a_run_of_cuda_is_compared_in_floats_before_it_is_exported(run: Path) -> None:
    served = sasrec.load(run)
    if served.engine.name == "native":
        assert _in_float32(served).engine.isa == load_float32().isa


@pytest.mark.parametrize("first", ["gpu", "cpu"])
def test_a_run_goes_on_on_another_device_as_if_it_had_stayed(tmp_path: Path, first: str) -> None:
    whole = trained(max_epochs=4)
    if first == "gpu":
        with a_gpus_way():
            trained(tmp_path / "run", max_epochs=2)
        of_cuda(tmp_path / "run")
        rest = trained(tmp_path / "run", max_epochs=4, resume=True)
    else:
        trained(tmp_path / "run", max_epochs=2)
        with a_gpus_way():
            rest = trained(tmp_path / "run", max_epochs=4, resume=True)
    assert rest.train_result is not None
    assert rest.train_result.epochs == 4
    np.testing.assert_allclose(rest.features(HISTORIES), whole.features(HISTORIES), rtol=1e-3, atol=1e-4)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["device"] == "auto"


def test_a_run_of_cuda_goes_on_in_the_core(tmp_path: Path) -> None:
    with a_gpus_way():
        trained(tmp_path / "run", max_epochs=2)
    of_cuda(tmp_path / "run")
    rest = trained(tmp_path / "run", max_epochs=4, resume=True, engine="auto")
    assert rest.engine.name == what_auto_takes
    assert rest.train_result is not None
    whole = trained(max_epochs=4).train_result
    assert whole is not None
    for a, b in zip(rest.train_result.history, whole.history, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=0.003)  # the core may multiply bf16


@pytest.mark.slow
@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_run_of_cuda_recommends_where_torch_is_not_installed(run: Path, tmp_path: Path, engine: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    of_cuda(folder, engine)
    command = [sys.executable, "-m", "sasrec", "recommend", str(folder), "--history", "1,2,3", "-k", "4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=without(tmp_path, "torch"))
    assert done.returncode == 0, done.stderr
    assert "engine: native" in done.stderr
    assert [row["rank"] for row in json.loads(done.stdout)] == [1, 2, 3, 4]

"""Which engine a configuration gets, and why; and what is said where torch or the compiled core is missing."""

import copy
import logging
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from conftest import make_markov_log
from made import without

import sasrec
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.isa import Native, load_native
from sasrec.engine import protocol
from sasrec.engine.native import SUPPORTED, unsupported
from sasrec.engine.protocol import create_engine, environment
from sasrec.model.sasrec import BLOCKS, SASRecBlock

NO_CORE = Native("", None, "nothing was compiled")
INSTALL = r"pip install 'sasrec\[torch\]'"
native_only = pytest.mark.skipif(load_native().module is None, reason=load_native().why)
MODEL = ModelConfig(embedding_dim=16, n_blocks=1, max_seq_len=10)
TRAIN = TrainConfig(threads=1)
Config = TypeVar("Config", ModelConfig, TrainConfig)


def of_tomorrow(config: Config, **values: Any) -> Config:
    """Settings with values that this version does not have yet, and so would refuse."""
    config = copy.copy(config)
    for name, value in values.items():
        object.__setattr__(config, name, value)
    return config


@dataclass(frozen=True)
class ModelOfTomorrow(ModelConfig):
    """A model with a setting of which the core has never heard."""

    memory: bool = True


NOT_IN_THE_CORE = [
    (replace(MODEL, padding="attended"), TRAIN, "padding=attended"),
    (replace(MODEL, padding="zeroed"), TRAIN, "padding=zeroed"),
    (replace(MODEL, attention_output=False), TRAIN, "attention_output=false"),
    (of_tomorrow(MODEL, block="new"), TRAIN, "block=new"),
    (of_tomorrow(MODEL, activation="new"), TRAIN, "activation=new"),
    (MODEL, of_tomorrow(TRAIN, loss="new"), "loss=new"),
    (ModelOfTomorrow(embedding_dim=16, max_seq_len=10), TRAIN, "memory=true"),
]


@pytest.mark.parametrize(("model", "train", "setting"), NOT_IN_THE_CORE)
def test_what_the_core_does_not_do_goes_to_torch_or_is_refused_in_one_sentence(
    model: ModelConfig,
    train: TrainConfig,
    setting: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BLOCKS, "new", SASRecBlock)
    with caplog.at_level(logging.INFO, "sasrec"):
        assert create_engine(model, 5, train).name == "torch"
    assert f"engine: torch on cpu (the compiled core does not do {setting}), 1 threads" in caplog.text
    message = f"^engine=native: the compiled core does not do {setting}; use engine=torch or auto$"
    with pytest.raises(ConfigError, match=message):
        create_engine(model, 5, of_tomorrow(train, engine="native"))


def test_every_setting_of_the_model_is_decided_for_the_core() -> None:
    assert {f.name for f in fields(ModelConfig)} | {"device", "loss"} == set(SUPPORTED)
    assert unsupported(MODEL, TRAIN) == ""
    assert unsupported(MODEL, replace(TRAIN, device="cpu")) == ""
    assert unsupported(MODEL, replace(TRAIN, device="cuda")) == "device=cuda"


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
@pytest.mark.parametrize("name", ["auto", "native"])
def test_the_core_is_taken_where_it_can_and_is_said_to_be(name: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sasrec"):
        assert create_engine(MODEL, 5, replace(TRAIN, engine=name)).name == "native"
    assert f"engine: native ({load_native().isa}), 1 threads" in caplog.text


def test_torch_is_taken_where_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sasrec"):
        assert create_engine(MODEL, 5, replace(TRAIN, engine="torch")).name == "torch"
    assert "engine: torch on cpu (asked for), 1 threads" in caplog.text


def test_auto_takes_torch_where_there_is_no_core(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sasrec"):
        assert create_engine(MODEL, 5, TRAIN, native=NO_CORE).name == "torch"
    assert "engine: torch on cpu (nothing was compiled), 1 threads" in caplog.text
    with pytest.raises(ConfigError, match="engine=native: nothing was compiled; use engine=torch or auto"):
        create_engine(MODEL, 5, TrainConfig(engine="native"), native=NO_CORE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "native", "device": "cuda"}, "engine=native: the compiled core does not do device=cuda"),
        ({"device": "tpu!"}, "device='tpu!' is not a device"),
        ({"device": "meta"}, "device='meta' is not supported"),
    ],
)
def test_engine_or_device_that_is_not_to_be_had_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_engine(MODEL, 5, TrainConfig(**settings))


def test_cuda_without_a_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        create_engine(MODEL, 5, TrainConfig(device="cuda"))


def test_lazy_adam_is_refused_where_torch_has_to_work() -> None:
    with pytest.raises(ConfigError, match="lazy_adam=true needs the native engine"):
        create_engine(ModelConfig(padding="attended"), 9, TrainConfig(lazy_adam=True))


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize(
    ("model", "train", "needs"),
    [
        ({}, {"engine": "torch"}, "engine=torch"),
        ({}, {"device": "cuda"}, "device=cuda"),
        ({"padding": "attended"}, {}, "padding=attended"),
        ({"padding": "attended"}, {"engine": "torch"}, "padding=attended"),  # as a converted checkpoint is stored
    ],
)
def test_what_only_torch_does_names_the_extra_where_torch_is_missing(
    model: dict[str, Any], train: dict[str, Any], needs: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{needs} needs torch \([^)]*\): {INSTALL}$"):
        create_engine(ModelConfig(**model), 5, TrainConfig(**train))


@native_only
@pytest.mark.usefixtures("no_torch")
def test_the_core_does_the_rest_without_torch() -> None:
    assert create_engine(ModelConfig(), 5, TrainConfig(threads=1)).name == "native"


@pytest.mark.usefixtures("no_torch")
def test_where_neither_is_there_both_ways_out_are_named() -> None:
    with pytest.raises(ConfigError, match=rf"^an installation without .* {INSTALL}, or install a C\+\+ compiler"):
        create_engine(ModelConfig(), 5, TrainConfig(), native=NO_CORE)


def test_the_environment_says_which_engine_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "load_native", lambda: NO_CORE)
    assert environment()["engine"] == "torch (nothing was compiled)"
    monkeypatch.setattr(protocol, "versions", lambda: {"sasrec": "1"})
    assert environment()["engine"] == "none (nothing was compiled)"
    monkeypatch.setattr(protocol, "load_native", lambda: Native("fast", object(), "the CPU has it"))
    assert environment()["engine"] == "native (fast: the CPU has it)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        ("train log.txt --output run --engine torch", "engine=torch"),
        ("train log.txt --output run --device cuda", "device=cuda"),
        ("convert model.pth --layout pmixer-2021 --log log.txt --output run", "reading a .pth checkpoint"),
    ],
)
def test_a_command_that_needs_torch_ends_with_2_and_one_sentence(tmp_path: Path, arguments: str, needs: str) -> None:
    make_markov_log(n_users=20).write_csv(tmp_path / "log.txt", separator=" ", include_header=False)
    (tmp_path / "model.pth").touch()
    command = [sys.executable, "-m", "sasrec", "--quiet", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=without(tmp_path, "torch"))
    assert done.stderr == f"error: {needs} needs torch (not installed): pip install 'sasrec[torch]'\n"
    assert (done.returncode, done.stdout) == (2, "")


@native_only
@pytest.mark.slow
def test_a_run_becomes_no_pth_without_torch(tmp_path: Path) -> None:
    settings = {"block": "sasrec", "embedding_dim": 8, "max_epochs": 1, "threads": 1}
    sasrec.fit(make_markov_log(n_users=20), preset="paper", engine="native", output=tmp_path / "run", **settings)
    command = [sys.executable, "-m", "sasrec", "convert", "run", "--layout", "pmixer-2021", "--output", "model.pth"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=without(tmp_path, "torch"))
    assert "error: writing a .pth checkpoint needs torch (not installed): pip install 'sasrec[torch]'\n" in done.stderr
    assert done.returncode == 2
    assert not (tmp_path / "model.pth").exists()

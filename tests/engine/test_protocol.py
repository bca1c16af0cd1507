"""Which engine a configuration gets, and why."""

import copy
import logging
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import pytest
import torch

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.isa import Native, load_native
from sasrec.engine.native import SUPPORTED, unsupported
from sasrec.engine.protocol import create_engine
from sasrec.model.sasrec import BLOCKS, SASRecBlock

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
    none = Native("", None, "nothing was compiled")
    with caplog.at_level(logging.INFO, "sasrec"):
        assert create_engine(MODEL, 5, TRAIN, native=none).name == "torch"
    assert "engine: torch on cpu (nothing was compiled), 1 threads" in caplog.text
    with pytest.raises(ConfigError, match="engine=native: nothing was compiled; use engine=torch or auto"):
        create_engine(MODEL, 5, TrainConfig(engine="native"), native=none)


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

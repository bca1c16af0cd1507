"""Which engine there is where torch or the compiled core is missing, and what is said where both are."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import make_markov_log
from made import without

import sasrec
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.isa import Native, load_native
from sasrec.engine import protocol
from sasrec.engine.protocol import create_engine, environment

NO_CORE = Native("", None, "nothing was compiled")
INSTALL = r"pip install 'sasrec\[torch\]'"
native_only = pytest.mark.skipif(load_native().module is None, reason=load_native().why)


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
def test_where_neither_is_there_both_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "load_native", lambda: NO_CORE)
    with pytest.raises(ConfigError, match=rf"^an installation without .* {INSTALL}, or install a C\+\+ compiler"):
        create_engine(ModelConfig(), 5, TrainConfig())


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

"""What a training will take, told before it begins."""

import json
from pathlib import Path

import pytest
from conftest import make_markov_log
from made import SETTINGS
from typer.testing import CliRunner

from sasrec.cli.main import app
from sasrec.core.errors import ConfigError
from sasrec.data.logs import Log
from sasrec.data.sequences import build_sequences
from sasrec.estimating import estimate
from sasrec.fitting import FitOptions


def made_log(n_users: int = 60) -> Log:
    return Log(*build_sequences(make_markov_log(n_users)), "made")


def test_memory_is_told_by_what_it_is_for() -> None:
    log = made_log()
    small, large = (estimate(log, FitOptions(), {**SETTINGS, "embedding_dim": dim}) for dim in (16, 64))
    assert small.bytes == sum(small.memory.values())
    assert large.memory["weights"] > 3 * small.memory["weights"]
    assert large.memory["moments"] >= 2 * large.memory["weights"]
    assert large.memory["events"] == small.memory["events"] == log.sequences.items.nbytes
    average = estimate(log, FitOptions(), {**SETTINGS, "ema_decay": 0.9}).memory["average"]
    assert average
    assert not estimate(log, FitOptions(), {**SETTINGS, "ema_decay": 0.0}).memory["average"]


def test_time_is_that_of_all_steps_and_validations_within_the_bounds_given() -> None:
    log = made_log()
    found = estimate(log, FitOptions(), {**SETTINGS, "max_epochs": 1000, "batch_size": 8})
    assert found.seconds_per_step > 0
    assert found.seconds >= 1000 * (found.seconds_per_step * found.steps_per_epoch + found.seconds_per_valid)
    few = estimate(log, FitOptions(), {**SETTINGS, "max_epochs": 1000, "max_steps": 1})
    assert few.seconds < found.seconds
    bounded = estimate(log, FitOptions(), {**SETTINGS, "max_epochs": 10**6, "max_minutes": 0.01})
    assert bounded.is_limited
    assert bounded.seconds == pytest.approx(0.6)


def test_what_training_would_refuse_is_refused() -> None:
    with pytest.raises(ConfigError):
        estimate(made_log(), FitOptions(), {**SETTINGS, "embedding_dim": 15, "n_heads": 2})


def test_a_dry_run_writes_nothing_and_says_what_a_run_takes(tmp_path: Path) -> None:
    make_markov_log(60).write_csv(tmp_path / "log.csv")
    command = ["train", str(tmp_path / "log.csv"), "-o", str(tmp_path / "run"), "--preset", "fast", "--dry-run"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    for word in ("memory: ", "a step, ", "in all: at most "):
        assert word in said.stdout
    told = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(told.stdout)["bytes"] > 10**8
    assert not (tmp_path / "run").exists()

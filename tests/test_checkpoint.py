"""The run folder: whole or not at all."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sasrec.checkpoint import RunConfig, RunFolder, atomic_write, check_resumable, resumed_config
from sasrec.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.errors import CheckpointError, ConfigError
from sasrec.sequences import LogFacts

FACTS = LogFacts(10, 2, 3, 0.0, 0.0, 0, False, "abc")
CONFIG = RunConfig(ModelConfig(), TrainConfig(), EvalConfig(k=(5, 10)), "paper", "log", FACTS, "0")
RNG = np.random.default_rng(0)
WEIGHTS = {"a": RNG.standard_normal((3, 4), np.float32), "b.c": np.array([np.pi, -0.0, 1e-38], np.float32)}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def test_config_round_trip(run: RunFolder) -> None:
    run.save_config(CONFIG)
    assert run.load_config() == CONFIG


def test_weights_and_state_round_trips_are_bit_exact(run: RunFolder) -> None:
    run.save_weights(WEIGHTS, 7)
    weights, epoch = run.load_weights()
    assert epoch == 7
    run.save_state(WEIGHTS, {"exp_avg/a": WEIGHTS["a"] * 2}, {"epoch": 3, "best_value": 0.1 + 0.2})
    loaded = run.load_state()
    assert loaded is not None
    for found in (weights, loaded[0]):
        assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in WEIGHTS.items()}
    assert loaded[1]["exp_avg/a"].tobytes() == (WEIGHTS["a"] * 2).tobytes()
    assert loaded[2] == {"epoch": 3, "best_value": 0.1 + 0.2}


def test_nothing_saved_is_told_from_something_damaged(run: RunFolder) -> None:
    assert run.load_state() is None
    assert run.load_metrics() == []
    assert run.load_sequences() is None
    with pytest.raises(CheckpointError, match=r"there is no .*model\.safetensors"):
        run.load_weights()


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickled", b"{}", os.urandom(100)])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "metrics.json", "items.parquet"])
def test_foreign_or_truncated_file_is_refused_by_name(run: RunFolder, name: str, content: bytes) -> None:
    (run.path / name).write_bytes(content)
    loaders = {"model.safetensors": run.load_weights, "config.json": run.load_config,
               "metrics.json": run.load_metrics, "items.parquet": run.load_vocabulary}  # fmt: skip
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        loaders[name]()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_config_of_a_later_format_or_with_unknown_settings_is_refused(run: RunFolder) -> None:
    values = json.loads(CONFIG.to_json())
    (run.path / "config.json").write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99"):
        run.load_config()
    values["model"]["wings"] = 2
    (run.path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="unknown setting 'wings'"):
        run.load_config()


def test_full_disk_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    atomic_write(target, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left on device; what was saved"):
        atomic_write(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot make the folder"):
        RunFolder.create(tmp_path / "file" / "run")


def test_open_refuses_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run folder"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        RunFolder.open(tmp_path)


def test_history_forgets_epochs_after_the_saved_one_and_lines_cut_by_a_crash(run: RunFolder) -> None:
    for epoch in (1, 2, 3):
        run.append_history({"epoch": epoch})
    with (run.path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 4, "tr')
    assert [line["epoch"] for line in run.read_history()] == [1, 2, 3]
    run.rewind_history(2)
    run.append_history({"epoch": 3})
    assert [line["epoch"] for line in run.read_history()] == [1, 2, 3]


def test_resume_refuses_another_log_or_other_settings_but_takes_new_limits() -> None:
    now = replace(CONFIG, train=replace(CONFIG.train, max_epochs=999, threads=1, device="cuda", patience=3))
    check_resumable(CONFIG, now)
    assert resumed_config(CONFIG, now) == now
    with pytest.raises(CheckpointError, match="the log has changed"):
        check_resumable(CONFIG, replace(CONFIG, data=replace(FACTS, fingerprint="xyz")))
    for part, change in {"model": {"dropout": 0.9}, "train": {"seed": 5}, "eval": {"ties": "strict"}}.items():
        other = replace(CONFIG, **{part: replace(getattr(CONFIG, part), **change)})
        name = next(iter(change))
        with pytest.raises(ConfigError, match=f"cannot resume: {name} was .* and is now"):
            check_resumable(CONFIG, other)

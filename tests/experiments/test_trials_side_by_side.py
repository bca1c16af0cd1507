"""Trials side by side: in processes that share the log and the threads, and what is left when one is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest
from conftest import make_markov_log
from made import SETTINGS

import sasrec
from sasrec.core.errors import ConfigError, TrainingError
from sasrec.data.logs import load_log
from sasrec.experiments import trial_workers
from sasrec.experiments.search_pages import SearchResult
from sasrec.experiments.trial_workers import OneByOne, SideBySide, TrialEnd, TrialJob, share_of
from sasrec.training.progress import Progress

pytestmark = pytest.mark.slow

FRAME = make_markov_log(120, 30)
FIXED = {name: value for name, value in SETTINGS.items() if name != "embedding_dim"} | {"valid_protocol": "full"}
SPACE = {"embedding_dim": [4, 8, 16], "learning_rate": "1e-4..1e-1 log"}
LONG = {"max_epochs": 100_000, "patience": 0}


class Given:
    """A conductor that gives the trials it was made of, and keeps what it is told."""

    def __init__(self, *jobs: TrialJob) -> None:
        self.jobs, self.lost = list(jobs), 0
        self.epochs: dict[int, list[tuple[int, float]]] = {}
        self.ends: dict[int, TrialEnd] = {}
        self.running: list[int] = []
        self.most = 0
        self.ends_after: int | None = None  # epochs after which trials are to end

    def next_job(self) -> TrialJob | None:
        if not self.jobs:
            return None
        self.running.append(self.jobs[0].number)
        self.most = max(self.most, len(self.running))
        return self.jobs.pop(0)

    def on_epoch(self, number: int, epoch: int, value: float) -> bool:
        self.epochs.setdefault(number, []).append((epoch, value))
        return epoch == self.ends_after

    def on_end(self, end: TrialEnd) -> None:
        self.running.remove(end.number)
        self.ends[end.number] = end

    def on_lost(self, number: int) -> None:
        self.running.remove(number)
        self.lost += 1

    def show(self, number: int, progress: Progress) -> None:
        pass


def jobs(n: int, **more: Any) -> list[TrialJob]:
    return [TrialJob(i, "fast", {**FIXED, "seed": i, "embedding_dim": 4 + 4 * i, **more}) for i in range(n)]


def facts(given: Given) -> dict[int, Any]:
    return {number: (end.value, end.epochs, end.stopped, given.epochs[number]) for number, end in given.ends.items()}


def test_trials_side_by_side_come_to_what_they_come_to_alone(tmp_path: Path) -> None:
    log, alone, beside = load_log(FRAME), Given(*jobs(4)), Given(*jobs(4))
    OneByOne(log).train(alone, "ndcg@10")
    SideBySide(log, tmp_path, 2).train(beside, "ndcg@10")
    assert facts(beside) == facts(alone)
    assert (alone.most, beside.most, beside.lost) == (1, 2, 0)
    assert list(tmp_path.iterdir()) == []  # the log that they shared is gone


def test_a_trial_beside_others_ends_where_the_search_wants_it_to(tmp_path: Path) -> None:
    given = Given(*jobs(3, **LONG))
    given.ends_after = 3
    SideBySide(load_log(FRAME), tmp_path, 2).train(given, "ndcg@10")
    assert {(end.stopped, end.epochs) for end in given.ends.values()} == {("callback", 3)}


def test_items_with_features_and_event_types_reach_the_processes(tmp_path: Path) -> None:
    n = len(FRAME)
    log = FRAME.with_columns(type=pl.Series(["view", "buy"] * (n // 2) + ["view"] * (n % 2)))
    items = pl.DataFrame({"item_id": log["item_id"].unique(maintain_order=True)}).with_row_index()
    items = items.select("item_id", kind=pl.col("index") % 3)
    result = sasrec.tune(
        log, output=tmp_path / "search", preset="fast", trials=2, seeds=1, workers=2, space={"dropout": [0.1, 0.2]},
        items=items, item_features=["kind"], event_column="type", target_events="buy", **FIXED, embedding_dim=8,
    )  # fmt: skip
    assert result is not None
    assert [trial.state for trial in result.trials] == ["complete", "complete"]
    run = sasrec.load(tmp_path / "search" / "winner" / "seed-0")
    assert run.config.model.n_features == 3
    assert run.config.eval.target_events == "buy"
    valid = next(r for r in run.results if r.split == "valid")
    assert valid.metrics[result.metric]["value"] == pytest.approx(result.best.value, abs=1e-12)


def test_a_search_with_workers_tries_the_preset_and_its_winner_is_never_below_it(tmp_path: Path) -> None:
    result = sasrec.tune(FRAME, output=tmp_path / "s", trials=6, space=SPACE, seeds=1, workers=3, **FIXED)
    assert isinstance(result, SearchResult)
    assert len(result.trials) == 6
    assert (result.trials[0].state, result.trials[0].settings.get("embedding_dim", 128)) == ("complete", 128)
    assert result.best.value is not None
    assert result.best.value >= result.untouched == result.trials[0].value
    assert not (tmp_path / "s" / "log").exists()
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 's' / 'trials.db'}")
    assert len([trial for trial in study.trials if trial.state.is_finished()]) == 6


def processes_of(parent: int) -> list[int]:
    """Trial processes whose parent is this one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and b"trial_process" in command:
            found.append(int(status.parent.name))
    return found


def wait_until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_trial_whose_process_is_killed_is_tried_again(tmp_path: Path) -> None:
    class Again(Given):
        def on_lost(self, number: int) -> None:
            super().on_lost(number)
            self.jobs.append(TrialJob(number, "fast", {**FIXED, "seed": number, "embedding_dim": 8}))

    given = Again(*jobs(1, **LONG))

    def kill() -> None:
        wait_until(lambda: 0 in given.epochs)
        for process in processes_of(os.getpid()):
            os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    SideBySide(load_log(FRAME), tmp_path, 2).train(given, "ndcg@10")
    killer.join()
    assert (given.lost, given.ends[0].stopped) == (1, "max_epochs")


def test_processes_that_are_lost_again_and_again_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Again(Given):
        def on_lost(self, number: int) -> None:
            super().on_lost(number)
            self.jobs.append(TrialJob(number, "fast", {}))

    monkeypatch.setattr(trial_workers, "PROCESS", "sasrec.no_such_module")
    given = Again(*jobs(1))
    with pytest.raises(TrainingError, match="lost again and again, the last one with exit code 1"):
        SideBySide(load_log(FRAME), tmp_path, 2).train(given, "ndcg@10")
    assert given.lost == trial_workers.LOSSES
    assert not (tmp_path / "log").exists()


def test_settings_that_cannot_be_are_refused_from_a_process_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embedding_dim=-\d is too small"):
        sasrec.tune(FRAME, output=tmp_path / "s", trials=3, space={"embedding_dim": [-1, -2]}, workers=2, **FIXED)
    with pytest.raises(ConfigError, match="workers=0 is too small; the least is 1"):
        sasrec.tune(FRAME, output=tmp_path / "t", trials=3, workers=0, **FIXED)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_or_interrupted_search_leaves_no_process_and_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    FRAME.write_csv(tmp_path / "log.csv")
    (tmp_path / "space.yaml").write_text("embedding_dim: [4, 8, 16]\nlearning_rate: 1e-4..1e-1 log\n")
    flags = [f for name, value in FIXED.items() for f in (f"--{name.replace('_', '-')}", str(value))]
    flags += ["--max-epochs", "12", "--patience", "0", "--space", str(tmp_path / "space.yaml")]
    output = tmp_path / "search"
    command = [sys.executable, "-m", "sasrec", "tune", str(tmp_path / "log.csv"), "--output", str(output)]
    command += ["--trials", "8", "--seeds", "1", "--workers", "2", "--json", *flags]
    cut = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(processes_of(cut.pid)) == 2)
    processes = processes_of(cut.pid)
    time.sleep(2.0)
    cut.send_signal(number)
    _, told = cut.communicate(timeout=60)
    assert cut.returncode == (-number if number == signal.SIGKILL else 1), told
    wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes), 20)
    if number == signal.SIGINT:
        assert "all work so far is saved" in told
        assert not (output / "log").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["trials"]) == 8
    assert found["best"]["value"] >= found["untouched"]
    assert not (output / "log").exists()


def test_threads_are_shared() -> None:
    assert share_of({"threads": 8}, 3) == {"threads": 2}
    assert share_of({"threads": 1, "seed": 3}, 2) == {"threads": 1, "seed": 3}
    assert share_of({}, 4, cpus=16) == {"threads": 4}

"""Fitting: a run that goes on, and one that was trained again on all events."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log
from made import SETTINGS as SMALL

import sasrec
from sasrec import fitting
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.data.logs import Log
from sasrec.data.sequences import build_sequences
from sasrec.fitting import FitOptions, configure, fit_log
from sasrec.recommender import Recommender
from sasrec.runs.folder import RunFolder
from sasrec.training import trainer
from sasrec.training.progress import Progress

SETTINGS = {**SMALL, "learning_rate": 0.02}
LOG = Log(*build_sequences(make_markov_log(60)), "made")


def train(
    folder: Path,
    *,
    resume: bool = False,
    refit: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **settings: object,
) -> Recommender:
    return fit_log(LOG, FitOptions(output=folder, resume=resume, refit=refit), {**SETTINGS, **settings}, progress)


def bits(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


class Killed(BaseException):
    """In place of a kill."""


@pytest.fixture(scope="module")
def refitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitting") / "refitted"
    train(folder, refit=True)
    return folder


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitting") / "chosen"
    train(folder)
    return folder


def test_a_refit_run_that_has_ended_goes_on_to_the_same_model_and_report(refitted: Path, tmp_path: Path) -> None:
    shutil.copytree(refitted, tmp_path / "run")
    for name in ("report.html", "README.md"):
        (tmp_path / "run" / name).unlink()
    again = train(tmp_path / "run", resume=True, refit=True)
    assert bits(tmp_path / "run") == bits(refitted)
    assert again.config.refit_epochs == sasrec.load(tmp_path / "run").config.refit_epochs > 0
    assert (tmp_path / "run" / "report.html").exists()
    results = [json.loads((folder / "metrics.json").read_text())["results"] for folder in (refitted, tmp_path / "run")]
    assert results[0] == results[1]


def test_a_refit_run_resumed_without_refit_has_the_chosen_model_and_is_measured(
    refitted: Path, chosen: Path, tmp_path: Path
) -> None:
    shutil.copytree(refitted, tmp_path / "run")
    train(tmp_path / "run", resume=True)
    assert bits(tmp_path / "run") == bits(chosen)
    assert sasrec.load(tmp_path / "run").evaluate().metrics == sasrec.load(chosen).evaluate().metrics


def test_a_refit_run_is_trained_for_more_epochs(refitted: Path, tmp_path: Path) -> None:
    shutil.copytree(refitted, tmp_path / "run")
    train(tmp_path / "run", resume=True, refit=True, max_epochs=4)
    train(tmp_path / "whole", refit=True, max_epochs=4)
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


@pytest.mark.parametrize("before", ["save_config", "save_weights"])
def test_a_kill_around_the_refit_weights_leaves_no_model_that_could_be_measured_on_what_it_has_seen(
    refitted: Path, chosen: Path, tmp_path: Path, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = getattr(RunFolder, before)

    def kill(self: RunFolder, *arguments: object, **options: object) -> None:
        if options.get("refit") or getattr(arguments[0], "refit_epochs", 0):
            raise Killed
        plain(self, *arguments, **options)

    monkeypatch.setattr(RunFolder, before, kill)
    with pytest.raises(Killed):
        train(tmp_path / "run", refit=True)
    monkeypatch.undo()
    loaded = sasrec.load(tmp_path / "run")
    assert bits(tmp_path / "run") == bits(chosen)
    assert not RunFolder(tmp_path / "run").has_refit(loaded.config)
    if loaded.config.refit_epochs:
        with pytest.raises(ConfigError, match="has seen the targets"):
            loaded.evaluate("test")
    train(tmp_path / "run", resume=True, refit=True)
    assert bits(tmp_path / "run") == bits(refitted)
    assert RunFolder(tmp_path / "run").has_refit(sasrec.load(tmp_path / "run").config)


def test_a_refit_of_a_training_that_chose_no_epoch_keeps_its_mark_until_another_model_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "REPORT_SECONDS", 0.0)
    train(tmp_path / "run", refit=True, max_minutes=1e-9, batch_size=8)
    assert sasrec.load(tmp_path / "run").config.refit_epochs == 1

    def interrupt(shown: Progress) -> None:
        if not shown.valid:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = train(tmp_path / "run", resume=True, progress=interrupt, batch_size=8)
    assert stopped.train_result.stopped == "interrupted"
    with pytest.raises(ConfigError, match="has seen the targets"):
        sasrec.load(tmp_path / "run").evaluate("test")


def test_an_interrupt_in_the_second_training_is_told_and_resume_goes_on(
    chosen: Path, refitted: Path, tmp_path: Path
) -> None:
    shown: list[int] = []

    def interrupt(p: Progress) -> None:
        shown.append(p.epoch)
        if len(shown) > 1 and p.epoch < shown[-2]:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = train(tmp_path / "run", refit=True, progress=interrupt)
    assert stopped.train_result.stopped == "interrupted"
    assert bits(tmp_path / "run") == bits(chosen)
    train(tmp_path / "run", refit=True, resume=True)
    assert bits(tmp_path / "run") == bits(refitted)


def test_a_run_that_an_earlier_version_refitted_is_not_gone_on_with(refitted: Path, tmp_path: Path) -> None:
    shutil.copytree(refitted, tmp_path / "run")
    (tmp_path / "run" / "digests.json").unlink()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "format": 1}))
    with pytest.raises(CheckpointError, match="by an earlier version, which did not keep the weights of the"):
        train(tmp_path / "run", resume=True, refit=True)
    assert bits(tmp_path / "run") == bits(refitted)


def test_no_metrics_of_an_earlier_end_stand_beside_new_weights(chosen: Path, tmp_path: Path) -> None:
    shutil.copytree(chosen, tmp_path / "run")

    def kill(progress: Progress) -> None:
        if progress.epoch == 4 and progress.valid is not None:
            raise Killed

    options = FitOptions(output=tmp_path / "run", resume=True, report=False)
    with pytest.raises(Killed):
        fit_log(LOG, options, {**SETTINGS, "max_epochs": 4}, kill)
    assert bits(tmp_path / "run") != bits(chosen)
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert sasrec.load(tmp_path / "run").results == []


def test_metrics_stay_where_going_on_is_refused(chosen: Path, tmp_path: Path) -> None:
    shutil.copytree(chosen, tmp_path / "run")
    with pytest.raises(ConfigError, match="cannot resume: dropout"):
        train(tmp_path / "run", resume=True, dropout=0.9)
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_kill_while_measuring_loses_nothing(chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*given: object) -> None:
        raise Killed

    monkeypatch.setattr(fitting, "final_results", kill)
    with pytest.raises(Killed):
        train(tmp_path / "run")
    monkeypatch.undo()
    assert bits(tmp_path / "run") == bits(chosen)
    train(tmp_path / "run", resume=True)
    assert bits(tmp_path / "run") == bits(chosen)
    assert np.isfinite(sasrec.load(tmp_path / "run").results[0].metrics["ndcg@10"]["value"])


# presets


@pytest.mark.parametrize("preset", ["paper", "fast", "best"])
@pytest.mark.parametrize("train", [[1, 2, 3, 4, 5, 6], [1, 2, 1, 2, 1, 2]])
def test_presets_do_not_see_what_valid_and_test_repeat(preset: str, train: list[int]) -> None:
    def resolved(held_out: list[int]) -> tuple[object, ...]:
        rows = [(user, item) for user in range(60) for item in [*train, *held_out]]
        rows += [(60, item) for item in range(1, 9)]  # the same items in each log
        log = pl.DataFrame(rows, ["user_id", "item_id"], orient="row")
        config = configure(Log(*build_sequences(log), "made"), preset, {})[1]
        return config.model, config.train, config.eval

    assert resolved([7, 8]) == resolved([1, 1]) == resolved([7, 7])


def test_repeats_in_train_decide_whether_seen_items_compete() -> None:
    for train, masks in (([1, 2, 3, 4, 5, 6], True), ([1, 2, 1, 2, 1, 2], False)):
        rows = [(user, item) for user in range(60) for item in [*train, 1, 1]]
        log = pl.DataFrame(rows, ["user_id", "item_id"], orient="row")
        assert configure(Log(*build_sequences(log), "made"), "best", {})[1].train.mask_seen == masks


def test_that_seen_items_stay_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    log = make_markov_log(30)
    assert build_sequences(log)[0].facts.repeat_share > 0.05
    with caplog.at_level(logging.INFO, "sasrec"):
        sasrec.fit(log, embedding_dim=8, n_blocks=1, max_seq_len=8, max_epochs=2, threads=1)
    assert caplog.text.count("of events repeat one of the user's, so seen items stay") == 1

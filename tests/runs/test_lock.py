"""One process writes a folder; what it replaces is kept until there is something in its place."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_markov_log
from made import SETTINGS

import sasrec
from sasrec.core.errors import CheckpointError, ConfigError, DataError
from sasrec.data.logs import Log
from sasrec.data.sequences import build_sequences
from sasrec.experiments.seeds import run_study
from sasrec.fitting import FitOptions, fit_log
from sasrec.runs.folder import RunFolder, is_run_folder
from sasrec.runs.lock import claim, lock, replaced_by
from sasrec.training.progress import Progress

LOG = Log(*build_sequences(make_markov_log(60)), "made")


def train(folder: Path, mode: str = "", seed: int = 0, progress: object = None, **settings: object) -> None:
    options = FitOptions(output=folder, report=False, resume=mode == "resume", overwrite=mode == "overwrite")
    fit_log(LOG, options, {**SETTINGS, "seed": seed, **settings}, progress)


def seed_of(folder: Path) -> int:
    seed: int = sasrec.load(folder).config.train.seed
    return seed


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("mode", ["", "resume", "overwrite"])
def test_a_second_process_is_refused_while_one_trains(tmp_path: Path, mode: str) -> None:
    tried: list[str] = []

    def second(progress: Progress) -> None:
        if not tried:
            with pytest.raises(ConfigError, match=r"another process is writing .*run; wait for it, or use another f"):
                train(tmp_path / "run", mode, seed=1)
            tried.append(mode)

    train(tmp_path / "run", progress=second)
    assert tried == [mode]
    assert seed_of(tmp_path / "run") == 0
    assert names(tmp_path) == {"run"}
    assert not list((tmp_path / "run").rglob(".*"))


def test_a_second_study_is_refused_while_one_trains(tmp_path: Path) -> None:
    with claim(tmp_path / "study", is_run_folder):
        for resume in (False, True):
            options = FitOptions(output=tmp_path / "study", report=False, resume=resume)
            with pytest.raises(ConfigError, match="another process is writing"):
                run_study(LOG, options, SETTINGS, [0, 1])


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from sasrec.runs.lock import lock
held = lock(Path({str(tmp_path)!r}) / ".lock", "busy")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    lock(tmp_path / ".lock", "busy").close()


def test_a_lock_file_that_was_removed_under_its_holder_is_made_anew(tmp_path: Path) -> None:
    first = lock(tmp_path / ".lock", "busy")
    (tmp_path / ".lock").unlink()
    second = lock(tmp_path / ".lock", "busy")
    with pytest.raises(ConfigError, match="busy"):
        lock(tmp_path / ".lock", "busy")
    first.close()
    second.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_was_moved_away_in_mid_training_is_an_error(tmp_path: Path, replaced: bool) -> None:
    def move(progress: Progress) -> None:
        if progress.epoch == 1 and progress.valid is not None:
            (tmp_path / "run").rename(tmp_path / "moved")
            if replaced:
                (tmp_path / "run").mkdir()

    with pytest.raises(CheckpointError, match=r"run was moved, replaced or deleted while it was written"):
        train(tmp_path / "run", progress=move)
    assert not replaced or not names(tmp_path / "run")
    train(tmp_path / "moved", "resume")
    train(tmp_path / "whole")
    files = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("moved", "whole")]
    assert files[0] == files[1]


# overwrite


def test_the_old_run_stays_until_the_new_one_has_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder)
    kept: list[bool] = []

    def look(progress: Progress) -> None:
        kept.append(replaced_by(folder).exists())

    train(folder, "overwrite", seed=1, progress=look)
    assert kept[-1] is False
    assert seed_of(folder) == 1
    assert names(tmp_path) == {"run"}


def fail(progress: Progress) -> None:
    raise DataError("in the first epoch")


@pytest.mark.parametrize("saved", [False, True])
def test_a_replacement_that_fails_gives_the_old_run_back_unless_there_is_something_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    folder = tmp_path / "run"
    train(folder)
    monkeypatch.setattr("sasrec.training.trainer.REPORT_SECONDS", 0.0)
    if saved:  # the state before validation
        monkeypatch.setattr(RunFolder, "save_weights", lambda *_: fail(None))
    with pytest.raises(DataError, match="in the first epoch"):
        train(folder, "overwrite", seed=1, progress=None if saved else fail, save_every_minutes=0)
    monkeypatch.undo()
    assert replaced_by(folder).exists() == saved
    assert seed_of(replaced_by(folder) if saved else folder) == 0
    if saved:
        with pytest.raises(CheckpointError, match=r"there is no .*model\.safetensors"):
            sasrec.load(folder)
        train(folder, "resume", seed=1)
    else:
        train(folder, "overwrite", seed=1)
    assert seed_of(folder) == 1
    assert names(tmp_path) == {"run"}


def test_after_a_kill_between_the_two_renames_the_old_run_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder)
    folder.rename(replaced_by(folder))
    (tmp_path / ".run.replacing").mkdir()
    with pytest.raises(CheckpointError, match=r"there is no run folder .*; the run it was to replace is .*\.replaced"):
        sasrec.load(folder)
    with pytest.raises(ConfigError, match="exists and is not empty; use --resume, --overwrite"):
        train(folder, seed=1)
    assert seed_of(folder) == 0
    assert names(tmp_path) == {"run"}


def test_a_link_is_not_replaced(tmp_path: Path) -> None:
    train(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"link is a link, so --overwrite does not replace it"):
        train(tmp_path / "link", "overwrite", seed=1)
    assert seed_of(tmp_path / "link") == 0


def test_saving_a_model_over_its_own_folder_keeps_it(tmp_path: Path) -> None:
    train(tmp_path / "run")
    loaded = sasrec.load(tmp_path / "run")
    before = loaded.recommend_users(k=3)
    loaded.save(tmp_path / "run", overwrite=True)
    assert sasrec.load(tmp_path / "run").recommend_users(k=3).equals(before)
    assert names(tmp_path) == {"run"}


# what a kill left


def test_what_was_left_half_written_is_swept(tmp_path: Path) -> None:
    train(tmp_path / "run")
    (tmp_path / "run" / ".model.safetensors.123.tmp").write_text("half")
    (tmp_path / "run" / "training" / ".state.safetensors.123.tmp").write_text("half")
    (tmp_path / "run" / ".sequences-abc").mkdir()
    (tmp_path / "run" / ".sequences-abc" / "items.npy").write_text("half")
    train(tmp_path / "run", "resume")
    assert not list((tmp_path / "run").rglob(".*"))


@pytest.mark.parametrize("mode", ["", "resume", "overwrite"])
@pytest.mark.parametrize("left", ["nothing", ".config.json.123.tmp", "digests.json"])
def test_a_folder_in_which_nothing_was_written_yet_can_be_trained_into(tmp_path: Path, mode: str, left: str) -> None:
    (tmp_path / "run").mkdir()
    if left != "nothing":
        (tmp_path / "run" / left).write_text("half")
    train(tmp_path / "run", mode)
    train(tmp_path / "whole")
    assert names(tmp_path / "run") == names(tmp_path / "whole")


@pytest.mark.parametrize("missing", ["items.parquet", "sequences"])
@pytest.mark.parametrize("mode", ["resume", "overwrite"])
def test_a_run_cut_off_before_its_data_was_in_place_goes_on(tmp_path: Path, missing: str, mode: str) -> None:
    with pytest.raises(DataError):
        train(tmp_path / "run", progress=fail, max_epochs=2)
    path = tmp_path / "run" / missing
    path.unlink() if path.is_file() else path.rename(tmp_path / "gone")
    for name in ("training", "model.safetensors", "history.jsonl"):
        gone = tmp_path / "run" / name
        if gone.exists():
            gone.rename(tmp_path / f"gone-{name}")
    train(tmp_path / "run", mode)
    loaded = sasrec.load(tmp_path / "run")
    assert loaded.sequences is not None
    assert np.array_equal(loaded.sequences.items, LOG.sequences.items)


@pytest.mark.parametrize("mode", ["", "overwrite"])
def test_a_study_cut_off_while_its_description_was_written_begins_anew(tmp_path: Path, mode: str) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / ".study.json.123.tmp").write_text("half")
    options = FitOptions(output=tmp_path / "study", report=False, overwrite=mode == "overwrite")
    assert run_study(LOG, options, SETTINGS, [0])
    assert "summary.json" in names(tmp_path / "study")


def test_a_prepared_folder_cut_off_can_be_replaced(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "data")
    run.save_data(LOG.vocabulary, None)
    with RunFolder.claim(tmp_path / "data", overwrite=True) as again:
        again.save_data(LOG.vocabulary, LOG.sequences)
        again.forget_replaced()
    assert names(tmp_path / "data") == {"items.parquet", "sequences", "digests.json"}
    assert names(tmp_path) == {"data"}


def test_a_folder_that_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tmp").write_text("dear")
    for mode, words in {"": "is not empty", "overwrite": "is not a run folder", "resume": "it has no config"}.items():
        with pytest.raises((ConfigError, CheckpointError), match=words):
            train(tmp_path / "thesis", mode)
    assert names(tmp_path / "thesis") == {"chapter.tmp"}
    assert names(tmp_path) == {"thesis"}


def test_what_is_not_ours_gives_no_way_to_a_run_that_waits_beside_it(tmp_path: Path) -> None:
    train(tmp_path / ".thesis.replaced")
    (tmp_path / "thesis").mkdir()
    for name in ("chapter", ".notes.tmp"):
        (tmp_path / "thesis" / name).write_text("dear")
    for mode, words in {"": "is not empty", "overwrite": "is not a run folder", "resume": "it has no config"}.items():
        with pytest.raises((ConfigError, CheckpointError), match=words):
            train(tmp_path / "thesis", mode)
    assert {path.name for path in (tmp_path / "thesis").iterdir()} == {"chapter", ".notes.tmp"}
    assert (tmp_path / ".thesis.replaced" / "model.safetensors").exists()

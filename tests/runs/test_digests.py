"""A run folder that was damaged is refused; the version of a model covers what changes its answers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log
from made import SETTINGS, make_features

import sasrec
from sasrec.core.digests import BOOK, digest_of, note
from sasrec.core.errors import CheckpointError
from sasrec.fitting import fit
from sasrec.recommender import Recommender
from sasrec.runs.digests import verify, version_of
from sasrec.runs.folder import DATA_FILES, STATE, WHAT_COUNTS, RunFolder
from sasrec.training.progress import Progress

FORMAT_1 = Path(__file__).parent / "format-1" / "run"
FOR_PEOPLE = {"README.md", "curve.png", "report.html"}  # nothing reads them
NOT_THERE = {"sequences/log.json", "sequences/seen.npy"}  # in this run
BY_LOAD = {"config.json", "model.safetensors", "metrics.json", BOOK, *DATA_FILES}
FLIPS = 40  # of a file


COLUMNS = {"event_column": "event", "weight_column": "weight"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that a folder can hold, but for log.json."""
    folder = tmp_path_factory.mktemp("digests") / "run"
    log = log_of_the_run()
    fit(log, output=folder, items=items_of(3), item_features=["kind"], **COLUMNS, **SETTINGS)
    return folder


def items_of(n: int) -> pl.DataFrame:
    """Films of so many kinds."""
    ids = pl.DataFrame({"item_id": range(1, 31)})
    return ids.with_columns(title=pl.lit("Film"), kind=pl.format("kind {}", pl.col("item_id") % n))


def log_of_the_run() -> pl.DataFrame:
    log = make_markov_log(60).with_columns(timestamp=np.arange(720), event=pl.Series(["view", "buy"] * 360))
    return log.with_columns(weight=1 + pl.col("timestamp") % 3)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_whole_run_is_verified_file_by_file(run: Path) -> None:
    counted = files_of(run) - FOR_PEOPLE - {BOOK}
    assert set(verify(RunFolder.open(run))) == counted == {*WHAT_COUNTS} & files_of(run)


@pytest.mark.parametrize("name", sorted({*WHAT_COUNTS, BOOK} - NOT_THERE))
def test_each_flipped_bit_is_noticed(run: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    path, rng = tmp_path / "run" / name, random.Random(name)
    data = path.read_bytes()
    places = [*range(8), *(len(data) - 1 - i for i in range(8)), *rng.sample(range(len(data)), FLIPS)]
    for place in places:
        flipped = bytes([data[place] ^ (1 << rng.randrange(8))])
        path.write_bytes(data[:place] + flipped + data[place + 1 :])
        if name == BOOK and json_or_none(path) == json.loads(data):
            continue  # the layout of the JSON, which means nothing
        with pytest.raises(CheckpointError) as caught:
            sasrec.load(tmp_path / "run") if name in BY_LOAD else verify(RunFolder.open(tmp_path / "run"))
        assert "\n" not in str(caught.value)


def json_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


@pytest.mark.parametrize("name", sorted({*WHAT_COUNTS} - NOT_THERE))
def test_a_file_of_another_run_is_noticed(run: Path, tmp_path: Path, name: str) -> None:
    log = make_markov_log(60, 31, seed=1).with_columns(pl.col("user_id") + 1, timestamp=np.arange(720))
    log = log.with_columns(event=pl.Series(["buy", "view"] * 360), weight=2 + pl.col("timestamp") % 5)
    features = {"items": items_of(4), "item_features": ["kind"]}
    fit(log.tail(717), output=tmp_path / "other", **features, **COLUMNS, **SETTINGS)
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(tmp_path / "other" / name, tmp_path / "run" / name)
    with pytest.raises(CheckpointError, match=r"(is damaged|missing or damaged).*not as it was written"):
        sasrec.load(tmp_path / "run") if name in BY_LOAD else verify(RunFolder.open(tmp_path / "run"))


def test_a_run_that_was_interrupted_is_whole(tmp_path: Path) -> None:
    def interrupt(shown: Progress) -> None:
        if shown.valid:
            os.kill(os.getpid(), signal.SIGINT)

    fit(make_markov_log(60), output=tmp_path / "run", progress=interrupt, **SETTINGS)
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert "history.jsonl" in verify(RunFolder.open(tmp_path / "run"))


def test_two_kills_before_the_same_file_took_its_place_lose_nothing(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    folder, settings = RunFolder.open(tmp_path / "run"), {**SETTINGS, "max_epochs": SETTINGS["max_epochs"] + 1}
    for killed in (b"a", b"b"):
        (tmp_path / "written").write_bytes(killed)
        folder.begin_digests()  # as each training does that goes on
        note(folder.path, {name: digest_of(tmp_path / "written") for name in (STATE, "config.json")})
    sasrec.load(tmp_path / "run")
    more = {"items": items_of(3), "item_features": ["kind"], "resume": True, **COLUMNS, **settings}
    result = fit(log_of_the_run(), output=tmp_path / "run", **more).train_result
    assert result is not None
    assert result.epochs == settings["max_epochs"]


def test_a_missing_file_is_told_by_name(run: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "items.parquet"):
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / name).unlink()
        with pytest.raises(CheckpointError, match=f"is damaged: {name} is missing"):
            verify(RunFolder.open(tmp_path / name))


@pytest.mark.parametrize("lost", ["", "items.npy", "users.parquet"])
def test_lost_histories_are_told(run: Path, tmp_path: Path, lost: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    sequences = tmp_path / "run" / "sequences"
    shutil.rmtree(sequences) if not lost else (sequences / lost).unlink()
    with pytest.raises(CheckpointError, match=f"is damaged: .*sequences/{lost or 'items.npy'} is missing"):
        verify(RunFolder.open(tmp_path / "run"))


def test_a_run_of_format_2_without_its_digests_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / BOOK).unlink()
    with pytest.raises(CheckpointError, match=r"there is no .*digests\.json to tell whether files are whole"):
        sasrec.load(tmp_path / "run")


def test_a_run_of_format_1_is_read_with_a_note_and_gets_digests_when_it_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    shutil.copytree(FORMAT_1, tmp_path / "run")
    before = sasrec.load(tmp_path / "run")
    assert "is of format 1, which has no digests" in caplog.text
    assert verify(RunFolder.open(tmp_path / "run")) == []
    config = before.config
    settings = {**vars(config.model), **vars(config.train), **vars(config.eval)}
    fit(tmp_path / "run", output=tmp_path / "run", resume=True, **settings)
    after = RunFolder.open(tmp_path / "run")
    assert after.load_config().format == 2
    assert set(verify(after)) == files_of(tmp_path / "run") - FOR_PEOPLE - {BOOK}


@pytest.mark.parametrize(("name", "place"), [("items.npy", 1), ("offsets.npy", 1), ("timestamps.npy", 2)])
def test_events_of_format_1_that_do_not_have_the_fingerprint_are_refused(tmp_path: Path, name: str, place: int) -> None:
    shutil.copytree(FORMAT_1, tmp_path / "run")
    path = tmp_path / "run" / "sequences" / name
    array = np.load(path)
    array[place] += 1 if array[place] < array[place + 1] else -1  # still a log, but another
    np.save(path, array)
    with pytest.raises(CheckpointError, match="do not have the log's fingerprint"):
        sasrec.load(tmp_path / "run")


# the version of a model


def test_the_version_covers_what_changes_answers(run: Path) -> None:
    loaded = sasrec.load(run)
    config, weights, vocabulary = loaded.config, loaded.engine.weights(), loaded.vocabulary
    version = version_of(config, weights, vocabulary)
    assert loaded.model_version == version
    changed = {
        "n_heads": replace(config, model=replace(config.model, n_heads=2)),
        "norm_eps": replace(config, model=replace(config.model, norm_eps=1e-3)),
        "filter_seen": replace(config, eval=replace(config.eval, filter_seen="yes")),
    }
    versions = {version, *(version_of(other, weights, vocabulary) for other in changed.values())}
    popular = sasrec.load(run).vocabulary
    popular.counts = popular.counts + np.arange(len(popular))
    versions.add(version_of(config, weights, popular))
    for seed in (0, 1):
        described = sasrec.load(run).vocabulary
        described.features = make_features(len(vocabulary), 5, seed=seed)
        versions.add(version_of(config, weights, described))
    assert len(versions) == 7
    same = replace(config, model=replace(config.model, dropout=0.9), preset="other", data_name="x")
    assert version_of(same, weights, vocabulary) == version


def test_a_run_of_format_1_keeps_its_version(tmp_path: Path) -> None:
    loaded = sasrec.load(FORMAT_1)
    assert loaded.model_version == "3bd64a3a4c33"
    loaded.save(tmp_path / "copy")
    assert sasrec.load(tmp_path / "copy").model_version == loaded.model_version


def test_a_saved_model_has_digests(run: Path, tmp_path: Path) -> None:
    loaded: Recommender = sasrec.load(run)
    loaded.save(tmp_path / "copy")
    assert set(verify(RunFolder.open(tmp_path / "copy"))) == files_of(tmp_path / "copy") - {BOOK}

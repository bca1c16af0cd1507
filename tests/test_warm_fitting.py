"""A training that begins from an earlier run: fit, resume, refit, studies, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log
from made import SETTINGS

import sasrec
from sasrec.core.errors import CheckpointError, ConfigError, DataError, SASRecError
from sasrec.data.logs import Log
from sasrec.data.sequences import build_sequences
from sasrec.experiments.seeds import run_study
from sasrec.fitting import FitOptions, fit_log
from sasrec.model.weights import ITEM_TABLE, OUTPUT_TABLE
from sasrec.recommender import Recommender
from sasrec.runs.folder import RunFolder
from sasrec.runs.record import EpochLine

FRAME = make_markov_log(120, 30)
OLD = FRAME.group_by("user_id", maintain_order=True).head(9).filter(pl.col("item_id") != 7)
NEW = FRAME.filter(pl.col("item_id") != 8)
AGAIN: dict[str, Any] = {
    **SETTINGS, "filter_seen": "yes", "learning_rate": 0.01, "ema_decay": 0.9, "save_every_minutes": 0,
}  # fmt: skip
FORMAT_1 = Path(__file__).parent / "runs" / "format-1" / "run"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm") / "old"
    sasrec.fit(OLD, output=folder, **AGAIN)
    return folder


def weights_of(model: Recommender) -> dict[str, np.ndarray]:
    return model.engine.weights()


def assert_same(a: Recommender, b: Recommender) -> None:
    assert weights_of(a).keys() == weights_of(b).keys()
    for name, value in weights_of(a).items():
        np.testing.assert_array_equal(weights_of(b)[name], value, err_msg=name)


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_without_a_step_a_training_ends_where_it_began(old: Path, engine: str, ema_decay: float) -> None:
    standing = {**AGAIN, "learning_rate": 0.0, "engine": engine, "ema_decay": ema_decay}
    began, ended = sasrec.load(old), sasrec.fit(OLD, init=old, **standing)
    assert_same(began, ended)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_a_training_begins_from_shrunk_items_and_says_so_in_its_config(old: Path, tmp_path: Path, engine: str) -> None:
    standing = {**AGAIN, "learning_rate": 0.0, "engine": engine, "init_scale": 0.5}
    began, ended = weights_of(sasrec.load(old)), sasrec.fit(OLD, init=old, output=tmp_path / "new", **standing)
    for name, value in weights_of(ended).items():
        scale = 0.5 if name in (ITEM_TABLE, OUTPUT_TABLE) else 1.0
        np.testing.assert_array_equal(value, began[name] * np.float32(scale), err_msg=name)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["train"]["init_scale"] == 0.5
    assert "init_scale" not in json.loads((old / "config.json").read_text())["train"]
    again = sasrec.fit(OLD, init=old, output=tmp_path / "new", resume=True, **standing)
    assert_same(ended, again)
    with pytest.raises(ConfigError, match=r"init_scale was 0\.5 and is now 1\.0"):
        sasrec.fit(OLD, init=old, output=tmp_path / "new", resume=True, **{**standing, "init_scale": 1.0})


@pytest.mark.parametrize(("name", "value"), [("init_scale", 0.5), ("init_smoothing", 0.5), ("init_moments", False)])
def test_a_setting_of_beginning_is_refused_where_nothing_begins(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value} is for a training that begins from an earlier run"):
        sasrec.fit(OLD, **AGAIN, **{name: value})


def test_a_folder_and_its_recommender_begin_the_same_training(old: Path) -> None:
    trained = sasrec.fit(OLD, **AGAIN)
    by_folder, by_model = (sasrec.fit(NEW, init=init, **AGAIN) for init in (str(old), trained))
    assert_same(by_folder, by_model)
    assert by_folder.config.init == by_model.config.init or by_folder.config.data_name == "log"


def test_adams_moments_make_a_difference_and_their_absence_is_said(
    old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(old, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "training")
    full = sasrec.fit(NEW, init=old, **AGAIN)
    assert "Adam's moments begin at 0" not in caplog.text
    caplog.set_level("INFO")
    bare = sasrec.fit(NEW, init=tmp_path / "bare", **AGAIN)
    assert f"{tmp_path / 'bare'} has no training state any more, so Adam's moments begin at 0" in caplog.text
    assert any((value != weights_of(bare)[name]).any() for name, value in weights_of(full).items())
    assert_same(bare, sasrec.fit(NEW, init=old, init_moments=False, **AGAIN))


class _CtrlC:
    """Ctrl-C in the first epoch."""

    def on_epoch(self, line: EpochLine) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_training_says_that_the_one_it_begins_from_has_not_ended(
    old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = sasrec.fit(OLD, output=tmp_path / "half", callbacks=[_CtrlC()], **AGAIN)
    converted = shutil.copytree(tmp_path / "half", tmp_path / "converted")
    shutil.rmtree(converted / "training")
    told = "has not ended: its training or measuring was interrupted, or goes on"
    for init, where in ((tmp_path / "half", tmp_path / "half"), (half, "the given model")):
        caplog.clear()
        sasrec.fit(NEW, init=init, **AGAIN)
        assert f"{where} {told}" in caplog.text
    caplog.clear()
    for init in (old, sasrec.fit(OLD, **AGAIN), converted):
        sasrec.fit(NEW, init=init, **AGAIN)
    assert told not in caplog.text


def test_it_begins_better_than_a_training_from_nothing(old: Path) -> None:
    few = {**AGAIN, "max_epochs": 1, "learning_rate": 1e-3}
    anew, warm = sasrec.fit(NEW, **few), sasrec.fit(NEW, init=old, **few)
    assert warm.train_result is not None
    assert anew.train_result is not None
    assert warm.train_result.valid["ndcg@10"] > anew.train_result.valid["ndcg@10"]


def test_config_tells_what_it_began_from(old: Path, tmp_path: Path) -> None:
    begun = sasrec.fit(NEW, init=old, output=tmp_path / "run", **AGAIN)
    told = json.loads((tmp_path / "run" / "config.json").read_text())["init"]
    assert told == {
        "model_version": sasrec.load(old).model_version, "data_name": "log", "kept": 28, "new": 1, "gone": 1,
        "unchecked": False,
    }  # fmt: skip
    assert sasrec.load(tmp_path / "run").config.init == begun.config.init
    assert begun.config.model == sasrec.load(old).config.model
    assert "init" not in json.loads((old / "config.json").read_text())


def test_the_model_is_the_runs_whatever_the_preset_would_choose(old: Path) -> None:
    given = {name: value for name, value in AGAIN.items() if name in ("max_epochs", "batch_size", "threads")}
    begun = sasrec.fit(NEW, init=old, preset="paper", **given)
    assert begun.config.model == sasrec.load(old).config.model
    assert begun.config.train.loss == "bce"


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(
    old: Path, tmp_path: Path, engine: str, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**AGAIN, "engine": engine, "schedule": schedule, "max_epochs": 3}
    whole = sasrec.fit(NEW, init=old, **settings)
    save = RunFolder.save_state

    def cut_off(run: RunFolder, *arguments: Any) -> None:
        save(run, *arguments)
        if arguments[2].epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("sasrec.training.trainer.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(RunFolder, "save_state", cut_off)
    with pytest.raises(KeyboardInterrupt):
        sasrec.fit(NEW, init=old, output=tmp_path / "run", **settings)
    monkeypatch.undo()
    assert_same(sasrec.fit(NEW, init=old, output=tmp_path / "run", resume=True, **settings), whole)
    assert_same(sasrec.load(tmp_path / "run"), whole)


def test_a_run_that_was_cut_off_before_its_first_save_begins_from_the_same_model(old: Path, tmp_path: Path) -> None:
    whole = sasrec.fit(NEW, init=old, output=tmp_path / "run", **AGAIN)
    for name in ("training", "sequences"):
        shutil.rmtree(tmp_path / "run" / name)
    for name in ("model.safetensors", "history.jsonl", "metrics.json", "items.parquet"):
        (tmp_path / "run" / name).unlink()
    assert_same(sasrec.fit(NEW, init=old, output=tmp_path / "run", resume=True, **AGAIN), whole)


def test_a_refit_begins_from_the_same_model_again(old: Path) -> None:
    standing = {**AGAIN, "learning_rate": 0.0}
    assert_same(sasrec.fit(OLD, init=old, refit=True, **standing), sasrec.load(old))


def test_targets_that_the_model_knows_choose_no_epoch(tmp_path: Path) -> None:
    refit = sasrec.fit(OLD, refit=True, **AGAIN)
    latest = FRAME.filter(pl.col("user_id") <= 30).group_by("user_id", maintain_order=True).tail(3)
    begun = sasrec.fit(pl.concat([OLD, latest]), init=refit, output=tmp_path / "run", **AGAIN)
    assert [result.n_targets for result in begun.results] == [30, 30, 30]
    assert begun.train_result is not None
    chosen_by = begun.results[0].metrics
    assert begun.train_result.valid == {name: chosen_by[name]["value"] for name in begun.train_result.valid}
    with pytest.raises(DataError, match="all 120 valid targets are events that the model, or the one it began from"):
        sasrec.fit(OLD, init=refit, output=tmp_path / "none", **AGAIN)
    assert not (tmp_path / "none").exists()


def test_a_model_without_histories_leaves_its_successors_unchecked(old: Path, tmp_path: Path) -> None:
    sasrec.load(old).save(tmp_path / "bare", histories=False)
    begun = sasrec.fit(NEW, init=tmp_path / "bare", output=tmp_path / "run", **AGAIN)
    later = sasrec.fit(NEW, init=tmp_path / "run", **AGAIN)
    assert all(result.init_unchecked for result in [*begun.results, *later.results])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["results"][0]["init_unchecked"] is True
    assert "init_unchecked" not in json.loads((old / "metrics.json").read_text())["results"][0]


def test_each_seed_of_a_study_begins_from_it(old: Path, tmp_path: Path) -> None:
    log = Log(*build_sequences(NEW), "made")
    options = FitOptions(output=tmp_path / "study", report=False, init=old)
    assert run_study(log, options, AGAIN, [3, 4])
    begun = {sasrec.load(tmp_path / "study" / f"seed-{seed}").config.init for seed in (3, 4)}
    assert len(begun) == 1
    assert None not in begun
    assert run_study(log, replace(options, resume=True), AGAIN, [3, 4])
    with pytest.raises(CheckpointError, match="it holds run folders: give one of them"):
        sasrec.fit(NEW, init=tmp_path / "study", **AGAIN)


def test_a_run_of_format_1_is_begun_from(tmp_path: Path) -> None:
    log = sasrec.load(FORMAT_1)
    assert log.sequences is not None
    begun = fit_log(Log(log.sequences, log.vocabulary, "made"), FitOptions(init=FORMAT_1), {"max_epochs": 1})
    assert begun.config.init is not None
    assert begun.config.init.kept == len(log.vocabulary)
    assert begun.config.model == log.config.model


def test_a_model_that_attends_to_padding_as_published_ones_do_is_begun_from(tmp_path: Path) -> None:
    small = {**AGAIN, "block": "sasrec", "padding": "attended", "engine": "torch"}
    sasrec.fit(OLD, output=tmp_path / "run", **small)
    begun = sasrec.fit(NEW, init=tmp_path / "run", **{name: small[name] for name in ("max_epochs", "engine")})
    assert begun.config.model.padding == "attended"


def damage(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        data = bytearray((run / name).read_bytes())
        data[len(data) // 2] ^= 0xFF
        (run / name).write_bytes(data)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "there is no run folder"),
        (lambda run: (run / "config.json").unlink(), "is not a run folder: it has no config.json"),
        (damage("config.json"), "config.json"),
        (damage("model.safetensors"), "model.safetensors is damaged"),
        (damage("items.parquet"), "items.parquet is missing or damaged"),
        (damage("sequences/items.npy"), "sequences is damaged"),
        (damage("training/state.safetensors"), "remove .*training to begin without Adam's moments"),
        (lambda run: (run / "model.safetensors").unlink(), "model.safetensors"),
    ],
)
def test_a_damaged_run_is_refused_before_anything_is_written(
    old: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(old, tmp_path / "old")
    change(tmp_path / "old")
    with pytest.raises(CheckpointError, match=message) as caught:
        sasrec.fit(NEW, init=tmp_path / "old", output=tmp_path / "new", **AGAIN)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_dim": 16}, "embedding_dim=16 does not fit .*, whose model has embedding_dim=8"),
        ({"block": "sasrec"}, "block=sasrec does not fit"),
        ({"max_seq_len": 9}, "max_seq_len=9 does not fit"),
    ],
)
def test_another_setting_of_the_model_is_refused(old: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sasrec.fit(NEW, init=old, **{**AGAIN, **settings})


def test_a_log_of_other_items_is_refused(old: Path) -> None:
    other = NEW.with_columns(pl.format("sku-{}", "item_id").alias("item_id"))
    with pytest.raises(ConfigError, match=r"the log has none of the 29 items of .*; the log's are such as 'sku-1'"):
        sasrec.fit(other, init=old, **AGAIN)


def test_ids_of_another_type_are_the_same_items(old: Path) -> None:
    as_text = NEW.with_columns(pl.col("item_id", "user_id").cast(pl.String))
    begun = sasrec.fit(as_text, init=old, **AGAIN)
    assert begun.config.init is not None
    assert (begun.config.init.kept, begun.config.init.new) == (28, 1)


def test_a_run_goes_on_from_what_it_began_with_and_nothing_is_lost(old: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    sasrec.fit(OLD, output=other, seed=5, **AGAIN)
    sasrec.fit(NEW, init=old, output=tmp_path / "run", **AGAIN)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for init, message in [(other, "and --init gives"), (None, "give the same --init again")]:
        with pytest.raises(SASRecError, match=message):
            sasrec.fit(NEW, init=init, output=tmp_path / "run", resume=True, **AGAIN)
    with pytest.raises(ConfigError, match="this run did not begin from another one"):
        sasrec.fit(OLD, init=other, output=old, resume=True, **AGAIN)
    with pytest.raises(ConfigError, match="is both the run to begin from and the one to write"):
        sasrec.fit(NEW, init=old, output=old, overwrite=True, **AGAIN)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

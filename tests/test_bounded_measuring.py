"""Measuring within bounds: samples of users, steps, minutes, and Ctrl-C while a model is measured."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log
from made import SETTINGS
from typer.testing import CliRunner

import sasrec
from sasrec.cli.main import app
from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError, DataError
from sasrec.data.logs import Log, load_log
from sasrec.data.ragged import Ragged
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import Split, split_leave_one_out, split_temporal
from sasrec.data.vocabulary import Vocabulary
from sasrec.engine.protocol import create_engine
from sasrec.evaluation.candidates import draw_candidates
from sasrec.evaluation.comparison import compare
from sasrec.evaluation.protocols import evaluate
from sasrec.evaluation.results import Result
from sasrec.fitting import FitOptions, fit, fit_log
from sasrec.measuring import Request, measure
from sasrec.ranking.scorers import LastItem, ModelScorer
from sasrec.recommender import Recommender
from sasrec.report.text import measured_in_words
from sasrec.runs.record import State
from sasrec.training.progress import Progress
from sasrec.training.trainer import MEASURING, _Loop, train

PART = {"valid": "valid_users", "test": "eval_users"}


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return make_markov_log(120).with_columns(timestamp=pl.int_range(pl.len()))


@pytest.fixture(scope="module")
def split(log: pl.DataFrame) -> Split:
    return split_leave_one_out(build_sequences(log)[0])


def measured(split: Split, part: str, **settings: Any) -> Result:
    scorer = LastItem(split.train_parts(), split.train_counts)
    return evaluate(scorer, split, part, EvalConfig(filter_seen="no", **settings), baselines=False, lists=False)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_samples_figures_are_those_of_its_users(split: Split, part: str) -> None:
    everyone = measured(split, part)
    some = measured(split, part, **{PART[part]: 40})
    assert (some.n_users, some.sampled_users, some.n_targets) == (40, len(split.sequences), 40)
    assert (everyone.sampled_users, len(np.unique(some.users))) == (0, 40)
    at = np.searchsorted(everyone.users, some.users)
    np.testing.assert_array_equal(everyone.users[at], some.users)
    for name, values in some.per_user.items():
        np.testing.assert_array_equal(values, everyone.per_user[name][at])
    assert some.metrics["ndcg@10"]["value"] == pytest.approx(some.per_user["ndcg@10"].mean())


def test_a_sample_is_drawn_by_its_seed_alone(split: Split) -> None:
    users = [tuple(measured(split, "test", eval_users=40, eval_seed=seed).users) for seed in (1, 1, 2)]
    assert users[0] == users[1] != users[2]
    assert tuple(measured(split, "test", eval_users=40, eval_seed=1, protocol="sampled").users) == users[0]


@pytest.mark.parametrize("n", [0, 120, 5000])
def test_as_many_users_as_there_are_is_all_of_them(split: Split, n: int) -> None:
    assert measured(split, "test", eval_users=n).to_dict() == measured(split, "test").to_dict()
    assert "sampled_users" not in measured(split, "test", eval_users=n).to_dict()


def test_a_sampled_user_is_measured_with_all_targets(log: pl.DataFrame) -> None:
    split = split_temporal(build_sequences(log.sample(fraction=1, shuffle=True, seed=1))[0], 900, 1200, "all")
    everyone, some = measured(split, "test"), measured(split, "test", eval_users=7)
    assert (some.n_users, some.sampled_users) == (7, everyone.n_users)
    assert some.n_targets == int(np.isin(everyone.users, some.users).sum()) > 7


def test_given_candidates_are_those_of_all_users_or_of_the_sample(split: Split) -> None:
    config = EvalConfig(protocol="sampled", n_candidates=5, eval_users=30, filter_seen="no")
    of_all = draw_candidates(split, "test", 5, "train", 0)
    of_some = of_all[split.test.sample(30, config.eval_seed)]
    scorer = LastItem(split.train_parts(), split.train_counts)
    first, second = (
        evaluate(scorer, split, "test", config, candidates=given, lists=False) for given in (of_all, of_some)
    )
    np.testing.assert_array_equal(first.per_user["rank"], second.per_user["rank"])
    with pytest.raises(DataError, match="candidates have shape"):
        evaluate(scorer, split, "test", config, candidates=of_all[:60])


def test_results_of_unequal_samples_are_not_compared(split: Split) -> None:
    everyone, some, others = (measured(split, "test", **s) for s in ({}, {"eval_users": 40}, {"eval_users": 41}))
    for other in (everyone, others):
        with pytest.raises(ConfigError, match=r"n_users|sampled_users"):
            compare(some, other)
    assert "40 users, a sample of 120" in measured_in_words(some)
    assert some.warnings[0] == "40 of 120 users with a target are measured (drawn, eval_seed=42)"


def test_small_logs_are_measured_whole_and_their_settings_say_nothing(log: pl.DataFrame, tmp_path: Path) -> None:
    fit(log, output=tmp_path / "run", **SETTINGS)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert not {"valid_users", "eval_users", "max_steps"} & {*settings["eval"], *settings["train"]}


@pytest.mark.parametrize("method", ["leave_one_out", "temporal", "temporal_by_user"])
def test_baselines_are_counted_once_for_all_that_is_measured_in_the_end(
    log: pl.DataFrame, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    count = LastItem.__init__
    monkeypatch.setattr(LastItem, "__init__", lambda self, *given: made.append(self) or count(self, *given))
    timed = log.with_columns(timestamp=pl.int_range(pl.len()).shuffle(3))
    split = {"split_method": method, "n_validating_users": 20} if method != "leave_one_out" else {}
    recommender = fit(timed, valid_users=15, eval_users=60, **SETTINGS, **split)
    assert len(made) == 1
    apart = [recommender.evaluate(result.split, protocol=result.protocol) for result in recommender.results]
    assert [result.to_dict() for result in apart] == [result.to_dict() for result in recommender.results]


def test_where_there_are_many_items_as_many_users_are_measured_as_a_bound_allows(
    log: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sasrec.fitting.MOST_RANKED", 30 * 50)  # items times users
    recommender = fit(log, output=tmp_path / "run", eval_users=60, **SETTINGS)
    assert (recommender.config.eval.valid_users, recommender.config.eval.eval_users) == (50, 60)
    assert [(r.n_users, r.sampled_users) for r in recommender.results] == [(50, 120), (60, 120), (60, 120)]
    again = sasrec.load(tmp_path / "run")
    assert again.evaluate("valid").to_dict() == recommender.results[0].to_dict()
    assert again.evaluate("test", eval_users=0).n_users == 120
    assert again.evaluate("test").to_dict() == recommender.results[1].to_dict()
    everyone = fit(log, valid_users=0, eval_users=0, **SETTINGS)
    assert [r.n_users for r in everyone.results] == [120] * 3
    assert "60 users, a sample of 120" in (tmp_path / "run" / "report.html").read_text()


def press_ctrl_c(when: Callable[[Progress], bool]) -> Callable[[Progress], None]:
    def watch(shown: Progress) -> None:
        if when(shown):
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def test_ctrl_c_while_measuring_keeps_the_model_and_resuming_measures_it(log: pl.DataFrame, tmp_path: Path) -> None:
    folder, watch = tmp_path / "run", press_ctrl_c(lambda p: p.measured is not None and p.measured[0] == "test, full")
    stopped = fit(log, output=folder, progress=watch, **SETTINGS)
    assert stopped.train_result is not None
    assert (stopped.train_result.stopped, list(stopped.results)) == ("measuring", [])
    assert not (folder / "metrics.json").exists()
    kept = sasrec.load(folder)
    whole = fit(log, **SETTINGS)
    assert kept.recommend_users([1]).equals(whole.recommend_users([1]))
    assert kept.evaluate("test").to_dict() == whole.results[1].to_dict()
    resumed = fit(log, output=folder, resume=True, **SETTINGS)
    assert [r.to_dict() for r in resumed.results] == [r.to_dict() for r in whole.results]


def test_the_command_says_how_to_go_on(log: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_csv(tmp_path / "log.csv")
    calls = iter([False, True])

    def interrupted(model: Recommender, request: Request) -> Result:
        if next(calls, False):
            os.kill(os.getpid(), signal.SIGINT)
        return measure(model, request)

    monkeypatch.setattr("sasrec.fitting.measure", interrupted)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    done = CliRunner().invoke(app, ["train", str(tmp_path / "log.csv"), "-o", str(tmp_path / "run"), *flags])
    assert done.exit_code == 1
    assert "stopped while the model was measured; all work so far is saved" in done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_demo_that_is_stopped_says_so(log: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = fit(log, progress=press_ctrl_c(lambda p: p.measured is not None), **SETTINGS)
    monkeypatch.setattr("sasrec.cli.train.load_log", lambda name: load_log(log))
    monkeypatch.setattr("sasrec.cli.train.fit_log", lambda *given: stopped)
    done = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "run")])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "stopped; run the command again, with --overwrite" in done.stderr


def test_steps_bound_training_and_resuming_with_more_is_as_if_they_had_been_there(
    log: pl.DataFrame, tmp_path: Path
) -> None:
    settings = SETTINGS | {"max_epochs": 3, "patience": 0}  # 4 steps an epoch
    first = fit(log, output=tmp_path / "run", max_steps=6, **settings).train_result
    assert first is not None
    assert (first.stopped, first.epochs, first.best_epoch) == ("max_steps", 1, 1)
    more = fit(log, output=tmp_path / "run", resume=True, **settings).train_result
    whole = fit(log, **settings).train_result
    assert more is not None
    assert whole is not None
    for name, values in whole.weights.items():
        np.testing.assert_array_equal(more.weights[name], values)
    short = fit(log, max_steps=2, **settings).train_result
    assert short is not None
    assert (short.epochs, short.best_epoch) == (0, 0)


def test_a_part_of_the_minutes_is_kept_for_measuring(split: Split) -> None:
    model, train = ModelConfig(embedding_dim=8, n_blocks=1, max_seq_len=8), TrainConfig(max_minutes=10, threads=1)
    engine = create_engine(model, split.sequences.n_items, train)
    loop = _Loop(engine, split, model, train, EvalConfig(), None, None)
    assert 0 < loop._reserve < 1  # a small log
    loop.state = State(n_validations=2, valid_seconds=8)
    assert loop._reserve == MEASURING * 4
    loop.state = replace(loop.state, valid_seconds=2000)
    assert loop._reserve == 400  # two thirds of them


def test_where_a_validation_takes_long_a_few_targets_tell_how_long(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = ModelConfig(embedding_dim=8, n_blocks=1, max_seq_len=8), TrainConfig(max_minutes=10, threads=1)
    engine, rank, asked = create_engine(model, split.sequences.n_items, config), ModelScorer.rank, []

    def slow(self: ModelScorer, histories: Ragged, *given: Any) -> Any:
        asked.append(len(histories))
        time.sleep(0.1)
        return rank(self, histories, *given)

    monkeypatch.setattr(ModelScorer, "rank", slow)
    monkeypatch.setattr("sasrec.training.trainer.LONG_SCORES", 0)
    monkeypatch.setattr("sasrec.training.trainer.FEW_TARGETS", 10)
    loop = _Loop(engine, split, model, config, EvalConfig(), None, None)
    assert loop._reserve == loop._reserve > MEASURING * 0.1 * len(split.valid) / 10
    assert asked == [1, 10]
    assert loop._reserve < 400


def test_the_time_that_reading_took_is_part_of_the_minutes(split: Split) -> None:
    model, config = ModelConfig(embedding_dim=8, n_blocks=1, max_seq_len=8), TrainConfig(max_minutes=10, threads=1)
    engine = create_engine(model, split.sequences.n_items, config)
    ended = train(engine, split, model, config, EvalConfig(), spent=601.0)
    assert (ended.stopped, ended.epochs, ended.best_epoch) == ("max_minutes", 0, 0)
    fitted = fit_log(
        Log(split.sequences, Vocabulary(pl.Series(range(1, split.sequences.n_items + 1))), "made"),
        FitOptions(began=time.monotonic() - 601),
        SETTINGS | {"max_minutes": 10},
    ).train_result
    assert fitted is not None
    assert fitted.stopped == "max_minutes"
    assert fitted.epochs == 0

"""A run by temporal_by_user from the log to figures: what its results tell, and which may stand beside each other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import make_markov_log
from made import SETTINGS
from typer.testing import CliRunner

import sasrec
from sasrec.cli.main import app
from sasrec.core.errors import ConfigError
from sasrec.data.logs import load_log
from sasrec.evaluation.comparison import compare
from sasrec.evaluation.results import Result
from sasrec.experiments.grid import Grid, lines_of, run_benchmark
from sasrec.fitting import FitOptions
from sasrec.recommender import Recommender
from sasrec.report.text import measured_in_words
from sasrec.runs.folder import RunFolder

BY_USER: dict[str, Any] = {
    **SETTINGS, "split_method": "temporal_by_user", "temporal_targets": "last", "n_validating_users": 20,
    "filter_seen": "no",
}  # fmt: skip


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """Users who begin one after the other: at the cut some have ended, and some have not begun."""
    events = make_markov_log(120)
    return events.with_columns(timestamp=5 * pl.col("user_id") + 20 * pl.int_range(pl.len()).over("user_id"))


@pytest.fixture(scope="module")
def run(log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "by-user"
    sasrec.fit(log, output=folder, **BY_USER)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Recommender:
    return sasrec.load(run)


def test_results_carry_the_cut_and_which_events_are_targets(log: pl.DataFrame, model: Recommender) -> None:
    cut = log.filter(pl.col("timestamp") > log["timestamp"].quantile(0.9, "linear"))["timestamp"].min()
    test, valid = model.evaluate("test"), model.evaluate("valid")
    assert (test.cut, test.temporal_targets, test.split_method) == (cut, "last", "temporal_by_user")
    assert test.to_dict()["cut"] == cut
    after = log.group_by("user_id").agg(pl.col("timestamp").max()).filter(pl.col("timestamp") >= cut)
    assert test.n_users == len(after)
    assert (valid.n_users, valid.sampled_users) == (20, 120)
    assert f"test (temporal by user, cut at {cut}, last events), full protocol" in measured_in_words(test)
    assert "20 users, a sample of 120" in measured_in_words(valid)


def test_saved_results_are_read_with_their_cut(run: Path, model: Recommender) -> None:
    results = RunFolder(run).load_metrics()
    assert {(result.split, result.cut) for result in results} == {(s, model.evaluate(s).cut) for s in ("valid", "test")}
    assert all(isinstance(result.cut, int) for result in results)
    assert model.evaluate("test").metrics in [result.metrics for result in results]


def test_other_splits_tell_no_cut(log: pl.DataFrame) -> None:
    plain = sasrec.fit(log, **SETTINGS).evaluate("test")
    assert not {"cut", "temporal_targets"} & set(plain.to_dict())
    temporal = sasrec.fit(log, **SETTINGS, split_method="temporal").evaluate("test")
    assert not {"cut", "temporal_targets"} & set(temporal.to_dict())


def test_other_validating_users_measure_the_same_test(model: Recommender) -> None:
    own, other = model.evaluate("test"), model.evaluate("test", eval_seed=7, n_validating_users=5)
    assert other.metrics == own.metrics
    with pytest.raises(ConfigError, match="was trained on"):
        model.evaluate("valid", eval_seed=7)


def test_another_cut_or_split_is_refused(model: Recommender) -> None:
    with pytest.raises(ConfigError, match="was trained on"):
        model.evaluate("test", test_fraction=0.3)
    later = model.evaluate("test", test_fraction=0.05)
    with pytest.raises(ConfigError, match="differ in n_users"):
        compare(model.evaluate("test"), later)


def with_other_cut(result: Result) -> Result:
    assert result.cut is not None
    return replace(result, cut=result.cut + 1)


def test_results_of_different_cuts_and_targets_are_not_compared(model: Recommender) -> None:
    result = model.evaluate("test")
    with pytest.raises(ConfigError, match="differ in cut"):
        compare(result, with_other_cut(result))
    first = model.evaluate("test", temporal_targets="first")
    assert first.n_users == result.n_users
    with pytest.raises(ConfigError, match="differ in temporal_targets"):
        compare(result, first)


def test_results_of_other_validating_users_are_not_compared(log: pl.DataFrame, model: Recommender) -> None:
    other = sasrec.fit(log, **BY_USER, eval_seed=7)
    assert other.evaluate("valid").n_users == model.evaluate("valid").n_users
    with pytest.raises(ConfigError, match="different users"):
        compare(model.evaluate("valid"), other.evaluate("valid"))
    assert compare(model.evaluate("test"), other.evaluate("test")).n_users == model.evaluate("test").n_users


def test_results_of_other_samples_of_users_are_not_compared(model: Recommender) -> None:
    samples = [model.evaluate("test", eval_users=30, eval_seed=seed) for seed in (1, 2, 1)]
    assert samples[0].n_users == samples[1].n_users == 30
    with pytest.raises(ConfigError, match="of different users, so they cannot be paired"):
        compare(samples[0], samples[1])
    assert compare(samples[0], samples[2]).metrics["ndcg@10"]["difference"] == 0


def test_a_sample_of_validating_users_is_one_of_all_who_may(model: Recommender) -> None:
    some = model.evaluate("valid", valid_users=7)
    assert (some.n_users, some.sampled_users) == (7, 120)


def test_the_model_is_trained_on_all_events_and_recommends_to_validating_users(log: pl.DataFrame) -> None:
    refitted = sasrec.fit(log, **BY_USER, refit=True)
    assert refitted.recommend_users([1, 60, 120], k=3)["user_id"].to_list() == [1] * 3 + [60] * 3 + [120] * 3
    with pytest.raises(ConfigError, match="trained again on all events"):
        refitted.evaluate("test")


def test_a_prepared_log_and_a_bound_of_memory_give_the_same_run(log: pl.DataFrame, tmp_path: Path, run: Path) -> None:
    log.write_csv(tmp_path / "log.csv")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in BY_USER.items()]
    for command in (
        ["prepare", str(tmp_path / "log.csv"), "--memory", "4GB", "--output", str(tmp_path / "prepared")],
        ["train", str(tmp_path / "prepared"), *flags, "--output", str(tmp_path / "run")],
        ["evaluate", str(tmp_path / "run"), "--json"],
    ):
        done = CliRunner().invoke(app, ["-q", *command])
        assert done.exit_code == 0, done.output
    assert '"cut": ' in done.output
    assert sasrec.load(tmp_path / "run").evaluate("test").metrics == sasrec.load(run).evaluate("test").metrics


def test_a_newer_log_is_measured_where_the_model_has_not_seen_it(log: pl.DataFrame, model: Recommender) -> None:
    newer = pl.concat([log, log.with_columns(pl.col("timestamp") + 10_000)])
    result = model.evaluate("test", log=newer)
    assert result.cut is not None
    assert result.cut > log["timestamp"].max()
    assert result.init_seen_targets == 0


def test_a_benchmark_tells_how_the_log_was_cut(log: pl.DataFrame, tmp_path: Path) -> None:
    settings = {name: value for name, value in BY_USER.items() if name != "split_method"}
    grid = Grid(("paper",), ("temporal_by_user",), ("full",), (0,))
    assert run_benchmark(load_log(log), grid, FitOptions(output=tmp_path / "bench"), settings)
    line = next(line for line in lines_of(tmp_path / "bench", grid) if line.split == "test")
    told = {"temporal_targets": "last", "n_validating_users": 20, "eval_seed": 42, "test_fraction": 0.1, "test_cut": 0}
    assert line.origin.settings.items() >= told.items()

"""A model is measured on its own log, and on another one beside other models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log
from made import SETTINGS

import sasrec
from sasrec.core.errors import CheckpointError, ConfigError, DataError
from sasrec.recommender import Recommender

LOG = make_markov_log(120, 30)
OLD = LOG.group_by("user_id", maintain_order=True).head(9).filter(pl.col("item_id") != 7)
AGAIN: dict[str, Any] = {**SETTINGS, "filter_seen": "yes", "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def old() -> Recommender:
    return sasrec.fit(OLD, **AGAIN)


@pytest.fixture(scope="module")
def new(old: Recommender) -> Recommender:
    return sasrec.fit(LOG, init=old, **AGAIN)


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_on_its_own_log_given_again_a_model_has_the_same_figures(old: Recommender, protocol: str) -> None:
    own, given = (old.evaluate(log=log, protocol=protocol) for log in (None, OLD))
    assert given.to_dict() == own.to_dict()
    np.testing.assert_array_equal(given.per_user["rank"], own.per_user["rank"])


def test_targets_that_a_model_does_not_know_are_misses_and_are_counted(old: Recommender) -> None:
    result = old.evaluate(log=LOG)
    targets = LOG.group_by("user_id", maintain_order=True).last().sort("user_id")["item_id"].to_numpy()
    unknown = targets == 7
    assert result.unknown_targets == unknown.sum() > 0
    assert np.isinf(result.per_user["rank"][unknown]).all()
    assert np.isfinite(result.per_user["rank"][~unknown]).all()
    assert result.per_user["ndcg@10"][unknown].max() == 0
    assert result.n_targets == 120
    assert f"{result.unknown_targets} of 120 targets are items that the model does not know" in result.warnings[-1]
    assert result.to_dict()["unknown_targets"] == result.unknown_targets


def test_a_log_as_a_file_and_as_a_frame_give_the_same(old: Recommender, tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    assert old.evaluate(log=tmp_path / "log.csv") == old.evaluate(log=LOG)


def test_old_and_new_are_compared_on_the_same_targets(old: Recommender, new: Recommender) -> None:
    a, b = old.evaluate(log=LOG, unseen_by=[new]), new.evaluate(log=LOG, unseen_by=[old])
    assert sasrec.compare(a, b).n_users == 120
    assert a.candidates == b.candidates == "all 30 items"
    assert b.unknown_targets == 0
    assert b.metrics == new.evaluate().metrics


def test_what_either_model_was_trained_on_is_a_target_of_none(old: Recommender) -> None:
    refit = sasrec.fit(OLD, refit=True, **AGAIN)
    grown = pl.concat([OLD, LOG.filter(pl.col("user_id") <= 40).group_by("user_id", maintain_order=True).tail(3)])
    alone = refit.evaluate(log=grown)
    assert alone.n_targets == 40
    assert alone.init_seen_targets == 80
    assert "80 targets are left out" in " ".join(alone.warnings)
    other = old.evaluate(log=grown)
    assert other.n_targets == 120
    assert "init_seen_targets" not in other.to_dict()
    with pytest.raises(ConfigError, match="differ in n_users"):
        sasrec.compare(alone, other)
    beside = old.evaluate(log=grown, unseen_by=[refit])
    np.testing.assert_array_equal(beside.users, alone.users)
    with pytest.raises(DataError, match="all 120 test targets are events that the model, or the one it began from"):
        refit.evaluate(log=OLD)


def test_a_model_without_histories_is_measured_unchecked(old: Recommender, tmp_path: Path) -> None:
    old.save(tmp_path / "run", histories=False)
    bare = sasrec.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"saved without histories .* give a log to measure it on"):
        bare.evaluate()
    result = bare.evaluate(log=OLD)
    assert result.init_unchecked
    assert result.metrics == old.evaluate().metrics
    assert "a run has no histories" in result.warnings[-1]
    assert old.evaluate(log=OLD, unseen_by=[bare]).init_unchecked


def test_bad_logs_are_refused(old: Recommender) -> None:
    with pytest.raises(ConfigError, match=r"none of the model's \d+ items .* the log's are such as 'sku-1'"):
        old.evaluate(log=LOG.with_columns(pl.format("sku-{}", "item_id").alias("item_id")))
    with pytest.raises(ConfigError, match="unseen_by is for targets of another log"):
        old.evaluate(unseen_by=[old])
    with pytest.raises(DataError, match="none of the 120 users has 3 events"):
        old.evaluate(log=LOG.group_by("user_id").head(2))
    with pytest.raises(ConfigError, match="unknown setting 'wings'"):
        old.evaluate(log=LOG, wings=2)


def test_what_a_model_knows_from_the_one_it_began_from_stays_left_out(old: Recommender, tmp_path: Path) -> None:
    refit = sasrec.fit(OLD, refit=True, **AGAIN)
    grown = pl.concat([OLD, LOG.filter(pl.col("user_id") <= 40).group_by("user_id", maintain_order=True).tail(3)])
    begun = sasrec.fit(grown, init=refit, output=tmp_path / "run", **AGAIN)
    assert [result.init_seen_targets for result in begun.results] == [80, 80, 80]
    assert begun.train_result is not None
    loaded = sasrec.load(tmp_path / "run")
    for model in (begun, loaded):
        for result in begun.results:
            assert model.evaluate(result.split, protocol=result.protocol).to_dict() == result.to_dict()
    assert loaded.results == begun.results
    assert begun.train_result.valid["ndcg@10"] == begun.results[0].metrics["ndcg@10"]["value"]
    third = sasrec.fit(grown, init=loaded, **AGAIN)
    assert [result.init_seen_targets for result in third.results] == [80, 80, 80]
    log_only = sasrec.fit(tmp_path / "run", **AGAIN)  # the folder as a log: training that begins anew has seen nothing
    assert log_only.results[0].init_seen_targets == 0


def test_results_tell_of_other_models_only_where_there_is_something_to_tell(old: Recommender) -> None:
    told = {"init_seen_targets", "init_unchecked", "unknown_targets"}
    assert not told & set(old.evaluate().to_dict())
    assert told <= set(replace(old.evaluate(), init_seen_targets=1, init_unchecked=True, unknown_targets=2).to_dict())

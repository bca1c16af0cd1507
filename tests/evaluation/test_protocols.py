"""Protocols, metrics, baselines and comparisons: by hand, by closed form, by ranx and ir-measures."""

import json
import logging
import math
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import Table, make_split, random_histories, train_of
from numpy.typing import NDArray

from sasrec.core.config import EvalConfig, Protocol
from sasrec.core.errors import ConfigError, DataError
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import Split, split_leave_one_out, split_temporal
from sasrec.data.targets import Targets
from sasrec.data.vocabulary import Vocabulary
from sasrec.evaluation.candidates import draw_candidates, read_candidates
from sasrec.evaluation.protocols import evaluate, rank_metrics
from sasrec.evaluation.results import Result
from sasrec.ranking.scorers import (
    Baselines,
    LastItem,
    ModelScorer,
    Popularity,
    Ranker,
    Recency,
    Scorer,
    SharedFeatures,
)
from sasrec.report.text import metrics_table

PARTS = ("valid", "test")


class FakeEngine:
    """Features of a history are the sum of its items' embeddings: all that evaluation needs of an engine."""

    def __init__(self, n_items: int, dim: int = 8, seed: int = 0) -> None:
        self.table = np.random.default_rng(seed).standard_normal((n_items + 1, dim)).astype(np.float32)
        self.seen_lengths: list[int] = []
        self.threads, self.index_device = 1, ""

    def encode(self, histories: Ragged) -> NDArray[np.float32]:
        self.seen_lengths += histories.lengths.tolist()
        return np.add.reduceat(self.table[histories.values], histories.offsets[:-1], axis=0)

    def item_table(self) -> NDArray[np.float32]:
        return self.table


def model(split: Split, seed: int = 0) -> ModelScorer:
    engine: Any = FakeEngine(split.sequences.n_items, seed=seed)
    return ModelScorer(engine, 50)


SPLIT, VOCABULARY = make_split(random_histories(0, 60, 40))


# Metrics


def test_metrics_of_ranks_by_hand() -> None:
    metrics = rank_metrics(np.array([1.0, 2.0, 3.0, 5.0, 6.0]), [1, 5])
    assert metrics["ndcg@5"].tolist() == pytest.approx([1, 1 / math.log2(3), 0.5, 1 / math.log2(6), 0])
    assert metrics["hr@5"].tolist() == [1, 1, 1, 1, 0]
    assert metrics["mrr@5"].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 5, 0])
    assert metrics["ndcg@1"].tolist() == metrics["hr@1"].tolist() == metrics["mrr@1"].tolist() == [1, 0, 0, 0, 0]


def test_a_rank_between_two_places_is_beyond_the_cut_off_when_it_exceeds_it() -> None:
    metrics = rank_metrics(np.array([9.5, 10.5]), [10])
    assert metrics["hr@10"].tolist() == [1, 0]
    assert metrics["ndcg@10"].tolist() == pytest.approx([1 / math.log2(10.5), 0])


def runs_of(table: NDArray[np.float32], targets: NDArray[np.int32]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Judgements and scores by user and item, as the metric libraries take them."""
    qrels = {str(u): {str(t): 1} for u, t in enumerate(targets.tolist())}
    run = {str(u): {str(i): float(s) for i, s in enumerate(row.tolist()) if i} for u, row in enumerate(table)}
    return qrels, run


def test_full_metrics_equal_ir_measures() -> None:
    ir_measures = pytest.importorskip("ir_measures", reason="needs the test extra ir-measures")
    table = np.random.default_rng(3).standard_normal((len(SPLIT.test), SPLIT.sequences.n_items + 1)).astype(np.float32)
    config = EvalConfig(k=(1, 5, 10), filter_seen="no")
    ours = evaluate(Table(table), SPLIT, "test", config, baselines=False)
    qrels, run = runs_of(table, SPLIT.test.items(SPLIT.sequences))
    for k in config.k:
        measures = {
            "ndcg": ir_measures.nDCG @ k, "hr": ir_measures.Success @ k, "mrr": ir_measures.RR @ k
        }  # fmt: skip
        theirs = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
        for name, measure in measures.items():
            assert ours.metrics[f"{name}@{k}"]["value"] == pytest.approx(theirs[measure], abs=1e-9)


def test_full_metrics_equal_ranx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes half a minute, the few users here no time
    with warnings.catch_warnings():  # what its dependencies warn of is not ours
        warnings.simplefilter("ignore")
        ranx = pytest.importorskip("ranx", reason="needs the test extra ranx")
        table = np.random.default_rng(4).standard_normal((len(SPLIT.test), SPLIT.sequences.n_items + 1))
        table = table.astype(np.float32)
        qrels, run = runs_of(table, SPLIT.test.items(SPLIT.sequences))
        theirs = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), ["ndcg@10", "hit_rate@10", "mrr@10"])
    ours = evaluate(Table(table), SPLIT, "test", EvalConfig(filter_seen="no"), baselines=False)
    for name, theirs_name in (("ndcg@10", "ndcg@10"), ("hr@10", "hit_rate@10"), ("mrr@10", "mrr@10")):
        assert ours.metrics[name]["value"] == pytest.approx(theirs[theirs_name], abs=1e-9)


# Closed forms


@pytest.mark.parametrize("part", PARTS)
def test_a_random_scorer_has_its_closed_form_under_the_full_protocol(part: str) -> None:
    rng = np.random.default_rng(11)
    split, _ = make_split(random_histories(1, 4000, 60, 20))
    table = rng.random((len(split.part(part)), split.sequences.n_items + 1), np.float32)
    result = evaluate(Table(table), split, part, EvalConfig(k=(5, 10)), baselines=False)
    n_candidates = split.sequences.n_items - split.part(part).histories(split.sequences).lengths
    assert result.filter_seen
    for k in (5, 10):
        gains = 1 / np.log2(1 + np.arange(1, k + 1))
        expected = {"hr": (np.minimum(k, n_candidates) / n_candidates).mean()}
        expected["ndcg"] = np.mean([gains[:c].sum() / c for c in n_candidates.tolist()])
        for name, value in expected.items():
            ours = result.metrics[f"{name}@{k}"]
            assert abs(ours["value"] - value) < 4 * (ours["stderr"] or 0)


@pytest.mark.parametrize("part", PARTS)
def test_a_random_scorer_has_its_closed_form_under_the_sampled_protocol(part: str) -> None:
    class RandomScorer:
        name = "random"
        rng = np.random.default_rng(12)

        def scores(self, histories: Ragged) -> NDArray[np.float32]:
            raise AssertionError("the sampled protocol needs no scores of all items")

        def candidate_scores(self, histories: Ragged, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
            return self.rng.random(candidates.shape, np.float32)

    split, _ = make_split(random_histories(2, 4000, 300, 20))
    config = EvalConfig(protocol="sampled", k=(10,), exclude="all")
    result = evaluate(RandomScorer(), split, part, config, baselines=False)
    expected = {"hr@10": 10 / 101, "ndcg@10": (1 / np.log2(1 + np.arange(1, 11))).sum() / 101}
    for name, value in expected.items():
        assert abs(result.metrics[name]["value"] - value) < 4 * (result.metrics[name]["stderr"] or 0)


def test_a_constant_scorer_is_in_the_middle_by_expected_ties_and_perfect_by_strict_ones() -> None:
    table = np.zeros((len(SPLIT.test), SPLIT.sequences.n_items + 1), np.float32)
    config = EvalConfig(filter_seen="no", k=(10,))
    middle = evaluate(Table(table), SPLIT, "test", config, baselines=False)
    assert set(middle.per_user["rank"]) == {(SPLIT.sequences.n_items + 1) / 2}
    assert evaluate(Table(table), SPLIT, "test", replace(config, ties="strict")).metrics["hr@10"]["value"] == 1
    assert evaluate(Table(table), SPLIT, "test", replace(config, ties="pessimistic")).metrics["hr@10"]["value"] == 0


# Protocols


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("hide", [True, False])
def test_full_ranks_equal_a_plain_loop_over_users(part: str, hide: bool) -> None:
    scorer = model(SPLIT)
    config = EvalConfig(filter_seen="yes" if hide else "no")
    ranks = evaluate(scorer, SPLIT, part, config, baselines=False).per_user["rank"]
    sequences, targets = SPLIT.sequences, SPLIT.part(part)
    for row, (user, position) in enumerate(zip(targets.users, targets.positions, strict=True)):
        history = sequences.items[sequences.offsets[user] : position].tolist()
        scores = scorer.scores(Ragged.from_lists([history]))[0]
        target = int(sequences.items[position])
        gone = set(history) if hide else set()
        others = [i for i in range(1, sequences.n_items + 1) if i != target and i not in gone]
        assert ranks[row] == 1 + sum(scores[i] > scores[target] for i in others)


def test_on_valid_the_test_item_stays_a_candidate_and_on_test_the_valid_item_does_not() -> None:
    split, _ = make_split([[1, 2, 3], [3, 1, 2], [2, 3, 4]])
    table = np.tile(np.array([0, 1, 2, 3, 0], np.float32), (3, 1))
    config = EvalConfig(filter_seen="yes")
    assert evaluate(Table(table), split, "valid", config, baselines=False).per_user["rank"].tolist() == [2, 2, 1]
    assert evaluate(Table(table), split, "test", config, baselines=False).per_user["rank"].tolist() == [1, 1, 2]


def test_the_whole_history_is_hidden_though_the_model_sees_only_its_end() -> None:
    split, _ = make_split([[1, 2, 3, 4, 5, 6], [6, 5, 4]])
    engine: Any = FakeEngine(split.sequences.n_items)
    scorer = ModelScorer(engine, 2)
    table = np.tile(np.array([0, 9, 8, 7, 6, 5, 1], np.float32), (2, 1))
    ranks = evaluate(Table(table), split, "test", EvalConfig(filter_seen="yes"), baselines=False).per_user["rank"]
    assert ranks.tolist() == [1, 4]
    evaluate(scorer, split, "test", EvalConfig(), baselines=False)
    assert set(engine.seen_lengths) == {2}


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_results_do_not_depend_on_the_batch_size(protocol: Protocol) -> None:
    config = EvalConfig(protocol=protocol, k=(1, 10))
    whole = evaluate(model(SPLIT), SPLIT, "test", config)
    small = evaluate(model(SPLIT), SPLIT, "test", config, batch_size=7)
    assert np.array_equal(whole.per_user["rank"], small.per_user["rank"])
    assert whole == small


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_permuting_users_permutes_results(protocol: Protocol) -> None:
    histories = random_histories(5, 50, 30)
    order = np.random.default_rng(0).permutation(len(histories))
    split, _ = make_split(histories)
    permuted, _ = make_split([histories[i] for i in order])
    config = EvalConfig(protocol=protocol, k=(3, 10))
    drawn = draw_candidates(split, "test", 20, "train", 1) if protocol == "sampled" else None
    result = evaluate(model(split), split, "test", config, candidates=drawn)
    other = evaluate(model(permuted), permuted, "test", config, candidates=None if drawn is None else drawn[order])
    for name, values in result.per_user.items():
        assert np.array_equal(other.per_user[name], values[order])
    for metrics, permuted_metrics in ((result.metrics, other.metrics), *zip_baselines(result, other)):
        for name, value in metrics.items():
            assert permuted_metrics[name]["value"] == pytest.approx(value["value"], rel=1e-12)


def zip_baselines(a: Result, b: Result) -> list[tuple[Any, Any]]:
    assert list(a.baselines) == list(b.baselines)
    return [(a.baselines[name], b.baselines[name]) for name in a.baselines]


def test_several_targets_of_a_user_are_all_ranked_with_their_own_histories() -> None:
    log = pl.DataFrame(
        {"user_id": [1] * 5 + [2] * 4, "item_id": [1, 2, 3, 4, 5, 5, 4, 3, 2], "timestamp": [1, 2, 3, 4, 5, 1, 2, 4, 5]}
    )
    sequences, _ = build_sequences(log)
    split = split_temporal(sequences, 3, 4, "all")
    table = np.tile(np.array([0, 5, 4, 3, 2, 1], np.float32), (4, 1))
    result = evaluate(Table(table), split, "test", EvalConfig(split_method="temporal", filter_seen="yes"))
    assert (result.n_users, result.n_targets) == (2, 4)
    assert result.per_user["rank"].tolist() == [1, 1, 3, 2]


def test_the_result_carries_its_protocol() -> None:
    result = evaluate(model(SPLIT), SPLIT, "valid", EvalConfig(protocol="sampled", eval_seed=7, n_candidates=9))
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["split"] == "valid"
    assert values["protocol"] == "sampled"
    assert values["candidates"] == "the target and 9 items drawn uniformly with replacement"
    assert values["excluded"] == "the user's train items"
    assert (values["ties"], values["seed"], values["n_users"]) == ("expected", 7, len(SPLIT.valid))
    assert set(values["metrics"]) == {"ndcg@10", "hr@10", "mrr@10"}
    assert set(values["metrics"]["ndcg@10"]) == {"value", "stderr", "low", "high"}
    assert set(values["baselines"]) == {"popularity", "last_item"}
    assert set(values["baselines"]["popularity"]) == {"ndcg@10", "hr@10", "mrr@10"}
    assert msgspec.convert(values, Result) == result
    full = evaluate(model(SPLIT), SPLIT, "test", EvalConfig(k=(5, 10)))
    assert full.seed is None
    assert full.candidates == f"all {SPLIT.sequences.n_items} items"
    assert full.excluded.startswith("the user's items before the target")
    of_lists = {"coverage", "gini", "popularity", "popularity_lift", "novelty", "serendipity"}
    assert set(full.metrics) == {f"{name}@{k}" for k in (5, 10) for name in {"ndcg", "hr", "mrr"} | of_lists}
    assert set(full.baselines["last_item"]) == set(full.metrics)


def test_lists_and_baselines_can_be_left_out() -> None:
    result = evaluate(model(SPLIT), SPLIT, "test", EvalConfig(), baselines=False, lists=False)
    assert set(result.metrics) == {"ndcg@10", "hr@10", "mrr@10"}
    assert result.baselines == {}
    own: list[Scorer] = [Popularity(SPLIT.train_counts)]
    assert list(evaluate(model(SPLIT), SPLIT, "test", EvalConfig(), baselines=own).baselines) == ["popularity"]


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_a_cut_off_beyond_all_items_counts_every_target(protocol: Protocol) -> None:
    metrics = evaluate(model(SPLIT), SPLIT, "test", EvalConfig(protocol=protocol, k=(2**31 - 1,))).metrics
    assert metrics["hr@2147483647"]["value"] == 1


def test_progress_counts_the_targets_of_the_scorer_and_of_its_baselines() -> None:
    def calls(baselines: bool) -> list[tuple[int, int]]:
        told: list[tuple[int, int]] = []
        settings = {"batch_size": 50, "baselines": baselines, "progress": lambda *done: told.append(done)}
        evaluate(model(SPLIT), SPLIT, "test", EvalConfig(), **settings)
        return told

    assert calls(baselines=False) == [(50, 61), (61, 61)]
    assert calls(baselines=True) == [(n, 183) for n in (50, 61, 111, 122, 172, 183)]


def test_cold_targets_count_and_are_reported() -> None:
    split, _ = make_split([[1, 2, 3], [2, 1, 4], [1, 2, 2]])
    result = evaluate(model(split), split, "test", EvalConfig(filter_seen="no"))
    assert (result.n_cold, result.cold_share) == (2, pytest.approx(2 / 3))
    assert "2 of 3 targets (66.7%) never occur in train" in result.warnings
    assert any("only 3 users" in w for w in result.warnings)


def test_warm_and_cold_targets_are_reported_apart() -> None:
    split, _ = make_split([[1, 2, 3], [2, 1, 4], [1, 2, 2], [2, 1, 1], [1, 2, 1]])
    result = evaluate(model(split), split, "test", EvalConfig(filter_seen="no", k=(2,)))
    ranks, cold = result.per_user["rank"], np.array([True, True, False, False, False])
    assert {name: group["n_targets"] for name, group in result.groups.items()} == {"warm": 3, "cold": 2}
    for name, rows in (("warm", ~cold), ("cold", cold)):
        group = result.groups[name]
        assert group["metrics"]["hr@2"]["value"] == pytest.approx((ranks[rows] <= 2).mean())
        assert group["metrics"].keys() == {"hr@2", "ndcg@2", "mrr@2"}
        assert group["baselines"].keys() == result.baselines.keys()
    together = sum(group["n_targets"] * group["metrics"]["ndcg@2"]["value"] for group in result.groups.values())
    assert together / 5 == pytest.approx(result.metrics["ndcg@2"]["value"])
    popularity = [result.groups[name]["baselines"]["popularity"]["hr@2"]["value"] for name in ("warm", "cold")]
    assert popularity == [1, 0]
    assert result.to_dict()["groups"] == result.groups
    text = metrics_table([result])
    assert "NDCG@2 warm (3 targets)" in text
    assert "HR@2 cold (2 targets)" in text


def test_where_all_targets_are_warm_there_are_no_groups() -> None:
    result = evaluate(model(SPLIT), SPLIT, "test", EvalConfig())
    assert result.groups == {}
    assert "groups" not in result.to_dict()
    split, _ = make_split([[1, 2, 3], [2, 1, 4]])
    assert evaluate(model(split), split, "test", EvalConfig()).groups.keys() == {"cold"}


def test_repeats_decide_by_themselves_whether_seen_items_are_hidden() -> None:
    split, _ = make_split([[1, 1, 2, 1, 1], [2, 2, 1, 2, 3], [3, 3, 3, 1, 2]])
    result = evaluate(model(split), split, "test", EvalConfig())
    assert not result.filter_seen
    assert result.excluded == "nothing"
    assert set(result.baselines) == {"popularity", "last_item", "recency"}
    assert any("seen items stay candidates" in w for w in result.warnings)
    assert evaluate(model(split), split, "test", EvalConfig(filter_seen="yes")).filter_seen


# Logs at the edge


@pytest.mark.parametrize("protocol", ["full", "sampled"])
@pytest.mark.parametrize(
    "histories",
    [
        [[1, 1, 1], [1, 1, 1, 1]],
        [[1, 2, 3, 4]],
        [[1, 2, 3], [3, 2, 1], [2, 1, 3], [1, 2, 3, 1, 2, 3]],
        [[1, 2, 3]] * 3,
    ],
    ids=["one item", "one user", "everything seen", "all the same"],
)
@pytest.mark.parametrize("exclude", ["train", "all"])
@pytest.mark.parametrize("filter_seen", ["yes", "no", "auto"])
def test_small_logs_neither_hang_nor_fail(
    protocol: Protocol, histories: list[list[int]], exclude: Any, filter_seen: Any
) -> None:
    split, _ = make_split(histories)
    config = EvalConfig(protocol=protocol, exclude=exclude, filter_seen=filter_seen, k=(1, 10))
    for part in PARTS:
        result = evaluate(model(split), split, part, config)
        assert result.n_users == len(histories)
        assert 0 <= result.metrics["hr@10"]["value"] <= 1
        json.dumps(result.to_dict(), allow_nan=False)


def test_one_user_has_no_interval() -> None:
    split, _ = make_split([[1, 2, 3, 4]])
    metric = evaluate(model(split), split, "test", EvalConfig()).metrics["ndcg@10"]
    assert metric["stderr"] is metric["low"] is metric["high"] is None


def test_a_split_without_targets_is_an_error() -> None:
    with pytest.raises(DataError, match="no test targets"):
        evaluate(model(SPLIT), SPLIT.all_events(), "test", EvalConfig())
    with pytest.raises(ConfigError, match="'train' is not one of"):
        evaluate(model(SPLIT), SPLIT, "train", EvalConfig())


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_scores_that_are_not_finite_stop_the_evaluation(protocol: Protocol) -> None:
    scorer = model(SPLIT)
    scorer.table[5] = np.nan
    with pytest.raises(DataError, match="finite"):
        evaluate(scorer, SPLIT, "test", EvalConfig(protocol=protocol, n_candidates=1000), baselines=False)


def test_a_scorer_without_a_padding_column_is_told_so() -> None:
    table = np.zeros((len(SPLIT.test), SPLIT.sequences.n_items), np.float32)
    with pytest.raises(DataError, match=r"scorer 'table' returned scores of shape \(61, 40\) in place of \(61, 41\)"):
        evaluate(Table(table), SPLIT, "test", EvalConfig())


def test_the_model_scores_candidates_as_it_scores_all_items() -> None:
    scorer = model(SPLIT)
    histories = SPLIT.test.histories(SPLIT.sequences)
    candidates = draw_candidates(SPLIT, "test", 400, "train", 0)
    everything = np.take_along_axis(scorer.scores(histories), candidates, axis=1)
    assert scorer.candidate_scores(histories, candidates) == pytest.approx(everything, abs=1e-5)


# Candidates


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("exclude", ["train", "all"])
def test_candidates_are_drawn_outside_what_is_excluded(part: str, exclude: Any) -> None:
    drawn = draw_candidates(SPLIT, part, 300, exclude, 3)
    sequences, targets = SPLIT.sequences, SPLIT.part(part)
    assert drawn.dtype == np.int32
    assert drawn.shape == (len(targets), 301)
    assert np.array_equal(drawn[:, 0], targets.items(sequences))
    for row, user in zip(drawn, targets.users.tolist(), strict=True):
        end = SPLIT.train_ends[user] if exclude == "train" else sequences.offsets[user + 1]
        excluded = set(sequences.items[sequences.offsets[user] : end].tolist())
        outside = set(range(1, sequences.n_items + 1)) - excluded
        assert set(row[1:].tolist()) <= (outside or set(range(1, sequences.n_items + 1)))


def test_draws_are_uniform_and_with_replacement() -> None:
    split, _ = make_split([[1, 2, 3, 4], list(range(1, 21))])
    drawn = draw_candidates(split, "test", 20_000, "train", 0)[0, 1:]
    counts = np.bincount(drawn, minlength=21)[1:]
    assert counts[:2].tolist() == [0, 0]
    expected = 20_000 / 18
    assert ((counts[2:] - expected) ** 2 / expected).sum() < 45  # chi squared, 17 degrees of freedom: p > 1e-4


def test_draws_are_decided_by_the_seed_and_the_part() -> None:
    first = draw_candidates(SPLIT, "test", 50, "train", 1)
    assert np.array_equal(first, draw_candidates(SPLIT, "test", 50, "train", 1))
    assert not np.array_equal(first, draw_candidates(SPLIT, "test", 50, "train", 2))
    assert not np.array_equal(first[:, 1:], draw_candidates(SPLIT, "valid", 50, "train", 1)[:, 1:])


def test_a_user_who_has_every_item_gets_any() -> None:
    split, _ = make_split([[1, 2, 3, 1, 2], [1, 2, 3]])
    drawn = draw_candidates(split, "test", 200, "train", 0)
    assert set(drawn[0, 1:].tolist()) == {1, 2, 3}
    assert set(drawn[1, 1:].tolist()) == {2, 3}


def write_candidates(folder: Path, **arrays: Any) -> Path:
    path = folder / "candidates.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("as_text", [False, True])
def test_candidate_files_hold_item_ids(tmp_path: Path, as_text: bool) -> None:
    log = pl.DataFrame({"user_id": [7] * 4 + [9] * 3, "item_id": [30, 10, 20, 40, 40, 30, 10]})
    if as_text:
        log = log.with_columns(pl.format("i{}", "item_id").alias("item_id"))
    sequences, vocabulary = build_sequences(log)
    split = split_leave_one_out(sequences)
    ids = np.array([[40, 10, 10], [10, 20, 30]])
    ids = np.char.add("i", ids.astype(str)) if as_text else ids.astype(np.int16)
    path = write_candidates(tmp_path, test=ids)
    assert read_candidates(path, "test", split, vocabulary).tolist() == [[4, 1, 1], [1, 2, 3]]
    with pytest.raises(DataError, match="has no array 'valid'; its arrays: test"):
        read_candidates(path, "valid", split, vocabulary)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ([[4, 1, 1]], r"has shape \(1, 3\); it needs \(2, 1 \+ n\).*ascending order of user id.*min_items"),
        ([[4], [1]], r"has shape \(2, 1\)"),
        ([4, 1], r"has shape \(2,\)"),
        ([[4, 1, 1], [1, 99, 3]], r"unknown item 99 in row 1 \(user 2\)"),
        ([[4, 1, 1], [1, 0, 3]], r"unknown item 0 in row 1"),
        ([[4, 1, 1], [2, 1, 3]], r"begins row 1 \(user 2\) with item 2, but the target is 1.*another log, split"),
    ],
)
def test_candidate_files_that_do_not_fit_say_where(tmp_path: Path, test: Any, message: str) -> None:
    split, vocabulary = make_split([[3, 1, 2, 4], [4, 3, 1]])
    with pytest.raises(DataError, match=message):
        read_candidates(write_candidates(tmp_path, test=np.array(test)), "test", split, vocabulary)


def of_two_users() -> tuple[Split, Vocabulary]:
    """Targets of test: user 7's item 40, user 9's item 10."""
    sequences, vocabulary = build_sequences(
        pl.DataFrame({"user_id": [7] * 4 + [9] * 3, "item_id": [30, 10, 20, 40, 40, 30, 10]})
    )
    return split_leave_one_out(sequences), vocabulary


LISTED = pl.DataFrame({"user_id": [9, 7, 8, 9, 7, 7], "item_id": [20, 10, 10, 30, 40, 10]})


@pytest.mark.parametrize("kind", ["polars", "lazy", "pandas", "arrow", "texts", "csv", "parquet"])
def test_candidates_come_as_frames_in_any_order_of_users(tmp_path: Path, kind: str) -> None:
    split, vocabulary = of_two_users()
    path = tmp_path / f"candidates.{kind}"
    if kind in ("csv", "parquet"):
        getattr(LISTED, f"write_{kind}")(path)
    given = {
        "polars": LISTED, "lazy": LISTED.lazy(), "pandas": LISTED.to_pandas(), "arrow": LISTED.to_arrow(),
        "texts": LISTED.cast(pl.String), "csv": path, "parquet": str(path),
    }[kind]  # fmt: skip
    assert read_candidates(given, "test", split, vocabulary).tolist() == [[4, 1, 1], [1, 2, 3]]


def test_candidates_come_as_arrays_of_ids() -> None:
    split, vocabulary = of_two_users()
    rows = [[40, 10, 10], [10, 20, 30]]
    for rows_given in (rows, np.array(rows), np.array(rows, object), {"test": rows}, {"test": np.array(rows)}):
        assert read_candidates(rows_given, "test", split, vocabulary).tolist() == [[4, 1, 1], [1, 2, 3]]


def test_a_frame_of_candidates_gives_each_target_of_a_user_the_others() -> None:
    split, vocabulary = of_two_users()
    both = replace(split, test=Targets(np.array([0, 0]), np.array([2, 3])))
    listed = pl.DataFrame({"user_id": [7, 7, 7], "item_id": [10, 20, 40]})
    assert read_candidates(listed, "test", both, vocabulary).tolist() == [[2, 1, 4], [4, 1, 2]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (LISTED.filter(pl.col("user_id") != 9), "has 0 candidates beside the test target for user 9, and 2 for user 7"),
        (LISTED[1:], "has 1 candidates beside the test target for user 9, and 2 for user 7; every user"),
        (LISTED.filter(pl.col("user_id") != 7), "has 0 candidates beside the test target for user 7, and 2 for user 9"),
        (LISTED.with_columns(item_id=pl.lit(40)), "has 0 candidates beside the test target for user 7, and 2 for us"),
        (LISTED.with_columns(user_id=pl.lit(5)), "has 0 candidates beside the test target for user 7, and 0 for us"),
        (LISTED.with_columns(item_id=pl.col("item_id") + 1), "has the unknown item 21 for user 9"),
        (LISTED.rename({"item_id": "label"}), "item"),
        ({"valid": [[1, 2]]}, "the candidates have no 'test', but 'valid'"),
        ([[40, 10], [10]], "candidates are no array of"),
        ([[40, 10], [10, None]], r"unknown item None in row 1 \(user 9\)"),
        ([[40, 10], [10, float("nan")]], r"unknown item nan in row 1"),
        ([[40, 10]], r"the array of candidates has shape \(1, 2\)"),
    ],
)
def test_candidates_that_do_not_fit_are_refused(given: Any, message: str) -> None:
    split, vocabulary = of_two_users()
    with pytest.raises(DataError, match=message):
        read_candidates(given, "test", split, vocabulary)


def test_candidates_of_other_users_are_told(caplog: pytest.LogCaptureFixture) -> None:
    split, vocabulary = of_two_users()
    with caplog.at_level(logging.INFO):
        read_candidates(LISTED, "test", split, vocabulary)
    assert "1 candidates are of users without a test target" in caplog.text


@pytest.mark.parametrize("name", ["test.npy", "test"])
def test_a_small_candidate_file_that_unpacks_to_gigabytes_is_refused_unread(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": (2, 2**23)})
        for _ in range(2**7):
            member.write(bytes(2**20))
    with pytest.raises(DataError, match=r"array 'test' of .*bomb\.npz has 134,217,\d+ bytes in a file of 1\d\d,\d+"):
        read_candidates(path, "test", SPLIT, VOCABULARY)


def test_damaged_candidate_files_are_refused(tmp_path: Path) -> None:
    good = write_candidates(tmp_path, test=np.arange(60).reshape(2, 30)).read_bytes()
    pickled = write_candidates(tmp_path, test=np.array([[{}, 1], [2, 3]], object)).read_bytes()
    path = tmp_path / "damaged.npz"
    for content in (b"", b"not a zip file", good[:200], pickled, good[:150] + b"\xff" * 20 + good[170:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged\.npz"):
            read_candidates(path, "test", SPLIT, VOCABULARY)
    np.save(tmp_path / "single.npy", np.ones((2, 3)))
    with pytest.raises(DataError, match=r"not an \.npz file"):
        read_candidates(tmp_path / "single.npy", "test", SPLIT, VOCABULARY)
    with pytest.raises(DataError, match=r"cannot read the candidate file .*No such file"):
        read_candidates(tmp_path / "missing.npz", "test", SPLIT, VOCABULARY)
    with pytest.raises(DataError, match="cannot read the candidate file"):
        read_candidates(tmp_path, "test", SPLIT, VOCABULARY)


def test_given_candidates_are_checked_and_told_apart() -> None:
    config = EvalConfig(protocol="sampled")
    drawn = draw_candidates(SPLIT, "test", 5, "train", 0)
    result = evaluate(model(SPLIT), SPLIT, "test", config, candidates=drawn)
    assert result.seed is None
    assert result.candidates.startswith("the target and 5 given items (fingerprint ")
    others = draw_candidates(SPLIT, "test", 5, "train", 1)
    assert evaluate(model(SPLIT), SPLIT, "test", config, candidates=others).candidates != result.candidates
    with pytest.raises(ConfigError, match="protocol=sampled"):
        evaluate(model(SPLIT), SPLIT, "test", EvalConfig(), candidates=drawn)
    with pytest.raises(DataError, match="the target is"):
        evaluate(model(SPLIT), SPLIT, "test", config, candidates=np.roll(drawn, 1, axis=1))
    with pytest.raises(DataError, match="shape"):
        evaluate(model(SPLIT), SPLIT, "test", config, candidates=drawn[1:])
    with pytest.raises(DataError, match="from 1 to 40"):
        evaluate(model(SPLIT), SPLIT, "test", config, candidates=np.where(drawn == drawn[0, 1], 41, drawn))


@pytest.mark.parametrize(("n_items", "n_candidates"), [(12, 100), (40, 100), (200, 100), (40, 5)])
def test_draws_that_repeat_are_warned_of_with_numbers_and_the_way_out(
    n_items: int, n_candidates: int, caplog: pytest.LogCaptureFixture
) -> None:
    split, _ = make_split(random_histories(0, 60, n_items, 8))
    config = EvalConfig(protocol="sampled", n_candidates=n_candidates)
    drawn = draw_candidates(split, "test", n_candidates, config.exclude, config.eval_seed)
    share = np.mean([1 + n_candidates - len(set(row)) for row in drawn.tolist()]) / n_candidates
    caplog.clear()
    result = evaluate(model(split), split, "test", config)
    (told,) = [text for text in result.warnings if "repeat an item" in text]
    assert told == (
        f"sampled protocol: {share:.0%} of the {n_candidates} draws for a target repeat an item, since the catalogue "
        f"has {n_items}, so these figures say little; use protocol=full (--protocol full, and --valid-protocol full to "
        "choose the epoch)"
    )
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [told]


def test_draws_that_hardly_repeat_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    split, _ = make_split(random_histories(0, 60, 2000))
    sampled = evaluate(model(split), split, "test", EvalConfig(protocol="sampled"))
    smaller, _ = make_split(random_histories(0, 60, 200, 8))
    few = evaluate(model(smaller), smaller, "test", EvalConfig(protocol="sampled", n_candidates=5))
    full = evaluate(model(SPLIT), SPLIT, "test", EvalConfig())
    drawn = draw_candidates(split, "test", 100, "train", 0)
    given = evaluate(model(split), split, "test", EvalConfig(protocol="sampled"), candidates=drawn[:, :1].repeat(9, 1))
    for result in (sampled, few, full, given):
        assert not [text for text in result.warnings if "repeat an item" in text]
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


# Baselines


@given(st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=9), min_size=1, max_size=8))
def test_baselines_order_items_as_their_definitions_do(histories: list[list[int]]) -> None:
    split, _ = make_split(histories)
    before = split.test.histories(split.sequences)
    counts = split.train_counts.tolist()
    pairs = [
        p
        for row in range(len(train_of(split)))
        for p in zip(train_of(split).row(row), train_of(split).row(row)[1:], strict=False)
    ]
    popularity, last_item, recency = Baselines(split).scorers(with_recency=True)
    for row in range(len(before)):
        history = before.row(row).tolist()
        items = range(1, split.sequences.n_items + 1)
        follows = {i: sum(p == (history[-1], i) for p in pairs) for i in items}
        position = {i: max((j for j, h in enumerate(history) if h == i), default=-1) for i in items}
        keys = {
            popularity.name: [counts[i] for i in items],
            last_item.name: [(follows[i], counts[i]) for i in items],
            recency.name: [(position[i], 0 if position[i] >= 0 else counts[i]) for i in items],
        }
        for baseline in (popularity, last_item, recency):
            scores = baseline.scores(before)[row, 1:].tolist()
            wanted = keys[baseline.name]
            for a in range(len(scores)):
                for b in range(len(scores)):
                    assert (scores[a] > scores[b]) == (wanted[a] > wanted[b])


@given(st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=9), min_size=1, max_size=8), st.integers(0, 99))
def test_baselines_score_candidates_as_they_score_all_items(histories: list[list[int]], seed: int) -> None:
    split, _ = make_split(histories)
    before = split.test.histories(split.sequences)
    shape = (len(before), 12)
    candidates = np.random.default_rng(seed).integers(1, split.sequences.n_items + 1, shape).astype(np.int32)
    for baseline in Baselines(split).scorers(with_recency=True):
        scores, chosen = baseline.scores(before), baseline.candidate_scores(before, candidates)
        assert scores.dtype == chosen.dtype == np.float32
        assert scores.shape == (len(before), split.sequences.n_items + 1)
        assert np.array_equal(chosen, np.take_along_axis(scores, candidates, axis=1))


@given(st.lists(st.sets(st.integers(0, 5)), min_size=3, max_size=9), st.integers(0, 99))
def test_shared_features_are_counted_with_the_last_item(owned: list[set[int]], seed: int) -> None:
    features = ItemFeatures(Ragged.from_lists([[], *map(sorted, owned)]), 6)
    rng, n = np.random.default_rng(seed), len(owned)
    histories = Ragged.from_lists([rng.integers(1, n + 1, size).tolist() for size in (1, 4, 2)])
    baseline = SharedFeatures(features)
    scores = baseline.scores(histories)
    assert scores.dtype == np.float32
    for row in range(3):
        last = owned[histories.row(row)[-1] - 1]
        assert scores[row].tolist() == [0, *(len(last & mine) for mine in owned)]
    candidates = rng.integers(1, n + 1, (3, 7)).astype(np.int32)
    assert np.array_equal(baseline.candidate_scores(histories, candidates), np.take_along_axis(scores, candidates, 1))


def test_features_of_items_bring_a_baseline_that_knows_cold_targets() -> None:
    split, _ = make_split([[1, 2, 3], [2, 1, 4], [1, 2, 2]])
    features = ItemFeatures(Ragged.from_lists([[], [0], [1], [1], [0]]), 2)
    result = evaluate(model(split), split, "test", EvalConfig(filter_seen="yes"), features=features)
    assert [*result.baselines] == ["popularity", "last_item", "shared_features"]
    assert result.groups["cold"]["baselines"]["shared_features"]["hr@10"]["value"] == 1
    assert result.groups["cold"]["baselines"]["shared_features"]["mrr@10"]["value"] == 1
    vectors = ItemFeatures(Ragged.from_lists([[]] * 5), 0, np.zeros((5, 2), np.float32))
    result = evaluate(model(split), split, "test", EvalConfig(filter_seen="yes"), features=vectors)
    assert [*result.baselines] == ["popularity", "last_item"]


def test_counts_that_float32_confuses_stay_apart() -> None:
    counts = np.array([0, 2**24 + 1, 2**24, 2**26, 2**26 + 1, 2**24], np.int64)
    assert np.float32(counts[1]) == np.float32(counts[2])
    assert Popularity(counts).scores(Ragged.from_lists([[1]]))[0, 1:].tolist() == [2, 1, 3, 4, 1]
    last_item = LastItem([Ragged.from_lists([[1, 2], [1, 1]])], counts)
    assert last_item.scores(Ragged.from_lists([[1]]))[0, 1:].tolist() == [6, 5, 3, 4, 1]


def test_baselines_of_an_empty_history_are_popularity() -> None:
    empty = Ragged.from_lists([[], [1]]).take(slice(0, 1))
    popular = Popularity(SPLIT.train_counts).scores(empty)
    for baseline in (LastItem(SPLIT.train_parts(), SPLIT.train_counts), Recency(SPLIT.train_counts)):
        assert np.array_equal(baseline.scores(empty), popular)
        candidates = np.array([[3, 1, 2]], np.int32)
        assert np.array_equal(baseline.candidate_scores(empty, candidates), popular[:, [3, 1, 2]])


def test_last_item_learns_a_chain() -> None:
    split, _ = make_split([[1 + (s + j) % 7 for j in range(5)] for s in range(7)])
    result = evaluate(model(split), split, "test", EvalConfig(k=(1,)))
    assert result.baselines["last_item"]["hr@1"]["value"] == 1
    assert result.baselines["popularity"]["hr@1"]["value"] < 1


# Real data


@pytest.mark.parametrize("part", PARTS)
def test_the_published_candidates_of_ml_1m_are_read(shared: Path, part: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    log = pl.read_csv(
        shared / "data" / "ml-1m.txt", separator=" ", has_header=False, new_columns=["user_id", "item_id"]
    )
    sequences, vocabulary = build_sequences(log)
    split = split_leave_one_out(sequences, 3)
    path = shared / "reference" / "ml1m_candidates_seed42.npz"
    candidates = read_candidates(path, part, split, vocabulary)
    assert candidates.shape == (6040, 101)
    drawn_again = (candidates[:, 1:] == candidates[:, :1]).any(axis=1)
    if part == "test":
        assert drawn_again.sum() == 181
    popularity, last_item = Baselines(split).scorers()
    ranks = {}
    for ties in ("strict", "pessimistic"):
        config = EvalConfig(protocol="sampled", ties=ties)
        result = evaluate(popularity, split, part, config, candidates=candidates, baselines=[last_item])
        ranks[ties] = result.per_user["rank"]
        assert result.baselines["last_item"]["ndcg@10"]["value"] > result.metrics["ndcg@10"]["value"] > 0.2
    assert (ranks["pessimistic"] > ranks["strict"])[drawn_again].all()


@pytest.mark.parametrize("filter_seen", ["yes", "no"])
@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_scorers_that_rank_on_their_own_give_what_their_scores_give(
    protocol: Protocol, filter_seen: Literal["yes", "no"]
) -> None:
    class OnlyScores:
        """Hides that a scorer ranks on its own."""

        def __init__(self, scorer: Scorer) -> None:
            self.name, self.scores, self.candidate_scores = scorer.name, scorer.scores, scorer.candidate_scores

    config = EvalConfig(protocol=protocol, filter_seen=filter_seen)
    for scorer in (model(SPLIT), *Baselines(SPLIT).scorers(with_recency=True)):
        assert isinstance(scorer, Ranker)
        assert not isinstance(OnlyScores(scorer), Ranker)
        own, by_scores = (evaluate(s, SPLIT, "test", config, baselines=False) for s in (scorer, OnlyScores(scorer)))
        assert own.metrics == by_scores.metrics
        assert np.array_equal(own.per_user["rank"], by_scores.per_user["rank"])

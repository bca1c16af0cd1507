"""Paired comparisons: by hand, by scipy, over seeds, and corrected for their number."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from made import Table, make_split, random_histories

from sasrec.core.config import EvalConfig
from sasrec.core.errors import ConfigError
from sasrec.evaluation.candidates import draw_candidates
from sasrec.evaluation.comparison import compare, compare_all, holm
from sasrec.evaluation.protocols import evaluate
from sasrec.evaluation.results import Result
from sasrec.ranking.scorers import Baselines


def result_of(hits: list[int], config: EvalConfig = EvalConfig(filter_seen="no")) -> Result:  # noqa: B008
    """A result whose users hit (rank 1) or miss (last rank) as told."""
    split, _ = make_split([[1, 2, 3]] * len(hits))
    table = np.tile(np.array([0, 1, 1, 0], np.float32), (len(hits), 1))
    table[np.array(hits) == 1, 3] = 2
    return evaluate(Table(table), split, "test", config, baselines=False)


def test_compare_pairs_users() -> None:
    a, b = result_of([1, 0, 0, 1] * 10), result_of([1, 1, 0, 1] * 10)
    comparison = compare(a, b)
    metric = comparison.metrics["mrr@10"]
    stderr = np.tile([0, 2 / 3, 0, 0], 10).std(ddof=1) / math.sqrt(40)
    assert metric["difference"] == pytest.approx(1 / 6)
    assert metric["stderr"] == pytest.approx(stderr)
    assert metric["p_value"] == pytest.approx(math.erfc(1 / 6 / stderr / math.sqrt(2)))
    assert (metric["low"], metric["high"]) == pytest.approx((1 / 6 - 1.959964 * stderr, 1 / 6 + 1.959964 * stderr))
    reverse = compare(b, a).metrics["mrr@10"]
    assert reverse["difference"] == -metric["difference"]
    assert reverse["p_value"] == metric["p_value"]
    json.dumps(comparison.to_dict(), allow_nan=False)
    text = comparison.to_text("first", "second")
    assert "40 users" in text
    assert "+0.1667" in text


def test_a_result_equals_itself() -> None:
    metric = compare(result_of([1, 0, 1]), result_of([1, 0, 1])).metrics["ndcg@10"]
    assert (metric["difference"], metric["stderr"], metric["p_value"]) == (0, 0, 1)
    same_gain = compare(result_of([0] * 3), result_of([1] * 3)).metrics["mrr@10"]
    assert same_gain["p_value"] == 0


def test_comparing_few_users_warns_and_one_user_has_no_p_value() -> None:
    assert compare(result_of([1] * 5), result_of([0] * 5)).warnings
    comparison = compare(result_of([1]), result_of([0]))
    assert comparison.metrics["mrr@10"]["p_value"] is None
    assert "-" in comparison.to_text("a", "b")


def test_compare_wants_the_same_protocol() -> None:
    a = result_of([1, 0, 1])
    with pytest.raises(ConfigError, match="differ in ties"):
        compare(a, result_of([1, 0, 1], EvalConfig(filter_seen="no", ties="strict")))
    with pytest.raises(ConfigError, match="differ in data"):
        compare(a, result_of([1, 0, 1, 1]))
    sampled = EvalConfig(protocol="sampled")
    split, _ = make_split(random_histories(0, 60, 40))
    drawn = [draw_candidates(split, "test", 5, "train", seed) for seed in (0, 1)]
    popular = Baselines(split).scorers()[0]
    results = [evaluate(popular, split, "test", sampled, candidates=c, baselines=False) for c in drawn]
    with pytest.raises(ConfigError, match="differ in candidates"):
        compare(*results)
    with pytest.raises(ConfigError, match="evaluate again"):
        compare(a, a.without_users())


def random_results(n: int) -> list[Result]:
    """Results of models that score at random, on the same 401 users."""
    split, _ = make_split(random_histories(9, 400, 50))
    rng = np.random.default_rng(0)
    tables = [rng.random((len(split.test), split.sequences.n_items + 1), np.float32) for _ in range(n)]
    return [evaluate(Table(t), split, "test", EvalConfig(), baselines=False, lists=False) for t in tables]


def test_two_random_models_rarely_differ_significantly() -> None:
    results = random_results(41)
    p_values = [compare(results[0], r).metrics["ndcg@10"]["p_value"] or 0 for r in results[1:]]
    assert np.mean(np.array(p_values) < 0.001) < 0.1


def test_the_paired_test_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="comes with the test extra ranx")
    a, b = random_results(2)
    metric = compare(a, b).metrics["ndcg@10"]
    theirs = stats.ttest_rel(b.per_user["ndcg@10"], a.per_user["ndcg@10"])
    assert metric["difference"] / metric["stderr"] == pytest.approx(theirs.statistic)
    assert metric["p_value"] == pytest.approx(2 * stats.norm.sf(abs(theirs.statistic)))
    assert metric["p_value"] == pytest.approx(theirs.pvalue, rel=0.01)  # by t with 400 degrees of freedom
    gains = b.per_user["ndcg@10"] - a.per_user["ndcg@10"]
    assert metric["effect_size"] == pytest.approx(gains.mean() / gains.std(ddof=1))
    assert metric["relative"] == pytest.approx(metric["b"] / metric["a"] - 1)


def test_runs_of_a_side_are_averaged_per_user_before_the_test() -> None:
    a, b = [result_of([1, 0, 0, 0] * 10), result_of([1, 1, 0, 0] * 10)], [result_of([1, 1, 1, 0] * 10)]
    comparison = compare(a, b)
    metric = comparison.metrics["hr@10"]
    reciprocal = comparison.metrics["mrr@10"]  # a miss has rank 3, or 1 / 3
    gains = np.tile([0, 1 / 3, 2 / 3, 0], 10)
    assert metric["difference"] == 0  # rank 3 is a hit too
    assert reciprocal["difference"] == pytest.approx(gains.mean())
    assert reciprocal["stderr"] == pytest.approx(gains.std(ddof=1) / math.sqrt(40))
    assert reciprocal["seeds_stderr"] is None  # b has one run
    assert (comparison.n_runs_a, comparison.n_runs_b) == (2, 1)
    assert "mean of 2 runs" in comparison.to_text("a", "b")


def test_the_spread_over_seeds_is_told_where_both_sides_have_one() -> None:
    a = [result_of([1, 0, 0, 0] * 10), result_of([1, 1, 0, 0] * 10)]  # MRR 1/2 and 2/3
    b = [result_of([1, 1, 1, 0] * 10)] * 2
    metric = compare(a, b).metrics["mrr@10"]
    assert metric["seeds_stderr"] == pytest.approx((2 / 3 - 1 / 2) / 2)
    assert "± of seeds" in compare(a, b).to_text()


def test_swapping_runs_of_a_side_changes_nothing() -> None:
    first, second, other = random_results(3)
    forth, back = (compare(runs, other).metrics for runs in ([first, second], [second, first]))
    for name, metric in forth.items():
        assert metric == pytest.approx(back[name])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_keeps_the_order_and_never_lowers_a_p_value() -> None:
    p_values = np.random.default_rng(0).random(50).tolist()
    corrected = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values)
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_holm_finds_nothing_among_random_models_19_times_in_20() -> None:
    results = random_results(140)
    found = plain = 0
    for start in range(0, 140, 7):
        compared = compare_all({str(i): [result] for i, result in enumerate(results[start : start + 7])})
        found += any((c.metrics["mrr@10"]["p_holm"] or 0) < 0.05 for c in compared)
        plain += any((c.metrics["mrr@10"]["p_value"] or 0) < 0.05 for c in compared)
    assert found <= 3  # 1 of 20 is expected
    assert plain > found


def test_several_sides_are_compared_with_the_first_or_each_with_each() -> None:
    sides = {name: [result] for name, result in zip("abc", random_results(3), strict=True)}
    first, every = compare_all(sides), compare_all(sides, "all")
    assert [(c.name_a, c.name_b) for c in first] == [("a", "b"), ("a", "c")]
    assert [(c.name_a, c.name_b) for c in every] == [("a", "b"), ("a", "c"), ("b", "c")]
    for name in ("ndcg@10", "hr@10", "mrr@10"):
        expected = holm([c.metrics[name]["p_value"] or 0 for c in every])
        assert [c.metrics[name]["p_holm"] for c in every] == expected
    assert "p (Holm)" in every[0].to_text()
    json.dumps([c.to_dict() for c in every], allow_nan=False)


def test_a_single_comparison_needs_no_correction() -> None:
    (only,) = compare_all({name: [result] for name, result in zip("ab", random_results(2), strict=True)})
    assert only.metrics["ndcg@10"]["p_holm"] is None
    assert "Holm" not in only.to_text()


def test_a_comparison_needs_two_sides_with_results() -> None:
    result = result_of([1, 0, 1])
    with pytest.raises(ConfigError, match="two sides"):
        compare_all({"a": [result]})
    with pytest.raises(ConfigError, match="needs a result"):
        compare([], result)
    with pytest.raises(ConfigError, match="differ in split_method"):
        compare([result, replace(result, split_method="temporal")], result)

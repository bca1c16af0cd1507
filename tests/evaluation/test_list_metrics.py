"""What recommended lists are like: known answers of RecTools, by hand, and what must not matter."""

import math
from typing import Any

import numpy as np
import pytest
from made import Table, make_split, random_histories

from sasrec.core.arrays import Int32
from sasrec.core.config import EvalConfig
from sasrec.evaluation.list_metrics import build_background, gini, list_metrics, popularity_ranks
from sasrec.evaluation.protocols import evaluate

# Users 1 to 6: what they have in train (no repeats), what came next, what they are recommended.
TRAIN = [[1, 2, 3], [1, 2, 4], [1, 3], [1, 2, 5], [1, 6], [2, 3, 4]]
TARGETS = [4, 3, 5, 3, 7, 8]
LISTS = [[4, 5, 6], [3, 8, 5], [2, 5, 4], [6, 3, 4], [2, 3, 7], [1, 5, 6]]


def measure(lists: Any, k: int) -> dict[str, float]:
    """Metrics of lists for the six users, by name without k."""
    split, _ = make_split([[*train, 1, target] for train, target in zip(TRAIN, TARGETS, strict=True)])
    background = build_background(split, split.test, np.arange(6))
    found = list_metrics(np.array(lists, np.int32), background, k)
    return {name.removesuffix(f"@{k}"): estimate["value"] for name, estimate in found.items()}


@pytest.mark.parametrize(
    ("k", "coverage", "popularity", "inverse_frequency", "serendipity"),
    [  # CatalogCoverage, AvgRecPopularity, MeanInvUserFreq and Serendipity of RecTools 0.19.0
        (1, 0.625, 3.1666666666666665, 1.100480734786403, 0.10416666666666667),
        (2, 0.875, 2.3333333333333335, 1.5785612009669203, 0.09375),
        (3, 1.0, 1.9444444444444446, 1.8029171897738878, 0.10416666666666667),
    ],
)
def test_metrics_are_those_of_rectools(
    k: int, coverage: float, popularity: float, inverse_frequency: float, serendipity: float
) -> None:
    found = measure(LISTS, k)
    events_per_user = sum(map(len, TRAIN)) / len(TRAIN)
    assert found["coverage"] == coverage
    assert found["popularity"] == pytest.approx(popularity, rel=1e-12)
    assert found["novelty"] == pytest.approx(inverse_frequency + math.log2(events_per_user), rel=1e-12)
    assert found["serendipity"] == pytest.approx(serendipity, rel=1e-12)


def test_lists_by_hand() -> None:
    split, _ = make_split([[1, 2, 3], [1, 3, 2], [1, 4, 3]])  # train: item 1 three times
    table = np.tile(np.array([0, 9, 4, 3, 2], np.float32), (3, 1))
    result = evaluate(Table(table), split, "test", EvalConfig(k=(1, 2), filter_seen="no"), baselines=False)
    assert result.metrics["coverage@1"]["value"] == 0.25
    assert result.metrics["coverage@2"]["value"] == 0.5
    assert result.metrics["popularity@2"]["value"] == 1.5
    assert result.metrics["novelty@1"]["value"] == 0
    assert result.metrics["novelty@2"]["value"] == pytest.approx(math.log2(3) / 2)
    assert result.metrics["popularity_lift@1"]["value"] == 1  # 3 events an item beside 1.5 in the profiles
    assert result.metrics["gini@1"]["value"] == 0.75  # one of four items has every place
    assert result.metrics["serendipity@2"]["value"] == pytest.approx(3 / 4 / 2 / 3)  # item 2 for the second user
    hidden = evaluate(Table(table), split, "test", EvalConfig(k=(1,), filter_seen="yes"), baselines=False)
    assert hidden.metrics["coverage@1"]["value"] == 0.5  # item 3 for the first user and the last, 2 or 4 besides


def test_lift_is_nought_for_those_who_get_what_they_had_and_has_the_ratios_standard_error() -> None:
    profiles = [[1, 2, 3], [1, 2, 4], [1, 3, 1], [1, 2, 5], [1, 6, 1], [2, 3, 4]]
    split, _ = make_split([[*train, 1, target] for train, target in zip(profiles, TARGETS, strict=True)])
    background = build_background(split, split.valid, np.arange(6))  # histories: train alone
    same = list_metrics(np.array(profiles, np.int32), background, 3)["popularity_lift@3"]
    assert same["value"] == pytest.approx(0, abs=1e-12)
    assert same["stderr"] == pytest.approx(0, abs=1e-12)
    lift = list_metrics(np.array(LISTS, np.int32), background, 3)["popularity_lift@3"]
    counts = split.train_counts
    in_lists, in_profiles = (np.mean([counts[row] for row in rows], axis=1) for rows in (LISTS, profiles))
    assert lift["value"] == pytest.approx(in_lists.mean() / in_profiles.mean() - 1)
    jackknife = [np.delete(in_lists, i).mean() / np.delete(in_profiles, i).mean() for i in range(6)]
    assert lift["stderr"] == pytest.approx(np.std(jackknife) * math.sqrt(5), rel=0.2)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_profiles_are_the_mean_popularity_of_each_history(chunk: int) -> None:
    split, _ = make_split(random_histories(0, 20, 9))
    for targets in (split.valid, split.test):
        found = build_background(split, targets, np.arange(len(targets)), chunk=chunk).profile_popularity
        histories = targets.histories(split.sequences)
        expected = [split.train_counts[histories.row(i)].mean() for i in range(len(histories))]
        assert found == pytest.approx(expected)


def test_gini_by_hand() -> None:
    assert gini(np.array([5, 5, 5, 5])) == 0
    assert gini(np.array([0, 0, 12, 0])) == 0.75
    assert gini(np.array([1, 3])) == 0.25
    assert gini(np.array([0, 0])) == 0


def test_popularity_ranks_share_a_rank_among_equals_and_leave_out_what_never_occurs() -> None:
    assert popularity_ranks(np.array([0, 5, 0, 9, 5, 1])).tolist() == [0, 2, 0, 1, 2, 3]
    assert popularity_ranks(np.array([0, 0, 0])).tolist() == [0, 0, 0]


def test_a_popular_hit_is_less_serendipitous_than_a_rare_one() -> None:
    def of(row: list[int], target: int) -> float:
        split, _ = make_split([[1, 2, 3, 4], *[[1, 2, 3, 4]] * 9, [1, 5, 4, target]])
        background = build_background(split, split.test, np.arange(11))
        lists: Int32 = np.tile(np.array([9, 9, 9], np.int32) * 0 + 3, (11, 1))
        lists[-1] = row
        return list_metrics(lists, background, 3)["serendipity@3"]["value"]

    assert of([5, 2, 3], 5) > of([2, 5, 3], 2) >= of([4, 2, 3], 5) == 0


def test_empty_lists_count_nothing_and_short_ones_count_what_they_have() -> None:
    short = [[4, 0, 0], [3, 8, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    found = measure(short, 3)
    assert found["popularity"] == pytest.approx((2 + 3 / 2) / 2)
    assert found["coverage"] == 3 / 8
    assert all(math.isfinite(value) for value in found.values())
    nothing = measure(np.zeros((6, 3)), 3)
    assert set(nothing.values()) == {0}
    assert "popularity_lift" not in nothing


def test_order_of_users_does_not_matter() -> None:
    split, _ = make_split([[*train, 1, target] for train, target in zip(TRAIN, TARGETS, strict=True)])
    backwards, _ = make_split([[*train, 1, t] for train, t in zip(TRAIN[::-1], TARGETS[::-1], strict=True)])
    forth = list_metrics(np.array(LISTS, np.int32), build_background(split, split.test, np.arange(6)), 3)
    background = build_background(backwards, backwards.test, np.arange(6))
    back = list_metrics(np.array(LISTS[::-1], np.int32), background, 3)
    for name, estimate in forth.items():
        assert back[name] == pytest.approx(estimate)

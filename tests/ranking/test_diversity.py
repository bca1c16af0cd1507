"""Diverse lists: chosen by relevance less likeness to what stands above, as a plain loop chooses them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.data.ragged import Ragged
from sasrec.engine.protocol import create_engine
from sasrec.ranking import diversity as diversity_module
from sasrec.ranking.diversity import check_diversity, diversified, n_candidates
from sasrec.ranking.next_items import Group, NextItems

N_ITEMS = 300
NEXT_ITEMS = NextItems(
    create_engine(ModelConfig(embedding_dim=8, n_blocks=1, max_seq_len=6), N_ITEMS, TrainConfig(threads=1)),
    np.arange(N_ITEMS),
)


def norms_of(table: Any) -> Any:
    return np.linalg.norm(table, axis=1)


def chosen_one_by_one(items: list[int], scores: list[float], table: Any, k: int, share: float) -> list[int]:
    """The definition, in plain Python."""
    low, high = min(scores), max(scores)
    relevance = [(score - low) / (high - low) if high > low else 0.0 for score in scores]
    unit = {item: table[item] / max(float(np.linalg.norm(table[item])), 1e-12) for item in items}
    chosen: list[int] = []
    while len(chosen) < min(k, len(items)):
        values = [
            (1 - share) * relevance[place]
            - share * max((float(unit[item] @ unit[other]) for other in chosen), default=0.0)
            for place, item in enumerate(items)
        ]
        chosen.append(max((i for i in items if i not in chosen), key=lambda i: values[items.index(i)]))
    return chosen


# Items 1 and 2 are the same, 3 is at a right angle to them, 4 is the opposite of 1.
SQUARE = np.array([[0, 0], [1, 0], [2, 0], [0, 1], [-1, 0]], np.float32)


@pytest.mark.parametrize(
    ("share", "order"),
    [
        (0.1, [1, 2, 3, 4]),  # .9 * .8 - .1 * 1 for item 2, .9 * .5 for item 3
        (0.3, [1, 3, 2, 4]),  # item 2 .56 - .3, item 3 .35, item 4 0 + .3; then item 2 .26, item 4 .3 * -0
        (0.5, [1, 4, 3, 2]),  # item 4 0 + .5, item 3 .25, item 2 .4 - .5
        (1.0, [1, 4, 3, 2]),  # only likeness counts; the first is always the best
    ],
)
def test_the_more_diversity_the_further_down_goes_what_is_alike(share: float, order: list[int]) -> None:
    indices, scores = np.array([[1, 2, 3, 4]], np.int32), np.array([[10, 8, 5, 0]], np.float32)
    found, kept = diversified(indices, scores, SQUARE, norms_of(SQUARE), 4, share)
    assert found.tolist() == [order]
    assert kept.tolist() == [[{1: 10, 2: 8, 3: 5, 4: 0}[item] for item in order]]
    assert diversified(indices, scores, SQUARE, norms_of(SQUARE), 2, share)[0].tolist() == [order[:2]]


def test_equal_scores_and_items_without_a_row_keep_their_order() -> None:
    table = np.zeros((4, 2), np.float32)
    indices, scores = np.array([[3, 1, 2]], np.int32), np.full((1, 3), 7, np.float32)
    found, kept = diversified(indices, scores, table, norms_of(table), 3, 0.5)
    assert (found.tolist(), kept.tolist()) == ([[3, 1, 2]], [[7, 7, 7]])


def test_short_rows_end_in_0_and_rows_without_any_item_stay_empty() -> None:
    indices = np.array([[4, 2, 0, 0], [0, 0, 0, 0], [1, 3, 4, 2]], np.int32)
    scores = np.where(indices > 0, np.float32([4, 3, 2, 1]), -np.inf).astype(np.float32)
    found, kept = diversified(indices, scores, SQUARE, norms_of(SQUARE), 3, 0.9)
    assert found.tolist() == [[4, 2, 0], [0, 0, 0], [1, 4, 3]]
    assert kept[0].tolist()[:2] == [4, 3]
    nothing = np.zeros((2, 0), np.int32)
    assert diversified(nothing, nothing.astype(np.float32), SQUARE, norms_of(SQUARE), 3, 0.9)[0].shape == (2, 0)


@given(st.data())
def test_lists_are_those_of_a_plain_loop_for_any_rows(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    n_rows, n, dim = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 14)), data.draw(st.integers(1, 5))
    k, share = data.draw(st.integers(1, 16)), data.draw(st.floats(0.01, 1))
    table = rng.standard_normal((n + 3, dim)).astype(np.float32)
    table[0] = 0
    indices = np.stack([rng.permutation(n + 2)[:n] + 1 for _ in range(n_rows)]).astype(np.int32)
    scores = -np.sort(-rng.standard_normal((n_rows, n)), axis=1).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diversity_module, "BLOCK_BYTES", data.draw(st.sampled_from([1, 2**24])))
        found, kept = diversified(indices, scores, table, norms_of(table), k, share)
    for row, items, values in zip(found, indices.tolist(), scores.tolist(), strict=True):
        assert row.tolist() == chosen_one_by_one(items, values, table, k, share)
    places = [[items.index(i) for i in row] for row, items in zip(found.tolist(), indices.tolist(), strict=True)]
    assert kept.tolist() == [[s[p] for p in row] for s, row in zip(scores.tolist(), places, strict=True)]


@pytest.mark.parametrize("k", [1, 10, 20, 100])
def test_a_list_is_chosen_from_the_best_fifty_or_four_times_as_many(k: int) -> None:
    histories, hidden = Ragged.from_lists([[1, 2, 3], [7], []]), Ragged.from_lists([[1, 2, 3], [7], [300]])
    allowed = np.arange(N_ITEMS + 1) % 5 != 0
    wide, scores = NEXT_ITEMS.top_k(histories, max(50, 4 * k), hidden=hidden, allowed=allowed)
    found, kept = NEXT_ITEMS.top_k(histories, k, hidden=hidden, allowed=allowed, diversity=0.6)
    for row in range(3):
        items = wide[row][wide[row] > 0].tolist()
        own = dict(zip(items, scores[row].tolist(), strict=False))
        assert found[row].tolist() == chosen_one_by_one(items, list(own.values()), NEXT_ITEMS.table, k, 0.6)
        assert kept[row].tolist() == [own[item] for item in found[row].tolist()]


def test_without_diversity_lists_are_the_same_to_the_bit_and_groups_have_their_own() -> None:
    histories = Ragged.from_lists([[1, 2, 3], [7]])
    plain, off = NEXT_ITEMS.top_k(histories, 5), NEXT_ITEMS.top_k(histories, 5, diversity=0.0)
    assert all((a == b).all() for a, b in zip(plain, off, strict=True))
    groups = [Group(np.array([0]), 5, None, None, 0.8), Group(np.array([1]), 5, None, None)]
    both = NEXT_ITEMS.top_k_of_groups(histories, groups)
    alone, _ = NEXT_ITEMS.top_k(histories.take(slice(0, 1)), 5, diversity=0.8)
    assert both[0][0].tolist() == alone.tolist()
    assert both[1][0].tolist() == plain[0][1:].tolist()
    assert alone.tolist() != plain[0][:1].tolist()


@pytest.mark.parametrize(
    ("value", "told"),
    [(1.5, "1.5"), (-0.1, "-0.1"), (math.nan, "nan"), ("0.5", "'0.5'"), (True, "True"), (None, "None"),
     ("x" * 100, "'" + "x" * 39)],
)  # fmt: skip
def test_what_is_no_share_is_refused(value: Any, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_diversity(value)
    assert str(refused.value) == f"diversity={told} is not a number from 0 (off) to 1"


def test_shares_may_be_numpys() -> None:
    assert [check_diversity(v) for v in (0, 1, np.float32(0.5), np.int64(1))] == [0.0, 1.0, 0.5, 1.0]
    assert [n_candidates(k) for k in (1, 12, 13, 1000)] == [50, 50, 52, 4000]

"""The one way from histories to lists: every row gets what it would get alone, popular items where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.data.ragged import Ragged
from sasrec.engine.protocol import create_engine
from sasrec.ranking.next_items import Group, NextItems
from sasrec.ranking.order import top_k

N_ITEMS = 12
COUNTS = np.array([3, 9, 9, 1, 0, 7, 2, 2, 5, 4, 0, 8])
CONFIG = ModelConfig(embedding_dim=8, n_blocks=1, max_seq_len=6)
NEXT_ITEMS = NextItems(create_engine(CONFIG, N_ITEMS, TrainConfig(threads=1)), COUNTS)
ITEMS = st.integers(1, N_ITEMS)
ROWS = st.lists(st.tuples(st.lists(ITEMS, max_size=8), st.lists(ITEMS, max_size=4)), min_size=1, max_size=6)


def listed(row: np.ndarray) -> list[int]:
    return row[row > 0].tolist()


@given(ROWS, st.integers(1, 15), st.none() | st.sets(ITEMS))
def test_a_batch_gives_what_single_rows_give(
    rows: list[tuple[list[int], list[int]]], k: int, allowed: set[int] | None
) -> None:
    mask = None if allowed is None else np.isin(np.arange(N_ITEMS + 1), list(allowed))
    histories, hidden = (Ragged.from_lists(list(part)) for part in zip(*rows, strict=True))
    indices, scores = NEXT_ITEMS.top_k(histories, k, hidden=hidden, allowed=mask)
    for i in range(len(rows)):
        alone, values = NEXT_ITEMS.top_k(
            histories.take(slice(i, i + 1)), k, hidden=hidden.take(slice(i, i + 1)), allowed=mask
        )
        assert listed(indices[i]) == listed(alone[0])
        np.testing.assert_allclose(scores[i][indices[i] > 0], values[0][alone[0] > 0], atol=1e-5)
        assert not set(listed(indices[i])) & set(hidden.row(i).tolist())
        assert allowed is None or set(listed(indices[i])) <= allowed


@given(ROWS, st.integers(1, 15))
def test_groups_of_a_batch_give_what_each_gives_alone(rows: list[tuple[list[int], list[int]]], k: int) -> None:
    histories, hidden = (Ragged.from_lists(list(part)) for part in zip(*rows, strict=True))
    even, odd = np.arange(0, len(rows), 2), np.arange(1, len(rows), 2)
    groups = [Group(even, k, hidden.take(even), None), Group(odd, 3, None, None)]
    for group, (indices, _) in zip(groups, NEXT_ITEMS.top_k_of_groups(histories, groups), strict=True):
        assert isinstance(group.rows, np.ndarray)
        alone, _ = NEXT_ITEMS.top_k(histories.take(group.rows), group.k, hidden=group.hidden)
        assert [listed(row) for row in indices] == [listed(row) for row in alone]


@given(st.lists(ITEMS, max_size=5), st.none() | st.sets(ITEMS), st.integers(1, 15))
def test_an_empty_history_gets_the_most_popular_items_that_it_may(
    hidden: list[int], allowed: set[int] | None, k: int
) -> None:
    mask = None if allowed is None else np.isin(np.arange(N_ITEMS + 1), list(allowed))
    counts = np.concatenate([[0], COUNTS]).astype(np.float32)[None]
    wanted = top_k(counts, k, hidden=Ragged.from_lists([hidden]), allowed=mask)
    found = NEXT_ITEMS.top_k(Ragged.from_lists([[]]), k, hidden=Ragged.from_lists([hidden]), allowed=mask)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_rows_give_no_lists_and_a_k_below_1_is_refused_all_the_same() -> None:
    nothing = Ragged.from_lists([])
    assert len(NEXT_ITEMS.top_k(nothing, 3)[0]) == 0
    with pytest.raises(ConfigError, match="k=0 is not a number of items"):
        NEXT_ITEMS.top_k(nothing, 0)


def test_what_is_similar_is_nearest_by_the_cosine_and_never_the_item_itself() -> None:
    table = NEXT_ITEMS.table[1:] / np.linalg.norm(NEXT_ITEMS.table[1:], axis=1, keepdims=True)
    cosine = table @ table[4]
    indices, scores = NEXT_ITEMS.similar(5, 20)
    assert indices.tolist() == [i + 1 for i in np.argsort(-cosine).tolist() if i != 4]
    np.testing.assert_allclose(scores, cosine[indices - 1], atol=1e-6)


def test_reasons_are_differences_of_scores() -> None:
    history = np.array([3, 5, 7], np.int32)
    reasons = NEXT_ITEMS.reasons(history, 9)

    def score(row: np.ndarray) -> float:
        return float((NEXT_ITEMS.engine.encode(Ragged.from_lists([row])) @ NEXT_ITEMS.table[9])[0])

    assert reasons.score == pytest.approx(score(history), abs=1e-5)
    for position, contribution in zip(reasons.positions.tolist(), reasons.contributions.tolist(), strict=True):
        assert contribution == pytest.approx(reasons.score - score(np.delete(history, position)), abs=1e-5)
    assert reasons.indices.tolist() == history[reasons.positions].tolist()
    assert sorted(reasons.contributions.tolist(), reverse=True) == reasons.contributions.tolist()
    assert NEXT_ITEMS.reasons(history[:1], 9).contributions.tolist() == [pytest.approx(score(history[:1]), abs=1e-5)]

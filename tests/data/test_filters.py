"""Repeats that only a k-core filter makes: dropped again, beside loops that follow the words."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasrec.core.errors import ConfigError
from sasrec.data.filters import Repeats, filter_events, filter_k_core, filter_repeats

Row = tuple[int, int]  # user, item


def frame(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"user_id": pl.Int64, "item_id": pl.Int64}, orient="row")


def without_repeats(rows: list[Row]) -> list[Row]:
    last: dict[int, int] = {}
    kept = []
    for user, item in rows:
        if last.get(user) != item:
            kept.append((user, item))
        last[user] = item
    return kept


def of_core(rows: list[Row], n: int) -> list[Row]:
    return [(u, i) for u, i in rows if sum(x == u for x, _ in rows) >= n and sum(y == i for _, y in rows) >= n]


def test_what_the_core_makes_a_repeat_is_dropped_and_may_take_its_user_along() -> None:
    rows = [(1, 5), (1, 9), (1, 5), (2, 5), (2, 6), (3, 6), (3, 5)]
    # 9 is rare; without it user 1 has 5 5, which is 5, which is too few
    assert filter_events(frame(rows), "consecutive", 2).rows() == [(1, 5), (1, 5), (2, 5), (2, 6), (3, 6), (3, 5)]
    assert filter_events(frame(rows), "consecutive_again", 2).rows() == [(2, 5), (2, 6), (3, 6), (3, 5)]
    once = filter_events(frame(rows), "consecutive_again", 2, iterated=False)
    assert once.rows() == [(1, 5), (2, 5), (2, 6), (3, 6), (3, 5)]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=40), st.integers(1, 4))
def test_users_and_repeats_fall_out_in_any_order_until_nothing_more_does(rows: list[Row], n: int) -> None:
    kept, before = without_repeats(rows), []
    while kept != before:
        before = kept
        kept = without_repeats(of_core(kept, n))
    assert filter_events(frame(rows), "consecutive_again", n).rows() == kept
    assert len({i for u, i in kept}) == 0 or min(sum(x == u for x, _ in kept) for u, _ in kept) >= n


@pytest.mark.parametrize("repeats", ["keep", "first", "last", "consecutive"])
def test_other_words_for_repeats_are_heeded_once(repeats: Repeats) -> None:
    rows = frame([(1, 5), (1, 9), (1, 5), (2, 5), (2, 6), (3, 6), (3, 5), (3, 5)])
    assert filter_events(rows, repeats, 2).equals(filter_k_core(filter_repeats(rows, repeats), 2, 2))
    assert filter_events(rows, repeats, 0).equals(filter_repeats(rows, repeats))


def test_without_a_core_again_is_once() -> None:
    rows = frame([(1, 5), (1, 5), (1, 9), (1, 5)])
    assert filter_events(rows, "consecutive_again", 0).rows() == [(1, 5), (1, 9), (1, 5)]


def test_an_unknown_word_is_refused_with_those_there_are() -> None:
    told = "repeats='again' is not one of keep, first, last, consecutive, consecutive_again"
    with pytest.raises(ConfigError, match=told):
        filter_repeats(frame([(1, 5)]), "again")

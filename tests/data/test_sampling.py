"""Items drawn outside of what rows exclude."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasrec.core.isa import load_native
from sasrec.data.ragged import Ragged
from sasrec.data.sampling import (
    ItemDrawer,
    Parts,
    SortedKeys,
    draw_in_core,
    draw_outside,
    draw_unseen,
    generator,
    warn_of_full_rows,
)


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(1, 6), max_size=8), min_size=1, max_size=4), st.integers(0, 9))
def test_draws_keep_out_what_is_excluded_unless_everything_is(rows: list[list[int]], seed: int) -> None:
    excluded = Ragged.from_lists(rows)
    wanted = np.repeat(np.arange(len(rows)), 20)
    drawn = draw_outside(generator(seed), wanted, excluded, ItemDrawer(6))
    for row, items in enumerate(rows):
        mine = set(drawn[wanted == row].tolist())
        assert mine <= set(range(1, 7))
        if set(items) != set(range(1, 7)):
            assert not mine & set(items)


def test_user_with_all_but_one_item_gets_the_one_and_with_all_items_gets_any() -> None:
    n_items = 5000
    excluded = Ragged.from_lists([list(range(1, n_items)), list(range(1, n_items + 1))])
    drawn = draw_outside(generator(0), np.repeat([0, 1], 50), excluded, ItemDrawer(n_items))
    assert set(drawn[:50].tolist()) == {n_items}
    assert len(set(drawn[50:].tolist())) > 10


def test_user_who_has_all_that_is_ever_drawn_gets_what_is_left() -> None:
    drawer = ItemDrawer(5, np.array([3, 1, 0, 0, 2]))
    drawn = draw_outside(generator(0), np.zeros(400, np.int64), Ragged.from_lists([[1, 2, 5]]), drawer)
    assert set(drawn.tolist()) == {3, 4}
    rest = draw_outside(generator(0), np.zeros(40_000, np.int64), Ragged.from_lists([[1]]), drawer)
    assert np.bincount(rest, minlength=6)[[2, 5]] / 40_000 == pytest.approx([1 / 3, 2 / 3], abs=0.01)


def test_draws_are_uniform_over_what_is_left() -> None:
    drawn = draw_outside(generator(3), np.zeros(80_000, np.int64), Ragged.from_lists([[2, 5]]), ItemDrawer(10))
    counts = np.bincount(drawn, minlength=11)[[1, 3, 4, 6, 7, 8, 9, 10]]
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 24.3  # 99.9 % point at 7 degrees of freedom


def test_draws_from_what_little_is_left_are_uniform_and_of_the_right_row() -> None:
    n_items = 4000
    items = np.arange(1, n_items + 1)
    left = [[7, 1000, 3999], [1, 4000]]
    excluded = Ragged.from_lists([np.setdiff1d(items, free).tolist() for free in left])
    rows = np.tile([0, 1], 3000)
    drawn = draw_outside(generator(1), rows, excluded, ItemDrawer(n_items))
    for row, free in enumerate(left):
        counts = np.bincount(drawn[rows == row], minlength=n_items + 1)
        assert counts[free].sum() == 3000
        expected = 3000 / len(free)
        assert ((counts[free] - expected) ** 2 / expected).sum() < 13.8  # 99.9 % point at 2 degrees of freedom


def test_users_with_every_item_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_full_rows.cache_clear()
    draw_outside(generator(0), np.zeros(5, np.int64), Ragged.from_lists([[1, 2]]), ItemDrawer(3))
    assert not caplog.records
    for _ in range(3):
        draw_outside(generator(0), np.full(5, 3), Ragged.from_lists([[1], [2, 3], [], [1, 2, 3]]), ItemDrawer(3))
    assert [record.message for record in caplog.records] == [
        "some users have had every item; their negatives are drawn from all items"
    ]


def some_rows() -> Ragged:
    rng = np.random.default_rng(0)
    return Ragged.from_lists([rng.integers(1, 101, rng.integers(0, 80)).astype(np.int32) for _ in range(60)])


@pytest.mark.parametrize(
    "limits",
    [
        {"many_draws": 10**6},  # a search
        {"many_draws": 1},  # one table
        {"many_draws": 1, "table_cells": 500},  # of four rows at a time
        {"many_draws": 1, "table_cells": 101},
        {"many_draws": 1, "table_cells": 100},  # not even a row fits
    ],
)
def test_a_table_finds_what_a_search_finds(limits: dict[str, int]) -> None:
    excluded = some_rows()
    rows, items = np.repeat(np.arange(60), 100), np.tile(np.arange(1, 101, dtype=np.int32), 60)
    found = SortedKeys(excluded, 100, **limits).has(rows, items)
    for row in range(60):
        assert set(items[rows == row][found[rows == row]].tolist()) == set(excluded.row(row).tolist())


def test_many_draws_keep_out_what_is_excluded_too() -> None:
    excluded, rows = some_rows(), np.repeat(np.arange(60), 100)
    drawn = draw_outside(generator(0), rows, excluded, ItemDrawer(100))
    for row in range(60):
        assert not set(drawn[rows == row].tolist()) & set(excluded.row(row).tolist())


@pytest.mark.parametrize("rounds", [1, 2, 40])
def test_rounds_of_drawing_again_decide_how_and_not_what_is_drawn(rounds: int) -> None:
    excluded = Ragged.from_lists([[1, 3, 4, 5, 6, 8, 9, 10]])
    drawn = draw_outside(generator(0), np.zeros(20_000, np.int64), excluded, ItemDrawer(10, rounds=rounds))
    assert np.bincount(drawn, minlength=11)[[2, 7]] / 20_000 == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 3), st.integers(1, 90), st.integers(0, 2**32))
def test_core_draws_what_numpy_draws(n_items: int, n_negatives: int, longest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, 60)
    items = rng.integers(1, n_items + 1, lengths.sum() + 5).astype(np.int32)
    starts = lengths.cumsum() - lengths
    seen = Parts(items, starts, starts + lengths)
    counts = n_negatives * rng.integers(0, 40, 60)
    step_rows = np.unique([*rng.integers(1, 60, 4), 60])  # where the rows of each step end
    keys = [(seed, step) for step in range(len(step_rows))]
    excluded = Ragged.cut(items, seen.starts, seen.ends)
    parts = [
        draw_outside(generator(*key), np.repeat(rows, counts[rows]), excluded, ItemDrawer(n_items))
        for key, rows in zip(keys, np.split(np.arange(60), step_rows[:-1]), strict=True)
    ]
    drawn = draw_unseen(keys, counts.cumsum()[step_rows - 1], counts, seen, ItemDrawer(n_items))
    assert np.array_equal(drawn, np.concatenate(parts))


@pytest.mark.usefixtures("isa")
def test_every_variant_draws_by_itself_where_users_have_few_of_the_items() -> None:
    items = np.random.default_rng(0).integers(1, 5001, 4000).astype(np.int32)
    starts = np.arange(0, 4000, 100)
    rows = np.repeat(np.arange(40), 50)
    expected = draw_outside(generator(1, 2), rows, Ragged.cut(items, starts, starts + 100), ItemDrawer(5000))
    seen = Parts(items, starts, starts + 100)
    wanted: Any = [(1, 2)], np.array([2000]), np.full(40, 50), seen, ItemDrawer(5000)
    drawn = draw_in_core(load_native().module, *wanted)
    assert drawn is not None
    assert np.array_equal(drawn, expected)
    assert np.array_equal(draw_unseen(*wanted), expected)


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
def test_core_refuses_items_and_ranges_out_of_bounds() -> None:
    def wish(items: list[int], end: int, n_draws: int = 4) -> None:
        load_native().module.draw_unseen(
            seeds=np.zeros((1, 3), np.uint64),
            step_rows=np.array([1]),
            counts=np.array([4]),
            items=np.array(items, np.int32),
            starts=np.array([0]),
            ends=np.array([end]),
            n_items=9,
            rounds=32,
            out=np.empty(n_draws, np.int32),
        )

    wish([1, 9], 2)
    for item in (10, 0, -1):
        with pytest.raises(ValueError, match=rf"item index {item} is not in 1\.\.9"):
            wish([item], 1)
    with pytest.raises(ValueError, match="ranges must lie within items"):
        wish([1], 2)
    with pytest.raises(ValueError, match="out must have room"):
        wish([1], 1, n_draws=3)

"""Order, repeats, ties and the fingerprint of a log are the same in one piece and in many."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from sasrec.core.isa import Native
from sasrec.data import facts
from sasrec.data.facts import Tally, fingerprint, n_repeats, order_by, order_by_user, pieces, row_slices
from sasrec.data.ragged import Ragged, offsets_of


def drawn(seed: int, n: int = 200) -> tuple[Any, Any, Any]:
    """Users, where each one's events begin, and times."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 30, n).astype(np.int32)
    return users, offsets_of(np.bincount(users, minlength=30).astype(np.int64)), rng.integers(-5, 5, n)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_events_are_ordered_by_user_then_time_and_ties_as_they_were(
    seed: int, kind: type[np.generic], monkeypatch: pytest.MonkeyPatch
) -> None:
    users, offsets, times = drawn(seed)
    order = order_by_user(users, offsets, times.astype(kind))
    assert order is not None
    assert order.tolist() == np.lexsort((times, users)).tolist()
    monkeypatch.setattr(facts, "PIECE", 7)
    wide = times * 2**60  # too far apart to be sorted together with places
    assert order_by_user(users, offsets, wide).tolist() == order.tolist()
    assert order_by_user(users[order], offsets, times[order]) is None
    assert order_by_user(users, offsets, None).tolist() == np.argsort(users, kind="stable").tolist()
    assert order_by(users[:0]).tolist() == []


@pytest.mark.parametrize("seed", range(3))
def test_few_keys_are_ordered_and_counted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = np.random.default_rng(seed).integers(0, 7, 500).astype(np.int32)
    by_core = facts.order_and_counts(keys, 9)
    monkeypatch.setattr(facts, "load_native", lambda: Native("", None, ""))
    for order, counts in (by_core, facts.order_and_counts(keys, 9)):
        assert order.tolist() == np.argsort(keys, kind="stable").tolist()
        assert counts.tolist() == np.bincount(keys, minlength=9).tolist()


def test_rows_come_in_slices_of_few_values_or_one_row() -> None:
    offsets = offsets_of(np.array([2, 0, 3, 9, 1, 1, 0], np.int64))
    assert [(r.start, r.stop) for r in row_slices(offsets, 5)] == [(0, 3), (3, 4), (4, 7)]
    assert [(r.start, r.stop) for r in row_slices(offsets, 1)] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 7)]
    assert list(row_slices(np.zeros(1, np.int64))) == []


def test_repeats_and_ties_are_counted_within_users(monkeypatch: pytest.MonkeyPatch) -> None:
    histories = Ragged.from_lists([[1, 2, 1, 1], [], [1, 2], [2, 2]])
    times = np.array([1, 1, 2, 2, 2, 3, 3, 3])
    for _ in range(2):
        tally = Tally().add(histories, times, 2)
        assert (tally.n_repeats, tally.n_tied, tally.n_short, tally.n_first, tally.n_events) == (3, 3, 3, 3, 8)
        parts = Tally().add(histories.part(slice(0, 2)), times[:4], 2).add(histories.part(slice(2, 4)), times[4:], 2)
        assert parts == tally
        assert n_repeats(histories, 2) == 3
        monkeypatch.setattr(facts, "PIECE", 1)


def test_the_fingerprint_does_not_depend_on_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    items, users = np.arange(1, 9, dtype=np.int32), pl.Series(["a", "é", "", "bc"])

    def found(n: int) -> str:
        ids = (users, pl.Series([5, 6]))
        return fingerprint([pieces(items, n), pieces(items, n)], pieces(items, n), pieces(items, n), ids, ["x"])

    whole = found(100)
    monkeypatch.setattr(facts, "PIECE", 3)
    assert found(3) == whole
    assert fingerprint([[items], [items[1:]]], [items], [items], (users, pl.Series([5, 6])), ["x"]) != whole

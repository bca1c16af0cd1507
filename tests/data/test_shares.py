"""Shares of a batch: they are the batch, and know what part of it they are."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import make_batches, make_split, random_histories

from sasrec.data.batches import Batch
from sasrec.data.ragged import Ragged
from sasrec.data.shares import share_of


def make_batch(lengths: list[int], weights: list[float] | None = None, shared: bool = False) -> Batch:
    rng, n = np.random.default_rng(sum(lengths)), sum(lengths)
    items = [rng.integers(1, 9, length).astype(np.int32) for length in lengths]
    return Batch(
        users=np.arange(len(lengths)) + 5,
        inputs=Ragged.from_lists(items),
        targets=rng.integers(1, 9, n).astype(np.int32),
        negatives=rng.integers(1, 9, 4 if shared else (n, 2)).astype(np.int32),
        corrections=np.zeros(9, np.float32),
        step=3,
        earlier=Ragged.from_lists(items[::-1]),
        seen=rng.integers(0, 9, n).astype(np.int32),
        weights=None if weights is None else np.array(weights, np.float32),
    )


def shares_of(batch: Batch, size: int) -> list[Batch]:
    return [share for rank in range(size) if (share := share_of(batch, rank, size)) is not None]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.booleans())
def test_shares_one_after_another_are_the_batch(lengths: list[int], size: int, shared: bool) -> None:
    batch = make_batch(lengths, shared=shared)
    shares = shares_of(batch, size)
    for name in ("users", "targets", "seen") if shared else ("users", "targets", "seen", "negatives"):
        assert np.array_equal(np.concatenate([getattr(share, name) for share in shares]), getattr(batch, name))
    for name in ("inputs", "earlier"):
        rows = [getattr(share, name).row(i).tolist() for share in shares for i in range(len(share.users))]
        assert rows == [getattr(batch, name).row(i).tolist() for i in range(len(lengths))]
    assert {share.step for share in shares} == {batch.step}
    if shared:
        assert all(np.array_equal(share.negatives, batch.negatives) for share in shares)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5))
def test_shares_know_the_whole_weight_and_one_of_them_counts_what_counts_once(lengths: list[int], size: int) -> None:
    batch = make_batch(lengths)
    shares = shares_of(batch, size)
    assert all(share.share is not None and share.share.weight == batch.total_weight for share in shares)
    assert sum(share.total_weight for share in shares) == batch.total_weight
    assert [share.counts_penalty for share in shares] == [True] + [False] * (len(shares) - 1)


def test_shares_have_about_as_many_positions_each() -> None:
    batch = make_batch([50, 1, 1, 1, 1, 1, 1, 1, 1, 42, 50, 50])
    assert [len(share.targets) for share in shares_of(batch, 4)] == [50, 50, 50, 50]


def test_a_process_without_a_row_has_no_share() -> None:
    batch = make_batch([4])
    assert [share_of(batch, rank, 3) is None for rank in range(3)] == [False, True, True]


def test_a_share_without_weight_is_none_and_another_one_counts_what_counts_once() -> None:
    batch = make_batch([2, 2, 2], [0, 0, 0.5, 1, 0, 2])
    first, second, third = (share_of(batch, rank, 3) for rank in range(3))
    assert first is None
    assert second is not None
    assert third is not None
    assert (second.counts_penalty, third.counts_penalty) == (True, False)
    assert second.share is not None
    assert second.share.weight == 3.5
    assert second.weights is not None
    assert second.weights.tolist() == [0.5, 1]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_made_batches_can_be_shared(size: int) -> None:
    split, _ = make_split(random_histories(3, 40, 12))
    for batch in make_batches(split, 8, 16, 2).epoch(0):
        whole = replace(batch, share=None)
        assert sum(len(share.users) for share in shares_of(whole, size)) == len(batch.users)

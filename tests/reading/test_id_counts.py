"""Ids counted piece by piece are those of the whole column, and are found again."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from sasrec.core.isa import load_native
from sasrec.reading import id_counts
from sasrec.reading.id_counts import IdCounts, IdIndex

PIECES: dict[str, list[Sequence[int | str]]] = {
    "close": [[5, 7, 5], [6], [-3, 5], [12, 12]],
    "far apart": [[5, 10**12, 5], [-(2**62), 2**62], [5, 10**12]],
    "first close": [[1, 2, 3], [2**40], [1, 2**40, 7]],
    "texts": [["b", "a"], ["a", "é", ""], ["b"]],
    "texts later": [[3, 3, 11], ["11", "x"], [3, 4]],
    "texts after far ones": [[3, 10**12], [10**12], ["11", "x"], [3, 4]],
}


@pytest.fixture(params=["core", "sorting"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled core's tables and without."""
    if request.param == "sorting":
        monkeypatch.setattr(id_counts, "id_table", lambda: None)
    elif load_native().module is None:
        pytest.skip(load_native().why)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("late", [0, 2**18])
def test_ids_in_pieces_are_counted_as_in_one(
    pieces: list[Sequence[int | str]], late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(id_counts, "LATE", late)
    monkeypatch.setattr(id_counts, "FREE_PLACES", 16)
    counts = IdCounts()
    for piece in pieces:
        counts.add(pl.Series(piece))
        assert counts.nbytes > 0
    is_text = any(isinstance(one, str) for piece in pieces for one in piece)
    whole = pl.Series([str(one) if is_text else one for piece in pieces for one in piece])
    expected = whole.value_counts().sort("")
    ids, n = counts.result()
    assert (counts.as_text, counts.seen) == (is_text, len(whole))
    assert ids.to_list() == expected[""].to_list()
    assert n.tolist() == expected["count"].to_list()
    assert IdIndex(ids).places_of(whole).tolist() == [ids.to_list().index(one) for one in whole]


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_counts_of_two_processes_are_joined(pieces: list[Sequence[int | str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_counts, "FREE_PLACES", 16)
    whole, shares = IdCounts(), [IdCounts(), IdCounts()]
    for at, piece in enumerate(pieces):
        whole.add(pl.Series(piece))
        shares[at > 0].add(pl.Series(piece))
    first, second = (pickle.loads(pickle.dumps(share)) for share in shares)
    first.join(second)
    (ids, n), (expected, n_expected) = first.result(), whole.result()
    assert (first.as_text, first.seen) == (whole.as_text, whole.seen)
    assert (ids.to_list(), n.tolist()) == (expected.to_list(), n_expected.tolist())


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(("ids", "other"), [([1, 10**12, 10**13], 10**14), (["a", "b"], "c")])
def test_an_id_that_is_not_there_is_an_error(ids: list[int | str], other: int | str) -> None:
    index = IdIndex(pl.Series(ids))
    with pytest.raises(IndexError, match="an id is not among those that there are"):
        index.places_of(pl.Series([ids[0], other]))


@pytest.mark.usefixtures("_way")
def test_texts_with_one_hash_get_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = pl.Series.hash
    monkeypatch.setattr(pl.Series, "hash", lambda self, seed: hashed(self, seed) % (4 if seed < 3 else 2**63))
    ids = pl.Series([f"u{j:02}" for j in range(20)])
    index = IdIndex(ids)
    assert index.places_of(ids.reverse()).tolist() == list(range(20))[::-1]
    assert index._seed == 3


def test_a_table_does_not_grow_far_beyond_its_ids() -> None:
    counts = IdCounts()
    counts.add(pl.Series(np.arange(1000)))
    assert counts.nbytes < 10_000
    counts.add(pl.Series([2**30]))
    assert counts.nbytes < 100_000

"""One rule for allow and deny lists: unknown ids are skipped and listed."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from sasrec.data.vocabulary import Vocabulary
from sasrec.ranking.item_filter import ItemFilter

VOCABULARY = Vocabulary(pl.Series("item_id", [10, 20, 30, 40]))


@pytest.mark.parametrize(
    ("allow", "deny", "left"),
    [
        (None, None, [1, 2, 3, 4]),
        ([20, "30", "who?"], None, [2, 3]),
        (None, ["20", 99, 20], [1, 3, 4]),
        ([10, 20], [20, 30], [1]),
        ([], None, []),
        (None, [], [1, 2, 3, 4]),
        (["who?"], None, []),
    ],
)
def test_what_is_left_is_allowed_and_not_denied(
    allow: list[object] | None, deny: list[object] | None, left: list[int]
) -> None:
    mask = ItemFilter.of(VOCABULARY, allow, deny).mask()
    assert (np.arange(1, 5) if mask is None else np.flatnonzero(mask)).tolist() == left


def test_unknown_ids_of_each_list_are_told_in_their_order() -> None:
    items = ItemFilter.of(VOCABULARY, ["a", 10, "b"], [7, 20, "a"])
    assert (items.unknown_allow, items.unknown_deny) == (["a", "b"], [7, "a"])
    assert items.allowed is not None
    assert (items.allowed.tolist(), items.denied.tolist()) == ([1], [2])


def test_the_allow_mask_knows_nothing_of_what_is_denied_and_padding_is_never_allowed() -> None:
    items = ItemFilter.of(VOCABULARY, [10, 20, "who?"], [20])
    mask = items.allow_mask()
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == [1, 2]
    assert ItemFilter.of(VOCABULARY, None, [20]).allow_mask() is None

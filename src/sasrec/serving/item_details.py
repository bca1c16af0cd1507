"""What is known of items, as answers tell it: bounded, so that no answer grows with what a file of items says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from sasrec.data.vocabulary import Vocabulary

MOST_COLUMNS = 20
MOST_VALUES = 20  # of a list
MOST_CHARACTERS = 200  # of a text


class ItemDetails:
    """The attributes of a catalogue, but for vectors.

    Args:
        vocabulary: with attributes or without.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        attributes = vocabulary.attributes
        told = [] if attributes is None else [c for c in attributes if not isinstance(c.dtype, pl.Array)]
        self._attributes = pl.DataFrame(told[:MOST_COLUMNS])
        self.columns = self._attributes.columns

    def of(self, indices: Sequence[int]) -> list[dict[str, Any] | None]:
        """What is known of each item, by column; None where that is nothing."""
        if not self.columns:
            return [None] * len(indices)
        rows = self._attributes[np.asarray(indices, np.int64) - 1].rows()
        return [_told(dict(zip(self.columns, row, strict=True))) for row in rows]


def _told(values: dict[str, Any]) -> dict[str, Any] | None:
    return {name: _cut(value) for name, value in values.items() if value is not None and value != []} or None


def _cut(value: Any) -> Any:
    if isinstance(value, list):
        return [_cut(one) for one in value[:MOST_VALUES]]
    return value[:MOST_CHARACTERS] if isinstance(value, str) else value

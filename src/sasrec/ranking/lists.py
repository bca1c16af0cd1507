"""Lists of item indices as frames of your own ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from sasrec.core.arrays import Float32, Int32
from sasrec.core.displays import html_of
from sasrec.data.vocabulary import Vocabulary
from sasrec.ranking.next_items import Reasons


@dataclass(frozen=True)
class Recommendations:
    """A frame of recommendations, and what there is to know about it."""

    frame: Any  # user_id, item_id, score, rank: of the library that came in, or of Polars
    unknown_items: list[list[Any]]  # per history: ids that the model does not know; they are skipped
    fallback: list[bool]  # per history: True = no known item, so popular items were given
    unknown_allow: list[Any] = field(default_factory=list)  # ids of `allow` that the model does not know; skipped
    unknown_deny: list[Any] = field(default_factory=list)  # of `deny`
    vocabulary: Vocabulary | None = field(default=None, repr=False, compare=False)  # of the items, for their titles

    def _repr_html_(self) -> str:
        return html_of(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "vocabulary": None}  # lists that are stored or sent do not bring all items along


def list_frame(vocabulary: Vocabulary, indices: Int32, scores: Float32, user_ids: pl.Series | None) -> pl.DataFrame:
    """Rows as user_id, item_id, score, rank; index 0 marks the end of a short row; None = users by position."""
    rows, ranks = np.nonzero(indices)
    return pl.DataFrame(
        [
            pl.Series("user_id", rows) if user_ids is None else user_ids.gather(rows).rename("user_id"),
            vocabulary.ids_of(indices[rows, ranks]),
            pl.Series("score", scores[rows, ranks]),
            pl.Series("rank", (ranks + 1).astype(np.int32)),
        ]
    )


def reasons_frame(vocabulary: Vocabulary, reasons: Reasons) -> pl.DataFrame:
    """Reasons as item_id, position, contribution."""
    return pl.DataFrame(
        {
            "item_id": vocabulary.ids_of(reasons.indices),
            "position": pl.Series(reasons.positions),
            "contribution": pl.Series(reasons.contributions),
        }
    )

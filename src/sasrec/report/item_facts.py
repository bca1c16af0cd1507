"""What is known of a model's items, in a few bounded words: names and kinds of columns, shares, frequent values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from sasrec.data.feature_encoder import rows_of_values
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.item_columns import kind_in_words
from sasrec.report.run_facts import shown
from sasrec.report.text import percent

MOST_COLUMNS = 20
MOST_VALUES = 5
VALUE_LENGTH = 40


@dataclass(frozen=True)
class AttributeFacts:
    """A column of attributes."""

    name: str
    holds: str  # "text", "lists of text", "whole numbers"
    share: float  # of items that have a value
    values: str  # the most frequent ones with how many items have them, or the range of numbers
    is_feature: bool  # whether the model learns from it

    @property
    def told(self) -> dict[str, str]:
        """For `sasrec info`."""
        told = {"holds": self.holds, "items with it": percent(self.share), "values": self.values}
        return {name: text for name, text in told.items() if text} | ({"feature": "yes"} if self.is_feature else {})


@dataclass(frozen=True)
class ItemFacts:
    """What is known of items."""

    n_items: int
    n_without_events: int
    columns: list[AttributeFacts]
    n_more: int  # columns that are not told of

    def to_dict(self) -> Mapping[str, Any]:
        """For `sasrec info`."""
        more = {"more attributes": self.n_more} if self.n_more else {}
        attributes = {column.name: column.told for column in self.columns}
        return {"items": self.n_items, "without events": self.n_without_events, "attributes": attributes, **more}

    @property
    def sentence(self) -> str:
        """Names of columns and who has them, without any value."""
        told = [f"{column.name} ({column.holds}, {percent(column.share)})" for column in self.columns]
        more = f" and {self.n_more} more" if self.n_more else ""
        learnt = [column.name for column in self.columns if column.is_feature]
        from_ = f" The model learns from {', '.join(learnt)}." if learnt else ""
        cold = f" Items without events: {self.n_without_events:,}." if self.n_without_events else ""
        return f"Known of items, with the share that has it: {', '.join(told)}{more}.{from_}{cold}"


def item_facts(vocabulary: Vocabulary) -> ItemFacts | None:
    """What is known of the items of a vocabulary; None = nothing but ids and titles."""
    attributes = vocabulary.attributes
    if attributes is None:
        return None
    features = set() if vocabulary.encoder is None else set(vocabulary.encoder.columns)
    columns = [_facts_of(column, column.name in features) for column in attributes.get_columns()[:MOST_COLUMNS]]
    n_without = int((vocabulary.counts == 0).sum())
    return ItemFacts(len(vocabulary), n_without, columns, max(attributes.width - MOST_COLUMNS, 0))


def _facts_of(column: pl.Series, is_feature: bool) -> AttributeFacts:
    known = column.is_not_null()
    if isinstance(column.dtype, pl.List):
        known = known & (column.list.len() > 0).fill_null(False)
    share = int(known.sum()) / max(len(column), 1)
    name = shown(column.name, VALUE_LENGTH)
    return AttributeFacts(name, kind_in_words(column.dtype), share, _values(column.drop_nulls()), is_feature)


def _values(column: pl.Series) -> str:
    """Frequent values, or a range; empty where each value is that of one item."""
    kind = column.dtype
    if not len(column) or isinstance(kind, pl.Array):
        return ""
    if kind.is_float() or kind.is_temporal():
        return f"{_number(column.min())} to {_number(column.max())}"
    if isinstance(kind, pl.List) and isinstance(kind.inner, pl.DataType) and kind.inner.is_float():
        return ""
    counts = rows_of_values(column).group_by("value").len().sort(["len", "value"], descending=[True, False])
    if not len(counts) or counts["len"][0] < 2:
        return ""
    told = [f"{shown(value, VALUE_LENGTH)} ({n:,})" for value, n in counts.head(MOST_VALUES).rows()]
    more = len(counts) - MOST_VALUES
    return ", ".join(told) + (f" and {more:,} more" if more > 0 else "")


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(value, VALUE_LENGTH)

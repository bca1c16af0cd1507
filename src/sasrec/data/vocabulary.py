"""Translate between your item ids and dense item indices from 1; keeps counts and titles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import polars as pl

from sasrec.core.arrays import Int32, Int64
from sasrec.core.errors import UnknownItemError
from sasrec.core.forks import needs_threads_of
from sasrec.reading.ids import canonical_id, canonical_ids

FEW_IDS = 256  # ids looked up one by one
OWN_COLUMNS = ("item_index", "item_id", "count", "title")  # of items.parquet; all others are attributes


class AttributeEncoder(Protocol):
    """What makes numbers of attributes: a `FeatureEncoder`, which knows more than a vocabulary may."""

    @property
    def columns(self) -> list[str]:
        """The attributes that it needs."""

    def encode(self, attributes: pl.DataFrame) -> Any:
        """The `ItemFeatures` of the rows."""

    def unseen(self, attributes: pl.DataFrame) -> list[str]:
        """A sentence for each column with values that are no features."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""


class Vocabulary:
    """Your item ids <-> item indices 1..n_items, in ascending order of id; items without events follow after others.

    Args:
        item_ids: (n_items,) unique ids, Int64 or String; row i has item_index i + 1.
        counts: (n_items,) events per item in the log.
        titles: (n_items,) text to show, or None.
        attributes: (n_items rows) what else is known of each item, a column each; None = nothing.
        encoder: how the model makes features of attributes; None = it knows items by id alone.
    """

    def __init__(
        self,
        item_ids: pl.Series,
        counts: Int64 | None = None,
        titles: pl.Series | None = None,
        attributes: pl.DataFrame | None = None,
        encoder: AttributeEncoder | None = None,
    ) -> None:
        self.item_ids = canonical_ids(item_ids).rename("item_id")
        self.counts = np.zeros(len(item_ids), np.int64) if counts is None else counts
        self.titles, self.attributes, self.encoder = titles, attributes, encoder

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def features(self) -> Any:
        """The `ItemFeatures` of all items, as the engine takes them; None = the model knows items by id alone."""
        if self.encoder is None or self.attributes is None:
            return None
        return self.encoder.encode(self.attributes)

    @cached_property
    def ids(self) -> list[int | str]:
        """All ids as a list: that of item_index i is ids[i - 1]."""
        return self.item_ids.to_list()

    @cached_property
    def _index(self) -> dict[int | str, int]:
        return dict(zip(self.ids, range(1, len(self) + 1), strict=True))

    @property
    def has_integer_ids(self) -> bool:
        """Whether ids are integers; then "2969" and 2969 are the same item."""
        return isinstance(self.item_ids.dtype, pl.Int64)

    def index_of(self, item_id: object) -> int:
        """The index of an id; 0 when it is unknown. An integer and its canonical text are the same id."""
        return self._index.get(canonical_id(item_id, self.has_integer_ids), 0)

    def indices_of(self, item_ids: Iterable[object]) -> Int32:
        """(n,) indices of ids; 0 where unknown."""
        index, integers = self._index, self.has_integer_ids
        own = int if integers else str  # ids of the vocabulary's own type are canonical
        return np.array([index.get(i if type(i) is own else canonical_id(i, integers), 0) for i in item_ids], np.int32)

    def split_known(self, item_ids: Sequence[Any]) -> tuple[Int32, list[Any]]:
        """Indices of the ids that are known, in their order, and the ids that are not."""
        indices = self.indices_of(item_ids)
        if indices.all():
            return indices, []
        unknown = [item for item, index in zip(item_ids, indices.tolist(), strict=True) if not index]
        return indices[indices > 0], unknown

    def known_index(self, item_id: object) -> int:
        """The index of an id that must exist.

        Raises:
            UnknownItemError: the vocabulary does not hold it.
        """
        index = self.index_of(item_id)
        if not index:
            raise UnknownItemError(f"item {item_id!r} is not in the log this model was trained on ({len(self)} items)")
        return index

    def known_indices(self, item_ids: Sequence[object]) -> Int32:
        """(n,) indices of ids that must exist.

        Raises:
            UnknownItemError: the vocabulary does not hold one of them.
        """
        indices = self.indices_of(item_ids)
        for position in np.flatnonzero(indices == 0)[:1]:
            self.known_index(item_ids[position])
        return indices

    def ids_of(self, indices: Int32) -> pl.Series:
        """The ids of indices from 1 on."""
        rows = np.asarray(indices, np.int64) - 1
        if len(rows) > FEW_IDS:
            ids: pl.Series = self.item_ids.gather(rows)
            return ids
        own = self.ids  # for a few ids, Polars' own gather takes longer than all the rest of an answer
        return pl.Series("item_id", [own[row] for row in rows.tolist()], self.item_ids.dtype)

    def titles_of(self, indices: Int32) -> list[str]:
        """Titles to show; an item without one shows its id."""
        ids = self.ids_of(indices).to_list()
        if self.titles is None:
            return [str(i) for i in ids]
        titles = self.titles.gather(np.asarray(indices, np.int64) - 1).to_list()
        return [str(i) if title is None else str(title) for i, title in zip(ids, titles, strict=True)]

    def to_frame(self) -> pl.DataFrame:
        """item_index, item_id, count and, when known, title and attributes: the contents of items.parquet."""
        frame = pl.DataFrame(
            {
                "item_index": pl.Series(np.arange(1, len(self) + 1, dtype=np.int32)),
                "item_id": self.item_ids,
                "count": pl.Series(self.counts, dtype=pl.Int64),
            }
        )
        if self.titles is not None:
            frame = frame.with_columns(self.titles.rename("title"))
        return frame if self.attributes is None else frame.hstack(self.attributes)

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Vocabulary:
        """Read back what `to_frame` wrote.

        Raises:
            ValueError: it is not what `to_frame` wrote.
        """
        frame = frame.sort("item_index")
        titles = frame["title"] if "title" in frame.columns else None
        _check_table(frame)
        attributes = frame.drop(*OWN_COLUMNS, strict=False)
        return cls(frame["item_id"], frame["count"].to_numpy(), titles, attributes if len(attributes.columns) else None)

    @property
    def n_titled(self) -> int:
        """Items that have a title."""
        return 0 if self.titles is None else len(self.titles) - self.titles.null_count()

    def with_titles(self, titles: pl.DataFrame) -> Vocabulary:
        """The same items with the titles of a frame item_id, title; ids it does not name stay without one."""
        needs_threads_of("Polars")
        titles = titles.select(canonical_ids(titles["item_id"]).alias("item_id"), "title").unique("item_id")
        if titles["item_id"].dtype != self.item_ids.dtype:
            titles = titles.with_columns(pl.col("item_id").cast(self.item_ids.dtype, strict=False))
        joined = self.item_ids.to_frame().join(titles, on="item_id", how="left", maintain_order="left")
        return Vocabulary(self.item_ids, self.counts, joined["title"], self.attributes, self.encoder)

    def with_encoder(self, encoder: AttributeEncoder | None) -> Vocabulary:
        """The same items, whose attributes become features in this way."""
        return Vocabulary(self.item_ids, self.counts, self.titles, self.attributes, encoder)

    def head(self, n: int) -> Vocabulary:
        """The first n items."""
        titles = None if self.titles is None else self.titles.head(n)
        attributes = None if self.attributes is None else self.attributes.head(n)
        return Vocabulary(self.item_ids.head(n), self.counts[:n], titles, attributes, self.encoder)


def _check_table(frame: pl.DataFrame) -> None:
    """Raise ValueError unless rows are items 1 to n, each with an id of its own."""
    kinds = {"item_index": (pl.Int32,), "item_id": (pl.Int64, pl.String), "count": (pl.Int64,)}
    for name, kind in frame.schema.items():
        if kind not in kinds.get(name, (kind,)):
            raise ValueError(f"column {name} is of type {kind}")
    ids = frame["item_id"]
    if ids.null_count() or ids.n_unique() < len(ids):
        raise ValueError("an item has no id, or that of another")
    if (frame["item_index"] != pl.Series(np.arange(1, len(frame) + 1, dtype=np.int32))).any():
        raise ValueError(f"item_index does not go from 1 to {len(frame)}")
    if frame["count"].null_count() or (frame["count"] < 0).any():
        raise ValueError("a count is not a number from 0 on")

"""Make an engine's numbers of attributes: categories and bins as features, vectors on one scale.

What the encoder knows comes from the items of the log: categories, the edges of bins, the mean and scale of vectors. A
new item is encoded alike. A category that no item of the log has is no feature.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
import polars as pl

from sasrec.core.arrays import Float32, Int64
from sasrec.core.errors import ConfigError, DataError
from sasrec.core.suggestions import suggestion
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged, offsets_of
from sasrec.reading.item_columns import kind_in_words
from sasrec.reading.item_vectors import as_vectors, vector_rows

logger = logging.getLogger(__name__)
FORMAT = 1
N_BINS = 10
FEW_VALUES = 50  # whole numbers of at most so many different values are categories
LEAST_SHARED = 0.05  # of the items: where fewer share a value with another, a column says no more than the id
MOSTLY_SHARED = 0.5
ITEMS = "the items"
FEW_WORDS = 0.05  # of the values of a text column that is to be numbers
KINDS = ("category", "number")


@dataclass(frozen=True)
class Categories:
    """A column of one or many values an item, a feature each."""

    column: str
    values: tuple[str, ...]  # ascending

    @property
    def n_features(self) -> int:
        """One for each value."""
        return len(self.values)

    def pairs(self, column: pl.Series) -> pl.DataFrame:
        """row, feature: which rows have which features, those that are known."""
        known = pl.DataFrame(
            {"value": pl.Series(self.values, dtype=pl.String), "feature": np.arange(len(self.values), dtype=np.int64)}
        )
        return rows_of_values(column).join(known, on="value").select("row", "feature")

    def unseen(self, column: pl.Series) -> tuple[int, str]:
        """How many rows have values that are not known, and the first such value."""
        rows = rows_of_values(column)
        rows = rows.filter(~rows["value"].is_in(pl.Series(self.values, dtype=pl.String).implode()))
        return rows["row"].n_unique(), rows["value"][0] if len(rows) else ""

    def __str__(self) -> str:
        return f"{self.column} {self.n_features:,} categories"


@dataclass(frozen=True)
class Bins:
    """A column of numbers, a feature for each range of them."""

    column: str
    edges: tuple[float, ...]  # ascending; a value that is an edge lies above it

    @property
    def n_features(self) -> int:
        """One for each bin."""
        return len(self.edges) + 1

    def pairs(self, column: pl.Series) -> pl.DataFrame:
        """row, feature: the bin of each row that has a number."""
        numbers = numbers_of(column)
        rows = numbers.is_not_null().arg_true().cast(pl.Int64)
        bins = np.searchsorted(np.array(self.edges), numbers.drop_nulls().to_numpy(), side="right")
        return pl.DataFrame({"row": rows, "feature": bins.astype(np.int64)})

    def unseen(self, column: pl.Series) -> tuple[int, str]:
        """None: every number has a bin."""
        return 0, ""

    def __str__(self) -> str:
        return f"{self.column} {self.n_features} bins"


@dataclass(frozen=True)
class Scale:
    """A column of vectors, each of whose dimensions gets mean 0 and variance 1 over the items of the log."""

    column: str
    mean: tuple[float, ...]
    scale: tuple[float, ...]  # what a value is divided by

    def rows(self, column: pl.Series) -> Float32:
        """(n, W) standardised vectors, 0 where a row has none.

        Raises:
            DataError: it holds no vectors of this width.
        """
        width = len(self.mean)
        if column.null_count() == len(column):
            return np.zeros((len(column), width), np.float32)
        vectors, known = vector_rows(as_vectors(column, ITEMS))
        if vectors.shape[1] != width:
            raise DataError(
                f"column {self.column!r} of {ITEMS} has vectors of {vectors.shape[1]} numbers, and the model was "
                f"trained on {width}"
            )
        vectors[known] = (vectors[known] - np.array(self.mean)) / np.array(self.scale)
        return vectors


Feature = Categories | Bins


@dataclass(frozen=True)
class FeatureEncoder:
    """How attributes become features and vectors."""

    features: tuple[Feature, ...]
    vectors: Scale | None = None

    @property
    def n_features(self) -> int:
        """Features of all columns together."""
        return sum(feature.n_features for feature in self.features)

    @property
    def columns(self) -> list[str]:
        """The columns that are needed of new items."""
        return [feature.column for feature in self.features] + ([self.vectors.column] if self.vectors else [])

    @classmethod
    def fit(cls, attributes: pl.DataFrame, features: Sequence[str], vectors: str | None = None) -> FeatureEncoder:
        """Learn categories, bins and scales.

        Args:
            attributes: of the items in the log, a row each.
            features: names of columns, also `name:category` or `name:number` where the type would say otherwise.
            vectors: the column of vectors; None = there are none.

        Raises:
            ConfigError: a column is not there, is named twice, or cannot be used in this way.
            DataError: a column says nothing of its items, or has vectors that cannot be used.
        """
        asked = [_split(name, attributes.columns) for name in features]
        names = [name for name, _ in asked] + ([vectors] if vectors is not None else [])
        for name in names:
            if name not in attributes.columns:
                raise ConfigError(
                    f"the items have no column {name!r}{suggestion(name.partition(':')[0], attributes.columns)}; their "
                    f"columns are: {', '.join(attributes.columns)}"
                )
            if names.count(name) > 1:
                raise ConfigError(f"column {name!r} is named twice among item_features and item_vectors; name it once")
        made = tuple(_fitted(attributes[name], kind) for name, kind in asked)
        encoder = cls(made, None if vectors is None else _scale(attributes[vectors]))
        encoder._say(attributes)
        return encoder

    def _say(self, attributes: pl.DataFrame) -> None:
        told = [str(feature) for feature in self.features]
        told += [f"{self.vectors.column} vectors of {len(self.vectors.mean)}"] if self.vectors else []
        logger.info("features of items: %s", ", ".join(told))
        encoded = self.encode(attributes)
        lengths = encoded.values.lengths[1:]
        known = lengths > 0 if encoded.vectors is None else (lengths > 0) | encoded.vectors[1:].any(axis=1)
        if not known.all():
            logger.info("items of the log without any feature: %s of %s", f"{int((~known).sum()):,}", f"{len(known):,}")

    def encode(self, attributes: pl.DataFrame) -> ItemFeatures:
        """The features of items.

        Args:
            attributes: a row for each item, with the columns that the encoder was made from.

        Returns:
            Of as many items as there are rows, and padding before them.

        Raises:
            DataError: a column is missing, or is of another kind.
        """
        for name in self.columns:
            if name not in attributes.columns:
                raise DataError(f"{ITEMS} have no column {name!r}, which the model's features are made from")
        pairs, first = [pl.DataFrame(schema={"row": pl.Int64, "feature": pl.Int64})], 0
        for feature in self.features:
            pairs.append(feature.pairs(attributes[feature.column]).with_columns(pl.col("feature") + first))
            first += feature.n_features
        rows = pl.concat(pairs).unique().sort("row", "feature")
        vectors = None
        if self.vectors is not None:
            found = self.vectors.rows(attributes[self.vectors.column])
            vectors = np.concatenate([np.zeros((1, found.shape[1]), np.float32), found])
        return ItemFeatures(_ragged(rows, len(attributes)), self.n_features, vectors)

    def unseen(self, attributes: pl.DataFrame) -> list[str]:
        """A sentence for each column that has categories which no item of the log has."""
        told = []
        for feature in self.features:
            n, example = feature.unseen(attributes[feature.column])
            if n:
                told.append(
                    f"values of {feature.column!r} that no item of the log has, such as {example!r}, are no features "
                    f"({n:,} of {len(attributes):,} items)"
                )
        return told

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `from_dict` reads it back."""
        return {
            "format": FORMAT,
            "features": [asdict(feature) for feature in self.features],
            "vectors": None if self.vectors is None else asdict(self.vectors),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureEncoder:
        """Read back what `to_dict` gave.

        Raises:
            ValueError: it is not that, or of a later format.
        """
        if values["format"] != FORMAT:
            raise ValueError(f"items' features have format {values['format']!r}, and this version reads {FORMAT}")
        told = values["features"]
        features = tuple(msgspec.convert(f, Bins) if "edges" in f else msgspec.convert(f, Categories) for f in told)
        return cls(features, None if values["vectors"] is None else msgspec.convert(values["vectors"], Scale))


def _ragged(pairs: pl.DataFrame, n: int) -> Ragged:
    """Pairs in order as rows; row 0 is padding."""
    lengths: Int64 = np.bincount(pairs["row"].to_numpy() + 1, minlength=n + 1).astype(np.int64)
    return Ragged(pairs["feature"].to_numpy().astype(np.int32), offsets_of(lengths))


def _split(name: str, columns: Sequence[str]) -> tuple[str, str | None]:
    """The column, and what it is to be taken for, as in price:category."""
    before, colon, kind = name.rpartition(":")
    if name in columns or not colon or before not in columns:
        return name, None
    if kind not in KINDS:
        raise ConfigError(
            f"item_features has {name!r}; a column is a :{' or a :'.join(KINDS)}{suggestion(kind, KINDS)}"
        )
    return before, kind


def _fitted(column: pl.Series, kind: str | None) -> Feature:
    """What a column is taken for: lists, text, truth values and few whole numbers are categories, others numbers."""
    name, told = column.name, column.dtype
    if isinstance(told, pl.Array) or (isinstance(told, pl.List) and _has_fractions(column)):
        raise ConfigError(
            f"column {name!r} holds {kind_in_words(told)}, which are no categories; name it as item_vectors"
        )
    if isinstance(told, pl.List) and kind == "number":
        raise ConfigError(
            f"column {name!r} holds {kind_in_words(told)}, and an item has one number; use it as categories"
        )
    if kind is None:
        kind = "category" if _are_categories(column) else "number"
    return _categories(column) if kind == "category" else _bins(column)


def _has_fractions(column: pl.Series) -> bool:
    if not column.dtype.inner.is_float():  # type: ignore[attr-defined]
        return False
    values = column.explode().drop_nulls()
    return bool((values != values.round()).any())


def _are_categories(column: pl.Series) -> bool:
    if column.dtype.is_integer():
        return column.name.lower().endswith("id") or column.drop_nulls().n_unique() <= FEW_VALUES
    return not (column.dtype.is_numeric() or column.dtype.is_temporal())


def _categories(column: pl.Series) -> Categories:
    rows, n = rows_of_values(column), len(column)
    values = rows["value"].unique().sort().to_list()
    having = rows["row"].n_unique()
    _check_tells(column.name, values, having, n)
    rows = rows.with_columns(shared=pl.len().over("value") > 1)
    share = rows.filter(pl.col("shared"))["row"].n_unique() / having
    if share < LEAST_SHARED:
        raise DataError(
            f"column {column.name!r} has {len(values):,} different values for {having:,} items, and "
            f"{100 * share:.1f} % of them share one with another, so it says no more than the id; leave it out of "
            "item_features"
        )
    if share < MOSTLY_SHARED:
        logger.warning("only %.1f %% of the items share a value of %r with another item", 100 * share, column.name)
    return Categories(column.name, tuple(values))


def _bins(column: pl.Series) -> Bins:
    numbers = numbers_of(column, strict=True).drop_nulls().to_numpy()
    _check_tells(column.name, np.unique(numbers).tolist(), len(numbers), len(column))
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        raise DataError(f"column {column.name!r} of {ITEMS} has no finite number; leave it out of item_features")
    inner = np.unique(np.quantile(finite, np.arange(1, N_BINS) / N_BINS, method="higher"))  # values: no bin is empty
    edges = inner[inner > finite.min()]
    if not len(edges):  # nearly all items have the least value
        edges = np.unique(finite)[1:2]
    return Bins(column.name, tuple(edges.tolist()))


def _check_tells(name: str, values: Sequence[Any], having: int, n: int) -> None:
    """Refuse a column that is empty, or the same for all items."""
    if not values:
        raise DataError(f"column {name!r} has no value for any item of the log; leave it out of item_features")
    if len(values) == 1 and having == n:
        raise DataError(
            f"column {name!r} has the value {values[0]!r} for all {n:,} items of the log, which tells none from "
            "another; leave it out of item_features"
        )


def _scale(column: pl.Series) -> Scale:
    vectors, known = vector_rows(as_vectors(column, ITEMS))
    given = vectors[known].astype(np.float64)
    scale = given.std(axis=0)
    if not scale.any():
        raise DataError(
            f"column {column.name!r} has the same vector for all items of the log, which tells nothing of them"
        )
    if not known.all():
        logger.info("items of the log without a vector: %s of %s", f"{int((~known).sum()):,}", f"{len(known):,}")
    return Scale(column.name, tuple(given.mean(axis=0).tolist()), tuple(np.where(scale > 0, scale, 1.0).tolist()))


def rows_of_values(column: pl.Series) -> pl.DataFrame:
    """row, value: each value of each row, once, as text."""
    frame = pl.DataFrame({"row": np.arange(len(column), dtype=np.int64), "value": column})
    if isinstance(column.dtype, pl.List):
        frame = frame.explode("value")
    elif isinstance(column.dtype, pl.Array):
        raise DataError(
            f"column {column.name!r} of {ITEMS} holds {kind_in_words(column.dtype)}, and categories are needed"
        )
    frame = frame.with_columns(_as_text(frame["value"]))
    return frame.filter(pl.col("value") != "").unique(maintain_order=True)


def _as_text(values: pl.Series) -> pl.Series:
    """Values as they are compared: whole floats as the integers they stand for."""
    if values.dtype.is_float():
        values = values.fill_nan(None)
        values = values.cast(pl.Int64, strict=False) if (values == values.round()).all() else values
    return values.cast(pl.String).str.strip_chars()


def numbers_of(column: pl.Series, *, strict: bool = False) -> pl.Series:
    """A column as floats; times as seconds; what is no number is null, or where it is often, and strict, refused.

    Raises:
        DataError: it is a list, or strict and many texts are no numbers.
    """
    kind = column.dtype
    if kind.is_nested():
        raise DataError(f"column {column.name!r} of {ITEMS} holds {kind_in_words(kind)}, and one number is needed")
    if kind in (pl.Date, pl.Datetime):
        return column.dt.epoch("s").cast(pl.Float64)
    if kind.is_temporal():
        return column.to_physical().cast(pl.Float64)
    numbers = column.cast(pl.Float64, strict=False).fill_nan(None)
    if strict and kind == pl.String:
        _check_words(column, numbers.is_null() & column.is_not_null())
    return numbers


def _check_words(column: pl.Series, wrong: pl.Series) -> None:
    """Refuse a text column that is to be numbers and has more than a few words; few are said."""
    n = int(wrong.sum())
    if n > FEW_WORDS * (len(column) - column.null_count()):
        raise DataError(
            f"column {column.name!r} of {ITEMS} has {column.filter(wrong)[0]!r}, which is not a number; use "
            "it as :category"
        )
    if n:
        logger.warning(
            "values of %r that are no numbers, such as %r, are no features (%d)",
            column.name,
            column.filter(wrong)[0],
            n,
        )

"""Join what is known of items onto those of a log, in index order; items without events follow after the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from sasrec.core.errors import CheckpointError, ConfigError, DataError
from sasrec.core.forks import needs_threads_of
from sasrec.core.suggestions import suggestion
from sasrec.data.feature_encoder import FeatureEncoder
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.ids import canonical_ids
from sasrec.reading.item_vectors import VECTOR, as_vectors
from sasrec.reading.items import read_items

logger = logging.getLogger(__name__)
MOST_LACK = 0.5  # of the items: if more have no row, ids may not be those of the log
INTEGER = r"^(0|-?[1-9][0-9]{0,17})(?:\.0+)?$"
NEEDS_FEATURES = "an item without events can only be recommended by features (item_features, item_vectors)"


def describe(
    vocabulary: Vocabulary,
    items: Any = None,
    features: Sequence[str] = (),
    vectors: Any = None,
    item_column: str | None = None,
) -> Vocabulary:
    """A log's items with what is known of them, and how the model makes features of it.

    Args:
        vocabulary: of a log; what it tells of items already stays where `items` says nothing.
        items: whatever `read_items` takes; None = what the vocabulary tells already.
        features: columns that become features; see `FeatureEncoder.fit`.
        vectors: the column of vectors, a .npy file, or an array whose rows are those of `items`.
        item_column: the column of ids in `items`; None = a usual name.

    Raises:
        DataError: the items cannot be read, or none is in the log, or a column cannot be used.
        ConfigError: a column is not there, or there are no items to take it from.
    """
    needs_threads_of("Polars")
    features = _names(features)
    is_array = vectors is not None and _is_array(vectors, vocabulary, items)
    has_features = bool(features) or vectors is not None
    if items is not None:
        read = read_items(items, item_column=item_column, vectors=vectors if is_array else None)
        vocabulary = with_items(vocabulary, read, add=has_features)
    if not has_features:
        return vocabulary
    if items is None and (is_array or vocabulary.attributes is None):
        raise ConfigError("item_features and item_vectors need the items that they are of; give items= (--item-file)")
    if vocabulary.attributes is None:
        raise ConfigError("the items have titles and no attributes, so there is nothing to make features from")
    return _with_features(vocabulary, features, VECTOR if is_array else vectors)


def _names(features: Sequence[str]) -> list[str]:
    if isinstance(features, str):
        return [name.strip() for name in features.split(",") if name.strip()]
    if not all(isinstance(name, str) for name in features):
        raise ConfigError("item_features is a list of names of columns, such as ['category', 'brand']")
    return list(features)


def _is_array(vectors: Any, vocabulary: Vocabulary, items: Any) -> bool:
    """Whether vectors are an array or a .npy file, and not the name of a column."""
    if not isinstance(vectors, str):
        return True
    known = set() if vocabulary.attributes is None else set(vocabulary.attributes.columns)
    columns = getattr(items, "columns", ())
    return vectors.endswith(".npy") and vectors not in known and vectors not in list(columns)


def _with_features(vocabulary: Vocabulary, features: Sequence[str], vectors: str | None) -> Vocabulary:
    """The encoder, learnt from the items of the log, and vectors of one width in place of lists."""
    attributes = vocabulary.attributes
    assert attributes is not None
    if vectors is not None and vectors in attributes.columns:
        attributes = attributes.with_columns(as_vectors(attributes[vectors], "the items"))
    encoder = FeatureEncoder.fit(attributes.filter(pl.Series(vocabulary.counts > 0)), features, vectors)
    for sentence in encoder.unseen(attributes):
        logger.info("%s", sentence)
    return Vocabulary(vocabulary.item_ids, vocabulary.counts, vocabulary.titles, attributes, encoder)


def with_items(vocabulary: Vocabulary, items: pl.DataFrame, *, add: bool = True) -> Vocabulary:
    """The same items with titles and attributes of a frame; items that the vocabulary lacks follow after its own.

    Args:
        vocabulary: keeps its indices; values that it has already stay where the frame has none.
        items: item_id[, title][, attributes], as `read_items` gives it.
        add: whether items of the frame that the vocabulary lacks follow, ascending by id, with count 0.

    Raises:
        DataError: no item of the frame is in the vocabulary, or a column is of another type than before.
    """
    needs_threads_of("Polars")
    items = _with_ids_like(items, vocabulary)
    known = items["item_id"].is_in(vocabulary.item_ids.implode())
    _say(vocabulary, items, int(known.sum()), add)
    new = items.filter(~known)["item_id"].sort() if add else items["item_id"].head(0)
    ids = pl.concat([vocabulary.item_ids, new]) if len(new) else vocabulary.item_ids
    joined = ids.to_frame().join(items, on="item_id", how="left", maintain_order="left")
    titles = joined["title"] if "title" in joined.columns else None
    if vocabulary.titles is not None:
        titles = _filled(vocabulary.titles, titles, len(ids))
    attributes = joined.drop("item_id", "title", strict=False)
    for column in [] if vocabulary.attributes is None else vocabulary.attributes:
        told = attributes[column.name] if column.name in attributes.columns else None
        missing = pl.Series(column.name, [None] * (len(ids) - len(column)), dtype=column.dtype)
        attributes = attributes.with_columns(told_or_known(told, pl.concat([column, missing])))
    counts = np.concatenate([vocabulary.counts, np.zeros(len(new), np.int64)])
    return Vocabulary(ids, counts, titles, attributes if attributes.width else None, vocabulary.encoder)


def with_new_items(vocabulary: Vocabulary, items: Any, vectors: Any = None) -> Vocabulary:
    """The items of a model with features, and after them those of `items` that it does not know.

    Args:
        vocabulary: of the model; its items stay as they are.
        items: whatever `read_items` takes, with the columns that the features are made from.
        vectors: a .npy file or an array whose rows are those of `items`, where the model was trained with one.

    Raises:
        ConfigError: the model knows items by their ids alone.
        DataError: no item is new, or a column is missing or of another kind.
    """
    encoder = vocabulary.encoder
    if encoder is None:
        raise ConfigError(
            "this model knows items by their ids alone, so it cannot recommend one without events; train it with "
            "items and item_features (--item-file, --item-features)"
        )
    given = read_items(items, vectors=vectors)
    read = _with_ids_like(given, vocabulary)
    lacking = [name for name in encoder.columns if name not in read.columns]
    if lacking:
        raise DataError(
            f"the items have no column {lacking[0]!r}{suggestion(lacking[0], read.columns)}, which the model's "
            f"features are made from; their columns are: {', '.join(read.columns)}"
        )
    new = read.filter(~read["item_id"].is_in(vocabulary.item_ids.implode()))
    if not len(read):
        kind = "an integer" if vocabulary.has_integer_ids else "a text"
        raise DataError(
            f"none of {len(given):,} items has an id that is {kind}, as those of the model are; none is added"
        )
    if not len(new):
        raise DataError(f"the model knows all {len(read):,} items already, so none is added")
    if len(new) < len(read):
        logger.info("%s of %s items are known and stay as they are", f"{len(read) - len(new):,}", f"{len(read):,}")
    for sentence in encoder.unseen(new):
        logger.warning("%s", sentence)
    return with_items(vocabulary, new)


def _with_ids_like(items: pl.DataFrame, vocabulary: Vocabulary) -> pl.DataFrame:
    """The frame with ids of the vocabulary's type; where that is integers, other ids cannot be among its items."""
    if "item_id" not in items.columns:
        raise DataError(f"the frame of items has no column 'item_id'; its columns are: {', '.join(items.columns)}")
    ids = canonical_ids(items["item_id"])
    if vocabulary.has_integer_ids and ids.dtype == pl.String:
        numbers = ids.str.extract(INTEGER).cast(pl.Int64)
        if numbers.null_count():
            logger.warning(
                "%s of %s items have ids that are no integers, as those of the log are, such as %r; they are left out",
                f"{numbers.null_count():,}", f"{len(ids):,}", ids.filter(numbers.is_null())[0],
            )  # fmt: skip
        ids = numbers
    elif not vocabulary.has_integer_ids:
        ids = ids.cast(pl.String)
    items = items.with_columns(ids.alias("item_id")).filter(pl.col("item_id").is_not_null())
    return items.unique("item_id", keep="first", maintain_order=True)


def _filled(first: pl.Series, second: pl.Series | None, n: int) -> pl.Series:
    """(n,) the first values, and where they have none the second; both may be shorter."""
    first = first.extend_constant(None, n - len(first)) if len(first) < n else first
    return first if second is None else first.zip_with(first.is_not_null(), second)


def told_or_known(told: pl.Series | None, known: pl.Series) -> pl.Series:
    """(n,) an attribute: what is told now, and else what was known.

    Raises:
        DataError: both are of types that do not fit together.
    """
    if told is None:
        return known
    if isinstance(known.dtype, pl.Array):
        told = as_vectors(told, "the items") if told.null_count() < len(told) else known.clear(len(known))
    if told.dtype != known.dtype:
        told = _cast(told, known)
    return told.zip_with(told.is_not_null(), known)


def _cast(told: pl.Series, before: pl.Series) -> pl.Series:
    try:
        return told.cast(before.dtype)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"column {before.name!r} of the items holds {told.dtype}, and held {before.dtype} before; write it alike"
        ) from error


def _say(vocabulary: Vocabulary, items: pl.DataFrame, n_known: int, add: bool) -> None:
    """How many items of the log have a row, and what becomes of the others.

    Raises:
        DataError: no item has one.
    """
    n, n_new = len(vocabulary), len(items) - n_known
    own = f", and those of the items such as {items['item_id'][0]!r}" if len(items) else ""
    examples = f"the log's ids are such as {vocabulary.ids[0]!r}{own}"
    if not n_known and not (add and vocabulary.encoder is not None):  # new items of a trained model are all unknown
        raise DataError(f"none of the {len(items):,} items is in the log: {examples}; name the column of ids")
    lacking = n - n_known
    if lacking and n_known:
        told = f"{lacking:,} of {n:,} items of the log ({100 * lacking / n:.1f} %) have no row among the items"
        if lacking > MOST_LACK * n:
            logger.warning("%s: %s", told, examples)
        else:
            logger.info("%s", told)
    if n_new and add:
        logger.info("items without events: %s; they follow after those of the log", f"{n_new:,}")
    elif n_new:
        logger.info("items without events, which are left out: %s; %s", f"{n_new:,}", NEEDS_FEATURES)


def check_same_items(saved: Vocabulary, now: Vocabulary) -> None:
    """Refuse to go on training with items that have other features than those that the run began with.

    Raises:
        CheckpointError: they have.
    """
    if saved.encoder is None and now.encoder is None:
        return
    told = [None if one.encoder is None else one.encoder.to_dict() for one in (saved, now)]
    same = told[0] == told[1] and saved.item_ids.equals(now.item_ids)
    if not same or not saved.features.is_same_as(now.features):
        raise CheckpointError(
            "items or their features have changed since this run began; use the same items, or train into another "
            "folder"
        )

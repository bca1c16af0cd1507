"""Folds what items are like into their tables: from the weights of a model with features to those of one without.

    row of an item = its own embedding + mean of its features' embeddings + projection of its vector

An item that is never in train has an own embedding of 0; what its row is in answers stands in cold_rows.py.

The two models give equal answers. All that does not train needs the folded tables only: ranking, serving, exports.
Separate input and output tables have rows of their own and share features and projection.
Shape legend: D embedding_dim, V n_items + 1, W vector_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sasrec.core.arrays import Float32
from sasrec.core.config import ModelConfig
from sasrec.core.errors import ConfigError
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged
from sasrec.model.cold_rows import place_cold
from sasrec.model.weights import FEATURE_TABLE, ITEM_TABLE, OUTPUT_TABLE, PROJECTION, Weights

ROWS_AT_ONCE = 4096  # items whose features' embeddings lie side by side


def without_features(config: ModelConfig) -> ModelConfig:
    """The shape of the folded model."""
    return replace(config, n_features=0, vector_dim=0)


def check_features(config: ModelConfig, n_items: int, features: ItemFeatures | None) -> None:
    """Raise ConfigError unless items' features are those that the configuration is of."""
    if features is None:
        if config.has_features:
            raise ConfigError(f"the model was made for items with {_told(config)}, and no features of items are given")
        return
    given = replace(config, n_features=features.n_features, vector_dim=features.vector_dim)
    if _told(given) != _told(config) or features.n_items != n_items:
        raise ConfigError(
            f"the model is of {n_items} items with {_told(config)}, and features are given of {features.n_items} items "
            f"with {_told(given)}"
        )


def _told(config: ModelConfig) -> str:
    return f"n_features={config.n_features} and vector_dim={config.vector_dim}"


def fold(weights: Mapping[str, Float32], features: ItemFeatures | None, config: ModelConfig) -> Weights:
    """The weights of the same model without features; a model that has none keeps its own.

    Args:
        weights: all weights by name.
        features: of all items; None where the configuration has none.
        config: the shape with features.

    Raises:
        ConfigError: the features are not those that the configuration is of.
    """
    check_features(config, len(weights[ITEM_TABLE]) - 1, features)
    if features is None:
        return dict(weights)
    told = _features_part(weights, features)
    folded = {name: value for name, value in weights.items() if name not in (FEATURE_TABLE, PROJECTION)}
    tables = [name for name in (ITEM_TABLE, OUTPUT_TABLE) if name in folded]
    return folded | {name: place_cold(folded[name], told, config.cold_scale) for name in tables}


def _features_part(weights: Mapping[str, Float32], features: ItemFeatures) -> Float32:
    """(V, D) what features and vectors add to each row."""
    told = np.zeros_like(weights[ITEM_TABLE])
    if features.n_features:
        for start in range(0, len(told), ROWS_AT_ONCE):
            rows = features.values.part(slice(start, min(start + ROWS_AT_ONCE, len(told))))
            told[start : start + ROWS_AT_ONCE] = _means(weights[FEATURE_TABLE], rows)
    if features.vectors is not None:
        told += features.vectors @ weights[PROJECTION].T
    return told


def _means(table: Float32, rows: Ragged) -> Float32:
    """(rows, D) the mean of the rows of `table` that each row names; 0 where it names none."""
    means = np.zeros((len(rows), table.shape[1]), np.float32)
    named = np.flatnonzero(rows.lengths)
    if len(named):
        sums = np.add.reduceat(table[rows.values], rows.offsets[named], axis=0)
        means[named] = sums / rows.lengths[named, None].astype(np.float32)
    return means

"""Models of items with features, and batches for them: what tests of engines share."""

import functools
from typing import Any

import numpy as np
from made import make_features

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.data.batches import Batch
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged

N_ITEMS = 90
LENGTHS = (1, 5, 33, 7, 60, 3, 2, 12, 1, 1)
KINDS = {"features": (40, 0), "vectors": (0, 19), "both": (40, 19), "one feature": (1, 0)}
WIRINGS = [("sasrec", True), ("post_norm", False), ("pre_norm", True), ("ligr", False)]
LOSSES: dict[str, dict[str, Any]] = {
    "bce": {"loss": "bce"},
    "bce_shared": {"loss": "bce", "n_negatives": 70, "shared_negatives": True},
    "gbce": {"loss": "gbce", "n_negatives": 5, "gbce_t": 0.9},
    "sampled_softmax": {"loss": "sampled_softmax", "n_negatives": 7},
    "sampled_softmax_shared": {"loss": "sampled_softmax", "n_negatives": 50, "shared_negatives": True},
    "cross_entropy": {"loss": "cross_entropy"},
    "cross_entropy_unseen": {"loss": "cross_entropy", "mask_seen": True},
}


def model_of(kind: str, **settings: Any) -> ModelConfig:
    n_features, vector_dim = KINDS[kind]
    shape = {"embedding_dim": 20, "max_seq_len": 70, "dropout": 0.0, "activation": "identity"}
    return ModelConfig(**{**shape, **settings}, n_features=n_features, vector_dim=vector_dim)


@functools.cache
def features_of(model: ModelConfig, n_items: int = N_ITEMS) -> ItemFeatures:
    return make_features(n_items, model.n_features, model.vector_dim)


@functools.cache
def candidates_of(n_items: int) -> np.ndarray:
    """All but each seventh."""
    return np.array([item for item in range(1, n_items + 1) if item % 7], np.int32)


@functools.cache
def make_batch(
    train: TrainConfig, all_compete: bool, step: int = 3, n_items: int = N_ITEMS, lengths: tuple[int, ...] = LENGTHS
) -> Batch:
    """Made-up rows; where not all items compete, those that do not are nowhere in it."""
    rng = np.random.default_rng(step)
    items = np.arange(1, n_items + 1, dtype=np.int32) if all_compete else candidates_of(n_items)
    inputs = Ragged.from_lists([rng.choice(items, n) for n in lengths])
    n = len(inputs.values)
    shape: Any = train.negatives_drawn if train.shared_negatives else (n, train.negatives_drawn)
    corrections = rng.standard_normal(n_items + 1).astype(np.float32)
    earlier = Ragged.from_lists([rng.choice(items, size) for size in rng.integers(0, 9, len(lengths))])
    return Batch(
        users=np.arange(len(lengths)) * 7,
        inputs=inputs,
        targets=rng.choice(items, n),
        negatives=rng.choice(items, shape),
        corrections=corrections,
        step=step,
        earlier=earlier if train.mask_seen else None,
        candidates=None if all_compete else items,
    )

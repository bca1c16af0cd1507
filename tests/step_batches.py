"""Batches of a training step as no log makes them: rows of all lengths, any weights, for each of the losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.config import TrainConfig
from sasrec.data.batches import Batch
from sasrec.data.ragged import Ragged

N_ITEMS, LENGTHS = 97, (1, 5, 33, 7, 60, 3, 2, 12, 1, 1)
LOSSES: dict[str, dict[str, Any]] = {
    "bce": {"loss": "bce", "n_negatives": 2},
    "gbce_shared": {"loss": "gbce", "n_negatives": 33, "shared_negatives": True},
    "sampled_softmax": {"loss": "sampled_softmax", "n_negatives": 7},
    "sampled_softmax_shared": {
        "loss": "sampled_softmax", "n_negatives": 150, "shared_negatives": True, "mask_seen": True
    },
    "cross_entropy": {"loss": "cross_entropy", "mask_seen": True},
}  # fmt: skip


def make_batch(train: TrainConfig, weights: NDArray[np.float32] | None, seed: int = 0, others: int = 0) -> Batch:
    """A batch; `others` draws other targets and negatives where the weight is 0."""
    rng = np.random.default_rng(seed)
    inputs = Ragged.from_lists([rng.integers(1, N_ITEMS + 1, n).astype(np.int32) for n in LENGTHS])
    n, drawn = len(inputs.values), train.negatives_drawn
    targets = rng.integers(1, N_ITEMS + 1, n).astype(np.int32)
    negatives = rng.integers(1, N_ITEMS + 1, drawn if train.shared_negatives else (n, drawn)).astype(np.int32)
    seen = np.where(rng.random(n) < 0.5, inputs.values, 0).astype(np.int32)
    earlier = Ragged.from_lists([rng.integers(1, N_ITEMS + 1, m).astype(np.int32) for m in rng.integers(0, 9, 10)])
    corrections = rng.standard_normal(N_ITEMS + 1).astype(np.float32)
    if others and weights is not None:
        rng, free = np.random.default_rng(others), weights == 0
        targets[free] = rng.integers(1, N_ITEMS + 1, free.sum())
        if negatives.ndim == 2:
            negatives[free] = rng.integers(1, N_ITEMS + 1, negatives[free].shape)
    masks = (earlier, seen) if train.mask_seen else (None, None)
    return Batch(np.arange(len(LENGTHS)) * 7, inputs, targets, negatives, corrections, 3 + seed, *masks, weights)


def some_weights(seed: int = 1) -> NDArray[np.float32]:
    """Half of them 0, the rest of different sizes."""
    rng = np.random.default_rng(seed)
    n = sum(LENGTHS)
    return np.where(rng.random(n) < 0.5, 0, rng.random(n) * 3).astype(np.float32)

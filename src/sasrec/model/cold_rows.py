"""Rows of items that nothing was learnt of, where answers are computed.

An item that is never in train has an own embedding of 0 and is what features tell of it. In answers it gets a guess at
the own embedding that it lacks, from items that have one and of which features tell much the same. Its row is brought
half of the way, as ratios go, to a length of cold_scale times the mean of what features tell of those items:

    guess = sum of w_j (own_j - mean own) / (0.3 + sum of w_j),  w_j = max(0, cosine of told and told_j) ^ 16
    row of a cold item = (told + guess) * cold_scale * sqrt(mean length of told_j / length of (told + guess))

The guess is an average over neighbours (Nadaraya, 1964; Watson, 1964), and 0, which is the mean, for an item unlike all
others. In training steps such rows are as features make them. cold_scale = 0 leaves them so in answers, too.

Here is the rule in numpy, for weights that are folded. The PyTorch model (model/sasrec.py) and the compiled core
(native/cold_rows.h) have it for their own tables.
Shape legend: D embedding_dim, V n_items + 1, W items with own embeddings that are looked at.
"""

from __future__ import annotations

import numpy as np

from sasrec.core.arrays import Float32

COLD_AT_ONCE = 1024  # cold items that are compared with others side by side
GUESS_SQUARINGS = 4  # of the cosine, which makes a power of 16: how much more the most similar items count
GUESS_PRIOR = 0.3  # the weight of a guess of 0
LOOKED_AT = 16384  # items with own embeddings, the most that guesses are made from: every n-th of all


def place_cold(own: Float32, told: Float32, cold_scale: float) -> Float32:
    """The rows of all items.

    Args:
        own: (V, D) own embeddings; 0 = the item is cold. Cold items of which nothing is told stay 0.
        told: (V, D) what features tell of the items.
        cold_scale: how long rows of cold items are; 0 = as they come.

    Returns:
        (V, D) `own` + `told`, and another row for each cold item.
    """
    rows = own + told
    if not cold_scale:
        return rows
    lengths, is_cold = np.linalg.norm(told, axis=1), ~own.any(axis=1)
    warm, cold = np.flatnonzero(~is_cold & (lengths > 0)), np.flatnonzero(is_cold & (lengths > 0))
    if not len(warm) or not len(cold):
        return rows
    mean, usual = own[warm].mean(axis=0, dtype=np.float64), lengths[warm].mean()
    seen = warm[:: every_nth(len(warm))]
    directions = told[seen] / lengths[seen, None]  # (W, D)
    parts = own[seen] - mean.astype(np.float32)  # (W, D)
    for start in range(0, len(cold), COLD_AT_ONCE):
        some = cold[start : start + COLD_AT_ONCE]
        weights = np.maximum(told[some] / lengths[some, None] @ directions.T, 0)  # (some, W)
        for _ in range(GUESS_SQUARINGS):
            weights *= weights
        whole = told[some] + weights @ parts / (GUESS_PRIOR + weights.sum(axis=1, keepdims=True))
        length = np.linalg.norm(whole, axis=1, keepdims=True)
        rows[some] = np.divide(whole, np.sqrt(length), where=length > 0, out=whole)
        rows[some] *= np.float32(cold_scale) * np.sqrt(usual)
    return rows


def every_nth(n_warm: int) -> int:
    """Of so many items with own embeddings, how far apart are those that are looked at."""
    return -(-n_warm // LOOKED_AT)

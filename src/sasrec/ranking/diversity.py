"""Lists of items that are less alike: maximal marginal relevance, by the cosine of item rows.

The first item is the best one. Each next one is that with the largest

    (1 - diversity) * relevance - diversity * cosine to the nearest item above it

where relevance is the score, scaled to 0..1 over the candidates of a row; of equal ones the better ranked comes first.
Source: Carbonell and Goldstein 1998, The use of MMR, section 2.
Shape legend: B rows, C candidates, K list length, V n_items + 1 (row 0 is padding), D embedding_dim.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sasrec.core.arrays import Float32, Int32
from sasrec.core.errors import ConfigError
from sasrec.core.scalars import plain

FEWEST = 50  # candidates, where there are so many
TIMES = 4  # the length of the list are the candidates of longer ones
BLOCK_BYTES = 2**24  # of candidates' rows held at once


def check_diversity(diversity: Any) -> float:
    """A share from 0 (off) to 1.

    Raises:
        ConfigError: it is something else.
    """
    share = plain(diversity)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        shown = share if isinstance(share, float) and math.isfinite(share) else f"{share!r:.40}"
        raise ConfigError(f"diversity={shown} is not a number from 0 (off) to 1")
    return float(share)


def n_candidates(k: int) -> int:
    """How many of the best items a list of k is chosen from."""
    return max(FEWEST, TIMES * k)


def diversified(
    indices: Int32, scores: Float32, table: Float32, norms: Float32, k: int, diversity: float
) -> tuple[Int32, Float32]:
    """Lists of k, chosen from longer ones.

    Args:
        indices: (B, C) items, best first; a row with fewer ends in index 0.
        scores: (B, C).
        table: (V, D) item rows.
        norms: (V,) their lengths.
        k: how many.
        diversity: above 0, at most 1.

    Returns:
        Indices and scores, (B, K), in their new order. A score stays what it was.
    """
    width = min(k, indices.shape[1])
    chosen, kept = np.zeros((len(indices), width), np.int32), np.zeros((len(indices), width), np.float32)
    step = max(1, BLOCK_BYTES // (4 * max(indices.shape[1], 1) * table.shape[1]))
    for start in range(0, len(indices) if width else 0, step):
        rows = slice(start, start + step)
        places = _chosen(indices[rows], scores[rows], table, norms, width, diversity)
        chosen[rows] = np.take_along_axis(indices[rows], places, axis=1)
        kept[rows] = np.take_along_axis(scores[rows], places, axis=1)
    return chosen, kept


def _chosen(indices: Int32, scores: Float32, table: Float32, norms: Float32, k: int, diversity: float) -> Any:
    """(B, k) the places of the candidates that are chosen; where a row has no more, those that it has not."""
    vectors = table[indices] / np.maximum(norms[indices], 1e-12)[:, :, None]  # (B, C, D)
    relevance = np.where(indices > 0, (1 - diversity) * _scaled(indices, scores), -np.inf)  # (B, C)
    nearest = np.full(indices.shape, -np.inf)  # cosine to the nearest chosen item
    is_left, every = np.ones(indices.shape, bool), np.arange(len(indices))
    places = np.empty((len(indices), k), np.int64)
    for place in range(k):
        value = relevance - diversity * nearest if place else relevance
        best = np.where(is_left, value, -np.inf).argmax(axis=1)  # (B,); the first of equal ones
        best = np.where((indices[every, best] > 0) & is_left[every, best], best, is_left.argmax(axis=1))
        places[:, place], is_left[every, best] = best, False
        cosine = np.matmul(vectors, vectors[every, best][:, :, None])[:, :, 0]  # (B, C)
        np.maximum(nearest, cosine, out=nearest)
    return places


def _scaled(indices: Int32, scores: Float32) -> Any:
    """(B, C) scores from 0, the lowest of a row, to 1, the highest; all 0 where they are equal."""
    first = np.where(indices[:, :1] > 0, scores[:, :1], 0)  # the highest
    values = np.where(indices > 0, scores, first).astype(np.float64)
    low = values.min(axis=1, keepdims=True)
    span = first - low
    return (values - low) / np.where(span > 0, span, 1)

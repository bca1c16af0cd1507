"""Which items are left without their own embedding in a training step, and the keys of a step's random numbers.

An item is left out or kept for a whole step: as input, as target and as negative. native/features.h draws the same.
"""

from __future__ import annotations

import numpy as np

from sasrec.core.arrays import Bool
from sasrec.data.item_features import ItemFeatures

SITE = 1  # of the random streams; dropout's own sites are others
MASK = 2**64 - 1


def step_key(seed: int, step: int) -> int:
    """64 bits that no other step of this seed has: part of the keys of dropout's random streams."""
    return (seed * 0x9E3779B97F4A7C15 + step) & MASK


def ids_kept(features: ItemFeatures, feature_dropout: float, step: int) -> Bool:
    """(V,) which items have their own embedding in a step; those without any feature always do.

    Args:
        features: of all items.
        feature_dropout: how often an item is left without; rounded to 1/65536.
        step: the step's key.
    """
    words = random_words(step, 0, SITE, np.arange(features.n_items + 1))
    kept: Bool = (words & np.uint32(0xFFFF)) >= round(feature_dropout * 65536)
    return kept | ~features.described


def random_words(step: int, sequence: int, site: int, counters: np.ndarray) -> np.ndarray:
    """The words of a stream of random numbers of the compiled core (native/simd.h) at these counters, uint32."""
    key = _mix(_mix(_mix(step) ^ sequence) ^ site)
    x = (counters.astype(np.uint32) * np.uint32(0x9E3779B1)) ^ np.uint32(key & 0xFFFFFFFF)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) ^ np.uint32(key >> 32)
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def _mix(z: int) -> int:
    """The finaliser of splitmix64."""
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)

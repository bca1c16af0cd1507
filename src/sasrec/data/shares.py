"""A process's share of a step's batch: some of its rows, with all that belongs to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sasrec.core.arrays import Int64
from sasrec.data.batches import Batch, Share


def share_of(batch: Batch, rank: int, size: int) -> Batch | None:
    """The rows of one of several processes: consecutive ones, about as many positions for each.

    Args:
        batch: the same for all processes.
        rank: of the process, from 0.
        size: processes.

    Returns:
        The share, or None where there is nothing to learn in it: no row, or no position with a weight.
    """
    cuts = _cuts(batch, size)
    weights = [_weight(batch, cuts[i], cuts[i + 1]) for i in range(size)]
    if not weights[rank]:
        return None
    rows, mine = slice(cuts[rank], cuts[rank + 1]), _positions(batch, cuts[rank], cuts[rank + 1])
    return replace(
        batch,
        users=batch.users[rows],
        inputs=batch.inputs.part(rows),
        targets=batch.targets[mine],
        negatives=batch.negatives if batch.negatives.ndim == 1 else batch.negatives[mine],
        earlier=None if batch.earlier is None else batch.earlier.part(rows),
        seen=None if batch.seen is None else batch.seen[mine],
        weights=None if batch.weights is None else batch.weights[mine],
        share=Share(rank, batch.total_weight, is_first=not any(weights[:rank])),
    )


def _cuts(batch: Batch, size: int) -> Int64:
    """(size + 1,) where the rows of each process begin."""
    offsets = batch.inputs.offsets
    cuts: Int64 = np.searchsorted(offsets, offsets[-1] * np.arange(size + 1) / size)
    cuts[-1] = len(batch.users)
    return cuts


def _positions(batch: Batch, first: int, last: int) -> slice:
    return slice(batch.inputs.offsets[first], batch.inputs.offsets[last])


def _weight(batch: Batch, first: int, last: int) -> float:
    mine = _positions(batch, first, last)
    if batch.weights is None:
        return float(mine.stop - mine.start)
    return float(batch.weights[mine].sum(dtype=np.float64))

"""Rank features against the item table on the device of the torch engine, a block of rows at a time.

The order is that of `order.py`, ties included: scores differ from the CPU's in their last bits, for devices sum in
another order. Only this file of the room imports torch, and only where there is such a device.
Shape legend: B rows, b rows of a block, V n_items + 1 (row 0 is padding), D embedding_dim, C candidates (column 0 is
the target), K list length.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sasrec.core.arrays import Bool, Float32, Float64, Int32
from sasrec.core.config import Ties
from sasrec.data.ragged import Ragged
from sasrec.engine.device import device_of, to_device
from sasrec.engine.protocol import Engine
from sasrec.ranking.index import ItemIndex, PlainIndex, blocks_of_rows, create_index, trimmed
from sasrec.ranking.order import LOWEST, check_k, rank_of

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 2**28  # of scores, or of candidates' embeddings, that are on the device at once


def index_for(engine: Engine, table: Float32) -> ItemIndex:
    """The index that ranks features of an engine: on its device, or that of this installation.

    Args:
        engine: says where, and how many threads the compiled core takes.
        table: (V, D); it must not change while the index is used.
    """
    return DeviceIndex(table, engine.index_device) if engine.index_device else create_index(table, engine.threads)


class DeviceIndex:
    """An index whose scores are computed and compared on a device; only ranks and lists come back.

    Args:
        table: (V, D) float32, which is copied there.
        device: as torch calls it.
        block_bytes: of the scores of a block.
    """

    def __init__(self, table: Float32, device: str, block_bytes: int = BLOCK_BYTES) -> None:
        self.device, self.block_bytes = device_of(device), block_bytes
        self.plain = PlainIndex(table)  # finds the score that is not finite, and raises
        self.table = to_device(table, self.device)  # (V, D)
        self.rows_at_once = max(1, block_bytes // (4 * len(table)))

    def rank(
        self, features: Float32, targets: Int32, hidden: Ragged | None, ties: Ties, k: int = 0
    ) -> tuple[Float64, Int32]:
        n_above, n_tied = np.empty((2, len(features)), np.int64)
        lists, finite = np.zeros((len(features), k), np.int32), True
        for rows in blocks_of_rows(len(features), self.rows_at_once):
            scores, is_finite = self._scores(features[rows])
            target = to_device(targets[rows, None], self.device)  # (b, 1)
            own = scores.gather(1, target)
            self._hide(scores, None if hidden is None else hidden.take(rows))
            if k:
                width = min(k, scores.shape[1] - 1)
                lists[rows, :width] = _largest(scores, width)[0].cpu().numpy()
            scores.scatter_(1, target, own)  # a target is a candidate even if it is hidden
            n_above[rows] = (scores > own).sum(1).cpu().numpy()
            n_tied[rows] = ((scores == own).sum(1) - 1).cpu().numpy()  # less the target itself
            finite = finite and bool(is_finite)
        if not finite:
            return self.plain.rank(features, targets, hidden, ties, k)
        return rank_of(n_above, n_tied, ties), lists

    def rank_among(self, features: Float32, candidates: Int32, ties: Ties) -> Float64:
        n_above, n_tied = np.empty((2, len(features)), np.int64)
        finite, n_bytes = True, 4 * candidates.shape[1] * self.table.shape[1]  # of a row's embeddings
        for rows in blocks_of_rows(len(features), max(1, self.block_bytes // n_bytes)):
            items, history = to_device(candidates[rows], self.device), to_device(features[rows], self.device)
            scores = (self.table[items] @ history.unsqueeze(-1)).squeeze(-1)  # (b, C)
            own, others = scores[:, :1], scores[:, 1:]
            itself = items[:, 1:] == items[:, :1]  # an exact tie, however its score was rounded
            n_above[rows] = ((others > own) & ~itself).sum(1).cpu().numpy()
            n_tied[rows] = ((others == own) | itself).sum(1).cpu().numpy()
            finite = finite and bool(scores.isfinite().all())
        if not finite:
            return self.plain.rank_among(features, candidates, ties)
        return rank_of(n_above, n_tied, ties)

    def top_k(
        self, features: Float32, k: int, *, hidden: Ragged | None = None, allowed: Bool | None = None
    ) -> tuple[Int32, Float32]:
        shape = len(features), min(check_k(k), len(self.table) - 1)
        indices, best, finite = np.empty(shape, np.int32), np.empty(shape, np.float32), True
        denied = None if allowed is None else to_device(~allowed, self.device)  # (V,)
        for rows in blocks_of_rows(len(features), self.rows_at_once):
            scores, is_finite = self._scores(features[rows])
            self._hide(scores, None if hidden is None else hidden.take(rows))
            if denied is not None:
                scores.masked_fill_(denied, -math.inf)
            columns, values = _largest(scores, shape[1])
            indices[rows], best[rows] = columns.cpu().numpy(), values.cpu().numpy()
            finite = finite and bool(is_finite)
        if not finite:
            return self.plain.top_k(features, k, hidden=hidden, allowed=allowed)
        return trimmed(indices, best)

    def _scores(self, features: Float32) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, V) scores, -inf for padding, and whether all others are finite."""
        scores = to_device(features, self.device) @ self.table.T
        scores[:, 0] = 0
        finite = scores.isfinite().all()
        scores[:, 0] = -math.inf
        return scores, finite

    def _hide(self, scores: torch.Tensor, hidden: Ragged | None) -> None:
        if hidden is not None:
            scores[to_device(hidden.row_of, self.device), to_device(hidden.values, self.device)] = -math.inf


def _largest(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, k) columns and values of each row's k largest scores, of equal ones the lower column first.

    A row that has fewer above -inf ends in column 0 and -inf.
    """
    columns = scores.topk(k, dim=1).indices.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    # topk takes any of the scores that are equal to the last one. Where not all of these fit, a stable sort decides.
    crowded = (scores >= values[:, -1:].clamp_min(float(LOWEST))).sum(1) > k
    rows = crowded.nonzero()[:, 0]
    if len(rows):
        sorted_values, sorted_columns = scores[rows].sort(dim=1, descending=True, stable=True)
        values[rows], columns[rows] = sorted_values[:, :k], sorted_columns[:, :k]
    return columns.masked_fill_(values == -math.inf, 0), values

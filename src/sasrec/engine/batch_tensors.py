"""What a training step of the torch engine reads of a batch, as tensors on its device.

All of it follows from the batch alone, so that a thread can make it while the device works on the batches before.
Shape legend: B rows, T positions of all rows, N negatives, C candidates, M pairs, V n_items + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sasrec.core.arrays import Int32, Int64
from sasrec.data.batches import Batch, seen_candidates

if TYPE_CHECKING:
    import torch

    from sasrec.engine.layout import TokenLayout, ToTensor


@dataclass(frozen=True)
class LeftOut:
    """Pairs of a position and a candidate that does not compete there; their positions ascend."""

    of_host: Int64  # (M,) positions, as the device has them: to find pairs without waiting for it
    positions: torch.Tensor  # (M,)
    columns: torch.Tensor  # (M,) of the candidates

    @classmethod
    def of(cls, batch: Batch, candidates: Int32, tensor: ToTensor) -> LeftOut | None:
        """What the users of a batch have had; None where that competes like any other item."""
        if batch.earlier is None:
            return None
        positions, columns = seen_candidates(batch, candidates)
        return cls(positions, tensor(positions), tensor(columns))

    def part(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The pairs of some consecutive positions, which are counted from the first of these."""
        first, last = np.searchsorted(self.of_host, [start, end])
        return self.positions[first:last] - start, self.columns[first:last]


@dataclass(frozen=True)
class BatchTensors:
    """A batch on the engine's device."""

    layout: TokenLayout
    ids_kept: torch.Tensor | None  # (V,) which items have their own embedding in this step; None = all
    targets: torch.Tensor  # (T,) items; where all candidates compete, their columns among these
    weights: torch.Tensor | None  # (T,)
    left_out: LeftOut | None
    negatives: torch.Tensor | None = None  # (T, N) or (N,); None where all candidates compete
    corrections: torch.Tensor | None = None  # (V,)
    candidates: torch.Tensor | None = None  # (C,) ascending, where not all items are


def for_sampled_loss(
    batch: Batch, n_items: int, layout: TokenLayout, ids_kept: torch.Tensor | None, tensor: ToTensor
) -> BatchTensors:
    """A batch whose targets compete with negatives; `tensor` copies an array to the device."""
    return BatchTensors(
        layout,
        ids_kept,
        tensor(batch.targets),
        None if batch.weights is None else tensor(batch.weights),
        LeftOut.of(batch, batch.negatives, tensor),
        negatives=tensor(batch.negatives),
        corrections=tensor(batch.corrections),
    )


def for_full_loss(
    batch: Batch, n_items: int, layout: TokenLayout, ids_kept: torch.Tensor | None, tensor: ToTensor
) -> BatchTensors:
    """A batch whose targets compete with all candidates. Padding is none of them."""
    candidates = np.arange(1, n_items + 1, dtype=np.int32) if batch.candidates is None else batch.candidates
    return BatchTensors(
        layout,
        ids_kept,
        tensor(np.searchsorted(candidates, batch.targets)),
        None if batch.weights is None else tensor(batch.weights),
        LeftOut.of(batch, candidates, tensor),
        candidates=None if batch.candidates is None else tensor(batch.candidates),
    )

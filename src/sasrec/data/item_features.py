"""What items are like, in numbers: features and vectors of all items, as an engine takes them.

Shape legend: V n_items + 1, W vector_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sasrec.core.arrays import Bool, Float32
from sasrec.core.errors import DataError
from sasrec.data.ragged import Ragged


@dataclass(frozen=True)
class ItemFeatures:
    """Features of all items, in the order of item indices; row 0 is padding and has none.

    An item's representation is its own embedding, plus the mean of its features' embeddings, plus its projected vector.

    Raises:
        DataError: the arrays do not fit together.
    """

    values: Ragged  # V rows of ascending feature indices from 0, none twice; an empty row has no features
    n_features: int  # 0 = there are only vectors
    vectors: Float32 | None = None  # (V, W), zeros where an item has none; None = there are only features

    def __post_init__(self) -> None:
        values, row_of = self.values.values, self.values.row_of
        if len(values) and not 0 <= values.min() <= values.max() < self.n_features:
            raise DataError(f"a feature of an item is not one of 0 to {self.n_features - 1}")
        if len(self.values) == 0 or self.values.lengths[0]:
            raise DataError("row 0 of items' features is padding, and has none")
        if ((np.diff(values) <= 0) & (np.diff(row_of) == 0)).any():
            raise DataError("the features of an item are not ascending, or one is there twice")
        if self.vectors is None:
            return
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.values) or self.vectors[0].any():
            raise DataError(
                f"items' vectors have shape {self.vectors.shape}, and {len(self.values)} rows are needed, the first 0"
            )
        if not np.isfinite(self.vectors).all():
            raise DataError("a vector of an item has values that are not finite numbers")

    def is_same_as(self, other: ItemFeatures) -> bool:
        """Whether all items have the same features and vectors."""
        arrays = [(one.values.offsets, one.values.values, one.vectors) for one in (self, other)]
        return all(np.array_equal(mine, theirs) for mine, theirs in zip(*arrays, strict=True))

    @property
    def n_items(self) -> int:
        """Items, without padding."""
        return len(self.values) - 1

    @property
    def vector_dim(self) -> int:
        """Width of the vectors; 0 = there are none."""
        return 0 if self.vectors is None else self.vectors.shape[1]

    def to_bytes(self) -> bytes:
        """Bytes that are equal for equal features."""
        parts = [self.values.offsets, self.values.values, *([] if self.vectors is None else [self.vectors])]
        return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)

    @property
    def described(self) -> Bool:
        """(V,) which items have a feature, or a vector that is not 0; an item without has nothing but its id."""
        has_feature = self.values.lengths > 0
        return has_feature if self.vectors is None else has_feature | self.vectors.any(axis=1)

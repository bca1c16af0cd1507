"""Types of arrays, by what they hold."""

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]  # types of events
Bool = NDArray[np.bool_]  # which elements of another array
Int32 = NDArray[np.int32]  # item indices
Int64 = NDArray[np.int64]  # offsets, positions, rows, counts
Float32 = NDArray[np.float32]  # weights, features, scores
Float64 = NDArray[np.float64]  # ranks and metrics

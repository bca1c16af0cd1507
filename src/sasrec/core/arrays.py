"""Types of arrays, by what they hold."""

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]  # item indices
Int64 = NDArray[np.int64]  # offsets, positions, rows, counts
Float32 = NDArray[np.float32]  # weights, features, scores
Float64 = NDArray[np.float64]  # ranks and metrics
Bool = NDArray[np.bool_]  # masks

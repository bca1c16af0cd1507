"""Named float32 arrays in a file, in the form of safetensors: written and read one at a time.

The arrays of a large model are as large as memory allows, so that a second copy of all of them must not exist.
Source: the format's description in the README of huggingface/safetensors; the same bytes as its own `save` gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sasrec.core.arrays import Float32
from sasrec.core.errors import CheckpointError
from sasrec.model.weights import LateArrays, check_finite, shapes_of

ALIGNMENT = 8  # of where data begins
HEADER_BYTES = 8  # that tell how long the header is, least significant first


def write_tensors(path: Path, arrays: Mapping[str, Float32], metadata: Mapping[str, str]) -> None:
    """Write a file.

    Args:
        path: the file.
        arrays: by name; each is asked for once, and not kept.
        metadata: texts to keep beside them.
    """
    shapes = shapes_of(arrays)
    told: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end, names = 0, sorted(shapes)
    for name in names:
        start, end = end, end + 4 * int(np.prod(shapes[name], dtype=np.int64))
        told[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, end]}
    header = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(HEADER_BYTES, "little") + header)
        for name in names:
            file.write(np.ascontiguousarray(arrays[name], np.float32).data)


def open_tensors(path: Path) -> tuple[LateArrays, dict[str, str]]:
    """The arrays of a file, each read when it is asked for, and the texts beside them.

    Raises:
        CheckpointError: there is no such file; it is damaged, or an array has values that are not finite numbers.
    """
    try:
        file: Any = safe_open(path, framework="numpy")
        shapes: dict[str, tuple[int, ...]] = {}
        for name in file.keys():  # noqa: SIM118 - no mapping
            array = file.get_tensor(name)
            if array.dtype.kind != "f":  # where ml_dtypes is installed, bfloat16 is a type too
                raise TypeError(f"{name} is of type {array.dtype}")
            check_finite({name: array})
            shapes[name] = array.shape
        return LateArrays(shapes, file.get_tensor), file.metadata() or {}
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {path}") from error
    except (OSError, SafetensorError, TypeError, MemoryError, CheckpointError) as error:  # bfloat16 is a TypeError
        raise CheckpointError(f"{path} is damaged ({error})") from error

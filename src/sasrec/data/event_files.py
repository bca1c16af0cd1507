"""Columns of events on disk, as .npy files that are written and read piece by piece, in any order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sasrec.core.files import disk_errors
from sasrec.data.facts import PIECE


class EventFile:
    """An array of numbers in a file; what `np.save` would have written, once it is finished.

    Args:
        path: the file.
        dtype: of the numbers.
        is_new: make the file; else it is there, and is written further.
    """

    def __init__(self, path: Path, dtype: type[np.generic], *, is_new: bool = True) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self.n = 0  # once it is finished
        with disk_errors(path):
            if is_new:
                path.unlink(missing_ok=True)  # another file may be the same under a second name
            self.file = path.open(
                "w+b" if is_new else "r+b", buffering=0
            )  # each number is where it was written at once
            self._write_header(0)
            self._begin = self.file.tell()

    def _write_header(self, n: int) -> None:
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (n,)}
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(self.file, described)

    @property
    def size(self) -> int:
        """Its bytes on disk."""
        return os.fstat(self.file.fileno()).st_size

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Put numbers at a place.

        Raises:
            CheckpointError: the disk is full.
        """
        left = np.ascontiguousarray(values, self.dtype).data.cast("B")
        at = self._begin + start * self.dtype.itemsize
        with disk_errors(self.path):
            while left:
                written = os.pwrite(self.file.fileno(), left, at)
                left, at = left[written:], at + written

    def read(self, start: int, n: int) -> NDArray[Any]:
        """The numbers at a place, as an array of one's own."""
        values = np.empty(n, self.dtype)
        left, at = values.data.cast("B"), self._begin + start * self.dtype.itemsize
        self.file.seek(at)
        while left:
            n_read = self.file.readinto(left)
            assert n_read, "nobody else writes the file"
            left = left[n_read:]
        return values

    def pieces(self) -> Iterator[NDArray[Any]]:
        """All numbers in order, once it is finished."""
        return (self.read(start, min(PIECE, self.n - start)) for start in range(0, self.n, PIECE))

    def finish(self, n: int) -> None:
        """Say that the first n numbers are all there are.

        Raises:
            CheckpointError: the disk is full.
        """
        self.n = n
        with disk_errors(self.path):
            os.ftruncate(self.file.fileno(), self._begin + n * self.dtype.itemsize)
            self._write_header(n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

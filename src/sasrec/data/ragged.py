"""Rows of different lengths, laid end to end in one array: histories, features, lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sasrec.core.arrays import Int32, Int64


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths laid end to end: row i is values[offsets[i]:offsets[i + 1]]."""

    values: Int32  # (T,)
    offsets: Int64  # (n_rows + 1,), from 0 to T

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> Int32:
        """Row i, a view."""
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> Int64:
        """(n_rows,) length of each row."""
        return np.diff(self.offsets)

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int] | Int32]) -> Ragged:
        """Lay lists of indices end to end."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        values = np.concatenate([np.asarray(row, np.int32) for row in rows]) if lengths.sum() else np.zeros(0, np.int32)
        return cls(values, offsets_of(lengths))

    @classmethod
    def cut(cls, values: Int32, starts: Int64, ends: Int64) -> Ragged:
        """The pieces values[starts[i]:ends[i]] as rows."""
        offsets = offsets_of(ends - starts)
        return cls(values[flat_index(starts, offsets)], offsets)

    def take(self, rows: Int64 | slice) -> Ragged:
        """Some of the rows, in the order asked for."""
        return Ragged.cut(self.values, self.offsets[:-1][rows], self.offsets[1:][rows])

    def part(self, rows: slice) -> Ragged:
        """Consecutive rows: their values are a view."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def last(self, n: int) -> Ragged:
        """The last n values of each row."""
        ends = self.offsets[1:]
        return Ragged.cut(self.values, np.maximum(self.offsets[:-1], ends - n), ends)

    @property
    def row_of(self) -> Int64:
        """(T,) the row that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)


def offsets_of(lengths: Int64) -> Int64:
    """(n + 1,) where each of n rows of these lengths starts, and where the last one ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def flat_index(starts: Int64, offsets: Int64) -> Int64:
    """(T,) where each element of rows that begin at `starts` lies in the array they are cut from."""
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))

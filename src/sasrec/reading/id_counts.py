"""The different ids of a column and how often each occurs, counted piece by piece; and where ids stand among them.

Integers that lie close together have a table by id. Others have a hash table of the compiled core where there is one;
else they are sorted, which takes several times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec.core.arrays import Int32, Int64
from sasrec.core.isa import load_native

DENSE = 4  # places of a table for each different id, at most
FREE_PLACES = 2**24  # that a table may have in any case
LATE = 2**18  # ids that wait before they are counted in with the others
ONCE = np.uint32(1)
BYTES_AN_ID = 24  # of sorted counts, beside the bytes of texts
ONE_EACH = np.zeros(0, np.int64)  # counts that are not given


def id_table() -> Any:
    """A hash table of the compiled core, for integers; None = there is no core."""
    module = load_native().module
    return module and module.IdTable()


class IdCounts:
    """Counts of ids."""

    def __init__(self) -> None:
        self.seen, self.as_text = 0, False  # as_text: whether ids are String
        self._low = 0
        self._table: NDArray[np.uint32] | None = np.zeros(0, np.uint32)
        self._core: Any = None  # counts integers that lie far apart
        self._counted = pl.DataFrame(schema={"id": pl.Int64, "n": pl.UInt32})
        self._waiting: list[pl.DataFrame] = []

    @property
    def nbytes(self) -> int:
        """The memory they take while they are sorted."""
        table = 0 if self._table is None else self._table.nbytes
        if self._core is not None:
            table += self._core.nbytes + BYTES_AN_ID * len(self._core)
        return table + 3 * int(sum(frame.estimated_size() for frame in (self._counted, *self._waiting)))

    def add(self, ids: pl.Series) -> None:
        """Count further ids; the first texts make all of them texts."""
        if not len(ids):
            return
        self.seen += len(ids)
        if ids.dtype == pl.String and not self.as_text:
            self._become_text()
        if self._table is not None and self._add_dense(ids.to_numpy()):
            return
        if self._core is not None:
            self._core.count(ids.to_numpy(), ONE_EACH)
            return
        if self.as_text:
            ids = ids.cast(pl.String)
        self._waiting.append(ids.to_frame("id").group_by("id").agg(pl.len().alias("n")))
        if sum(map(len, self._waiting)) > max(LATE, len(self._counted) // 2):
            self._settle()

    def join(self, other: IdCounts) -> None:
        """Count what another has counted, which cannot count any more."""
        if not other.seen:
            return
        if other.as_text and not self.as_text:
            self._become_text()
        ids, counts = other.result()
        self.seen += other.seen
        if self._table is not None and self._add_dense(ids.to_numpy(), counts.astype(np.uint32)):
            return
        if self._core is None and not self.as_text:
            self._enter_core()
        if self._core is not None:
            self._core.count(ids.to_numpy(), counts)
            return
        self._waiting.append(pl.DataFrame({"id": ids, "n": counts.astype(np.uint32)}).cast({"id": self._kind}))
        if sum(map(len, self._waiting)) > max(LATE, len(self._counted) // 2):
            self._settle()

    @property
    def _kind(self) -> type[pl.DataType]:
        return pl.String if self.as_text else pl.Int64

    def _add_dense(self, ids: Int64, counts: NDArray[np.uint32] | np.uint32 = ONCE) -> bool:
        """Count in the table; False = ids lie too far apart for one."""
        assert self._table is not None
        low, high = int(ids.min()), int(ids.max())
        if len(self._table):
            low, high = min(low, self._low), max(high, self._low + len(self._table) - 1)
        n = high - low + 1
        if n > len(self._table):
            if n > FREE_PLACES and n > DENSE * (np.count_nonzero(self._table) + len(np.unique(ids))):
                self._leave_table()
                self._enter_core()
                return False
            table = np.zeros(n, np.uint32)
            if len(self._table):
                table[self._low - low :][: len(self._table)] = self._table
            self._low, self._table = low, table
        np.add.at(self._table, ids - self._low, counts)
        return True

    def _leave_table(self) -> None:
        assert self._table is not None
        places = np.flatnonzero(self._table)
        self._counted = pl.DataFrame({"id": places + self._low, "n": self._table[places]})
        self._table = None

    def _enter_core(self) -> None:
        """Count integers in the core from now on, if there is one."""
        self._core = id_table()
        if self._core is not None:
            self._settle()
            counted, self._counted = self._counted, self._counted.clear()
            self._core.count(counted["id"].to_numpy(), counted["n"].cast(pl.Int64).to_numpy())

    def _leave_core(self) -> None:
        ids, counts = np.empty(len(self._core), np.int64), np.empty(len(self._core), np.int64)
        self._core.take(ids, counts)
        self._core, self._counted = None, pl.DataFrame({"id": ids, "n": counts}).cast({"n": pl.UInt32})

    def __getstate__(self) -> dict[str, Any]:
        """What another process takes over: the core's memory is this one's."""
        if self._core is not None:
            self._leave_core()
        return self.__dict__

    def _become_text(self) -> None:
        if self._table is not None:
            self._leave_table()
        if self._core is not None:
            self._leave_core()
        self._settle()
        self.as_text = True
        self._counted = self._counted.with_columns(pl.col("id").cast(pl.String))

    def _settle(self) -> None:
        if self._waiting:
            frames = [self._counted, *self._waiting]
            self._waiting = []
            self._counted = pl.concat(frames).group_by("id").agg(pl.col("n").sum())

    def result(self) -> tuple[pl.Series, Int64]:
        """The ids in ascending order, and how often each occurs; nothing can be counted afterwards."""
        if self._table is not None:
            self._leave_table()
        if self._core is not None:
            self._leave_core()
        self._settle()
        counted, self._counted = self._counted.sort("id"), self._counted.clear()
        return counted["id"], counted["n"].cast(pl.Int64).to_numpy()


class IdIndex:
    """Finds where ids stand among all there are.

    Args:
        ids: (n,) different ids, at least one; Int64 in ascending order, or String.
    """

    def __init__(self, ids: pl.Series) -> None:
        self._seed, self._low = 0, 0
        self._table: Int32 | None = None
        self._core = id_table()
        if ids.dtype == pl.String:
            keys, self._seed = _hashes(ids)
        else:
            keys = ids.to_numpy()
            n = int(keys[-1]) - int(keys[0]) + 1
            if n <= max(FREE_PLACES if self._core is None else 0, DENSE * len(ids)):
                self._low, self._table = int(keys[0]), np.zeros(n, np.int32)
                self._table[keys - self._low] = np.arange(len(keys), dtype=np.int32)
                return
        if self._core is not None:
            self._core.number(keys)
            return
        order = np.argsort(keys)
        self._keys, self._places = keys[order], order.astype(np.int32)

    def places_of(self, ids: pl.Series) -> Int32:
        """(n,) where these ids stand.

        Raises:
            IndexError: one is found to stand nowhere; this is not looked for where ids lie close together.
        """
        if self._table is not None:
            places: Int32 = self._table[ids.to_numpy() - self._low]
            return places
        keys = _hashed(ids, self._seed) if ids.dtype == pl.String else ids.to_numpy()
        if self._core is not None:
            places = np.empty(len(keys), np.int32)
            all_stand = self._core.places(keys, places)
        else:
            different, inverse = np.unique(keys, return_inverse=True)
            at = np.minimum(np.searchsorted(self._keys, different), len(self._keys) - 1)
            all_stand, places = (self._keys[at] == different).all(), self._places[at][inverse]
        if not all_stand:
            raise IndexError("an id is not among those that there are")
        return places


def _hashed(ids: pl.Series, seed: int) -> Int64:
    return ids.hash(seed).to_numpy().view(np.int64)


def _hashes(ids: pl.Series) -> tuple[Int64, int]:
    """A number for each text, all of them different, and the seed of it."""
    for seed in range(64):
        keys = _hashed(ids, seed)
        if len(np.unique(keys)) == len(keys):
            return keys, seed
    raise AssertionError("different texts have no different hashes")

"""Draw random items that a user has not had: negatives of training, candidates of the sampled protocol.

Drawing is by rejection: draw for all rows, find the draws that a row excludes, draw those again. The compiled core does
the same with the same generators and gives the same items.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sasrec.core.arrays import Bool, Float32, Int32, Int64
from sasrec.core.isa import load_native
from sasrec.data.ragged import Ragged

logger = logging.getLogger(__name__)

Key = tuple[int, ...]  # a seed, and what its numbers are for: what `generator` takes

# purposes of random numbers
WEIGHTS, SHUFFLE, NEGATIVES, DROPOUT, CANDIDATES, WINDOWS, ORDER, USERS, VALIDATING = range(9)
ROUNDS = 32  # of drawing again; by then only rows that have nearly everything are left
MANY_DRAWS = 4096  # from here on a table is faster than a search
TABLE_CELLS = 2**20  # rows times items of a table, a byte each: it stays in the cache


class ItemDrawer:
    """Draws items with replacement.

    Args:
        n_items: items are 1..n_items.
        counts: (n_items,) how likely each item is, in proportion, 0 = never; None = all the same.
        rounds: of drawing again what a row may not get, before it is drawn from what is left.
    """

    def __init__(self, n_items: int, counts: Int64 | None = None, rounds: int = ROUNDS) -> None:
        self.n_items, self.rounds = n_items, rounds
        self.bounds = None if counts is None else counts.cumsum()

    def draw(self, rng: np.random.Generator, n: int) -> Int32:
        """(n,) items."""
        if self.bounds is None:
            return rng.integers(1, self.n_items + 1, n, dtype=np.int32)
        return self._items_at(rng.integers(0, self.bounds[-1], n))

    def draw_among(self, rng: np.random.Generator, items: Int32, n: int) -> Int32:
        """(n,) items of the ascending `items`, uniform where none of them is ever drawn."""
        if self.bounds is None:
            return rng.choice(items, n)
        counts = self.bounds[items - 1] - np.where(items > 1, self.bounds[items - 2], 0)
        return rng.choice(items, n, p=counts / counts.sum() if counts.any() else None)

    def _items_at(self, events: Int64) -> Int32:
        """The items whose events, laid end to end, these are."""
        assert self.bounds is not None
        return (np.searchsorted(self.bounds, events, "right") + 1).astype(np.int32)


class Numbering:
    """Numbers 1..n for n of the items, in their order: who draws numbers draws these items only.

    Args:
        items: (n,) ascending item indices.
        n_items: items are 1..n_items.
    """

    def __init__(self, items: Int32, n_items: int) -> None:
        self.items = items
        self._numbers = np.zeros(n_items + 1, np.int32)
        self._numbers[items] = np.arange(1, len(items) + 1)

    def numbers(self, parts: Parts) -> Parts:
        """Rows of these items as rows of their numbers."""
        rows = Ragged.cut(parts.items, parts.starts, parts.ends)
        return Parts(self._numbers[rows.values], rows.offsets[:-1], rows.offsets[1:])

    def items_at(self, numbers: Int32) -> Int32:
        """The items that have these numbers."""
        return self.items[numbers - 1]

    def spread(self, values: Float32) -> Float32:
        """(n_items + 1,) what (n + 1,) says of each number, 0 for items without one."""
        spread = np.zeros(len(self._numbers), np.float32)
        spread[self.items] = values[1:]
        return spread


def generator(seed: int, *key: int) -> np.random.Generator:
    """The generator of one purpose at one step: the same key always gives the same numbers."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, *key))))


@dataclass(frozen=True)
class Streams:
    """Generators side by side, each for its own draws: each gives what it would give alone."""

    rngs: Sequence[np.random.Generator]
    ends: Int64  # where the draws of each end

    def draw(self, drawer: ItemDrawer, places: Int64) -> Int32:
        """(len(places),) an item for each of the draws, ascending, that are named."""
        counts = np.diff(np.searchsorted(places, self.ends), prepend=0)
        return np.concatenate([drawer.draw(rng, n) for rng, n in zip(self.rngs, counts, strict=True)])

    def of(self, place: int) -> np.random.Generator:
        """The generator of one draw."""
        return self.rngs[int(np.searchsorted(self.ends, place, "right"))]


class SortedKeys:
    """Items that rows must not get, as sorted numbers, one for each row and item.

    Args:
        excluded: rows of items.
        n_items: items are 1..n_items.
        many_draws: from so many on they are looked up in a table.
        table_cells: of the table, rows times items; where not even one row fits there is none.
    """

    def __init__(
        self, excluded: Ragged, n_items: int, many_draws: int = MANY_DRAWS, table_cells: int = TABLE_CELLS
    ) -> None:
        self.excluded, self.n_columns = excluded, n_items + 1
        self.many_draws, self.table_cells = many_draws, table_cells
        self.keys = _unique_keys(excluded, n_items)
        self.full = np.bincount(self.keys // self.n_columns, minlength=len(excluded)) >= n_items  # (rows,)

    def has(self, rows: Int64, items: Int32) -> Bool:
        """(M,) whether each row excludes each item."""
        first = rows * self.n_columns
        many = len(rows) >= self.many_draws and self.n_columns <= self.table_cells
        if many and bool((rows[1:] >= rows[:-1]).all()):
            rows_at_once = self.table_cells // self.n_columns
            return _in_table(self.keys, first + items, first, rows_at_once * self.n_columns)
        return _contains(self.keys, first + items)

    def free(self, row: int) -> Int32:
        """Items that the row does not exclude, in ascending order."""
        return np.setdiff1d(np.arange(1, self.n_columns, dtype=np.int32), self.excluded.row(row))


@dataclass(frozen=True)
class Parts:
    """Rows that are parts of one array: row i is items[starts[i] : ends[i]]."""

    items: Int32
    starts: Int64
    ends: Int64


def draw_unseen(keys: Sequence[Key], ends: Int64, counts: Int64, seen: Parts, drawer: ItemDrawer) -> Int32:
    """Items, with replacement, that rows have not seen; by the compiled core where there is one and it can.

    Args:
        keys: of the generators, one for each of some steps.
        ends: where the draws of each step end; the draws of a row are of one step.
        counts: (rows,) draws of each row, which lie one after another.
        seen: rows of items that are not drawn. A row that has every item gets any item, and a warning is logged.
        drawer: how likely each item is.

    Returns:
        (counts.sum(),) item indices.
    """
    module = load_native().module
    drawn = draw_in_core(module, keys, ends, counts, seen, drawer) if module and drawer.bounds is None else None
    if drawn is not None:
        return drawn
    rows = np.repeat(np.arange(len(counts)), counts)
    excluded = SortedKeys(Ragged.cut(seen.items, seen.starts, seen.ends), drawer.n_items)
    return _draw_for_steps(Streams([generator(*key) for key in keys], ends), rows, excluded, drawer)


def draw_in_core(
    module: Any, keys: Sequence[Key], ends: Int64, counts: Int64, seen: Parts, drawer: ItemDrawer
) -> Int32 | None:
    """`draw_unseen` by a variant of the core, of items that are all as likely; None = a row has nearly everything."""
    drawn = np.empty(int(counts.sum()), np.int32)
    done = module.draw_unseen(
        seeds=np.stack([np.random.SeedSequence(key).generate_state(3, np.uint64) for key in keys]),
        step_rows=np.searchsorted(counts.cumsum(), ends, "right"),
        counts=counts,
        items=seen.items,
        starts=seen.starts,
        ends=seen.ends,
        n_items=drawer.n_items,
        rounds=drawer.rounds,
        out=drawn,
    )
    return drawn if done else None


def draw_outside(rng: np.random.Generator, rows: Int64, excluded: Ragged, drawer: ItemDrawer) -> Int32:
    """Items, with replacement, that the row does not exclude.

    Args:
        rng: where the numbers come from.
        rows: (M,) which row of `excluded` each draw belongs to.
        excluded: items that row must not get. A row that excludes every item gets any item, and a warning is logged.
        drawer: how likely each item is.

    Returns:
        (M,) item indices.
    """
    streams = Streams([rng], np.array([len(rows)]))
    return _draw_for_steps(streams, rows, SortedKeys(excluded, drawer.n_items), drawer)


def _draw_for_steps(streams: Streams, rows: Int64, excluded: SortedKeys, drawer: ItemDrawer) -> Int32:
    """As draw_outside, of several steps at once: each step's generator gives what it would give alone."""
    draws = streams.draw(drawer, np.arange(len(rows)))
    rejected = excluded.has(rows, draws)
    if excluded.full.any():
        full = excluded.full[rows]
        rejected &= ~full
        if full.any():
            warn_of_full_rows()
    pending = np.flatnonzero(rejected)
    for _ in range(drawer.rounds - 1):
        if not len(pending):
            return draws
        draws[pending] = streams.draw(drawer, pending)
        pending = pending[excluded.has(rows[pending], draws[pending])]
    for row in np.unique(rows[pending]):  # users who have nearly everything
        mine = pending[rows[pending] == row]
        draws[mine] = drawer.draw_among(streams.of(mine[0]), excluded.free(row), len(mine))
    return draws


def _unique_keys(excluded: Ragged, n_items: int) -> Int64:
    """Sorted unique row * (n_items + 1) + item."""
    keys = excluded.row_of * (n_items + 1) + excluded.values
    keys.sort()
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


def _in_table(keys: Int64, wanted: Int64, first: Int64, step: int) -> Bool:
    """`_contains` by a table of a few rows' keys at a time: a search among all keys misses the cache at every step.

    Args:
        keys: sorted.
        wanted: (M,) what to look for.
        first: (M,) ascending, the first key that the row of each could have.
        step: keys of a table, those of whole rows.
    """
    found = np.empty(len(wanted), bool)
    starts = np.arange(0, int(first[-1]) + 1 + step, step)
    key_cuts, wanted_cuts = np.searchsorted(keys, starts), np.searchsorted(first, starts)
    table = np.zeros(step, bool)
    for i, start in enumerate(starts[:-1]):
        inside, mine = keys[key_cuts[i] : key_cuts[i + 1]] - start, slice(wanted_cuts[i], wanted_cuts[i + 1])
        table[inside] = True
        found[mine] = table[wanted[mine] - start]
        table[inside] = False
    return found


def _contains(keys: Int64, wanted: Int64) -> Bool:
    """Which of `wanted` are among the sorted keys."""
    if not len(keys):
        return np.zeros(len(wanted), bool)
    place = np.searchsorted(keys, wanted)
    place[place == len(keys)] = 0
    found: Bool = keys[place] == wanted
    return found


@functools.cache
def warn_of_full_rows() -> None:
    """Tell the user once, and not at every step."""
    logger.warning("some users have had every item; their negatives are drawn from all items")

"""Read a log within a bound of memory: in memory if it fits, else in parts that are put together on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from sasrec.core.amounts import resident_bytes, shown_bytes
from sasrec.core.errors import ConfigError
from sasrec.data.filters import Filters
from sasrec.data.partitioned import Progress, Workers, changed, partitioned
from sasrec.data.reading_record import ReadingRecord
from sasrec.data.sequences import Sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.chunks import ChunkSizes, open_chunks
from sasrec.reading.columns import Wanted
from sasrec.reading.estimates import bytes_in_memory
from sasrec.reading.notes import NeedsMemoryError, Notes
from sasrec.reading.sources import SourceFile, Store, find_files

LEAST_FREE = 150 * 10**6  # bytes for a chunk and what Polars keeps
BYTES_A_ROW = 600  # that reading takes for each row of a chunk
BYTES_A_BYTE = 48  # likewise for each byte of text
BYTES_AN_EVENT = 150  # that bringing a range of users into order takes
BYTES_A_USER, BYTES_AN_ITEM = 88, 72  # offsets, counts, and where ids stand; beside the ids themselves


@dataclass(frozen=True)
class Workplace:
    """Where a log that does not fit in memory is put together, and who is told how far it is."""

    folder: Callable[[], Path]  # makes it when it is needed
    progress: Progress = field(default=lambda what, done, total: None)
    workers: Workers | None = None  # None = only what does not fit in memory is put together, in this process


@dataclass(frozen=True)
class Budget:
    """How the memory is used that a bound leaves."""

    bound: int
    before: int  # bytes that the process had before it began to read

    @property
    def free(self) -> int:
        """What reading may take."""
        return self.bound - self.before

    def check(self, needed: float, why: str) -> None:
        """Raise ConfigError where reading needs more than there is."""
        if needed > self.free:
            raise ConfigError(
                f"--memory {shown_bytes(self.bound)} is too small: {why}, so at least "
                f"{shown_bytes(1.05 * (self.before + needed))} are needed"
            )

    @property
    def chunks(self) -> ChunkSizes:
        """How much is read at once: a quarter of what is free."""
        share = self.free // 4
        return ChunkSizes(min(max(share // BYTES_A_ROW, 2**14), 2**21), min(max(share // BYTES_A_BYTE, 2**18), 2**24))

    def events_of_range(self, tables: int, largest: int, most: int) -> int:
        """How many events of a range of users are in memory at once, at most, beside tables of so many bytes.

        Raises:
            ConfigError: those of the largest user do not fit.
        """
        why = f"the user with the most events has {largest:,}"
        self.check(LEAST_FREE + tables + largest * BYTES_AN_EVENT, why)
        return min(max((self.free - tables - LEAST_FREE) // 2 // BYTES_AN_EVENT, 1), most)


def find_within(source: Any, workplace: Workplace) -> tuple[list[SourceFile], Store]:
    """The files of a log, with nothing of them in memory, and where more can be put."""
    store = Store(workplace.folder())
    return find_files(source, store), store


def fits(files: Sequence[SourceFile], wanted: Wanted, budget: Budget) -> bool:
    """Whether a log can be read in memory."""
    return bytes_in_memory(files, wanted) <= budget.free


def read_in_parts(
    files: Sequence[SourceFile],
    wanted: Wanted,
    filters: Filters,
    budget: Budget,
    place: tuple[Store, Progress],
    source: Any,
    workers: Workers,
    sizes: tuple[ChunkSizes, int] | None = None,
) -> tuple[Sequences, Vocabulary]:
    """The sequences of a log, which stay on disk; what an earlier process has done of it is not done again.

    Args:
        files: of the log.
        wanted: how it is read.
        filters: which events stay.
        budget: of memory.
        place: the folder that they are put together in, and who is told how far it is.
        source: what messages call the log.
        workers: who reads it.
        sizes: of chunks, and how many events a range of users has; None = as the budget allows.

    Raises:
        DataError: the log cannot be used.
        NeedsMemoryError: it can only be read as a whole.
        ConfigError: the bound is too small.
        CheckpointError: the disk is full.
    """
    store, progress = place
    budget.check(LEAST_FREE, "reading takes some memory whatever the log is like")
    notes, before = Notes(), _marks(files)

    def show(done: int, total: int) -> None:
        progress("reading", done, total)

    def check(n_bytes: int) -> None:
        budget.check(LEAST_FREE + n_bytes, "the ids of users and items take as much")

    record = ReadingRecord(store.folder, files, wanted)
    chunk_sizes = record.sizes(sizes[0] if sizes else budget.chunks)
    chunks = open_chunks(files, wanted, notes, chunk_sizes, store)
    store.sweep()
    found = record.survey(chunks, notes, check)
    if found is None:
        found = workers.survey(chunks, wanted, len(files), notes, show, check)
        record.keep_survey(found)
    (users, user_counts), (items, _) = found.ids["user"], found.ids["item"]
    tables = _bytes_of(users, BYTES_A_USER) + _bytes_of(items, BYTES_AN_ITEM)
    n_events = budget.events_of_range(tables, int(user_counts.max()), workers.range_events)
    steps, n_events = record.steps(filters, chunk_sizes, sizes[1] if sizes else n_events)
    put = partitioned(found, filters, store.folder, n_events, source, progress, workers, steps)
    if _marks(files) != before:
        raise changed(chunks.where)
    return put


def too_little(error: NeedsMemoryError, files: Sequence[SourceFile], wanted: Wanted, budget: Budget) -> ConfigError:
    """The error for a log that can only be read as a whole, and does not fit."""
    needed = shown_bytes(budget.before + bytes_in_memory(files, wanted))
    return ConfigError(
        f"{error}, so the log is read as a whole, which needs about {needed}; give it as --memory, or convert the log "
        "to Parquet"
    )


def _marks(files: Sequence[SourceFile]) -> list[tuple[int, int]]:
    """What tells whether files have changed: sizes and times."""
    stats = [file.at.stat() for file in files]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def _bytes_of(ids: pl.Series, more: int) -> int:
    return int(ids.estimated_size()) + len(ids) * more


def budget_of(bound: int) -> Budget:
    """What a bound leaves to a process as it is now."""
    return Budget(bound, resident_bytes())

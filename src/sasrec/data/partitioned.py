"""Sequences of a log that does not fit in memory, put together on disk by ranges of users.

A second look over the log writes each event to where its range of users begins, in input order. Then each range is
read, brought into order, filtered and written back. The files are those that `Sequences.save` would have written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec.core.arrays import Bool, Int32, Int64
from sasrec.core.errors import DataError
from sasrec.core.files import disk_errors
from sasrec.data.event_files import EventFile
from sasrec.data.facts import Tally, fingerprint, order_by, order_by_user, pieces, row_slices
from sasrec.data.filters import Repeats, nothing_left
from sasrec.data.ragged import Ragged, offsets_of
from sasrec.data.sequences import TYPES, WEIGHTS, Sequences, facts_of, warn_of
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.chunks import Chunks
from sasrec.reading.columns import Wanted
from sasrec.reading.id_counts import IdIndex
from sasrec.reading.notes import Notes
from sasrec.reading.survey import Progress as Look
from sasrec.reading.survey import Surveyed, survey

USERS = "users.npy"  # whose events they are; removed at the end
ORDERING = "bringing events into order"
Columns = dict[str, NDArray[Any]]
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass(frozen=True)
class Filters:
    """Which events stay."""

    repeats: Repeats = "keep"
    core: int = 0
    iterated: bool = True


class Partition:
    """The events of a log in files of a folder, by ranges of users.

    Args:
        found: the log.
        folder: where the files go.
        n_events: that a range of users may have, unless one user has more.
    """

    def __init__(self, found: Surveyed, folder: Path, n_events: int) -> None:
        self.found, self.folder = found, folder
        self.offsets = offsets_of(found.ids["user"][1])
        self.ranges = list(row_slices(self.offsets, n_events))
        self.lengths = np.array([self.offsets[r.stop] - self.offsets[r.start] for r in self.ranges], np.int64)  # kept
        self.user_counts, self.item_counts = found.ids["user"][1], found.ids["item"][1]
        self.n_items = len(self.item_counts)
        self.files: dict[str, EventFile] = {}

    def __enter__(self) -> Partition:
        kinds: dict[str, type[np.generic]] = {USERS: np.int32, "items.npy": np.int32}
        if self.found.time_type is not None:
            kinds["timestamps.npy"] = self.found.time_type
        if "event" in self.found.ids:
            kinds[TYPES] = np.uint8
        if self.found.has_weights:
            kinds[WEIGHTS] = np.float32
        with contextlib.ExitStack() as stack:
            self.files = {name: stack.enter_context(EventFile(self.folder / name, k)) for name, k in kinds.items()}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def range_of(self) -> Int32:
        """(n_users,) the place of each user's range among the ranges."""
        return np.repeat(np.arange(len(self.ranges), dtype=np.int32), [r.stop - r.start for r in self.ranges])

    def fill(self, progress: Progress) -> None:
        """Write all events to their ranges, in input order.

        Raises:
            DataError: they are not those that were looked at.
        """
        indices = {role: IdIndex(ids) for role, (ids, _) in self.found.ids.items()}
        range_of, free = (
            self.range_of,
            self.offsets[[r.start for r in self.ranges]],
        )  # where the next event of each range goes

        def show(done: int, total: int) -> None:
            progress("sorting events into ranges of users", done, total)

        for frame in self.found.events.frames(show):
            try:
                columns = numbers_of(frame, indices)
            except (IndexError, TypeError) as error:  # ids that were not there, or of another type
                raise changed(self.found.events.chunks.where) from error
            columns, counts = by_range(columns, range_of, len(self.ranges))
            used = np.flatnonzero(counts)
            for name, values in columns.items():
                for at, piece in zip(used, np.split(values, np.cumsum(counts[used])[:-1]), strict=True):
                    self.files[name].write(int(free[at]), piece)
            free += counts
        if (free != self.offsets[[r.stop for r in self.ranges]]).any():
            raise changed(self.found.events.chunks.where)

    def parts(self) -> Iterator[tuple[slice, int, Columns]]:
        """Each range: its users, its place among the ranges, and its events."""
        for at, users in enumerate(self.ranges):
            begin = int(self.offsets[users.start])
            yield users, at, {name: file.read(begin, int(self.lengths[at])) for name, file in self.files.items()}

    def bring_into_order(self, repeats: Repeats, progress: Progress) -> None:
        """Sort each range by user and time, and leave out events that repeat others."""
        for users, at, columns in self.parts():
            ordered = in_order(columns, users, self.offsets, repeats, self.n_items)
            self.put(at, ordered, is_new=ordered is not columns)
            progress(ORDERING, at + 1, len(self.ranges))
        self.count_kept(repeats)

    def put(self, at: int, columns: Columns, *, is_new: bool = True) -> None:
        """Take the events of a range, in order, for those it has; not is_new = they stand in the files."""
        if is_new:
            self._put(int(self.offsets[self.ranges[at].start]), columns)
        self.lengths[at] = len(columns[USERS])

    def count_kept(self, repeats: Repeats) -> None:
        """Count again where events were left out."""
        if repeats != "keep":
            self._count(None)

    def _put(self, start: int, columns: Columns) -> None:
        for name, values in columns.items():
            self.files[name].write(start, values)

    def _count(self, kept: tuple[Bool, Bool] | None) -> None:
        """Count the events of users and of items again, of those that are kept; None = all are."""
        user_counts, item_counts = np.zeros_like(self.user_counts), np.zeros_like(self.item_counts)
        for at, rows in enumerate(self.ranges):
            begin, n = int(self.offsets[rows.start]), int(self.lengths[at])
            users, items = self.files[USERS].read(begin, n), self.files["items.npy"].read(begin, n)
            if kept is not None:
                stay = kept[0][users] & kept[1][items - 1]
                users, items = users[stay], items[stay]
            user_counts[rows] = np.bincount(users - rows.start, minlength=rows.stop - rows.start)
            item_counts += np.bincount(items - 1, minlength=self.n_items)
        self.user_counts, self.item_counts = user_counts, item_counts

    def keep_core(self, filters: Filters, progress: Progress) -> tuple[Bool, Bool]:
        """Which users and items have enough events, as `filter_k_core` says it."""
        rounds, n_left = 0, int(self.user_counts.sum())
        while True:
            kept = self.user_counts >= filters.core, self.item_counts >= filters.core
            self._count(kept)
            rounds, n_before, n_left = rounds + 1, n_left, int(self.user_counts.sum())
            progress(f"leaving out rare users and items, round {rounds}", rounds, rounds)
            if not filters.iterated or n_left in (0, n_before):
                return kept

    def finish(self, kept: tuple[Bool, Bool] | None, progress: Progress) -> tuple[Tally, Int64]:
        """Close the gaps, make item indices dense, count; the tally, and events of each type."""
        tally, end = Tally(), 0
        counts = np.zeros(len(self.found.ids["event"][0]) if TYPES in self.files else 0, np.int64)
        dense = np.concatenate([[0], np.cumsum(self.item_counts > 0)]).astype(np.int32)
        is_dense = bool((self.item_counts > 0).all())
        for users, at, columns in self.parts():
            if kept is not None:
                columns = _taken(columns, kept[0][columns[USERS]] & kept[1][columns["items.npy"] - 1])
            if not is_dense:
                columns["items.npy"] = dense[columns["items.npy"]]
            if kept is not None or end != self.offsets[users.start]:
                self._put(end, columns)
            end += len(columns[USERS])
            lengths = self.user_counts[users]
            events = Ragged(columns["items.npy"], offsets_of(lengths[lengths > 0]))
            tally.add(events, columns.get("timestamps.npy"), self.n_items)
            if TYPES in columns:
                counts += np.bincount(columns[TYPES], minlength=len(counts))
            progress("closing the files", at + 1, len(self.ranges))
        for file in self.files.values():
            file.finish(end)
        self._make_types_dense(counts)
        return tally, counts

    def _make_types_dense(self, counts: Int64) -> None:
        """Number types anew where none of some is left."""
        if (counts > 0).all():
            return
        dense, file, start = (np.cumsum(counts > 0) - 1).astype(np.uint8), self.files[TYPES], 0
        for piece in file.pieces():
            file.write(start, dense[piece])
            start += len(piece)


def changed(where: str) -> DataError:
    """The error for a log of which the second look finds other events."""
    return DataError(f"{where} changed while it was read; run the command again")


def numbers_of(frame: pl.DataFrame, indices: dict[str, IdIndex]) -> Columns:
    """The events of a chunk as they are written."""
    columns: Columns = {
        USERS: indices["user"].places_of(frame["user_id"]),
        "items.npy": indices["item"].places_of(frame["item_id"]) + np.int32(1),
    }
    if "timestamp" in frame.columns:
        columns["timestamps.npy"] = frame["timestamp"].to_numpy()
    if "event" in frame.columns:
        columns[TYPES] = indices["event"].places_of(frame["event"]).astype(np.uint8)
    if "weight" in frame.columns:
        columns[WEIGHTS] = frame["weight"].to_numpy()
    return columns


def by_range(columns: Columns, range_of: Int32, n_ranges: int) -> tuple[Columns, Int64]:
    """Events by the range of their user, those of a range in their order; and how many each range has."""
    ranges = range_of[columns[USERS]]
    return _taken(columns, order_by(ranges)), np.bincount(ranges, minlength=n_ranges)


def in_order(columns: Columns, users: slice, offsets: Int64, repeats: Repeats, n_items: int) -> Columns:
    """The events of a range by user and time, without those that repeat others; as they are where that is so already.

    Args:
        columns: in input order.
        users: of the range.
        offsets: (n_users + 1,) of all users.
        repeats: which stay.
        n_items: that there are.
    """
    begins = offsets[users.start : users.stop + 1] - offsets[users.start]
    order = order_by_user(columns[USERS] - users.start, begins, columns.get("timestamps.npy"))
    if order is not None:
        columns = _taken(columns, order)
    return columns if repeats == "keep" else _taken(columns, _is_kept(columns, repeats, n_items))


def _taken(columns: Columns, rows: Int64 | Bool) -> Columns:
    return {name: values[rows] for name, values in columns.items()}


def _is_kept(columns: Columns, repeats: Repeats, n_items: int) -> Bool:
    """(n,) which events of users, in order, are no repeats, as `filter_repeats` says it."""
    users, what = columns[USERS], columns["items.npy"].astype(np.int64)
    if TYPES in columns:
        what += columns[TYPES].astype(np.int64) * (n_items + 1)
    kept = np.ones(len(users), bool)
    if repeats == "consecutive":
        kept[1:] = (what[1:] != what[:-1]) | (users[1:] != users[:-1])
        return kept
    order = np.lexsort((what, users))  # stable
    same = (what[order][1:] == what[order][:-1]) & (users[order][1:] == users[order][:-1])
    kept[order[1:][same] if repeats == "first" else order[:-1][same]] = False
    return kept


class Workers(Protocol):
    """Who reads a log, and brings it into order by ranges of users: this process, or others beside it."""

    range_events: int  # of a range of users: more of them at once are not faster

    def survey(
        self, chunks: Chunks, wanted: Wanted, n_files: int, notes: Notes, progress: Look, check: Callable[[int], None]
    ) -> Surveyed:
        """As `survey.survey`."""

    def arrange(self, partition: Partition, repeats: Repeats, progress: Progress) -> None:
        """Read the events, and give each range of the partition its own, in order."""


class Alone:
    """Everything in this process."""

    range_events = 2**19

    def survey(self, *given: Any) -> Surveyed:
        """One chunk after the other."""
        return survey(*given)

    def arrange(self, partition: Partition, repeats: Repeats, progress: Progress) -> None:
        """Write events to the files of their ranges, then order these."""
        partition.fill(progress)
        partition.bring_into_order(repeats, progress)


def partitioned(
    found: Surveyed,
    filters: Filters,
    folder: Path,
    n_events: int,
    source: Any,
    progress: Progress,
    workers: Workers,
) -> tuple[Sequences, Vocabulary]:
    """Put the sequences of a log together in a folder, and map them.

    Args:
        found: the log, which was looked at once.
        filters: which events stay.
        folder: an empty one; it holds what `Sequences.save` writes.
        n_events: that are in memory at once, unless one user has more.
        source: how the message speaks of the log if no event is left.
        progress: is told how far it is.
        workers: read and order the events.

    Raises:
        DataError: no event is left.
        CheckpointError: the disk is full.
    """
    with Partition(found, folder, n_events) as partition:
        workers.arrange(partition, filters.repeats, progress)
        kept = partition.keep_core(filters, progress) if filters.core else None
        if not partition.user_counts.any():
            raise nothing_left(filters.core, source)
        tally, counts = partition.finish(kept, progress)
        users, items, names = _left(partition, counts)
        offsets = offsets_of(partition.user_counts[partition.user_counts > 0])
        vocabulary = Vocabulary(items, partition.item_counts[partition.item_counts > 0])
        files = partition.files
        events = [files["items.npy"].pieces(), pieces(offsets)]
        events += [files["timestamps.npy"].pieces()] if "timestamps.npy" in files else []
        types, weights = (files[name].pieces() if name in files else None for name in (TYPES, WEIGHTS))
        facts = facts_of(
            tally,
            (len(users), len(items)),
            fingerprint(events, types, weights, (users, vocabulary.item_ids), names),
            has_timestamps="timestamps.npy" in files,
            event_types=dict(zip(names, counts[counts > 0].tolist(), strict=True)),
            has_weights=WEIGHTS in files,
        )
    warn_of(facts)
    with disk_errors(folder):
        (folder / USERS).unlink()
        empty = np.zeros(0, np.int32)
        Sequences(users, empty, offsets, facts, understanding=found.understanding).save_beside_events(folder)
    return Sequences.load(folder, checked=False), vocabulary


def _left(partition: Partition, counts: Int64) -> tuple[pl.Series, pl.Series, list[str]]:
    """The users, items and types that have events."""
    ids = partition.found.ids
    users, items = (
        series.filter(pl.Series(n > 0))
        for series, n in ((ids["user"][0], partition.user_counts), (ids["item"][0], partition.item_counts))
    )
    names = ids["event"][0].filter(pl.Series(counts > 0)).to_list() if "event" in ids else []
    return users, items, names

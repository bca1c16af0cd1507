"""Sequences of a log that does not fit in memory, put together on disk by ranges of users.

A second look over the log writes each event to where its range of users begins, in input order. Then each range is
read, brought into order, filtered and written back. The files are those that `Sequences.save` would have written.

Events are written twice to the same place before they are lost elsewhere: what a range becomes is kept in a step
before it takes the range's place, so a kill at any moment leaves one or the other whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from sasrec.core.ahead import made_ahead
from sasrec.core.arrays import Bool, Int32, Int64
from sasrec.core.errors import CheckpointError, DataError
from sasrec.core.files import disk_errors, read_errors
from sasrec.data.event_columns import USERS, Columns, by_range, in_order, numbers_of, of_core
from sasrec.data.event_files import EventFile
from sasrec.data.facts import Tally, fingerprint, pieces, row_slices
from sasrec.data.filters import Filters, Repeats, nothing_left
from sasrec.data.ragged import Ragged, offsets_of
from sasrec.data.sequences import TYPES, WEIGHTS, Sequences, facts_of, warn_of
from sasrec.data.steps import Arrays, Steps
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.chunks import Chunks
from sasrec.reading.columns import Wanted
from sasrec.reading.id_counts import IdIndex
from sasrec.reading.notes import Notes
from sasrec.reading.survey import Place, Surveyed, survey
from sasrec.reading.survey import Progress as Look

FILLING = "sorting events into ranges of users"
ORDERING = "bringing events into order"
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


class Partition:
    """The events of a log in files of a folder, by ranges of users.

    Args:
        found: the log.
        folder: where the files go.
        n_events: that a range of users may have, unless one user has more.
        steps: how far earlier commands have come with it; None = it begins, and no step is kept.
    """

    def __init__(self, found: Surveyed, folder: Path, n_events: int, steps: Steps | None = None) -> None:
        self.found, self.folder, self.steps = found, folder, steps or Steps(None)
        self.offsets = offsets_of(found.ids["user"][1])
        self.ranges = list(row_slices(self.offsets, n_events))
        self.lengths = np.array([self.offsets[r.stop] - self.offsets[r.start] for r in self.ranges], np.int64)  # kept
        self.user_counts, self.item_counts = found.ids["user"][1], found.ids["item"][1]
        self.type_counts = found.ids["event"][1] if "event" in found.ids else np.zeros(0, np.int64)
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
        filled = self.steps.last("fill")
        with contextlib.ExitStack() as stack:
            for name, kind in kinds.items():
                file = EventFile(self.folder / name, kind, is_new=not self.steps.stages)
                self.files[name] = stack.enter_context(file)
            if filled is not None and "close" not in self.steps.stages:
                self._check_sizes(filled["sizes"])
            self._stack = stack.pop_all()
        return self

    def _check_sizes(self, sizes: Int64) -> None:
        for file, size in zip(self.files.values(), sizes, strict=True):
            if file.size < size:
                told = f"{file.path} is damaged: it is not as it was written"
                raise CheckpointError(f"{told}; run the command again, which then begins anew")

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
        free, ends = self.offsets[[r.start for r in self.ranges]], self.offsets[[r.stop for r in self.ranges]]
        begin, begun = Place(), self.steps.last("fill")
        if begun is None:
            self.steps.forget()  # nothing is in order yet
        else:
            begin, free = Place(*begun["place"].tolist()), begun["free"]
        if begun is None or (free != ends).any():
            self._fill(begin, free, progress)
            if (free != ends).any():
                raise changed(self.found.events.chunks.where)

    def _fill(self, begin: Place, free: Int64, progress: Progress) -> None:
        """Write the events behind a place; `free` is where the next one of each range goes."""
        place = begin
        indices = {role: IdIndex(ids) for role, (ids, _) in self.found.ids.items()}
        range_of, size = self.range_of, self.found.events.chunks.size

        def events_of(found: tuple[pl.DataFrame, Place]) -> Columns:
            try:
                return numbers_of(found[0], indices)
            except (IndexError, TypeError) as error:  # ids that were not there, or of another type
                raise changed(self.found.events.chunks.where) from error

        for (_, place), read in made_ahead(self.found.events.frames_after(begin), events_of, 1):
            columns, counts = by_range(read, range_of, len(self.ranges))
            used = np.flatnonzero(counts)
            for name, values in columns.items():
                for at, piece in zip(used, np.split(values, np.cumsum(counts[used])[:-1]), strict=True):
                    self.files[name].write(int(free[at]), piece)
            free += counts
            if self.steps.is_due():
                self._note_filled(place, free)
            progress(FILLING, min(place.done, size), size)
        if place.done < size:  # what follows has no events
            progress(FILLING, size, size)
        self._note_filled(place, free)

    def begin_anew(self) -> None:
        """Forget what an earlier command has done: somebody else gives each range its events."""
        self.steps.forget()

    def note_filled(self) -> None:
        """Keep that all events are in the files."""
        self._note_filled(Place(), self.offsets[[r.stop for r in self.ranges]])

    def _note_filled(self, place: Place, free: Int64) -> None:
        self.steps.note("fill", place=place, free=free, sizes=[file.size for file in self.files.values()])

    def parts(self, first: int = 0) -> Iterator[tuple[slice, int, Columns]]:
        """Each range from the first on: its users, its place among the ranges, and its events."""
        for at, users in list(enumerate(self.ranges))[first:]:
            begin = int(self.offsets[users.start])
            yield users, at, {name: file.read(begin, int(self.lengths[at])) for name, file in self.files.items()}

    def bring_into_order(self, repeats: Repeats, progress: Progress) -> None:
        """Sort each range by user and time, and leave out events that repeat others."""
        first, begun = self._gone_on("order")
        self.lengths = begun.get("lengths", self.lengths)

        def order(part: tuple[slice, int, Columns]) -> Columns:
            return in_order(part[2], part[0], self.offsets, repeats, self.n_items)

        for (_, at, columns), ordered in made_ahead(self.parts(first), order, 1):
            self.put(at, ordered, is_new=ordered is not columns)
            progress(ORDERING, at + 1, len(self.ranges))
        self.count_kept(repeats)

    def put(self, at: int, columns: Columns, *, is_new: bool = True) -> None:
        """Take the events of a range, in order, for those it has; not is_new = they stand in the files."""
        self.lengths[at] = len(columns[USERS])
        start = int(self.offsets[self.ranges[at].start])
        self._put("order", at, start, columns if is_new else {}, lengths=self.lengths)

    def count_kept(self, repeats: Repeats) -> None:
        """Count again where events were left out, once all ranges are in order."""
        if repeats != "keep":
            self._count(None, "keep")
        self._note_counts("order", at=len(self.ranges) - 1, start=0, lengths=self.lengths)

    def is_arranged(self) -> bool:
        """Whether an earlier command has brought all ranges into order."""
        step = self.steps.last("order") or {}
        self.lengths = step.get("lengths", self.lengths)
        return self._has_counts(step)

    def _put(self, stage: str, at: int, start: int, columns: Columns, **state: Any) -> None:
        """Write what a range becomes, once it is kept that this is to be done."""
        if columns or self.steps.is_due():
            self.steps.note(stage, at=at, start=start, **columns, **state)
        self._write(start, columns)

    def _write(self, start: int, columns: Columns) -> None:
        for name, values in columns.items():
            self.files[name].write(start, values)

    def _gone_on(self, stage: str) -> tuple[int, Arrays]:
        """The first range that a stage has not done, and its last step; what was to be written then is written."""
        step = self.steps.last(stage)
        if step is None:
            return 0, {}
        self._write(int(step["start"]), {name: values for name, values in step.items() if name in self.files})
        return int(step["at"]) + 1, step

    def _note_counts(self, stage: str, **state: Any) -> None:
        self.steps.note(stage, users=self.user_counts, items=self.item_counts, types=self.type_counts, **state)

    def _has_counts(self, step: Arrays) -> bool:
        """Take the counts of a step, if it has any."""
        if "users" not in step:
            return False
        self.user_counts, self.item_counts, self.type_counts = step["users"], step["items"], step["types"]
        return True

    def _count(self, kept: tuple[Bool, Bool] | None, repeats: Repeats) -> None:
        """Count the events of users, of items and of types again, of those that are kept; None = all are."""
        names = [USERS, "items.npy", *([TYPES] if TYPES in self.files else [])]
        user_counts, item_counts = np.zeros_like(self.user_counts), np.zeros_like(self.item_counts)
        type_counts = np.zeros_like(self.type_counts)
        for at, rows in enumerate(self.ranges):
            begin, n = int(self.offsets[rows.start]), int(self.lengths[at])
            columns = {name: self.files[name].read(begin, n) for name in names}
            if kept is not None:
                columns = of_core(columns, kept, repeats, self.n_items)
            if TYPES in columns:
                type_counts += np.bincount(columns[TYPES], minlength=len(type_counts))
            user_counts[rows] = np.bincount(columns[USERS] - rows.start, minlength=rows.stop - rows.start)
            item_counts += np.bincount(columns["items.npy"] - 1, minlength=self.n_items)
        self.user_counts, self.item_counts, self.type_counts = user_counts, item_counts, type_counts

    def keep_core(self, filters: Filters, progress: Progress) -> tuple[Bool, Bool]:
        """Which users and items have enough events, as `filter_events` says it."""
        rounds, begun = 0, self.steps.last("core") or {}
        if self._has_counts(begun):
            rounds = int(begun["rounds"])
            if begun["done"]:
                return begun["kept_users"], begun["kept_items"]
        n_left = int(self.user_counts.sum())
        while True:
            kept = self.user_counts >= filters.core, self.item_counts >= filters.core
            self._count(kept, filters.repeats)
            rounds, n_before, n_left = rounds + 1, n_left, int(self.user_counts.sum())
            progress(f"leaving out rare users and items, round {rounds}", rounds, rounds)
            done = not filters.iterated or n_left in (0, n_before)
            if done or self.steps.is_due():
                self._note_counts("core", rounds=rounds, done=done, kept_users=kept[0], kept_items=kept[1])
            if done:
                return kept

    def finish(self, kept: tuple[Bool, Bool] | None, repeats: Repeats, progress: Progress) -> tuple[Tally, Int64]:
        """Close the gaps, make item indices dense, count; the tally, and events of each type."""
        first, begun = self._gone_on("close")
        tally, end = (Tally(*begun["tally"].tolist()), int(begun["end"])) if begun else (Tally(), 0)
        dense = np.concatenate([[0], np.cumsum(self.item_counts > 0)]).astype(np.int32)
        is_dense = bool((self.item_counts > 0).all())
        dense_types = (np.cumsum(self.type_counts > 0) - 1).astype(np.uint8)

        def close(part: tuple[slice, int, Columns]) -> Columns:
            columns = part[2] if kept is None else of_core(part[2], kept, repeats, self.n_items)
            if not is_dense:
                columns["items.npy"] = dense[columns["items.npy"]]
            if TYPES in columns:
                columns[TYPES] = dense_types[columns[TYPES]]
            return columns

        for (users, at, _), columns in made_ahead(self.parts(first), close, 1):
            start, end = end, end + len(columns[USERS])
            lengths = self.user_counts[users]
            events = Ragged(columns["items.npy"], offsets_of(lengths[lengths > 0]))
            tally.add(events, columns.get("timestamps.npy"), self.n_items)
            is_moved = kept is not None or start != self.offsets[users.start]
            self._put("close", at, start, columns if is_moved else {}, tally=astuple(tally), end=end)
            progress("closing the files", at + 1, len(self.ranges))
        for file in self.files.values():
            file.finish(end)
        return tally, self.type_counts


def changed(where: str) -> DataError:
    """The error for a log of which the second look finds other events."""
    return DataError(f"{where} changed while it was read; run the command again")


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
    steps: Steps | None = None,
) -> tuple[Sequences, Vocabulary]:
    """Put the sequences of a log together in a folder, and map them.

    Args:
        found: the log, which was looked at once.
        filters: which events stay.
        folder: it holds what `Sequences.save` writes.
        n_events: that are in memory at once, unless one user has more.
        source: how the message speaks of the log if no event is left.
        progress: is told how far it is.
        workers: read and order the events.
        steps: how far earlier commands have come with it; None = it begins, and no step is kept.

    Raises:
        DataError: no event is left.
        CheckpointError: the disk is full, or what earlier commands have written is damaged.
    """
    steps = steps or Steps(None)
    done = steps.last("whole")
    if done is None:
        with Partition(found, folder, n_events, steps) as partition:
            item_counts = _put_together(partition, filters, source, progress, workers)
        steps.note("whole", items=item_counts)  # from now on, files may have second names and are not written
    else:
        item_counts = done["items"]
    with read_errors(f"{folder} is damaged"):
        sequences = Sequences.load(folder, checked=False)
    warn_of(sequences.facts)
    with disk_errors(folder):
        (folder / USERS).unlink(missing_ok=True)
    return sequences, _vocabulary(found, item_counts)


def _put_together(partition: Partition, filters: Filters, source: Any, progress: Progress, workers: Workers) -> Int64:
    """Write all files; how often each item occurs that was found."""
    found, files = partition.found, partition.files
    if not partition.is_arranged():
        workers.arrange(partition, filters.repeats, progress)
    kept = partition.keep_core(filters, progress) if filters.core else None
    if not partition.user_counts.any():
        raise nothing_left(filters.core, source)
    tally, counts = partition.finish(kept, filters.repeats, progress)
    users = found.ids["user"][0].filter(pl.Series(partition.user_counts > 0))
    names = found.ids["event"][0].filter(pl.Series(counts > 0)).to_list() if "event" in found.ids else []
    offsets = offsets_of(partition.user_counts[partition.user_counts > 0])
    vocabulary = _vocabulary(found, partition.item_counts)
    events = [files["items.npy"].pieces(), pieces(offsets)]
    events += [files["timestamps.npy"].pieces()] if "timestamps.npy" in files else []
    types, weights = (files[name].pieces() if name in files else None for name in (TYPES, WEIGHTS))
    facts = facts_of(
        tally,
        (len(users), len(vocabulary)),
        fingerprint(events, types, weights, (users, vocabulary.item_ids), names),
        has_timestamps="timestamps.npy" in files,
        event_types=dict(zip(names, counts[counts > 0].tolist(), strict=True)),
        has_weights=WEIGHTS in files,
    )
    with disk_errors(partition.folder):
        empty = np.zeros(0, np.int32)
        written = Sequences(users, empty, offsets, facts, understanding=found.understanding)
        written.save_beside_events(partition.folder)
    return partition.item_counts


def _vocabulary(found: Surveyed, counts: Int64) -> Vocabulary:
    """The items that have events."""
    return Vocabulary(found.ids["item"][0].filter(pl.Series(counts > 0)), counts[counts > 0])

"""A log that several machines read: shares of its files side by side, then ranges of users side by side.

What they find and write are files of the folder that all machines see; this process puts them together, as it does
with a log that it reads alone (data/partitioned.py), to the same bytes.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sasrec.cluster.connection import Cluster
from sasrec.core.arrays import Int32, Int64
from sasrec.core.errors import DataError
from sasrec.core.files import disk_errors
from sasrec.data.event_columns import Columns, by_range, in_order, numbers_of
from sasrec.data.event_files import EventFile
from sasrec.data.filters import Repeats
from sasrec.data.partitioned import FILLING, ORDERING, Partition, Progress, changed
from sasrec.reading.chunks import Chunks
from sasrec.reading.columns import Wanted
from sasrec.reading.id_counts import IdIndex
from sasrec.reading.notes import Notes
from sasrec.reading.survey import Events, OtherTypesError, Place, Survey, Surveyed, Types, surveyed_by
from sasrec.reading.survey import Progress as Look

SHARES = 4  # of the log for each worker: the slower ones take fewer


@dataclass(frozen=True)
class Written:
    """What a worker has made of its share: files in the order of chunks, and in each chunk by range."""

    folder: Path
    counts: Int64  # (n_chunks, n_ranges) events


class ClusterWorkers:
    """Workers of a cluster that read a log; see `data.partitioned.Workers`.

    Args:
        cluster: does the work.
    """

    range_events = 2**22

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.n_shares = SHARES * (cluster.workers or cluster.n_cpus)

    def survey(
        self, chunks: Chunks, wanted: Wanted, n_files: int, notes: Notes, progress: Look, check: Callable[[int], None]
    ) -> Surveyed:
        """Look at all of a log, each worker at shares of it."""
        look = self.cluster.task(_look)

        def look_at_all(types: Types) -> Survey:
            shares = chunks.shares(self.n_shares)
            references = [look.remote(share, wanted, types) for share in shares]
            found = self.cluster.results(references, lambda done: progress(done, len(shares)))
            whole: Survey | None = None
            for share, told in zip(shares, found, strict=True):
                if isinstance(told, Types):
                    raise OtherTypesError(told)
                if isinstance(told, DataError):
                    raise self._error_in(share, wanted, types, whole)
                survey, own_notes = told
                notes.repeat(own_notes)
                whole = survey if whole is None else whole.join(survey)
                check(whole.nbytes)
            assert whole is not None
            return whole

        return surveyed_by(look_at_all, chunks, n_files, notes)

    def _error_in(self, share: Chunks, wanted: Wanted, types: Types, before: Survey | None) -> DataError:
        """What is wrong with a share, with the number of the row in the whole log."""
        if before is not None:
            share, types = share.beginning_at(before.n_read), before.types
        again = self.cluster.result(self.cluster.task(_look).remote(share, wanted, types))
        return again if isinstance(again, DataError) else changed(share.where)

    def arrange(self, partition: Partition, repeats: Repeats, progress: Progress) -> None:
        """Write events by ranges of users, bring these into order, and take them in."""
        found, cluster = partition.found, self.cluster
        partition.begin_anew()
        ids = cluster.ray.put({role: series for role, (series, _) in found.ids.items()})
        range_of, offsets = cluster.ray.put(partition.range_of), cluster.ray.put(partition.offsets)
        shares, fill = found.events.chunks.shares(self.n_shares), cluster.task(_fill)
        events = [Events(share, found.events.wanted, found.events.types) for share in shares]
        kinds = {name: file.dtype.type for name, file in partition.files.items()}
        made = [fill.remote(one, ids, range_of, kinds, len(partition.ranges), partition.folder) for one in events]
        written = cluster.results(made, lambda done: progress(FILLING, done, len(shares)))
        counted = sum((share.counts.sum(axis=0) for share in written), np.zeros(len(partition.ranges), np.int64))
        if (counted != partition.lengths).any():
            raise changed(found.events.chunks.where)
        order, at_all = cluster.task(_order), cluster.ray.put(written)
        ordered = [
            order.remote(at_all, at, users, offsets, repeats, partition.n_items, partition.folder)
            for at, users in enumerate(partition.ranges)
        ]
        for at, folder in enumerate(cluster.results(ordered, lambda done: progress(ORDERING, done, len(ordered)))):
            partition.put(at, {name: np.load(folder / name) for name in partition.files})
            with disk_errors(folder):
                for name in partition.files:
                    (folder / name).unlink()
        partition.note_filled()
        partition.count_kept(repeats)


def _look(share: Chunks, wanted: Wanted, types: Types) -> tuple[Survey, Notes] | Types | DataError:
    """What a worker finds in a share; the types that columns have instead, or what is wrong with it."""
    found, notes = Survey(share, wanted, types), Notes()
    try:
        found.look(notes, lambda done, total: None)
    except OtherTypesError as other:
        return other.types
    except DataError as error:
        return error
    return found, notes


def _fill(
    events: Events,
    ids: dict[str, pl.Series],
    range_of: Int32,
    kinds: dict[str, type[np.generic]],
    n_ranges: int,
    folder: Path,
) -> Written:
    """Write the events of a share, chunk by chunk, in each by range."""
    indices, counts, at = {role: IdIndex(series) for role, series in ids.items()}, [], 0
    own = _folder_in(folder)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(EventFile(own / name, kind)) for name, kind in kinds.items()}
        for frame, _ in events.frames_after(Place()):
            try:
                columns, n = by_range(numbers_of(frame, indices), range_of, n_ranges)
            except (IndexError, TypeError) as error:
                raise changed(events.chunks.where) from error
            for name, values in columns.items():
                files[name].write(at, values)
            at += len(frame)
            counts.append(n)
        for file in files.values():
            file.finish(at)
    return Written(own, np.array(counts, np.int64).reshape(-1, n_ranges))


def _order(
    written: Sequence[Written],
    at: int,
    users: slice,
    offsets: Int64,
    repeats: Repeats,
    n_items: int,
    folder: Path,
) -> Path:
    """Bring the events of a range into order; the folder that has them."""
    pieces: list[Columns] = []
    for share in written:
        ends = np.cumsum(share.counts).reshape(share.counts.shape)[:, at]
        for end, n in zip(ends, share.counts[:, at], strict=True):
            pieces.append({path.name: _slice(path, end - n, end) for path in share.folder.iterdir()} if n else {})
    pieces = [piece for piece in pieces if piece]
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    columns, own = in_order(columns, users, offsets, repeats, n_items), _folder_in(folder)
    for name, values in columns.items():
        with disk_errors(own):
            np.save(own / name, values)
    return own


def _slice(path: Path, begin: int, end: int) -> Any:
    return np.load(path, mmap_mode="r")[begin:end]


def _folder_in(folder: Path) -> Path:
    """A folder of this attempt's own: a worker that was taken for lost may still write to its own."""
    own = folder / f"part-{uuid.uuid4().hex}"
    with disk_errors(own):
        own.mkdir()
    return own

"""What a reading in parts has found and done, kept in its folder, so that the same reading goes on after a kill.

survey.json tells of which log, read how and by which versions, the first look was; the ids that it found lie beside it.
plan.json tells what the events are put together by; `Steps` how far that has come. What is not of the same log is
removed, and so is what may have been lost with a machine.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from sasrec import __version__
from sasrec.core.digests import BOOK, is_as_written, noting
from sasrec.core.errors import CheckpointError
from sasrec.core.files import DAMAGES, atomic_file, atomic_write, boot
from sasrec.data.event_columns import USERS
from sasrec.data.filters import Filters
from sasrec.data.sequences import FILES
from sasrec.data.steps import Steps
from sasrec.reading.chunks import Chunks, ChunkSizes
from sasrec.reading.columns import Wanted
from sasrec.reading.notes import Notes
from sasrec.reading.sources import STDIN, SourceFile, shown_path
from sasrec.reading.survey import COLUMNS, Events, Surveyed, Types
from sasrec.reading.understanding import Understanding

logger = logging.getLogger(__name__)

SURVEY, PLAN = "survey.json", "plan.json"
FORMAT = 1
MORE = 1.1  # times what fits may be kept on: what a process has when it begins differs a little
LOOK = "the first look over the log"
STAGES = {  # of the steps, the last one first: what there is to go on behind
    "whole": "the whole reading",
    "close": "the ranges of users that are closed",
    "core": "the last count of rare users and items",
    "order": "the ranges of users that are in order",
    "fill": "the events that are in their ranges of users",
}
OF_SURVEY = (SURVEY, "survey-*.parquet", BOOK)
OF_EVENTS = (PLAN, "*.step", "*.tmp", USERS, *FILES)


class File(msgspec.Struct, frozen=True):
    """A file of the log, and what tells whether it has changed."""

    name: str
    path: str
    size: int
    time: int
    inode: int
    partition: dict[str, str]  # columns that its folders stand for


class Source(msgspec.Struct, frozen=True):
    """Which log was read, how, and by what."""

    versions: list[str]
    files: list[File]
    wanted: Wanted


class Found(msgspec.Struct, frozen=True):
    """What a survey has found beside ids."""

    understanding: Understanding
    types: Types
    time_type: str | None
    has_weights: bool
    id_bytes: int


class Plan(msgspec.Struct, frozen=True):
    """What events are put together by."""

    filters: Filters
    sizes: ChunkSizes
    n_events: int  # of a range of users
    boot: str  # since when files are as they were written

    def fits(self, sizes: ChunkSizes, n_events: int) -> bool:
        """Whether memory suffices, if it does for these sizes."""
        here = (self.sizes.n_rows, self.sizes.n_bytes, self.n_events)
        return all(n <= MORE * most for n, most in zip(here, (sizes.n_rows, sizes.n_bytes, n_events), strict=True))


class ReadingRecord:
    """What is kept of the reading of a log.

    Args:
        folder: that the log is put together in.
        files: of the log.
        wanted: how it is read.
    """

    def __init__(self, folder: Path, files: Sequence[SourceFile], wanted: Wanted) -> None:
        self.folder = folder
        marks = [_mark(file) for file in files]
        known = [mark for mark in marks if mark is not None]
        self.source = Source([str(FORMAT), __version__, pl.__version__, np.__version__], known, wanted)
        self.is_kept = len(known) == len(marks)  # what is piped comes once
        self.found, why = self._read()
        self.plan = self._read_plan() if self.found else None
        if why:
            logger.warning("%s is not gone on with: %s; reading begins anew", folder, why)
        if not self.found:
            _remove(folder, *OF_SURVEY, *OF_EVENTS)

    def _read(self) -> tuple[Found | None, str]:
        """What the last survey has found, and why it is of no use."""
        if not has_record(self.folder):
            return None, ""
        kept: tuple[Source, Found] | None = None
        with contextlib.suppress(*DAMAGES, CheckpointError):
            of, found = msgspec.json.decode((self.folder / SURVEY).read_bytes(), type=tuple[Source, Found])
            names = [SURVEY, *(_ids_name(role) for role in COLUMNS if role in found.understanding.columns)]
            if not all((self.folder / name).is_file() for name in (BOOK, *names)):
                return None, "it is damaged"
            if not all(is_as_written(self.folder, name, whole=True) for name in names):
                return None, "it is damaged"
            kept = of, found
        if kept is None:
            return None, "it is damaged, or of another version"
        why = self._differs(kept[0])
        return (None, why) if why else (kept[1], "")

    def _differs(self, of: Source) -> str:
        if of.versions != self.source.versions:
            return "it is of another version of sasrec or its libraries"
        if not self.is_kept:
            return "standard input and pipes are read from the beginning"
        old, new = ([(file.name, file.path, file.partition) for file in one.files] for one in (of, self.source))
        if old != new:
            return "it is of other files"
        changed = [now.name for before, now in zip(of.files, self.source.files, strict=True) if before != now]
        if changed:
            return f"{changed[0]} has changed since"
        return "" if of.wanted == self.source.wanted else "other options say how to read the log"

    def _read_plan(self) -> Plan | None:
        with contextlib.suppress(*DAMAGES):
            return msgspec.json.decode((self.folder / PLAN).read_bytes(), type=Plan)
        return None

    def sizes(self, most: ChunkSizes) -> ChunkSizes:
        """How much is read at once: as before where that fits, so that the same chunks come again."""
        return self.plan.sizes if self.plan is not None and self.plan.fits(most, self.plan.n_events) else most

    def survey(self, chunks: Chunks, notes: Notes, check: Callable[[int], None]) -> Surveyed | None:
        """What an earlier look over the log has found; None = there was none.

        Args:
            chunks: the log.
            notes: takes again what was odd then.
            check: is told the bytes that ids take.
        """
        if self.found is None:
            return None
        found = self.found
        check(found.id_bytes)
        for note in found.understanding.notes:
            notes.warn(note.text, note.fix)
        frames = {role: pl.read_parquet(self._ids(role)) for role in COLUMNS if role in chunks.choice.roles}
        ids = {role: (frame["id"].rechunk(), frame["n"].to_numpy()) for role, frame in frames.items()}
        kind = None if found.time_type is None else np.dtype(found.time_type).type
        events = Events(chunks, self.source.wanted, found.types)
        return Surveyed(events, ids, found.understanding, kind, found.has_weights)

    def keep_survey(self, found: Surveyed) -> None:
        """Keep what a look over the log has found.

        Raises:
            CheckpointError: the disk is full.
        """
        if not self.is_kept:
            return
        for role, (ids, counts) in found.ids.items():
            with atomic_file(self._ids(role), noting(self.folder, _ids_name(role))) as temporary:
                pl.DataFrame({"id": ids, "n": counts}).write_parquet(temporary, compression="lz4")
        kind = None if found.time_type is None else np.dtype(found.time_type).name
        id_bytes = int(sum(ids.estimated_size() + counts.nbytes for ids, counts in found.ids.values()))
        told = Found(found.understanding, found.events.types, kind, found.has_weights, id_bytes)
        atomic_write(self.folder / SURVEY, msgspec.json.encode((self.source, told)), noting(self.folder, SURVEY))

    def steps(self, filters: Filters, sizes: ChunkSizes, n_events: int) -> tuple[Steps, int]:
        """How far events have been put together in the same way, and of how many events ranges are.

        Args:
            filters: which events stay.
            sizes: how much is read at once.
            n_events: that a range of users may have.

        Raises:
            CheckpointError: the disk is full.
        """
        if not self.is_kept:
            return Steps(None), n_events
        steps, why = Steps(self.folder), self._differs_from_plan(filters, sizes, n_events)
        if self.plan is not None and not why:
            self._tell(steps)
            return steps, self.plan.n_events
        if why and steps.stages:
            logger.warning("events are put together anew: %s", why)
        _remove(self.folder, *OF_EVENTS)
        steps, plan = Steps(self.folder), Plan(filters, sizes, n_events, boot())
        self._tell(steps)
        atomic_write(self.folder / PLAN, msgspec.json.encode(plan))
        return steps, n_events

    def _differs_from_plan(self, filters: Filters, sizes: ChunkSizes, n_events: int) -> str:
        """Why events that were put together by the plan, if there is one, are of no use."""
        if self.plan is None:
            return ""
        if not self.plan.boot or self.plan.boot != boot():
            return "the machine is another one, or was started anew"
        if self.plan.filters != filters:
            return "other filters say which events stay"
        fits = self.plan.sizes == sizes and self.plan.fits(sizes, n_events)
        return "" if fits else "less memory is free than before"

    def _tell(self, steps: Steps) -> None:
        if self.found is not None:
            behind = next((words for stage, words in STAGES.items() if stage in steps.stages), LOOK)
            logger.info("going on behind %s: what an earlier command has done is in %s", behind, self.folder)

    def _ids(self, role: str) -> Path:
        return self.folder / _ids_name(role)


def has_record(folder: Path) -> bool:
    """Whether there is something to go on behind."""
    return (folder / SURVEY).is_file()


def _ids_name(role: str) -> str:
    return f"survey-{role}.parquet"


def _mark(file: SourceFile) -> File | None:
    """What tells whether a file is the same; None = it comes from a pipe."""
    if str(file.place) == STDIN or not file.place.is_file():
        return None
    stat = file.place.stat()
    path = shown_path(file.place.absolute())
    return File(file.name, path, stat.st_size, stat.st_mtime_ns, stat.st_ino, file.partition)


def _remove(folder: Path, *patterns: str) -> None:
    """Remove files; the first one is what tells that others are of use."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)

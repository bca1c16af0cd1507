"""The first look over a log that is read in chunks: which ids there are, of which type, and what times are like.

Whether ids are integers, and which kind of texts times are, is said of a whole column. Where a chunk shows that earlier
ones were read as something else, the look begins anew. Further looks give the events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import polars as pl

from sasrec.core.ahead import one_ahead
from sasrec.core.arrays import Int64
from sasrec.reading.checks import MissingWords, note_odd_values
from sasrec.reading.chunks import Chunks
from sasrec.reading.columns import Wanted
from sasrec.reading.conversion import TYPE, check_types, check_weights, checked_ids, checked_weights, timestamps_in
from sasrec.reading.id_counts import IdCounts
from sasrec.reading.ids import canonical_ids
from sasrec.reading.notes import Notes
from sasrec.reading.readers import check_any, complete, note_dropped
from sasrec.reading.source_table import SourceTable
from sasrec.reading.times import TextKind, TimesSeen, holds_dates, is_date
from sasrec.reading.understanding import SAMPLED_ROWS, RowOrder, Understanding, facts_of, first_events

COLUMNS = {"user": "user_id", "item": "item_id", "event": "event"}  # of ids: the role, and what they are called
Progress = Callable[[int, int], None]  # how much is done, of how much


@dataclass(frozen=True)
class Types:
    """What columns hold, as far as all of a log decides it."""

    texts: frozenset[str] = frozenset()  # roles of ids that are texts, although some look like integers
    times: TextKind | None = None  # which kind of texts times are


class OtherTypesError(Exception):
    """What was read so far is of other types."""

    def __init__(self, types: Types) -> None:
        super().__init__()
        self.types = types


class Place(NamedTuple):
    """How far a log has been read."""

    n_chunks: int = 0
    done: int = 0  # of the log's size, in rows or bytes


class Events:
    """The events of a log, chunk by chunk, once it is known what columns hold.

    Args:
        chunks: the log.
        wanted: what was asked for.
        types: what columns hold.
    """

    def __init__(self, chunks: Chunks, wanted: Wanted, types: Types) -> None:
        self.chunks, self.wanted, self.types = chunks, wanted, types

    def frames_after(self, place: Place) -> Iterator[tuple[pl.DataFrame, Place]]:
        """user_id, item_id[, timestamp][, event][, weight], in input order, each with the place behind it.

        Args:
            place: behind which they begin; chunks of the same sizes have told it.
        """
        for table, size in one_ahead(self.chunks.tables(None, place.n_chunks)):
            place = Place(place.n_chunks + 1, place.done + size)
            whole = complete(table, self.chunks.choice, self.wanted)
            if len(whole.frame):
                yield self.frame_of(whole), place

    def frame_of(self, table: SourceTable) -> pl.DataFrame:
        """The events of a chunk, which has some."""
        roles = self.chunks.choice.roles
        columns = {COLUMNS[role]: self.ids_of(table, role) for role in ("user", "item")}
        if "timestamp" in roles:
            columns["timestamp"] = self.times_of(table, roles["timestamp"])
        if "event" in roles:
            columns["event"] = self.ids_of(table, "event")
        if "weight" in roles:
            columns["weight"] = checked_weights(table, roles["weight"])
        return pl.DataFrame(columns)

    def ids_of(self, table: SourceTable, role: str) -> pl.Series:
        """The ids of a chunk."""
        given = _given(table, self.chunks.choice.roles[role], role)
        return canonical_ids(given, as_text=role in self.types.texts, first_row=table.first_row)

    def times_of(self, table: SourceTable, column: str) -> pl.Series:
        """The times of a chunk."""
        return timestamps_in(table, column, self.types.times)


def _given(table: SourceTable, column: str, role: str) -> pl.Series:
    return checked_ids(table, column, TYPE) if role == "event" else checked_ids(table, column)


class Survey(Events):
    """What is found in one look over all chunks."""

    def __init__(self, chunks: Chunks, wanted: Wanted, types: Types) -> None:
        super().__init__(chunks, wanted, types)
        self.counts = {role: IdCounts() for role in COLUMNS if role in chunks.choice.roles}
        self.words = {role: MissingWords() for role in ("user", "item")}
        self.times = TimesSeen() if "timestamp" in chunks.choice.roles else None
        self.dates, self.any_weight = False, False
        self.time_type: pl.DataType | None = None
        self.order = RowOrder()
        self.n_read, self.n_events = 0, 0
        self._pointed: set[str] = set()  # roles with ids such as "5.0", which are texts unless all are whole numbers
        self._head: list[pl.DataFrame] = []  # the first rows

    @property
    def nbytes(self) -> int:
        """The memory that ids take."""
        return sum(counts.nbytes for counts in self.counts.values())

    def look(self, notes: Notes, progress: Progress) -> None:
        """Look at all chunks.

        Raises:
            OtherTypesError: columns hold something else than it seemed at first.
        """
        done = 0
        for table, size in one_ahead(self.chunks.tables(notes)):
            self.n_read += len(table.frame)
            whole = complete(table, self.chunks.choice, self.wanted)
            if len(whole.frame):
                self._add(whole, self.frame_of(whole))
            done += size
            progress(min(done, self.chunks.size), self.chunks.size)

    def ids_of(self, table: SourceTable, role: str) -> pl.Series:
        given, counts = _given(table, self.chunks.choice.roles[role], role), self.counts[role]
        ids = canonical_ids(given, as_text=role in self.types.texts or counts.as_text, first_row=table.first_row)
        if ids.dtype == pl.String and role in self._pointed and role not in self.types.texts:
            raise OtherTypesError(replace(self.types, texts=self.types.texts | {role}))
        if ids.dtype == pl.Int64 and _has_points(given):
            self._pointed.add(role)
        return ids

    def times_of(self, table: SourceTable, column: str) -> pl.Series:
        given, times = table.frame[column], super().times_of(table, column)
        if table.is_text or given.dtype == pl.String:
            if self.types.times is None:
                kind: TextKind = "dates" if is_date(str(given[0])) else "decimals"
                self.types = replace(self.types, times="integers" if times.dtype == pl.Int64 else kind)
            elif self.types.times == "integers" and times.dtype != pl.Int64:
                raise OtherTypesError(replace(self.types, times="decimals"))
        if self.time_type is None:
            self.time_type, self.dates = times.dtype, holds_dates(given)
        return times

    def _add(self, table: SourceTable, frame: pl.DataFrame) -> None:
        for role, counts in self.counts.items():
            counts.add(frame[COLUMNS[role]])
        for role, words in self.words.items():
            words.add(table, self.chunks.choice.roles[role])
        if self.times is not None:
            self.times.add(frame["timestamp"])
            self.order.add(frame["user_id"], frame["timestamp"])
        if "weight" in frame.columns:
            self.any_weight = self.any_weight or bool((frame["weight"] > 0).any())
        if self.n_events < SAMPLED_ROWS:
            self._head.append(frame.head(SAMPLED_ROWS - self.n_events))
        self.n_events += len(frame)

    def join(self, later: Survey) -> Survey:
        """This one, with what was found of the chunks that come next, in a look of its own.

        Raises:
            OtherTypesError: the two have taken columns for something else; a DataError may be what comes of it.
        """
        self._agree(later)
        for role, counts in self.counts.items():
            counts.join(later.counts[role])
        for role, words in self.words.items():
            words.join(later.words[role])
        if self.times is not None and later.times is not None:
            self.times.join(later.times)
            self.order.join(later.order)
        if self.time_type is None:
            self.time_type, self.dates = later.time_type, later.dates
        self.any_weight = self.any_weight or later.any_weight
        self._head += later._head if self.n_events < SAMPLED_ROWS else []
        self.n_read, self.n_events = self.n_read + later.n_read, self.n_events + later.n_events
        return self

    def _agree(self, later: Survey) -> None:
        """Check that columns were taken for the same, or could be."""
        pointed = self._pointed | later._pointed
        texts = frozenset(r for r in pointed if self.counts[r].as_text or later.counts[r].as_text)
        kinds = {survey.types.times for survey in (self, later)} - {None}
        times = self.types.times or later.types.times
        if len(kinds) > 1:  # as the first say it, but where these are whole numbers among decimals
            times = "decimals" if kinds == {"integers", "decimals"} else self.types.times
        if len(kinds) > 1 or texts - self.types.texts:
            raise OtherTypesError(Types(self.types.texts | texts, times))
        self.types, self._pointed = replace(self.types, times=times), pointed

    @property
    def found_types(self) -> Types:
        """What columns hold, now that all of the log was looked at."""
        return replace(self.types, texts=frozenset(role for role, counts in self.counts.items() if counts.as_text))

    def head(self) -> pl.DataFrame:
        """The first rows, in their types."""
        kinds = {COLUMNS[role]: pl.String if counts.as_text else pl.Int64 for role, counts in self.counts.items()}
        return pl.concat(frame.cast(kinds) for frame in self._head).head(SAMPLED_ROWS)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Surveyed:
    """A log that was looked at once: what there is, and its events."""

    events: Events
    ids: dict[str, tuple[pl.Series, Int64]]  # of each role of COLUMNS, ascending, and how often each occurs
    understanding: Understanding
    time_type: type[np.generic] | None  # None = there are no times
    has_weights: bool


def survey(
    chunks: Chunks, wanted: Wanted, n_files: int, notes: Notes, progress: Progress, check: Callable[[int], None]
) -> Surveyed:
    """Look at all of a log.

    Args:
        chunks: the log.
        wanted: what was asked for.
        n_files: that it has.
        notes: takes what is odd.
        progress: is told how much has been read.
        check: is told the bytes that ids take.

    Raises:
        DataError: the log cannot be used.
    """

    def look(types: Types) -> Survey:
        found = Survey(chunks, wanted, types)

        def show(done: int, total: int) -> None:
            check(found.nbytes)
            progress(done, total)

        found.look(notes, show)
        return found

    return surveyed_by(look, chunks, n_files, notes)


def surveyed_by(look: Callable[[Types], Survey], chunks: Chunks, n_files: int, notes: Notes) -> Surveyed:
    """Look at all of a log until it is clear what its columns hold.

    Args:
        look: looks at all chunks, which are taken for these types.
        chunks: the log.
        n_files: that it has.
        notes: takes what is odd.

    Raises:
        DataError: the log cannot be used.
    """
    types = Types()
    while True:
        try:
            return _surveyed(look(types), chunks, n_files, notes)
        except OtherTypesError as other:
            types = other.types


def _surveyed(found: Survey, chunks: Chunks, n_files: int, notes: Notes) -> Surveyed:
    where, roles = chunks.where, chunks.choice.roles
    check_any(where, found.n_read, found.n_events)
    head, types = found.head(), found.found_types
    ids = {role: counts.result() for role, counts in found.counts.items()}
    if "event" in roles:
        ids["event"] = _in_order_of_texts(*ids["event"])
        check_types(len(ids["event"][0]), str(head["event"][0]), roles["event"], where)
    if "weight" in roles:
        check_weights(found.any_weight, roles["weight"], where)
    words = {role: words for role, words in found.words.items() if role in types.texts}
    note_odd_values(where, words, found.times, notes)
    note_dropped(where, found.n_read - found.n_events, found.n_read, found.wanted, notes)
    order = "" if found.times is None else found.order.told(head, len(ids["user"][0]), found.n_events)
    understanding = Understanding(
        where,
        chunks.form,
        roles,
        chunks.choice.left_alone,
        n_files,
        found.n_events,
        found.n_read - found.n_events,
        found.dates,
        row_order=order,
        first_events=first_events(head),
        notes=notes.notes,
        **facts_of(found.times),
    )
    kind = None if found.time_type is None else np.int64 if found.time_type == pl.Int64 else np.float64
    return Surveyed(Events(chunks, found.wanted, types), ids, understanding, kind, "weight" in roles)


def _in_order_of_texts(ids: pl.Series, counts: Int64) -> tuple[pl.Series, Int64]:
    texts = ids.cast(pl.String)
    order = texts.arg_sort()
    return texts.gather(order), counts[order.to_numpy()]


def _has_points(given: pl.Series) -> bool:
    """Whether ids are written as decimals, whole numbers as they may be."""
    return given.dtype.is_decimal() or (given.dtype == pl.String and bool(given.str.contains(".", literal=True).any()))

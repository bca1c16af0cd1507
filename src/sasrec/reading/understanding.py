"""What was understood of a log: its form, its columns, its times, its first events, and what is odd about it.

Kept as log.json beside the sequences of a prepared folder or a run, shown in three lines while reading, and in full by
`sasrec inspect`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec.reading.notes import Note
from sasrec.reading.times import TimesSeen, shown_time

LOG = "log.json"
SHOWN_EVENTS = 5
SHOWN_COLUMNS = pl.col("^(user_id|item_id|timestamp)$")
SHOWN_NAMES = 8
ORDERS = {"oldest first": False, "newest first": True}  # whether the newest comes first
SAMPLED_ROWS = 1000  # decide whether a pass over all rows could find them in order


@dataclass(frozen=True)
class Understanding:
    """How a log was read."""

    source: str  # the file, or what the files have in common
    form: str  # such as "csv" or "pairs without a header"
    columns: dict[str, str]  # role -> name
    left_alone: list[str] = field(default_factory=list)  # columns that were not read
    n_files: int = 1
    n_events: int = 0  # as read, before any filter
    n_dropped: int = 0  # events left out because an id or a time was missing
    dates: bool = False  # whether times were dates, which became seconds since 1970
    unit: str | None = None  # of times, as far as it can be told: seconds, milliseconds, ...; days: 20240131
    first_time: float | None = None  # None = the log has no times
    last_time: float | None = None
    row_order: str = ""  # how rows follow each other in time, such as "oldest first"; "" = no times, or not known
    first_events: list[list[int | float | str]] = field(default_factory=list)  # user, item[, time] in input order
    notes: list[Note] = field(default_factory=list)

    def lines(self, n_events: int, n_users: int, n_items: int) -> list[str]:
        """The log in three lines.

        Args:
            n_events: events that are left after filters.
            n_users: likewise.
            n_items: likewise.
        """
        of_all = f" of {self.n_events:,}" if n_events != self.n_events else ""
        span = f", {self.span}" if self.span else ""
        counted = f"{self.source}: {n_events:,}{of_all} events of {n_users:,} users and {n_items:,} items{span}"
        rest = f"; left alone: {self.left_alone_line}" if self.left_alone else ""
        return [counted, f"read as {self.form}: {self.columns_line}; {self.time_line}{rest}", *self._first()]

    @property
    def columns_line(self) -> str:
        """Which column is what."""
        return ", ".join(f"{role} = {name}" for role, name in self.columns.items())

    @property
    def left_alone_line(self) -> str:
        """The first columns that were not read, and how many more there are."""
        more = len(self.left_alone) - SHOWN_NAMES
        return ", ".join(self.left_alone[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")

    @property
    def without_folders(self) -> Understanding:
        """The same without the folders that the log lies in, and notes without its name: for pages that others see."""
        folder = str(Path(self.source).parent)
        texts = [_without_folders(note.text.removeprefix(f"{self.source}: "), folder) for note in self.notes]
        notes = [replace(note, text=text) for note, text in zip(self.notes, texts, strict=True)]
        return replace(self, source=Path(self.source).name, notes=notes)

    @property
    def span(self) -> str:
        """The first and last time, for people; "" = there are none."""
        if self.first_time is None or self.last_time is None:
            return ""
        times = [shown_time(time, self.unit) for time in (self.first_time, self.last_time)]
        days = [time.split(" ")[0] for time in times] if self.unit and times[0][:10] != times[1][:10] else times
        return " to ".join(dict.fromkeys(days))

    @property
    def time_line(self) -> str:
        """What times are."""
        if self.first_time is None:
            return "no time column: order of the file"
        if self.dates:
            return "times from dates, in seconds since 1970"
        return f"times in {self.unit} since 1970" if self.unit else "times as numbers"

    def _first(self) -> list[str]:
        if not self.first_events:
            return []
        return [f"first event as read: {self.shown_event(self.first_events[0])}"]

    def shown_event(self, event: list[int | float | str]) -> str:
        """An event for people."""
        user, item, *time = event
        shown = [f"time {shown_time(float(t), self.unit)}" for t in time]
        return ", ".join([f"user {user}", f"item {item}", *shown])


def understand(log: pl.DataFrame, source: str, form: str, **told: Any) -> Understanding:
    """The description of a log that was read.

    Args:
        log: user_id, item_id[, timestamp].
        source: its name.
        form: its form in words.
        told: further fields.
    """
    times = log["timestamp"] if "timestamp" in log.columns else None
    seen = None if times is None else TimesSeen().add(times)
    order = "" if times is None else _row_order(log["user_id"], times)
    return Understanding(
        source, form, n_events=len(log), row_order=order, first_events=first_events(log), **facts_of(seen), **told
    )


def first_events(log: pl.DataFrame) -> list[list[int | float | str]]:
    """The first rows as they are shown."""
    return [list(row) for row in log.select(SHOWN_COLUMNS).head(SHOWN_EVENTS).rows()]


def facts_of(times: TimesSeen | None) -> dict[str, Any]:
    """The fields that tell of times; None = the log has none."""
    if times is None or not times.n:
        return {}
    unit = None if times.are_calendar_days else times.unit
    return {"unit": unit, "first_time": times.low, "last_time": times.high}


def _without_folders(text: str, folder: str) -> str:
    text = text if folder == "." else text.replace(f"{folder}/", "")
    return re.sub(r"(?<!\S)/\S*/", "", text)  # parts of a log may lie in other folders


def _row_order(users: pl.Series, times: pl.Series) -> str:
    """How rows follow each other in time."""
    for order, newest_first in ORDERS.items():
        if times.is_sorted(descending=newest_first):
            return order
    for order, newest_first in ORDERS.items():
        if all(_is_by_user(users.head(n), times.head(n), newest_first) for n in (SAMPLED_ROWS, len(users))):
            return f"user by user, {order}"
    return "not by time"


def _is_by_user(users: pl.Series, times: pl.Series, newest_first: bool) -> bool:
    """Whether each user's rows stand together, in order of time."""
    begins = users != users.shift()  # null in the first row
    step = times.diff() * (-1 if newest_first else 1)
    if not ((step >= 0) | begins).all():
        return False
    runs = users.filter(begins.fill_null(True))
    return len(runs) < len(users) and runs.n_unique() == len(runs)


class RowOrder:
    """How rows follow each other in time, found chunk by chunk, as `_row_order` tells it of a whole log."""

    def __init__(self) -> None:
        self._by_time = dict.fromkeys(ORDERS, True)
        self._by_user = dict.fromkeys(ORDERS, True)  # whether users' rows, as they stand together, are in order
        self._n_runs = 0
        self._first: tuple[Any, Any] | None = None  # user and time
        self._last: tuple[Any, Any] | None = None

    def add(self, users: pl.Series, times: pl.Series) -> None:
        """Look at further rows, which are some."""
        steps = np.diff(times.to_numpy())
        begins = (users != users.shift()).fill_null(True).to_numpy()[1:]
        if self._last is not None:
            step, begin = self._between((users[0], times[0]))
            steps, begins = np.concatenate([[step], steps]), np.concatenate([[begin], begins])
        else:
            self._n_runs, self._first = 1, (users[0], times[0])
        self._go(steps, begins)
        self._last = users[-1], times[-1]

    def join(self, later: RowOrder) -> None:
        """Look at the rows that another has looked at, which come next."""
        if later._first is None:
            return
        if self._last is None:
            vars(self).update(vars(later))
            return
        step, begin = self._between(later._first)
        self._go(np.array([step]), np.array([begin]))
        self._n_runs, self._last = self._n_runs + later._n_runs - 1, later._last
        self._by_time = {order: fits and later._by_time[order] for order, fits in self._by_time.items()}
        self._by_user = {order: fits and later._by_user[order] for order, fits in self._by_user.items()}

    def _between(self, row: tuple[Any, Any]) -> tuple[Any, bool]:
        """The step in time to a row from the last one, and whether another user begins there."""
        assert self._last is not None
        return row[1] - self._last[1], str(row[0]) != str(self._last[0])  # an integer may become text

    def _go(self, steps: NDArray[Any], begins: NDArray[Any]) -> None:
        self._n_runs += int(begins.sum())
        for order, newest_first in ORDERS.items():
            fits = steps <= 0 if newest_first else steps >= 0
            self._by_time[order] = self._by_time[order] and bool(fits.all())
            self._by_user[order] = self._by_user[order] and bool((fits | begins).all())

    def told(self, head: pl.DataFrame, n_users: int, n_rows: int) -> str:
        """The order in words.

        Args:
            head: the first rows, which decide what could be so of all.
            n_users: in all.
            n_rows: likewise.
        """
        for order in ORDERS:
            if self._by_time[order]:
                return order
        stand_together = self._n_runs == n_users < n_rows
        for order, newest_first in ORDERS.items():
            if (
                stand_together
                and self._by_user[order]
                and _is_by_user(head["user_id"], head["timestamp"], newest_first)
            ):
                return f"user by user, {order}"
        return "not by time"


def save_understanding(folder: Path, understanding: Understanding) -> None:
    """Write log.json into an existing folder."""
    (folder / LOG).write_bytes(msgspec.json.format(msgspec.json.encode(understanding), indent=1))


def load_understanding(folder: Path) -> Understanding | None:
    """Read log.json; None where there is none, as in folders of earlier versions.

    Raises:
        ValueError: it is damaged.
    """
    file = folder / LOG
    try:
        return msgspec.json.decode(file.read_bytes(), type=Understanding) if file.exists() else None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{LOG}: {error}") from error

"""What was understood of a log: its form, its columns, its times, its first events, and what is odd about it.

Kept as log.json beside the sequences of a prepared folder or a run, shown in three lines while reading, and in full by
`sasrec inspect`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import polars as pl

from sasrec.data.notes import Note
from sasrec.data.times import is_calendar_day, shown_time, unit_of

LOG = "log.json"
SHOWN_EVENTS = 5
SHOWN_NAMES = 8


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
        read = ", ".join(f"{role} = {name}" for role, name in self.columns.items())
        return [counted, f"read as {self.form}: {read}; {self.time_line}{self._rest()}", *self._first()]

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

    def _rest(self) -> str:
        names = self.left_alone
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        return f"; left alone: {', '.join(names[:SHOWN_NAMES])}{more}" if names else ""

    def _first(self) -> list[str]:
        if not self.first_events:
            return []
        return [f"first event as read: {self.shown_event(self.first_events[0])}"]

    def shown_event(self, event: list[int | float | str]) -> str:
        """An event for people."""
        user, item, *time = event
        shown = [f"time {shown_time(float(t), self.unit)}" for t in time]
        return ", ".join([f"user {user}", f"item {item}", *shown])


def understand(log: pl.DataFrame, source: str, form: str, **told: object) -> Understanding:
    """The description of a log that was read.

    Args:
        log: user_id, item_id[, timestamp].
        source: its name.
        form: its form in words.
        told: further fields.
    """
    times = log["timestamp"] if "timestamp" in log.columns else None
    span: list[float | None] = [None, None]
    if times is not None and len(times):
        span = [float(times.min()), float(times.max())]  # type: ignore[arg-type]
    return msgspec.convert(
        {
            "source": source,
            "form": form,
            "n_events": len(log),
            "unit": None if times is None or is_calendar_day(times) else unit_of(times),
            "first_time": span[0],
            "last_time": span[1],
            "first_events": [list(row) for row in log.head(SHOWN_EVENTS).rows()],
            **told,
        },
        Understanding,
    )


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

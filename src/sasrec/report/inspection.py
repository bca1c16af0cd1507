"""What a log is like before anything is trained on it: how it was read, its sizes, order and split, what is odd."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sasrec.core.errors import DataError
from sasrec.core.tables import plain_table
from sasrec.data.event_types import types_in_words
from sasrec.data.logs import Log, Reading
from sasrec.data.sequences import LogFacts, Sequences
from sasrec.data.splits import split_leave_one_out
from sasrec.reading.notes import Note
from sasrec.reading.times import shown_time
from sasrec.reading.understanding import Understanding
from sasrec.report.log_notes import Largest, in_a_row_share, largest_user, most_popular, notes_of, twice_share
from sasrec.report.run_facts import shown
from sasrec.report.text import percent

WIDTH = 80
LABEL = 15  # columns of the labels
IDS = 57  # characters of a user's and an item's id together, in the table of events


@dataclass(frozen=True)
class Held:
    """How leave-one-out cuts the log."""

    train_events: int
    valid_users: int
    test_users: int

    @property
    def parts(self) -> list[tuple[str, int]]:
        """The parts that are measured, and their users."""
        return [("valid", self.valid_users), ("test", self.test_users)]


@dataclass(frozen=True)
class Inspection:
    """A log, looked at."""

    log: str  # its name
    understanding: Understanding | None  # None = a folder of an earlier version
    facts: LogFacts
    events_per_user: dict[str, float]  # min, q25, median, q75, max
    top_item: Largest
    top_user: Largest
    in_a_row_share: float  # of events after a user's first, how many are of the item before
    twice_share: float  # of all events, how many have user, item and time of another
    n_titles: int
    leave_one_out: Held
    warnings: list[Note]
    command: list[str]  # to train on it

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = asdict(self) | {"facts": self.facts.to_dict()}
        if self.understanding is not None:
            del told["understanding"]["notes"]  # they are among the warnings
        return told | {"command": shlex.join(self.command)}

    def to_text(self) -> str:
        """For a terminal of 80 columns."""
        parts = [_as_read(self), _events(self), _sizes(self), _order(self), _split(self), _warnings(self)]
        return "\n\n".join([*(part for part in parts if part), f"To train on it\n{_command_lines(self.command)}"])


def inspect_log(log: Log, sources: Sequence[str], reading: Reading) -> Inspection:
    """Look at a log that has been read.

    Args:
        log: as `load_log` gave it.
        sources: the words that named it on the command line.
        reading: how it was read.
    """
    return Inspection(
        log=log.name,
        understanding=log.sequences.understanding,
        facts=log.sequences.facts,
        events_per_user=_quantiles(log.sequences),
        top_item=most_popular(log),
        top_user=largest_user(log),
        in_a_row_share=in_a_row_share(log),
        twice_share=twice_share(log),
        n_titles=log.vocabulary.n_titled,
        leave_one_out=_held(log.sequences),
        warnings=notes_of(log),
        command=["sasrec", "train", *sources, *reading.flags, "--output", _free_folder(log.name)],
    )


def _quantiles(sequences: Sequences) -> dict[str, float]:
    values = np.quantile(np.diff(sequences.offsets), [0, 0.25, 0.5, 0.75, 1]).tolist()
    return dict(zip(("min", "q25", "median", "q75", "max"), values, strict=True))


def _held(sequences: Sequences) -> Held:
    try:
        split = split_leave_one_out(sequences)
    except DataError:
        return Held(sequences.facts.n_events, 0, 0)
    return Held(int((split.train_ends - sequences.offsets[:-1]).sum()), len(split.valid), len(split.test))


def _free_folder(name: str) -> str:
    """A run folder that is not there yet."""
    folder, n = Path("runs") / name, 2
    while folder.exists():
        folder, n = Path("runs") / f"{name}-{n}", n + 1
    return str(folder)


def _on_terminal(value: object) -> str:
    """Foreign text in one line, without characters that would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in shown(value, None))


def _lines(rows: Sequence[tuple[str, str]]) -> str:
    """Labels, and beside them what there is to say, wrapped."""
    return "\n".join(
        textwrap.fill(
            _on_terminal(text), WIDTH, initial_indent=f"{label:{LABEL}}", subsequent_indent=" " * LABEL,
            break_on_hyphens=False,
        )
        for label, text in rows
    )  # fmt: skip


def _as_read(found: Inspection) -> str:
    read = found.understanding
    if read is None:
        return _lines([("log", f"{found.log}: prepared by an earlier version, which did not keep how it was read")])
    rows = [
        ("log", read.source),
        ("read as", read.form),
        ("columns", read.columns_line),
        ("left alone", ", ".join(read.left_alone)),
        ("times", f"{read.span}; {read.time_line.removeprefix('times ')}" if read.span else read.time_line),
        ("order of rows", read.row_order),
    ]
    return _lines([(label, text) for label, text in rows if text])


def _events(found: Inspection) -> str:
    read = found.understanding
    if read is None or not read.first_events:
        return ""
    users = [_cut(event[0], IDS // 2) for event in read.first_events]
    items = [_cut(event[1], IDS - max(map(len, users))) for event in read.first_events]
    times = [[shown_time(float(time), read.unit) for time in event[2:]] for event in read.first_events]
    rows = [[user, item, *time] for user, item, time in zip(users, items, times, strict=True)]
    return f"First events as read\n{plain_table([['user', 'item', 'time'][: len(rows[0])], *rows])}"


def _cut(id_: int | float | str, limit: int) -> str:
    """An id with its middle left out where it is long: the ends of ids tell them apart."""
    text = _on_terminal(id_)
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[len(text) - (limit - 1) // 2 :]}"


def _sizes(found: Inspection) -> str:
    facts, read, lengths = found.facts, found.understanding, found.events_per_user
    left = f" of {read.n_events:,}" if read is not None and read.n_events != facts.n_events else ""
    spread = [f"{name.replace('q25', '25 %').replace('q75', '75 %')} {lengths[name]:,.10g}" for name in lengths]
    rows = [
        ("events", f"{facts.n_events:,}{left}"),
        ("users", f"{facts.n_users:,}"),
        ("items", f"{facts.n_items:,}" + (f", {found.n_titles:,} of them with a title" if found.n_titles else "")),
        ("events a user", ", ".join(spread)),
        ("short users", f"{percent(facts.n_short_users / facts.n_users)} of users have fewer than 3 events"),
        ("largest user", f"{found.top_user}, with {percent(found.top_user.share)} of the events"),
        ("top item", f"{found.top_item}, with {percent(found.top_item.share)} of the events"),
    ]
    if facts.event_types:
        rows.append(("types", types_in_words(facts.event_types)))
    if facts.has_weights:
        rows.append(("weights", "each event has its own"))
    return _lines(rows)


def _order(found: Inspection) -> str:
    """Repeats and ties, as shares of the events after a user's first."""
    facts = found.facts
    rows = [
        ("repeats", f"{percent(facts.repeat_share)} are of an item that the user had before"),
        ("in a row", f"{percent(found.in_a_row_share)} are of the same item as the event before"),
    ]
    if facts.has_timestamps:
        rows += [("ties", f"{percent(facts.tied_share)} have the same time as the event before")]
    return f"Of a user's events after the first\n{_lines(rows)}"


def _split(found: Inspection) -> str:
    held = found.leave_one_out
    rows = [("train", f"{held.train_events:,} events")]
    rows += [(part, f"{n:,} user{'s' * (n != 1)}, one event each") for part, n in held.parts]
    return f"Leave-one-out would give\n{_lines(rows)}"


def _warnings(found: Inspection) -> str:
    return "\n".join(["Warnings", *map(_warning, found.warnings)]) if found.warnings else "No warnings."


def _warning(note: Note) -> str:
    lines = [("- ", note.text), ("  ", f"Fix: {note.fix}" if note.fix else "")]
    return "\n".join(
        textwrap.fill(_on_terminal(text), WIDTH, initial_indent=mark, subsequent_indent="  ", break_on_hyphens=False)
        for mark, text in lines if text
    )  # fmt: skip


def _command_lines(words: Sequence[str]) -> str:
    """A command that a shell takes as it is; over several lines where it is long, a flag beside its value."""
    parts: list[str] = []
    for word in map(shlex.quote, words):
        is_value = parts and parts[-1].startswith("--") and " " not in parts[-1] and not word.startswith("--")
        parts = [*parts[:-1], f"{parts[-1]} {word}"] if is_value else [*parts, word]
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) > WIDTH - 3:
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}"
    return " \\\n".join(lines)

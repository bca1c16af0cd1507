"""What made copies of public data sets consist of: ids, events and times drawn by a seed, and how they are written."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

Row = tuple[Any, Any, int]  # user, item, time in seconds since 1970
N_ROWS = 150  # rules for files without a header look at 100 rows
DIGITS, HEX = "0123456789", "0123456789abcdef"
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + DIGITS
LETTERS = "abcdefghijklmnopqrstuvwxyz" + CAPITALS
NUMBERS, MANY = list(range(1, 13)), list(range(3, 24))  # users and items


@dataclass(frozen=True)
class Shape:
    """Files as published, how they are read, and what comes of it."""

    name: str
    files: dict[str, bytes]
    source: str  # file, folder or pattern
    events: list[tuple[Any, ...]]  # user_id, item_id[, timestamp] in reading order
    options: dict[str, Any] = field(default_factory=dict)  # fields of Reading
    warnings: tuple[str, ...] = ()  # each a part of one warning
    titles_file: str | None = None
    titles_options: dict[str, str] = field(default_factory=dict)  # of read_titles
    titles: dict[Any, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """Files that are no table of events, and what the reader says."""

    name: str
    files: dict[str, bytes]
    source: str
    message: str  # a part of the error
    options: dict[str, Any] = field(default_factory=dict)


def ids(n: int, length: int, alphabet: str, prefix: str = "", seed: int = 0) -> list[str]:
    """Different ids of one form."""
    draw, found = random.Random(f"{prefix}{length}{seed}"), dict[str, None]()
    while len(found) < n:
        found[prefix + "".join(draw.choices(alphabet, k=length))] = None
    return list(found)


def log(users: Sequence[Any], items: Sequence[Any], first: int = 1_400_000_000, step: int = 40_000) -> list[Row]:
    """Events in the order of time, some of them ties; every user has three and more."""
    draw, rows = random.Random(f"{users[0]}{items[0]}"), list[Row]()
    for j in range(N_ROWS):
        first += draw.choice([0, 1, draw.randrange(step)])
        rows.append((users[j % len(users)] if j < 3 * len(users) else draw.choice(users), draw.choice(items), first))
    return rows


def by_user(rows: Iterable[Row]) -> list[Row]:
    """Sorted by user; a user's events as they come."""
    return sorted(rows, key=lambda row: str(row[0]))


def newest_first(rows: Sequence[Row]) -> list[Row]:
    """Sorted by user, each user's last event first."""
    return by_user(reversed(rows))


def shuffled(rows: Iterable[Row]) -> list[Row]:
    """In no order."""
    rows = list(rows)
    random.Random(len(rows)).shuffle(rows)
    return rows


def by_item(rows: Iterable[Row]) -> list[Row]:
    """Sorted by item."""
    return sorted(rows, key=lambda row: str(row[1]))


def stamp(time: float, form: str, hours: int = 0) -> str:
    """A time as text, in a zone so many hours from UTC."""
    return datetime.fromtimestamp(time, UTC).astimezone(timezone(timedelta(hours=hours))).strftime(form)


def text(lines: Iterable[Iterable[Any]], separator: str = ",", end: str = "\n", encoding: str = "utf-8") -> bytes:
    """Lines of fields, which hold no separator."""
    return "".join(separator.join(map(str, line)) + end for line in lines).encode(encoding)


def json_lines(objects: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in objects).encode()


def python_lines(objects: Iterable[dict[str, Any]], mark: str = "") -> bytes:
    """Objects as Python 2 prints them: mark = "u" before texts."""
    lines = (", ".join(f"{mark}{key!r}: {mark * isinstance(v, str)}{v!r}" for key, v in one.items()) for one in objects)
    return "".join(f"{{{line}}}\n" for line in lines).encode()


def seconds(rows: Iterable[Row]) -> list[tuple[Any, ...]]:
    """Times that were dates."""
    return [(user, item, float(time)) for user, item, time in rows]


def days(rows: Iterable[Row]) -> list[tuple[Any, ...]]:
    """Times that were dates without hours."""
    return [(user, item, float(time - time % 86_400)) for user, item, time in rows]


def milliseconds(rows: Iterable[Row]) -> list[tuple[Any, ...]]:
    return [(user, item, 1000 * time + 7) for user, item, time in rows]

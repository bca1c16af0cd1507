"""The file of what a server has shown and what came of it: its tables, its salt, its bounds, and how users are hidden.

exposures   a list that was shown: id, salted hash of the user or null, group, time, items in order
feedback    what somebody did with an item of a list, by kind, once
groups      a model version in an arm, with its counts
hits        of a group by kind ('' = any): lists with feedback, and feedback
shown       the different items that a group has shown

Ids of lists sort by time, so the oldest lie together at the beginning of both large tables.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby

from sasrec.core.errors import RequestError
from sasrec.serving.decoding import ItemId
from sasrec.serving.exposures import Exposure, read_id
from sasrec.serving.online_schemas import Feedback, Kept
from sasrec.serving.schemas import INVALID
from sasrec.serving.sqlite_file import transaction

APPLICATION_ID = 0x5A53_4642  # of SQLite files that are ours
FORMAT = 1
MAX_KINDS = 20  # different kinds of feedback in a file
TRIMMED_SHARE = 100  # a full file gives up its oldest hundredth, so that this is not done for each list
TRIMMED_AT_ONCE = 10_000  # lists
TRIMS = 4  # in a transaction, so that a file that is far too large keeps nobody waiting for long
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS groups (
    id INTEGER PRIMARY KEY AUTOINCREMENT, version TEXT NOT NULL, arm TEXT NOT NULL, n_items INTEGER NOT NULL,
    n_exposures INTEGER NOT NULL DEFAULT 0, n_shown INTEGER NOT NULL DEFAULT 0, UNIQUE (version, arm)
);
CREATE TABLE IF NOT EXISTS exposures (
    id BLOB PRIMARY KEY, user BLOB, grp INTEGER NOT NULL, shown_at REAL NOT NULL, items TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feedback (
    id BLOB NOT NULL, item TEXT NOT NULL, kind TEXT NOT NULL, given_at REAL NOT NULL, PRIMARY KEY (id, item, kind)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hits (
    grp INTEGER NOT NULL, kind TEXT NOT NULL, n_hits INTEGER NOT NULL, n_feedback INTEGER NOT NULL,
    PRIMARY KEY (grp, kind)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shown (grp INTEGER NOT NULL, item TEXT NOT NULL, PRIMARY KEY (grp, item)) WITHOUT ROWID;
"""
COUNT_HITS = """
INSERT INTO hits VALUES (?, ?, ?, ?) ON CONFLICT (grp, kind)
DO UPDATE SET n_hits = n_hits + excluded.n_hits, n_feedback = n_feedback + excluded.n_feedback
"""
GONE_LISTS = "SELECT grp, count(*) FROM gone JOIN exposures USING (id) GROUP BY grp"
GONE_HITS = """
SELECT -count(DISTINCT id), -count(*), grp, {kind} AS of_kind
FROM gone JOIN exposures USING (id) JOIN feedback USING (id) GROUP BY grp, of_kind
"""


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables and the salt where they are missing.

    Raises:
        sqlite3.Error: the file cannot be used, or it is of something else.
    """
    check_ours(connection)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS gone (id BLOB PRIMARY KEY) WITHOUT ROWID")
    if is_ours(connection):
        return
    with transaction(connection):
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        facts = [("format", FORMAT), ("salt", secrets.token_bytes(32))]
        connection.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", facts)


def check_ours(connection: sqlite3.Connection) -> None:
    """Leave files of others alone.

    Raises:
        sqlite3.DatabaseError: it is a file of something else, or of a newer version.
    """
    if is_ours(connection):
        (found,) = connection.execute("SELECT value FROM facts WHERE name = 'format'").fetchone()
        if found > FORMAT:
            raise sqlite3.DatabaseError(f"it has format {found}, of a newer version of sasrec")
    elif connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
        raise sqlite3.DatabaseError("it is an SQLite file of something else than feedback")


def is_ours(connection: sqlite3.Connection) -> bool:
    """Whether it is a file of feedback already, and not an empty one."""
    found: tuple[int] = connection.execute("PRAGMA application_id").fetchone()
    return found == (APPLICATION_ID,)


def salt_of(connection: sqlite3.Connection) -> bytes:
    """The random bytes that this file's hashes of users depend on."""
    (salt,) = connection.execute("SELECT value FROM facts WHERE name = 'salt'").fetchone()
    return bytes(salt)


def pseudonym(salt: bytes, user: ItemId) -> bytes:
    """What the file has in place of a user's id."""
    return hashlib.blake2b(_text(user), digest_size=16, key=salt, person=b"user").digest()


def share_place(salt: bytes, user: ItemId) -> float:
    """Where a user stands between 0 and 1: who is below a share is of it, and stays so when it grows."""
    digest = hashlib.blake2b(_text(user), digest_size=8, key=salt, person=b"arm").digest()
    return int.from_bytes(digest) / 2**64


def _text(user: ItemId) -> bytes:
    return str(user).encode("utf-8", "surrogatepass")  # 7 and "7" are the same user


def add_exposures(connection: sqlite3.Connection, exposures: Iterable[Exposure]) -> None:
    """Keep lists; inside a transaction."""

    def group(one: Exposure) -> tuple[str, str]:
        return one.version, one.arm

    for (version, arm), some in groupby(sorted(exposures, key=group), group):
        members = list(some)
        connection.execute(
            "INSERT OR IGNORE INTO groups (version, arm, n_items) VALUES (?, ?, ?)", (version, arm, members[0].n_items)
        )
        (grp,) = connection.execute("SELECT id FROM groups WHERE version = ? AND arm = ?", (version, arm)).fetchone()
        rows = [(one.id, one.user, grp, one.shown_at, json.dumps(one.items, ensure_ascii=False)) for one in members]
        connection.executemany("INSERT INTO exposures VALUES (?, ?, ?, ?, ?)", rows)
        items = {str(item) for one in members for item in one.items}
        new = connection.executemany("INSERT OR IGNORE INTO shown VALUES (?, ?)", [(grp, item) for item in items])
        connection.execute(
            "UPDATE groups SET n_exposures = n_exposures + ?, n_shown = n_shown + ? WHERE id = ?",
            (len(members), max(new.rowcount, 0), grp),
        )


def add_feedback(connection: sqlite3.Connection, feedback: Sequence[Feedback], now: float) -> Kept:
    """Store all of it, or nothing; inside a transaction.

    Raises:
        RequestError: 422, a list is not known (any more), or has no such item; or there are too many kinds.
    """
    rows = [_found(connection, one, f"feedback[{i}]." if i or feedback[1:] else "") for i, one in enumerate(feedback)]
    _check_kinds(connection, {one.kind for one in feedback})
    n_stored = 0
    for (key, grp), one in zip(rows, feedback, strict=True):
        row = key, str(one.item_id), one.kind, now
        if not connection.execute("INSERT OR IGNORE INTO feedback VALUES (?, ?, ?, ?)", row).rowcount:
            continue
        n_stored += 1
        n_any, n_of_kind = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE kind = ?) FROM feedback WHERE id = ?", (one.kind, key)
        ).fetchone()
        connection.executemany(COUNT_HITS, [(grp, one.kind, n_of_kind == 1, 1), (grp, "", n_any == 1, 1)])
    return Kept(n_stored, len(feedback) - n_stored)


def _found(connection: sqlite3.Connection, one: Feedback, place: str) -> tuple[bytes, int]:
    """The id of the list and its group."""
    key = read_id(one.recommendation_id)
    found = connection.execute("SELECT grp, items FROM exposures WHERE id = ?", (key,)).fetchone()
    if key is None or found is None:
        raise RequestError(INVALID, f"{place}recommendation_id is not known or has expired; nothing was stored")
    grp, items = found
    if str(one.item_id) not in map(str, json.loads(items)):
        raise RequestError(INVALID, f"{place}item_id is no item of that list; nothing was stored")
    return key, grp


def _check_kinds(connection: sqlite3.Connection, wanted: set[str]) -> None:
    kinds = {kind for (kind,) in connection.execute("SELECT DISTINCT kind FROM hits WHERE kind != ''")}
    if wanted - kinds and len(wanted | kinds) > MAX_KINDS:
        raise RequestError(INVALID, f"there would be more than {MAX_KINDS} kinds of feedback; nothing was stored")


def used_bytes(connection: sqlite3.Connection) -> int:
    """What the file holds; pages that are free are used again."""
    page, n, free = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
    )
    return int(page * (n - free))


def n_exposures(connection: sqlite3.Connection) -> int:
    """How many lists are kept."""
    (n,) = connection.execute("SELECT coalesce(sum(n_exposures), 0) FROM groups").fetchone()
    return int(n)


def trim(connection: sqlite3.Connection, most: int, most_bytes: int) -> int:
    """Give up the oldest lists of a file beyond its bounds, with their feedback; how many. Inside a transaction."""
    n_gone = 0
    for _ in range(TRIMS):
        n, used = n_exposures(connection), used_bytes(connection)
        too_many = max(n - most, -(-n * (used - most_bytes) // used))
        if not n or too_many <= 0:
            break
        wanted = min(too_many + n // TRIMMED_SHARE, TRIMMED_AT_ONCE, n)
        connection.execute("INSERT INTO gone SELECT id FROM exposures ORDER BY id LIMIT ?", (wanted,))
        n_gone += remove(connection)[0]
    return n_gone


def remove(connection: sqlite3.Connection) -> tuple[int, int]:
    """Remove the lists named in the table `gone`, and what it names; how many lists and how much feedback."""
    lists = connection.execute(GONE_LISTS).fetchall()
    hits = [row for kind in ("kind", "''") for row in connection.execute(GONE_HITS.format(kind=kind))]
    change = "UPDATE hits SET n_hits = n_hits + ?, n_feedback = n_feedback + ? WHERE grp = ? AND kind = ?"
    connection.executemany(change, hits)
    connection.executemany("UPDATE groups SET n_exposures = n_exposures - ?2 WHERE id = ?1", lists)
    n_feedback = connection.execute("DELETE FROM feedback WHERE id IN (SELECT id FROM gone)").rowcount
    n_lists = connection.execute("DELETE FROM exposures WHERE id IN (SELECT id FROM gone)").rowcount
    connection.execute("DELETE FROM gone")
    connection.execute("DELETE FROM hits WHERE n_feedback = 0")
    for (grp,) in connection.execute("SELECT id FROM groups WHERE n_exposures = 0").fetchall():
        connection.execute("DELETE FROM shown WHERE grp = ?", (grp,))
        connection.execute("DELETE FROM groups WHERE id = ?", (grp,))
    return n_lists, n_feedback

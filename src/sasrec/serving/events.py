"""Users' events since training, in an SQLite file.

An event is on disk (the write-ahead log is flushed) before `add` returns. Events that come together share a transaction
and so a flush. The file is bounded: of one user's events the oldest is dropped; above the total, new events are
refused. Several processes may use the file at once.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sasrec.core.config import ServerConfig
from sasrec.core.errors import CheckpointError, RequestError
from sasrec.serving.batching import Batcher
from sasrec.serving.decoding import ItemId
from sasrec.serving.schemas import MAX_ID
from sasrec.serving.telemetry import Metrics

logger = logging.getLogger(__name__)

Pairs = Sequence[tuple[ItemId, ItemId]]

BUSY_SECONDS = 5.0  # another process may hold the file
TOGETHER = 1024  # events of one transaction
SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, item_id TEXT NOT NULL, stored_at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user_id, id);
CREATE TABLE IF NOT EXISTS total (n INTEGER NOT NULL);
INSERT INTO total SELECT count(*) FROM events WHERE NOT EXISTS (SELECT * FROM total);
CREATE TRIGGER IF NOT EXISTS one_more AFTER INSERT ON events BEGIN UPDATE total SET n = n + 1; END;
CREATE TRIGGER IF NOT EXISTS one_less AFTER DELETE ON events BEGIN UPDATE total SET n = n - 1; END;
"""
TRIM = """
DELETE FROM events WHERE user_id = ? AND id <=
    (SELECT id FROM events WHERE user_id = ? ORDER BY id DESC LIMIT 1 OFFSET ?)
"""


class _File:
    """A connection that is made again when the file is no longer the one that was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def connection(self) -> sqlite3.Connection:
        """Raises sqlite3.Error or OSError when the file cannot be used."""
        if self._connection is not None and (not self.path.exists() or self.path.stat().st_ino != self._inode):
            self.close()  # what is written to a file that was removed is not stored
        if self._connection is None:
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
            self._connection, self._inode = connection, self.path.stat().st_ino
        return self._connection

    def close(self) -> None:
        """Close it; the next use opens it again."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


class EventStore:
    """The event file of a server.

    Args:
        path: of the file; made when it is missing.
        config: its limits.
        metrics: where failures are counted.
    """

    def __init__(self, path: Path, config: ServerConfig, metrics: Metrics) -> None:
        self._max_events, self._max_user_events, self._metrics = config.max_events, config.max_user_events, metrics
        self._writer, self._reader = _File(path), _File(path)
        self._reading = threading.Lock()
        self.batcher: Batcher[Pairs, None] = Batcher(
            self._write,
            name="events",
            max_rows=TOGETHER,
            max_queued=max(config.queue_size, config.max_requests),
            timeout=config.request_timeout + BUSY_SECONDS,
        )

    @classmethod
    def open(cls, config: ServerConfig, metrics: Metrics) -> EventStore:
        """The store of a server.

        Raises:
            CheckpointError: the file cannot be used.
        """
        store = cls(Path(config.events), config, metrics)
        try:
            store._writer.connection()
        except (sqlite3.Error, OSError) as error:
            raise CheckpointError(f"the event file {config.events} cannot be used: {error}") from error
        return store

    async def add(self, events: Pairs) -> None:
        """Store events, all or none of them, for good.

        Raises:
            RequestError: 503, the disk or the file does not take them now.
        """
        if events:
            await self.batcher.submit(events, len(events))

    def events_of(self, user: ItemId) -> list[ItemId]:
        """A user's items, oldest first; none while the file cannot be read."""
        query = "SELECT item_id FROM events WHERE user_id = ? AND length(item_id) <= ? ORDER BY id"
        try:
            with self._reading:
                return [item for (item,) in self._reader.connection().execute(query, (str(user), MAX_ID))]
        except (sqlite3.Error, OSError) as error:
            self._failed("read", error)
            return []

    def _failed(self, what: str, error: Exception) -> None:
        self._metrics.event_failures.inc()
        logger.error("events could not be %s: %s", what, error)

    def _write(self, jobs: Sequence[Pairs]) -> list[Exception | None]:
        """Store the events of each job in one transaction; those that would pass the limit are left out."""
        results: list[Exception | None] = []
        try:
            with _transaction(self._writer.connection()) as connection:
                (left,) = connection.execute("SELECT ? - n FROM total", (self._max_events,)).fetchone()
                for events in jobs:
                    fits = len(events) <= left
                    results.append(None if fits else _full(self._max_events))
                    if fits:
                        left -= len(events)
                        self._insert(connection, events)
        except (sqlite3.Error, OSError) as error:
            self._failed("stored", error)
            self._writer.close()
            problem = RequestError(503, "the events could not be stored; none of this request was, so send it again")
            return [problem] * len(jobs)
        return results

    def _insert(self, connection: sqlite3.Connection, events: Pairs) -> None:
        now = time.time()
        rows = [(str(user), str(item), now) for user, item in events]
        connection.executemany("INSERT INTO events (user_id, item_id, stored_at) VALUES (?, ?, ?)", rows)
        users = {user for user, _, _ in rows}
        connection.executemany(TRIM, [(user, user, self._max_user_events) for user in users])

    def close(self) -> None:
        """Store what waits, and close the file."""
        self.batcher.close()
        self._writer.close()
        self._reader.close()


def _full(most: int) -> RequestError:
    return RequestError(503, f"the event file holds its most, {most} events; train on them and start a new file")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")

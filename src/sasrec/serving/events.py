"""Users' events since training, in an SQLite file.

An event is on disk (the write-ahead log is flushed) before `add` returns. Events that come together share a transaction
and so a flush. The file is bounded: of one user's events the oldest is dropped; above the total, new events are
refused. Several processes may use the file at once.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from sasrec.core.errors import RequestError
from sasrec.core.server_config import ServerConfig
from sasrec.serving.batching import Batcher
from sasrec.serving.decoding import ItemId
from sasrec.serving.schemas import MAX_ID
from sasrec.serving.sqlite_file import BUSY_SECONDS, SQLiteFile, transaction
from sasrec.serving.telemetry import Metrics

logger = logging.getLogger(__name__)

Pairs = Sequence[tuple[ItemId, ItemId]]

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


def _prepare(connection: sqlite3.Connection) -> None:
    connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")


class EventStore:
    """The event file of a server.

    Args:
        path: of the file; made when it is missing.
        config: its limits.
        metrics: where failures are counted.
    """

    def __init__(self, path: Path, config: ServerConfig, metrics: Metrics) -> None:
        self._max_events, self._max_user_events, self._metrics = config.max_events, config.max_user_events, metrics
        self._writer, self._reader = SQLiteFile(path, _prepare), SQLiteFile(path, _prepare)
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
        store._writer.check("event file")
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
            with transaction(self._writer.connection()) as connection:
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

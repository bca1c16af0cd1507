"""An SQLite file that a server writes: durable, shared by processes, and made again when it was removed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from sasrec.core.errors import CheckpointError

BUSY_SECONDS = 5.0  # another process may hold the file


class SQLiteFile:
    """A connection that is made again when the file is no longer the one that was opened.

    Args:
        path: of the file; made when it is missing.
        prepare: makes the tables of a connection that is new, where they are missing.
        is_private: whether a new file is for its owner alone.
    """

    def __init__(self, path: Path, prepare: Callable[[sqlite3.Connection], None], *, is_private: bool = False) -> None:
        self.path, self._prepare, self._is_private = path, prepare, is_private
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def connection(self) -> sqlite3.Connection:
        """Raises sqlite3.Error or OSError when the file cannot be used."""
        if self._connection is not None and (not self.path.exists() or self.path.stat().st_ino != self._inode):
            self.close()  # what is written to a file that was removed is not stored
        if self._connection is None:
            if self._is_private:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection, self._inode = connection, self.path.stat().st_ino
        return self._connection

    def check(self, what: str) -> None:
        """Open it now.

        Raises:
            CheckpointError: it cannot be used; `what`: the file in words.
        """
        try:
            self.connection()
        except (sqlite3.Error, OSError) as error:
            raise CheckpointError(f"the {what} {self.path} cannot be used: {error}") from error

    def close(self) -> None:
        """Close it; the next use opens it again."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All that is written inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")

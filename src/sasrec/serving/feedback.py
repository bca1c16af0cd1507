"""Keeps what was shown and what came of it, on a thread of its own.

A list is in the file before its answer leaves, so that feedback finds it whichever worker it meets, also after a
kill; it is flushed with the next feedback. Feedback is flushed before `add` returns. What comes together shares a
transaction. When lists cannot be kept, answers go on without ids.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from sasrec.core.errors import RequestError
from sasrec.core.server_config import ServerConfig
from sasrec.serving import feedback_file
from sasrec.serving.batching import Batcher
from sasrec.serving.exposures import Exposure
from sasrec.serving.online_figures import GroupFigures, OnlineMetrics, figures_of
from sasrec.serving.online_schemas import Feedback, Kept
from sasrec.serving.sqlite_file import BUSY_SECONDS, SQLiteFile, transaction
from sasrec.serving.telemetry import Metrics

logger = logging.getLogger(__name__)
TOGETHER = 1024  # lists and feedback of one transaction
QUEUES = 4  # as many lists and feedback may wait as this times what waits to be computed
KEEP_SECONDS = 1.0  # that an answer waits for its list to be kept
PAUSE_SECONDS = 1.0  # without ids after that, so that not every answer waits

Job = Sequence[Exposure] | Sequence[Feedback]


class FeedbackStore:
    """The feedback file of a server.

    Args:
        path: of the file; made when it is missing, for its owner alone.
        config: its limits.
        metrics: where failures are counted.
    """

    def __init__(self, path: Path, config: ServerConfig, metrics: Metrics) -> None:
        self._most, self._most_bytes = config.max_exposures, config.max_feedback_bytes
        self.metrics = OnlineMetrics(metrics)
        self.salt = b""  # of the file as it is now
        self._writer = SQLiteFile(path, self._prepare, is_private=True)
        self._reader = SQLiteFile(path, feedback_file.prepare, is_private=True)
        self._reading = threading.Lock()
        self._pause_until = 0.0
        self.batcher: Batcher[Job, Kept | None] = Batcher(
            self._write,
            name="feedback",
            max_rows=TOGETHER,
            max_queued=QUEUES * config.queue_size,
            timeout=config.request_timeout + BUSY_SECONDS,
        )

    def _prepare(self, connection: sqlite3.Connection) -> None:
        feedback_file.prepare(connection)
        self.salt = feedback_file.salt_of(connection)

    @classmethod
    def open(cls, config: ServerConfig, metrics: Metrics) -> FeedbackStore:
        """The store of a server.

        Raises:
            CheckpointError: the file cannot be used.
        """
        store = cls(Path(config.feedback), config, metrics)
        store._writer.check("feedback file")
        return store

    async def keep(self, exposures: Sequence[Exposure]) -> bool:
        """Keep lists; False when that is not possible now, and then their answers should have no ids."""
        if not exposures:
            return True
        if time.monotonic() >= self._pause_until:
            try:
                async with asyncio.timeout(KEEP_SECONDS):
                    await self.batcher.submit(exposures, len(exposures))
                return True
            except Exception:  # whatever it is, the answer goes on
                self._pause_until = time.monotonic() + PAUSE_SECONDS
        self.metrics.lost.inc(len(exposures))
        return False

    async def add(self, feedback: Sequence[Feedback]) -> Kept:
        """Store feedback, all or none of it, for good.

        Raises:
            RequestError: 422, it names a list that is not known, or no item of the list; 503, the disk or the file does
                not take it now.
        """
        kept = await self.batcher.submit(feedback, len(feedback)) if feedback else None
        return kept or Kept(0, 0)

    def figures(self) -> list[GroupFigures]:
        """What came of the lists that are kept, by model version and arm; none while the file cannot be read."""
        try:
            with self._reading:
                connection = self._reader.connection()
                self.metrics.bytes = feedback_file.used_bytes(connection)
                return figures_of(connection)
        except (sqlite3.Error, OSError) as error:
            self._failed("read", error)
            return []

    def _failed(self, what: str, error: Exception) -> None:
        self.metrics.failures.inc()
        logger.error("the feedback file could not be %s: %s", what, error)

    def _write(self, jobs: Sequence[Job]) -> Sequence[Kept | Exception | None]:
        """Write what each job has in one transaction; feedback that does not fit is left out."""
        results: list[Kept | Exception | None] = [None] * len(jobs)
        lists = [one for job in jobs for one in job if isinstance(one, Exposure)]
        try:
            connection = self._writer.connection()
            is_flushed = any(isinstance(job[0], Feedback) for job in jobs)
            connection.execute(f"PRAGMA synchronous = {'FULL' if is_flushed else 'NORMAL'}")
            with transaction(connection):
                feedback_file.add_exposures(connection, lists)
                for place, job in enumerate(jobs):
                    results[place] = self._added(connection, [one for one in job if isinstance(one, Feedback)])
                n_gone = feedback_file.trim(connection, self._most, self._most_bytes)
        except (sqlite3.Error, OSError) as error:
            self._failed("written", error)
            self._writer.close()
            problem = RequestError(503, "the feedback could not be stored; none of this request was, so send it again")
            return [problem] * len(jobs)
        self.metrics.expired.inc(n_gone)
        return results

    def _added(self, connection: sqlite3.Connection, feedback: Sequence[Feedback]) -> Kept | RequestError | None:
        if not feedback:
            return None
        try:
            return feedback_file.add_feedback(connection, feedback, time.time())
        except RequestError as error:  # raised before anything of it is written
            return error

    def close(self) -> None:
        """Store what waits, and close the file."""
        self.batcher.close()
        self._writer.close()
        self._reader.close()

"""Computes jobs that come one by one in batches, on one thread, and bounds their queue.

An idle thread starts at once. Jobs that come while it works wait, and are taken together when it is done. So batches
grow with the load, and no job waits for a batch to fill. At most `max_queued` rows wait or are computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sasrec.core.errors import RequestError

Job = TypeVar("Job")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Entry(Generic[Job, Result]):
    job: Job
    rows: int
    future: asyncio.Future[Result]


class Batcher(Generic[Job, Result]):
    """Computes jobs in batches on a thread of its own, started with the first job.

    Args:
        work: the results of a batch's jobs, one each; a result that is an exception is raised where the job was
            submitted. Called on the thread, never twice at once.
        name: of the thread.
        max_rows: of a batch; a job with more is a batch of its own.
        max_queued: rows that wait or are computed; further ones are refused.
        timeout: seconds after which a job is given up.
        window: seconds that the first job of a batch waits for others.
        observe: told the rows of each batch before it is computed, on the thread.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Job]], Sequence[Result | Exception]],
        *,
        name: str,
        max_rows: int,
        max_queued: int,
        timeout: float,
        window: float = 0.0,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self.rows = 0  # that wait or are computed; touched on the event loop only
        self._work, self._name, self._observe = work, name, observe
        self._max_rows, self._max_queued, self._timeout, self._window = max_rows, max_queued, timeout, window
        self._queue: queue.SimpleQueue[_Entry[Job, Result] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def submit(self, job: Job, rows: int = 1) -> Result:
        """The job's result.

        Raises:
            RequestError: 503, the queue is full or the time is over.
        """
        if self.rows + rows > self._max_queued:
            raise RequestError(503, "the server has more requests than it can answer now; try again in a second")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        entry: _Entry[Job, Result] = _Entry(job, rows, loop.create_future())
        self.rows += rows
        self._queue.put(entry)
        timer = loop.call_later(self._timeout, self._expire, entry.future)
        try:
            return await entry.future
        finally:
            timer.cancel()

    def _expire(self, future: asyncio.Future[Result]) -> None:
        if not future.done():
            future.set_exception(RequestError(503, f"there was no answer within {self._timeout:g} s; try again later"))

    def close(self) -> None:
        """End the thread after the jobs that it has."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        ended = False
        while not ended:
            first = self._queue.get()
            if first is None:
                return
            entries, ended = self._collect(first)
            waiting = [entry for entry in entries if not entry.future.done()]  # else given up, or the client has gone
            results = self._results([entry.job for entry in waiting], sum(entry.rows for entry in waiting))
            with contextlib.suppress(RuntimeError):  # the event loop has ended: nobody waits any more
                first.future.get_loop().call_soon_threadsafe(self._deliver, entries, waiting, results)

    def _collect(self, first: _Entry[Job, Result]) -> tuple[list[_Entry[Job, Result]], bool]:
        """The first job and those that wait behind it, and whether the end was among them."""
        entries, rows = [first], first.rows
        until = time.monotonic() + self._window
        while rows < self._max_rows:
            try:
                left = until - time.monotonic() if self._window else 0.0
                entry = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                return entries, True
            entries.append(entry)
            rows += entry.rows
        return entries, False

    def _results(self, jobs: list[Job], rows: int) -> Sequence[Result | Exception]:
        if not jobs:
            return []
        if self._observe is not None:
            self._observe(rows)
        try:
            return self._work(jobs)
        except Exception as error:
            if len(jobs) == 1:
                logger.exception("a request failed")
                return [error]
        return [self._results([job], 1)[0] for job in jobs]  # one bad job must not take the others with it

    def _deliver(
        self,
        entries: Sequence[_Entry[Job, Result]],
        waiting: Sequence[_Entry[Job, Result]],
        results: Sequence[Result | Exception],
    ) -> None:
        self.rows -= sum(entry.rows for entry in entries)
        for entry, result in zip(waiting, results, strict=True):
            if entry.future.done():
                continue
            if isinstance(result, Exception):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(result)

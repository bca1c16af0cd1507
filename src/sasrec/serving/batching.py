"""Computes jobs that come one by one in batches, on one thread, and bounds their queues.

An idle thread starts at once. Jobs that come while it works wait, and are taken together when it is done. So batches
grow with the load, and no job waits for a batch to fill. Large requests wait in a queue of their own, cut into jobs of
about the size of a batch: a batch of small jobs and one of those take turns. At most `max_queued` rows wait or are
computed in each queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sasrec.core.errors import RequestError

Job = TypeVar("Job")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


FULL = "the server has more requests than it can answer now; try again in a second"
ENDED = "the server can compute no more and has to be started again; send the request to another"


@dataclass(slots=True, eq=False)
class _Entry(Generic[Job, Result]):
    job: Job
    rows: int
    future: asyncio.Future[Result]
    is_large: bool = False


class Batcher(Generic[Job, Result]):
    """Computes jobs in batches on a thread of its own, started with the first job.

    Args:
        work: the results of a batch's jobs, one each; a result that is an exception is raised where the job was
            submitted. Called on the thread, never twice at once.
        name: of the thread.
        max_rows: of a batch; a job with more is a batch of its own.
        max_queued: rows of each queue that wait or are computed; further ones are refused.
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
        self.rows = self.large_rows = 0  # that wait or are computed; touched on the event loop only
        self.has_failed = False  # the thread has ended by itself, and nothing is computed any more
        self._work, self._name, self._observe = work, name, observe
        self._max_rows, self._max_queued, self._timeout, self._window = max_rows, max_queued, timeout, window
        self._queue: queue.SimpleQueue[_Entry[Job, Result] | None] = queue.SimpleQueue()
        self._small: deque[_Entry[Job, Result]] = deque()  # taken from the queue, on the thread
        self._large: deque[_Entry[Job, Result]] = deque()
        self._thread: threading.Thread | None = None
        self._turn = asyncio.Lock()  # of a request of several jobs: what is there of its answer waits for the rest

    async def submit(self, job: Job, rows: int = 1) -> Result:
        """The job's result.

        Raises:
            RequestError: 503, the queue is full or the time is over.
        """
        if self.rows + rows > self._max_queued:
            raise RequestError(503, FULL)
        entry = self._enqueued(job, rows)
        self.rows += rows
        timer = asyncio.get_running_loop().call_later(self._timeout, self._expire, entry.future)
        try:
            return await entry.future
        finally:
            timer.cancel()

    async def submit_large(self, jobs: Sequence[Job], rows: int) -> list[Result]:
        """The results of a large request's jobs: each is computed alone, and between two of them the small ones.

        Raises:
            RequestError: 503, the queue of large requests is full or the time is over.
        """
        if self.large_rows + rows > self._max_queued:
            raise RequestError(503, FULL)
        self.large_rows += rows
        try:
            async with asyncio.timeout(self._timeout), self._turn if len(jobs) > 1 else contextlib.nullcontext():
                return [await self._enqueued(job, max(rows // len(jobs), 1), is_large=True).future for job in jobs]
        except TimeoutError:
            raise self._too_late() from None
        finally:
            self.large_rows -= rows

    def _enqueued(self, job: Job, rows: int, *, is_large: bool = False) -> _Entry[Job, Result]:
        if self.has_failed:
            raise RequestError(503, ENDED)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        entry: _Entry[Job, Result] = _Entry(job, rows, asyncio.get_running_loop().create_future(), is_large)
        self._queue.put(entry)
        return entry

    def _expire(self, future: asyncio.Future[Result]) -> None:
        if not future.done():
            future.set_exception(self._too_late())

    def _too_late(self) -> RequestError:
        return RequestError(503, f"there was no answer within {self._timeout:g} s; try again later")

    def close(self) -> None:
        """End the thread after the jobs that it has."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            self._compute_until_the_end()
        except BaseException:  # a panic of compiled code is no Exception
            self.has_failed = True
            logger.critical("the thread %s has ended, so nothing is computed any more", self._name, exc_info=True)
            with contextlib.suppress(queue.Empty):
                while True:
                    self._sort(self._queue.get_nowait())
            for entry in (*self._small, *self._large):
                self._hand_over([entry], [entry], [RequestError(503, ENDED)])

    def _compute_until_the_end(self) -> None:
        has_more = True
        while has_more or self._small or self._large:
            if has_more:
                has_more = self._collect()
            if self._small:
                self._compute(self._batch())
            if self._large:
                self._compute([self._large.popleft()])

    def _collect(self) -> bool:
        """Take what waits in the queue, or wait for it; whether more may come."""
        if not self._small and not self._large:
            if not self._sort(self._queue.get()):
                return False
            if self._window and self._small and not self._wait_for_others():
                return False
        with contextlib.suppress(queue.Empty):
            while self._sort(self._queue.get_nowait()):
                pass
            return False
        return True

    def _wait_for_others(self) -> bool:
        until = time.monotonic() + self._window
        with contextlib.suppress(queue.Empty):
            while sum(entry.rows for entry in self._small) < self._max_rows:
                if not self._sort(self._queue.get(timeout=max(until - time.monotonic(), 0.0))):
                    return False
        return True

    def _sort(self, entry: _Entry[Job, Result] | None) -> bool:
        """Put what the queue has given where it waits; whether it was a job and not the end."""
        if entry is not None:
            (self._large if entry.is_large else self._small).append(entry)
        return entry is not None

    def _batch(self) -> list[_Entry[Job, Result]]:
        """The small jobs that are computed next."""
        entries, rows = [], 0
        while self._small and rows < self._max_rows:
            entries.append(self._small.popleft())
            rows += entries[-1].rows
        return entries

    def _compute(self, entries: Sequence[_Entry[Job, Result]]) -> None:
        waiting = [entry for entry in entries if not entry.future.done()]  # else given up, or the client has gone
        results = self._results([entry.job for entry in waiting], sum(entry.rows for entry in waiting))
        self._hand_over(entries, waiting, results)

    def _results(self, jobs: list[Job], rows: int) -> Sequence[Result | Exception]:
        if not jobs:
            return []
        try:
            if self._observe is not None:
                self._observe(rows)
            return self._work(jobs)
        except BaseException as error:  # a panic of compiled code is no Exception
            if len(jobs) == 1:
                logger.exception("a request failed")
                return [error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")]
        return [self._results([job], 1)[0] for job in jobs]  # one bad job must not take the others with it

    def _hand_over(
        self,
        entries: Sequence[_Entry[Job, Result]],
        waiting: Sequence[_Entry[Job, Result]],
        results: Sequence[Result | Exception],
    ) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended: nobody waits any more
            entries[0].future.get_loop().call_soon_threadsafe(self._deliver, entries, waiting, results)

    def _deliver(
        self,
        entries: Sequence[_Entry[Job, Result]],
        waiting: Sequence[_Entry[Job, Result]],
        results: Sequence[Result | Exception],
    ) -> None:
        self.rows -= sum(entry.rows for entry in entries if not entry.is_large)
        for entry, result in zip(waiting, results, strict=True):
            if entry.future.done():
                continue
            if isinstance(result, Exception):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(result)

"""Batches: nobody waits for others, everybody gets their own result, and the queue has an end."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sasrec.core.errors import RequestError
from sasrec.serving.batching import Batcher


def batcher(work: Callable[[Sequence[int]], Sequence[Any]], **settings: Any) -> Batcher[int, Any]:
    return Batcher(work, **{"name": "test", "max_rows": 4, "max_queued": 100, "timeout": 10.0, **settings})


class Slow:
    """Work that waits until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, jobs: Sequence[int]) -> list[int]:
        self.batches.append(list(jobs))
        assert self.go.wait(10)
        return [10 * job for job in jobs]


def test_every_job_gets_its_own_result() -> None:
    async def main() -> list[int]:
        b = batcher(lambda jobs: [10 * job for job in jobs])
        found = await asyncio.gather(*(b.submit(i) for i in range(50)))
        b.close()
        assert b.rows == 0
        return found

    assert asyncio.run(main()) == [10 * i for i in range(50)]


def test_jobs_that_come_while_it_works_are_taken_together_up_to_max_rows() -> None:
    async def main() -> None:
        slow = Slow()
        b = batcher(slow)
        waiting = [asyncio.ensure_future(b.submit(i)) for i in range(8)]
        await asyncio.sleep(0.05)
        assert slow.batches[0][0] == 0
        slow.go.set()
        assert await asyncio.gather(*waiting) == [10 * i for i in range(8)]
        assert [job for batch in slow.batches for job in batch] == list(range(8))
        assert max(map(len, slow.batches)) <= 4
        assert len(slow.batches) < 8
        b.close()

    asyncio.run(main())


def test_a_window_gathers_jobs_on_an_idle_thread() -> None:
    async def main() -> list[list[int]]:
        slow = Slow()
        slow.go.set()
        b = batcher(slow, window=0.5)
        first = asyncio.ensure_future(b.submit(1))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, b.submit(2), b.submit(3), b.submit(4))  # full, so nobody waits longer
        b.close()
        return slow.batches

    began = time.monotonic()
    assert asyncio.run(main()) == [[1, 2, 3, 4]]
    assert time.monotonic() - began < 0.45


def test_a_job_is_refused_when_its_rows_do_not_fit_and_taken_when_they_do_again() -> None:
    async def main() -> None:
        slow = Slow()
        b = batcher(slow, max_queued=3)
        waiting = [asyncio.ensure_future(b.submit(i)) for i in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="more requests than it can answer") as refused:
            await b.submit(9)
        assert refused.value.status == 503
        slow.go.set()
        await asyncio.gather(*waiting)
        assert await b.submit(9, rows=3) == 90
        b.close()

    asyncio.run(main())


def test_a_job_that_fails_fails_alone() -> None:
    def work(jobs: Sequence[int]) -> list[int]:
        if 3 in jobs:
            raise ZeroDivisionError
        return list(jobs)

    async def main() -> None:
        b = batcher(work, window=0.05, max_rows=10)
        found = await asyncio.gather(*(b.submit(i) for i in range(6)), return_exceptions=True)
        assert isinstance(found[3], ZeroDivisionError)
        assert [f for f in found if isinstance(f, int)] == [0, 1, 2, 4, 5]
        b.close()

    asyncio.run(main())


def test_a_job_is_given_up_after_its_time_and_never_computed_when_it_still_waited() -> None:
    async def main() -> None:
        slow = Slow()
        b = batcher(slow, timeout=0.1, max_rows=1)
        first, second = asyncio.ensure_future(b.submit(1)), asyncio.ensure_future(b.submit(2))
        for waiting in (first, second):
            with pytest.raises(RequestError, match="no answer within") as late:
                await waiting
            assert late.value.status == 503
        slow.go.set()
        assert await b.submit(3) == 30
        assert slow.batches == [[1], [3]]
        assert b.rows == 0
        b.close()

    asyncio.run(main())


def test_a_cancelled_job_leaves_the_queue() -> None:
    async def main() -> None:
        slow = Slow()
        b = batcher(slow, max_rows=1)
        first, second = asyncio.ensure_future(b.submit(1)), asyncio.ensure_future(b.submit(2))
        await asyncio.sleep(0.02)
        second.cancel()
        slow.go.set()
        assert await first == 10
        assert await b.submit(3) == 30
        assert slow.batches == [[1], [3]]
        b.close()

    asyncio.run(main())


def test_close_answers_what_was_submitted() -> None:
    async def main() -> list[int]:
        b = batcher(lambda jobs: [10 * job for job in jobs])
        waiting = [asyncio.ensure_future(b.submit(i)) for i in range(9)]
        await asyncio.sleep(0)
        await asyncio.to_thread(b.close)
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == [10 * i for i in range(9)]


def test_it_serves_one_event_loop_after_another() -> None:
    b = batcher(lambda jobs: [10 * job for job in jobs])
    assert [asyncio.run(b.submit(i)) for i in range(3)] == [0, 10, 20]
    b.close()

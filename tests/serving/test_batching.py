"""Batches: nobody waits for others, everybody gets their own result, and the queue has an end."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sasrec.core.errors import RequestError
from sasrec.serving.batching import Batcher

PATIENCE = 30.0  # seconds after which something has failed


def batcher(work: Callable[[Sequence[int]], Sequence[Any]], **settings: Any) -> Batcher[int, Any]:
    return Batcher(work, **{"name": "test", "max_rows": 4, "max_queued": 100, "timeout": PATIENCE, **settings})


class Slow:
    """Work that waits until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, jobs: Sequence[int]) -> list[int]:
        self.batches.append(list(jobs))
        self.began.set()
        assert self.go.wait(PATIENCE)
        return [10 * job for job in jobs]

    async def is_at_work(self) -> None:
        """Wait until the first batch is at work."""
        assert await asyncio.to_thread(self.began.wait, PATIENCE)


def pass_time(seconds: float) -> None:
    """Let the event loop's clock be so much later."""
    loop: Any = asyncio.get_running_loop()
    clock = loop.time
    loop.time = lambda: clock() + seconds


def test_every_job_gets_its_own_result() -> None:
    async def main() -> list[int]:
        b = batcher(lambda jobs: [10 * job for job in jobs])
        found = await asyncio.gather(*(b.submit(i) for i in range(50)))
        b.close()
        assert b.rows == 0
        return found

    assert asyncio.run(main()) == [10 * i for i in range(50)]


def test_a_job_alone_is_computed_at_once_and_those_that_come_meanwhile_together_up_to_max_rows() -> None:
    async def main() -> None:
        slow = Slow()
        b = batcher(slow)
        waiting = [asyncio.ensure_future(b.submit(0))]
        await slow.is_at_work()
        waiting += [asyncio.ensure_future(b.submit(i)) for i in range(1, 8)]
        await asyncio.sleep(0)
        slow.go.set()
        assert await asyncio.gather(*waiting) == [10 * i for i in range(8)]
        assert slow.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
        b.close()

    asyncio.run(main())


def test_a_window_gathers_jobs_on_an_idle_thread_until_the_batch_is_full() -> None:
    async def main() -> list[list[int]]:
        slow = Slow()
        slow.go.set()
        b = batcher(slow, window=100 * PATIENCE)
        first = asyncio.ensure_future(b.submit(1))
        await asyncio.sleep(0.05)
        assert not slow.batches
        full = asyncio.gather(first, b.submit(2), b.submit(3), b.submit(4))
        await asyncio.wait_for(full, PATIENCE)  # nobody waits for the window's end
        b.close()
        return slow.batches

    assert asyncio.run(main()) == [[1, 2, 3, 4]]


def test_a_window_ends_though_the_batch_is_not_full() -> None:
    async def main() -> list[int]:
        slow = Slow()
        slow.go.set()
        b = batcher(slow, window=0.05)
        assert await asyncio.gather(b.submit(1), b.submit(2)) == [10, 20]
        b.close()
        return [job for batch in slow.batches for job in batch]

    assert asyncio.run(main()) == [1, 2]


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
        b = batcher(work, window=100 * PATIENCE, max_rows=6)  # all in one batch
        found = await asyncio.gather(*(b.submit(i) for i in range(6)), return_exceptions=True)
        assert isinstance(found[3], ZeroDivisionError)
        assert [f for f in found if isinstance(f, int)] == [0, 1, 2, 4, 5]
        b.close()

    asyncio.run(main())


def test_a_job_is_given_up_after_its_time_and_never_computed_when_it_still_waited() -> None:
    async def main() -> None:
        slow = Slow()
        b = batcher(slow, max_rows=1)
        first = asyncio.ensure_future(b.submit(1))
        await slow.is_at_work()
        second = asyncio.ensure_future(b.submit(2))
        await asyncio.sleep(0)
        pass_time(PATIENCE)
        for waiting in (first, second):
            with pytest.raises(RequestError, match="no answer within 30 s") as late:
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
        first = asyncio.ensure_future(b.submit(1))
        await slow.is_at_work()
        second = asyncio.ensure_future(b.submit(2))
        await asyncio.sleep(0)
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


def test_a_large_request_and_small_ones_take_turns() -> None:
    async def main() -> None:
        slow = Slow()
        b = batcher(slow)
        first = asyncio.ensure_future(b.submit(0))
        await slow.is_at_work()
        large = [asyncio.ensure_future(b.submit_large([10 * i, 10 * i + 1, 10 * i + 2], 8)) for i in (1, 2)]
        small = [asyncio.ensure_future(b.submit(i)) for i in range(1, 6)]
        await asyncio.sleep(0)
        assert (b.rows, b.large_rows) == (6, 16)
        slow.go.set()
        assert await asyncio.gather(*large) == [[100, 110, 120], [200, 210, 220]]
        assert await asyncio.gather(first, *small) == [0, 10, 20, 30, 40, 50]
        assert slow.batches == [[0], [1, 2, 3, 4], [10], [5], [11], [12], [20], [21], [22]]
        assert (b.rows, b.large_rows) == (0, 0)
        b.close()

    asyncio.run(main())


def test_large_requests_leave_the_queue_of_small_ones_free_and_have_an_end_themselves() -> None:
    async def main() -> None:
        slow = Slow()
        b = batcher(slow, max_queued=10)
        large = [asyncio.ensure_future(b.submit_large([i], 5)) for i in range(2)]
        await slow.is_at_work()
        with pytest.raises(RequestError, match="more requests than it can answer"):
            await b.submit_large([3], 1)
        small = asyncio.ensure_future(b.submit(4))
        slow.go.set()
        assert await asyncio.gather(small, *large) == [40, [0], [10]]
        b.close()

    asyncio.run(main())


def test_a_large_request_is_given_up_as_a_whole_after_its_time() -> None:
    async def main() -> None:
        slow = Slow()
        b = batcher(slow, timeout=0.2)
        with pytest.raises(RequestError, match=r"no answer within 0\.2 s"):
            await b.submit_large([1, 2], 2)
        slow.go.set()
        assert await b.submit(3) == 30
        assert slow.batches == [[1], [3]]
        assert b.large_rows == 0
        b.close()

    asyncio.run(main())


class Panic(BaseException):
    """What compiled code raises when it panics."""


def test_a_panic_is_the_error_of_its_job_alone() -> None:
    def work(jobs: Sequence[int]) -> list[int]:
        if 3 in jobs:
            raise Panic("index out of bounds")
        return list(jobs)

    async def main() -> None:
        b = batcher(work, window=100 * PATIENCE, max_rows=4)
        found = await asyncio.gather(*(b.submit(i) for i in range(4)), return_exceptions=True)
        assert found[:3] == [0, 1, 2]
        assert isinstance(found[3], RuntimeError)
        assert "Panic: index out of bounds" in str(found[3])
        with pytest.raises(RuntimeError, match="Panic"):
            await b.submit_large([3], 1)
        assert await b.submit_large([5], 1) == [5]
        assert not b.has_failed
        b.close()

    asyncio.run(main())


def test_a_thread_that_ends_answers_all_that_wait_and_refuses_what_comes(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        slow = Slow()
        b = batcher(slow)
        first = asyncio.ensure_future(b.submit(0))
        await slow.is_at_work()
        waiting = [asyncio.ensure_future(b.submit(1)), asyncio.ensure_future(b.submit_large([2], 1))]
        await asyncio.sleep(0)

        def ends(*_: Any) -> None:
            raise Panic

        b._collect = ends
        slow.go.set()
        assert await first == 0
        for job in waiting:
            with pytest.raises(RequestError, match="has to be started again") as refused:
                await job
            assert refused.value.status == 503
        assert b.has_failed
        with pytest.raises(RequestError, match="has to be started again"):
            await b.submit(3)
        b.close()

    asyncio.run(main())
    assert "the thread test has ended" in caplog.text

"""What is made ahead comes in order, and the thread that makes it ends with its use."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest

from sasrec.core.ahead import made_ahead, one_ahead


def threads_ahead() -> int:
    return sum(thread.name == "sasrec-ahead" for thread in threading.enumerate())


def test_items_come_in_order_and_only_so_many_are_made_ahead() -> None:
    begun: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(20):
            begun.append(n)
            yield n

    got = []
    for item, made in made_ahead(numbers(), lambda n: n * n, 2):
        got.append((item, made))
        deadline = time.monotonic() + 0.2
        while len(begun) < min(20, item + 3) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(begun) <= item + 3  # itself, and two ahead
    assert got == [(n, n * n) for n in range(20)]
    assert threads_ahead() == 0


@pytest.mark.parametrize("where", ["items", "make"])
def test_what_goes_wrong_in_the_thread_is_raised_in_its_place(where: str) -> None:
    def numbers() -> Iterator[int]:
        yield from (0, 1)
        if where == "items":
            raise ValueError("no more")
        yield 2

    def make(n: int) -> int:
        if where == "make" and n == 2:
            raise ValueError("no more")
        return n

    items = made_ahead(numbers(), make, 3)
    assert [next(items), next(items)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="no more"):
        next(items)
    assert threads_ahead() == 0


def test_an_error_in_the_thread_ends_what_it_reads_from_ahead_itself() -> None:
    def fails(n: int) -> int:
        raise ValueError(f"{n} changed")

    gc.disable()  # the threads end with the error, not when garbage is collected
    try:
        with pytest.raises(ValueError, match="0 changed"):
            next(made_ahead(one_ahead(iter(range(1000))), fails, 1))
        assert threads_ahead() == 0
    finally:
        gc.enable()


def test_leaving_early_ends_the_thread() -> None:
    for item, _ in made_ahead(iter(range(1000)), lambda n: n, 2):
        if item == 3:
            break
    assert threads_ahead() == 0

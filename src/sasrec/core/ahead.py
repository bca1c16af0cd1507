"""Work ahead of who needs it: a thread makes the next things while this one uses those that are there."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items in the same order; while one is used, a thread makes the next."""
    return (item for item, _ in made_ahead(items, lambda item: None, 1))


def made_ahead(items: Iterator[Item], make: Callable[[Item], Made], n: int) -> Iterator[tuple[Item, Made]]:
    """Each item with what is made of it, in order, by a thread that is at most n items ahead.

    What `items` or `make` raises is raised here, in its place. A generator is closed when the thread ends, so that what
    it has made ahead itself ends, too.
    """
    room, closed = threading.Semaphore(n), threading.Event()
    made: queue.SimpleQueue[tuple[Item, Made] | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            with contextlib.closing(items) if isinstance(items, Generator) else contextlib.nullcontext():
                for item in items:
                    made.put((item, make(item)))
                    room.acquire()
                    if closed.is_set():
                        return
            made.put(None)
        except BaseException as error:
            made.put(error)

    thread = threading.Thread(target=work, name="sasrec-ahead", daemon=True)
    thread.start()
    try:
        while (found := made.get()) is not None:
            if isinstance(found, BaseException):
                try:
                    raise found
                finally:
                    del found  # else its traceback holds this frame, and that holds it
            yield found
            room.release()
    finally:
        closed.set()
        room.release()
        thread.join()

"""Batches made ahead: while a device works on a step, a thread makes and copies what the next ones read."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from sasrec.data.batches import Batch
from sasrec.engine.torch_engine import TorchEngine

Item = TypeVar("Item")
Made = TypeVar("Made")


def batches_for(engine: object, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches in the same order; where the engine works ahead, with their tensors on its device.

    Closing the iterator, or forgetting it, ends the thread.
    """
    if not isinstance(engine, TorchEngine) or not engine.way.ahead:
        return batches
    return _handed_over(engine, batches)


def _handed_over(engine: TorchEngine, batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch, tensors in made_ahead(batches, engine.tensors_of, engine.way.ahead):
        engine.take(batch, tensors)
        yield batch


def made_ahead(items: Iterator[Item], make: Callable[[Item], Made], n: int) -> Iterator[tuple[Item, Made]]:
    """Each item with what is made of it, in order, by a thread that is at most n items ahead.

    What `items` or `make` raises is raised here, in its place.
    """
    room, closed = threading.Semaphore(n), threading.Event()
    made: queue.SimpleQueue[tuple[Item, Made] | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for item in items:
                made.put((item, make(item)))
                room.acquire()
                if closed.is_set():
                    return
            made.put(None)
        except BaseException as error:
            made.put(error)

    thread = threading.Thread(target=work, name="sasrec-batches", daemon=True)
    thread.start()
    try:
        while (found := made.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
            room.release()
    finally:
        closed.set()
        room.release()
        thread.join()

"""Ctrl-C and SIGTERM while something long is done: the first one asks it to end, so that nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class StoppedError(Exception):
    """Ctrl-C or SIGTERM came while a model was measured."""


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request_stop(signum: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = {s: signal.signal(s, request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

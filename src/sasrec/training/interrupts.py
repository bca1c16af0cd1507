"""Ctrl-C and SIGTERM while something long is done: the first one asks it to end, so that nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

SOON = 0.01  # seconds until an interrupt that was lost comes again


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


def hear_lost_interrupts() -> None:
    """Let a Ctrl-C come again that Python drops, because it came while an object was destroyed. For programs."""
    plain = sys.unraisablehook

    def hear(lost: sys.UnraisableHookArgs) -> None:
        main = threading.main_thread().ident
        if main is None or not issubclass(lost.exc_type, KeyboardInterrupt):
            plain(lost)
            return
        with contextlib.suppress(RuntimeError):  # no thread starts any more where the program ends anyway
            threading.Timer(SOON, signal.pthread_kill, (main, signal.SIGINT)).start()

    sys.unraisablehook = hear

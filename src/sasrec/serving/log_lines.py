"""Lines for stdout and stderr, written on threads of their own: a reader that takes none must not stop the server.

Lines wait up to a bound; further ones are dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import msgspec

WAITING_BYTES = 2**20  # of lines that are not written yet
CLOSE_SECONDS = 1.0  # that the last lines have
FLUSH_SECONDS = 0.2  # access log lines are handed over together, this often
LOGGERS = ("sasrec", "uvicorn", "asyncio")


class LineWriter:
    """Writes to a file without ever waiting for it.

    Args:
        file: where to; one in memory is written to at once.
        dropped: told how many lines were dropped.
    """

    def __init__(self, file: IO[Any], dropped: Callable[[int], object]) -> None:
        self._file, self._dropped = file, dropped
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        try:
            self._descriptor = file.fileno()
        except (OSError, ValueError):
            self._descriptor = -1
        self._thread: threading.Thread | None = None

    def write(self, lines: bytes) -> None:
        """Hand over whole lines."""
        if self._descriptor < 0:
            with contextlib.suppress(OSError, ValueError):
                self._file.write(lines)
            return
        with self._lock:
            if self._waiting + len(lines) > WAITING_BYTES:
                self._dropped(lines.count(b"\n"))
                return
            self._waiting += len(lines)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
        self._queue.put(lines)

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            if not self._written(lines):
                self._dropped(lines.count(b"\n"))
            with self._lock:
                self._waiting -= len(lines)

    def _written(self, lines: bytes) -> bool:
        left = memoryview(lines)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # somebody has made the pipe so
                time.sleep(FLUSH_SECONDS)
            except OSError:  # its reader has gone
                return False
        return True

    def close(self) -> None:
        """Write what waits, if the file takes it now."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_SECONDS)


class AccessLog:
    """Writes a JSON line for each request, in one go for all of a moment.

    Args:
        file: where to; None writes nothing.
        dropped: told how many lines were dropped.
    """

    def __init__(self, file: IO[bytes] | None, dropped: Callable[[int], object] = lambda n: None) -> None:
        self._writer = None if file is None else LineWriter(file, dropped)
        self._lines: list[bytes] = []
        self._encode = msgspec.json.Encoder().encode

    def __bool__(self) -> bool:
        return self._writer is not None

    def write(self, line: dict[str, Any]) -> None:
        """Add a line; called on the event loop."""
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        self._lines.append(self._encode(line))

    def flush(self) -> None:
        """Hand over what has gathered."""
        lines, self._lines = self._lines, []
        if self._writer is not None and lines:
            self._writer.write(b"\n".join([*lines, b""]))

    def close(self) -> None:
        """Write what is left; a reader that takes no more loses its log, and does not stop the server."""
        self.flush()
        if self._writer is not None:
            self._writer.close()


class _Handler(logging.Handler):
    """Hands messages to a writer."""

    def __init__(self, writer: LineWriter, like: logging.Handler | None) -> None:
        super().__init__(logging.NOTSET if like is None else like.level)
        self.setFormatter(logging.Formatter("%(levelname)s: %(message)s") if like is None else like.formatter)
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.write(self.format(record).encode(errors="replace") + b"\n")


@contextlib.contextmanager
def messages_never_wait(dropped: Callable[[int], object] = lambda n: None) -> Iterator[None]:
    """Let messages of this process that go to stderr be written on a thread of their own."""
    writer = LineWriter(sys.stderr, dropped)
    before = {name: list(logging.getLogger(name).handlers) for name in LOGGERS}
    for name, handlers in before.items():
        logger = logging.getLogger(name)
        if not handlers and name != "sasrec":  # else they would go where Python sends what nobody handles: to stderr
            logger.addHandler(_Handler(writer, None))
        for handler in handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                logger.addHandler(_Handler(writer, handler))
                logger.removeHandler(handler)
    try:
        yield
    finally:
        for name, handlers in before.items():
            logging.getLogger(name).handlers[:] = handlers
        writer.close()

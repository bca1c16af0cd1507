"""What passes between a command and the workers of a cluster while these train: words, progress, and the wish to stop.

It may be lost with the machine that keeps it; nothing depends on it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

from sasrec.training.progress import Progress

ASKED_SECONDS = 0.5  # between looks at whether to stop


class Board:
    """Where both sides leave what the other should know; Ray makes an actor of it."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, str]] = []  # logger, level, text
        self.progress: Progress | None = None
        self.asked = False

    def say(self, name: str, level: int, text: str) -> None:
        """A line of a worker's log."""
        self.lines.append((name, level, text))

    def show(self, progress: Progress) -> None:
        """How far the workers are."""
        self.progress = progress

    def news(self) -> tuple[list[tuple[str, int, str]], Progress | None]:
        """What has come since the last time."""
        lines, progress, self.lines, self.progress = self.lines, self.progress, [], None
        return lines, progress

    def ask(self) -> None:
        """Wish the work to end."""
        self.asked = True

    def is_asked(self) -> bool:
        """Whether the work is to end."""
        return self.asked


class _Said(logging.Handler):
    """Sends the package's log to the board."""

    def __init__(self, board: Any) -> None:
        super().__init__()
        self.board = board

    def emit(self, record: logging.LogRecord) -> None:
        self.board.say.remote(record.name, record.levelno, record.getMessage())


@contextlib.contextmanager
def told_to(board: Any, asked: threading.Event) -> Iterator[None]:
    """While inside, the package's log goes to the board, and its wish to stop comes from there.

    Args:
        board: the actor.
        asked: is set once the work is to end.
    """
    handler, logger, done = _Said(board), logging.getLogger("sasrec"), threading.Event()
    before, level = logger.handlers, logger.level
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    threading.Thread(target=_look, args=(board, asked, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        logger.handlers, logger.propagate = before, True
        logger.setLevel(level)


def _look(board: Any, asked: threading.Event, done: threading.Event) -> None:
    import ray

    while not done.wait(ASKED_SECONDS) and not asked.is_set():
        with contextlib.suppress(ray.exceptions.RayError):
            if ray.get(board.is_asked.remote()):
                asked.set()


def repeat(board: Any, cluster_ray: Any, show: Any) -> None:
    """Say and show what has come to the board."""
    with contextlib.suppress(cluster_ray.exceptions.RayError):
        lines, progress = cluster_ray.get(board.news.remote())
        for name, level, text in lines:
            logging.getLogger(name).log(level, "%s", text)
        if progress is not None and show is not None:
            show(progress)

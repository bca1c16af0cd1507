"""Progress and log messages of a running command, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from sasrec.core.tables import printable
from sasrec.training.progress import PLAIN_SECONDS, duration, is_due, stands
from sasrec.training.progress import Progress as TrainingProgress

LONG_RUN_SECONDS = 60.0  # above this, the time a run will take is said before it starts in earnest

stderr = Console(stderr=True, highlight=False)


class _Printable(logging.Formatter):
    """Ids and names of others in messages are shown, not obeyed."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def only_errors() -> None:
    """From now on the package's log tells of errors alone: another process tells the rest."""
    logging.getLogger("sasrec").setLevel(logging.ERROR)


def set_up_logging(*, quiet: bool, debug: bool) -> None:
    """Send the package's log to stderr: info and above, warnings only when quiet."""
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    handler: logging.Handler
    if stderr.is_terminal:
        handler = RichHandler(console=stderr, show_path=False, show_time=False)
        handler.setFormatter(_Printable("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
    logger = logging.getLogger("sasrec")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


@contextlib.contextmanager
def silenced(*names: str) -> Iterator[None]:
    """While inside, these loggers say nothing: the command prints what they would say."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Display:
    """A bar on a terminal, plain lines elsewhere; a context manager. `text` stands beside the bar at first."""

    def __init__(self, quiet: bool, text: str) -> None:
        self.bar = _bar() if stderr.is_terminal and not quiet else None
        self.task = self.bar.add_task("", total=1, text=text) if self.bar else None
        self.quiet = quiet
        self.last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def show(self, done: int, total: int, text: str, *, is_due: bool) -> None:
        """Move the bar; without one, write a line if one is due."""
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=done, total=total, text=text)
        elif is_due:
            self.last_line = time.monotonic()
            stderr.print(text, soft_wrap=True)


class TrainingDisplay(_Display):
    """Shows a training run: pass `update` as the trainer's progress."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet, "reading")
        self.title = ""
        self.estimated = False

    def begin(self, title: str) -> None:
        """Another of several runs begins; its name stands before its progress."""
        self.title, self.estimated = f"{title}  ", False

    def update(self, p: TrainingProgress) -> None:
        """Show where the run stands."""
        if self.quiet:
            return
        if p.measured is None:
            self._estimate(p)
        done, total, text = stands(p)
        self.show(done, total, self.title + text, is_due=is_due(p, time.monotonic() - self.last_line))

    def _estimate(self, p: TrainingProgress) -> None:
        if self.estimated or p.seconds_left is None:
            return
        self.estimated = True
        if p.seconds_left > LONG_RUN_SECONDS:
            stderr.print(
                f"about {duration(p.seconds_left)} if it goes to epoch {p.max_epochs}; it stops earlier when the valid "
                "metric no longer improves, or after --max-minutes; Ctrl-C saves",
                soft_wrap=True,
            )


class RankingDisplay(_Display):
    """Shows how a model is measured: pass `update` as progress."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet, "measuring")

    def update(self, done: int, total: int) -> None:
        """Show where it stands."""
        text = f"measuring: {done:,} of {total:,} rankings"
        self.show(done, total, text, is_due=not self.quiet and time.monotonic() - self.last_line > PLAIN_SECONDS)


class UsersDisplay(_Display):
    """Shows how many users are done: pass `update` as progress."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet, "")
        self.began = self.last_line
        self.first: int | None = None  # users that were done at the first call: the rate is of what followed

    def update(self, done: int, total: int) -> None:
        """Show where it stands."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.began = done, now
        rate = (done - self.first) / max(now - self.began, 1e-9)
        text = f"{done:,} of {total:,} users" + (f"  {rate:,.0f} users/s" if rate else "")
        self.show(done, total, text, is_due=not self.quiet and now - self.last_line > PLAIN_SECONDS)


class ReadingDisplay(_Display):
    """Shows how a log is read in parts, from the first time that it is told of one: pass `update` as progress."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet, "reading the log")

    def update(self, what: str, done: int, total: int) -> None:
        """Show where it stands."""
        if self.bar:
            self.bar.start()
        text = f"{what}: {100 * done // max(total, 1)} %"
        self.show(done, total, text, is_due=not self.quiet and time.monotonic() - self.last_line > PLAIN_SECONDS)

    def __enter__(self) -> Self:
        return self


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[text]}"),
        console=stderr,
        transient=True,
    )

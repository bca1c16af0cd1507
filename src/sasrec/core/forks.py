"""Refuses, in a forked process, what would wait forever for threads that a fork does not bring along.

Polars and torch keep threads once they have computed. A process that is forked then has none of them, and waits for
them. The compiled core starts its own anew (native/threads.h).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Literal

from sasrec.core.errors import SASRecError

Library = Literal["Polars", "torch"]

POOL_THREAD = re.compile(r"polars-\d")

_started: set[Library] = set()  # whose threads this process has, as far as is known
_lost: set[Library] = set()  # whose threads a parent of this process had


def needs_threads_of(library: Library) -> None:
    """Say that what follows computes with a library's threads.

    Raises:
        SASRecError: this process was forked after they had been started.
    """
    if library in _lost:
        raise SASRecError(
            f"this process was forked after {library} had started its threads, which a fork does not bring along, so "
            'the call would wait forever; start processes with multiprocessing.get_context("spawn") or '
            '"forkserver", or fork before anything is read'
        )
    _started.add(library)


def before_fork() -> None:
    """Note Polars' threads that the caller's own code has started; `import sasrec` sees to it that this is called."""
    if "polars" in sys.modules and any(POOL_THREAD.match(_name_of(task)) for task in _tasks()):
        _started.add("Polars")


def _tasks() -> list[Path]:
    try:
        return list(Path("/proc/self/task").iterdir())
    except OSError:
        return []  # no Linux: only what this package has used is known


def _name_of(task: Path) -> str:
    try:
        return (task / "comm").read_text()
    except OSError:
        return ""  # it has ended meanwhile


def _after_fork() -> None:
    _lost.update(_started)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

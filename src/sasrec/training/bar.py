"""How a training shows itself where `fit(progress=True)` asks for it: a bar in a notebook, else a line on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from html import escape
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from sasrec.training.progress import Progress, duration, is_due, stands


class Bar:
    """Shows a training: pass it as `progress`, inside `with`.

    A notebook shows one output, which changes; a terminal one line, which is written over; a file or a pipe gets a line
    for the first epoch, for every tenth, every ten seconds, and at the end.
    """

    def __init__(self) -> None:
        self.output = _notebook_output()
        self.width = 0  # of the line on the terminal
        self.last_line = time.monotonic()
        self.last: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.last is not None and error is None:
            self._show(1, 1, ended(self.last), is_due=True)
        if self.output is None and self.width:
            print(file=sys.stderr, flush=True)

    def __call__(self, p: Progress) -> None:
        """Show where the training stands."""
        self.last = p
        self._show(*stands(p), is_due=is_due(p, time.monotonic() - self.last_line))

    def _show(self, done: int, total: int, text: str, *, is_due: bool) -> None:
        if self.output is not None:
            self.output({"text/plain": text, "text/html": bar_html(done, total, text)})
        elif sys.stderr.isatty():
            print("\r" + text.ljust(self.width), end="", file=sys.stderr, flush=True)
            self.width = len(text)
        elif is_due:
            self.last_line = time.monotonic()
            print(text, file=sys.stderr, flush=True)


def ended(p: Progress) -> str:
    """How a training ended, by the last that it told."""
    return f"best epoch {p.best_epoch} of {p.epoch}, {duration(p.seconds)} of training"


def bar_html(done: int, total: int, text: str) -> str:
    """A bar with what it says."""
    bar = f'<progress value="{done}" max="{max(total, 1)}" style="width: 14em; vertical-align: middle"></progress>'
    return f'<div class="sasrec">{bar} {escape(text)}</div>'


def _notebook_output() -> Callable[[dict[str, str]], None] | None:
    """What shows a bundle of forms in the running cell, in place of the one before; None outside of notebooks."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    display: Any = import_module("IPython.display").display
    handle: Any = None

    def show(bundle: dict[str, str]) -> None:
        nonlocal handle
        if handle is None:
            handle = display(bundle, raw=True, display_id=True)
        else:
            handle.update(bundle, raw=True)

    return show

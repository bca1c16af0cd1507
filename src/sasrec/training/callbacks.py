"""What a caller hears of a training while it runs, and by which it may end it.

A callback is any object with one or more of these methods:

- `on_start(config)`: the settings are known, nothing is trained yet. `config` is a `RunConfig`.
- `on_epoch(line)`: an epoch has ended. `line` is its `EpochLine`: loss, valid metrics, times. True ends the training,
  whose best epoch is kept and measured.
- `on_end(result)`: all is done and written. `result` is the Recommender that `fit` returns; its `train_result.stopped`
  tells what ended the training.
- `on_error(error)`: the training failed.

A training that is resumed tells of its earlier epochs first, so what a callback gathers is as without a break.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from sasrec.core.errors import ConfigError
from sasrec.runs.folder import RunConfig
from sasrec.runs.record import EpochLine

METHODS = ("on_start", "on_epoch", "on_end", "on_error")


class Callbacks:
    """Several callbacks as one.

    Args:
        given: objects with some of the methods; all are told, in this order.

    Raises:
        ConfigError: an object has none of them.
    """

    def __init__(self, given: Sequence[Any] = ()) -> None:
        for one in given:
            if isinstance(one, type) or not any(callable(getattr(one, name, None)) for name in METHODS):
                raise ConfigError(f"{one!r} is no callback: it is an object with some of {', '.join(METHODS)}")
        self.given = tuple(given)

    def _tell(self, method: str, what: Any) -> list[Any]:
        methods = [getattr(one, method, None) for one in self.given]
        return [tell(what) for tell in methods if tell is not None]

    def start(self, config: RunConfig) -> None:
        """A training begins."""
        self._tell("on_start", config)

    def epoch(self, line: EpochLine) -> bool:
        """An epoch has ended; whether one of them wants the training to end."""
        return True in [answer is True for answer in self._tell("on_epoch", line)]  # all are told

    def end(self, recommender: Any) -> None:
        """All is done."""
        self._tell("on_end", recommender)

    @contextlib.contextmanager
    def told_of_errors(self) -> Iterator[None]:
        """While inside, they hear of an error; it goes on its way."""
        try:
            yield
        except BaseException as error:
            self._tell("on_error", error)
            raise

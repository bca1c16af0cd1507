"""Several processes that do one job: what they tell each other, and how they keep in step.

`World` is the protocol of a transport; engine/distributed.py has the one on torch.distributed. None in its place is a
process that is alone. All processes of a world must call its methods in the same order.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Float64
from sasrec.core.errors import ConfigError, TrainingError

T = TypeVar("T")

WORKING, DONE, FAILED = range(3)
FIRST_LOOK, LONGEST_LOOK = 0.01, 0.25  # seconds between looks at whether the others have done their work


class LostProcessError(TrainingError):
    """Another process has ended or cannot be reached; what was saved can be gone on with."""


class OtherFailedError(TrainingError):
    """Another process of the world has raised an error, which says why."""


class World(Protocol):
    """Processes that compute together, one of which is this one.

    Raises:
        LostProcessError: by every method, where another process has ended or cannot be reached.
    """

    rank: int  # of this process, from 0; process 0 writes and reports
    size: int  # processes
    local_rank: int  # of this process among those of its machine
    local_size: int  # processes on its machine
    asked: threading.Event  # is set where whoever started this process wants the work to end

    def gather(self, values: Float64) -> Float64:
        """(size, n) the values of each process; (n,) each, as many everywhere."""

    def gather_rows(self, rows: NDArray[Any], counts: Sequence[int]) -> list[NDArray[Any]]:
        """The arrays of all processes, which differ in their number of rows alone: that of each is in `counts`."""

    def gather_text(self, text: str) -> list[str]:
        """The text of each process."""

    def add(self, values: Any) -> None:
        """An array or a torch tensor, contiguous and of one shape everywhere, becomes the sum over processes, in place.

        All get the same bits.
        """

    def broadcast(self, arrays: Mapping[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
        """The named arrays of process 0, on every process; the others give None."""


class Pulse:
    """The clock and the wish to stop: of a process that is alone, its own; of a world, what was told at the last beat.

    A world goes by the clock of process 0, and stops where any process was asked to. So whatever is decided by time is
    decided alike everywhere.
    """

    def __init__(self, world: World | None = None) -> None:
        self.world = world
        self.asked = threading.Event()  # whether this process was asked to stop
        self._now, self._stops = 0.0, False
        self.beat()

    def now(self) -> float:
        """Seconds of a clock that does not go back."""
        return time.monotonic() if self.world is None else self._now

    def is_set(self) -> bool:
        """Whether to stop."""
        return self.asked.is_set() if self.world is None else self._stops

    def of_first(self, number: float) -> float:
        """The number that process 0 has."""
        return number if self.world is None else float(self.world.gather(np.array([number]))[0, 0])

    def own(self) -> list[float]:
        """What this process tells."""
        asked = self.asked.is_set() or (self.world is not None and self.world.asked.is_set())
        return [time.monotonic(), float(asked)]

    def hear(self, told: Float64) -> None:
        """Take what all processes have told, (size, 2)."""
        self._now, self._stops = float(told[0, 0]), self._stops or bool(told[:, 1].any())

    def beat(self) -> None:
        """Tell each other."""
        if self.world is not None:
            self.hear(self.world.gather(np.array(self.own())))


def together(world: World | None, work: Callable[[], T]) -> T:
    """What takes as long as it takes, on all processes: those that are done wait for the others.

    Meanwhile they tell each other that they are there, so that no silence is taken for an end.

    Args:
        world: the processes; None = do the work, and nothing else.
        work: is done on a thread of its own.

    Raises:
        OtherFailedError: the work of another process failed. This one's own error is raised as it is.
    """
    if world is None:
        return work()
    mine: Future[T] = Future()
    threading.Thread(target=_fulfil, args=(mine, work), daemon=True).start()
    look = FIRST_LOOK
    while True:
        with contextlib.suppress(TimeoutError):
            mine.exception(timeout=look)
        state = WORKING if not mine.done() else FAILED if mine.exception() else DONE
        told = world.gather(np.array([float(state)]))[:, 0]
        if (told == FAILED).any():
            if state == FAILED:
                mine.result()
            raise OtherFailedError(f"process {int((told == FAILED).argmax())} of {world.size} failed, and says why")
        if (told == DONE).all():
            return mine.result()
        look = min(2 * look, LONGEST_LOOK)


def _fulfil(mine: Future[T], work: Callable[[], T]) -> None:
    try:
        mine.set_result(work())
    except BaseException as error:
        mine.set_exception(error)


def on_first(world: World | None, work: Callable[[], T]) -> T | None:
    """What process 0 alone does, while the others wait; None on those."""
    return together(world, lambda: work() if is_first(world) else None)


def is_first(world: World | None) -> bool:
    """Whether this process writes and reports."""
    return world is None or world.rank == 0


def check_same(world: World, facts: Mapping[str, object]) -> None:
    """Refuse processes that would not compute the same.

    Raises:
        ConfigError: a fact differs.
    """
    names = list(facts)
    told = [text.split("\0") for text in world.gather_text("\0".join(map(str, facts.values())))]
    for rank, values in enumerate(told):
        for name, value, first in zip(names, values, told[0], strict=False):
            if value != first:
                raise ConfigError(
                    f"process {rank} has {name}={value}, and process 0 has {name}={first}; all processes of a training "
                    "need the same"
                )

"""A world of threads, for tests of what processes do together; and real processes that train, started by a test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class EndedError(Exception):
    """Another thread of the world has ended with an error."""


class Meeting:
    """Where threads meet: each leaves something, and takes what all have left, as often as they come."""

    def __init__(self, size: int) -> None:
        self.left: list[list[Any]] = [[] for _ in range(size)]
        self.changed, self.has_ended = threading.Condition(), False

    def exchange(self, rank: int, value: Any) -> list[Any]:
        with self.changed:
            turn = len(self.left[rank])
            self.left[rank].append(value)
            self.changed.notify_all()
            arrived = self.changed.wait_for(lambda: self.has_ended or self._all_left(turn), timeout=60)
            if not (arrived and self._all_left(turn)):
                raise EndedError
            return [values[turn] for values in self.left]

    def _all_left(self, turn: int) -> bool:
        return all(len(values) > turn for values in self.left)

    def end(self) -> None:
        with self.changed:
            self.has_ended = True
            self.changed.notify_all()


class ThreadWorld:
    """A `World` whose processes are threads of this one."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size, self.meeting = rank, len(meeting.left), meeting
        self.local_rank, self.local_size, self.asked = rank, self.size, threading.Event()

    def gather(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array(self.meeting.exchange(self.rank, values.copy()))

    def gather_rows(self, rows: NDArray[Any], counts: Sequence[int]) -> list[NDArray[Any]]:
        found = self.meeting.exchange(self.rank, rows.copy())
        assert [len(part) for part in found] == list(counts)
        return found

    def gather_text(self, text: str) -> list[str]:
        return self.meeting.exchange(self.rank, text)

    def add(self, values: Any) -> None:
        mine = values if isinstance(values, np.ndarray) else values.numpy()
        mine[...] = sum(self.meeting.exchange(self.rank, mine.copy()))

    def broadcast(self, arrays: Mapping[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
        return {name: array.copy() for name, array in self.meeting.exchange(self.rank, arrays)[0].items()}


def in_world(size: int, body: Callable[[ThreadWorld], T]) -> list[T]:
    """What each thread of a world returns; an error of one ends all."""
    meeting = Meeting(size)

    def run(rank: int) -> T:
        try:
            return body(ThreadWorld(rank, meeting))
        except BaseException:
            meeting.end()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, EndedError) or "says why" in str(error)):
        raise error  # the one that is the cause of others
    return [future.result() for future in futures]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_process(
    rank: int, size: int, port: int, command: Sequence[str], *, address: str = "127.0.0.1", before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """One process of a world as torchrun starts it, by its environment; `before` comes in front of the command."""
    environment = {
        **os.environ,
        "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": address, "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "SASREC_ISA": os.environ.get("SASREC_ISA", ""),
    }  # fmt: skip
    return subprocess.Popen(
        [*before, sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def start_training(size: int, log: Path, output: Path, *more: str) -> list[subprocess.Popen[str]]:
    """Processes of `sasrec train`, all of this machine."""
    port = free_port()
    command = ["-m", "sasrec", "train", str(log), "--output", str(output), "--threads", "1", *more]
    return [start_process(rank, size, port, command) for rank in range(size)]


def ends_of(processes: Sequence[subprocess.Popen[str]], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; none outlives this call."""
    try:
        told = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, told, strict=True)]

"""The world of processes that train together, on torch.distributed: gloo between CPUs, NCCL between CUDA devices.

`torchrun` tells each process who it is by its environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). Another
launcher sets the same, or makes torch's process group itself, of which `TorchWorld` then makes one of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Float64
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.extras import require
from sasrec.core.files import boot
from sasrec.core.isa import load_native
from sasrec.core.threads import usable_cpus
from sasrec.core.world import LostProcessError, World
from sasrec.engine.native import unsupported

logger = logging.getLogger(__name__)

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SILENCE_SECONDS = 40.0  # after which a process that does not answer is taken for gone
JOIN_SECONDS = 300.0  # within which all have to come


@contextlib.contextmanager
def joined(silence_seconds: float = SILENCE_SECONDS) -> Iterator[TorchWorld | None]:
    """The world that the environment tells of, while inside; None where this process is alone.

    Args:
        silence_seconds: how long to wait for a process that does not answer.

    Raises:
        ConfigError: torch is not installed, or the environment makes no sense.
        LostProcessError: the others cannot be reached.
    """
    if not is_one_of_several():
        yield None
        return
    require("torch", "training in several processes", extra="torch")
    world = TorchWorld(silence_seconds)
    yield world
    world.leave()  # not after an error: the others would be waited for


def end_in_world(code: int | str) -> None:
    """End this process at once where it still is in a world, as after an error; do nothing where it is in none.

    The threads by which torch talks to others are still there then. Some of them throw when another process closes its
    connection while Python takes this one apart, which would end it by SIGABRT in place of its exit code.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def is_one_of_several() -> bool:
    """Whether the environment is that of a process among others.

    Raises:
        ConfigError: RANK or WORLD_SIZE is not a number that makes sense.
    """
    told = {name: os.environ.get(name, "") for name in VARIABLES}
    if not all(told.values()):
        return False
    rank, size = told["RANK"], told["WORLD_SIZE"]
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise ConfigError(f"RANK={rank!r} and WORLD_SIZE={size!r} are no process and number of processes; use torchrun")
    return int(size) > 1


class TorchWorld:
    """Processes that compute together: `World` on torch.distributed.

    Args:
        silence_seconds: how long to wait for a process that does not answer. A process that was killed is missed at
            once; this is for a network that is cut, and for machines that stand still.

    Raises:
        LostProcessError: the others cannot be reached.
    """

    def __init__(self, silence_seconds: float = SILENCE_SECONDS) -> None:
        import torch.distributed as dist

        self._dist, self._silence, self._padded = dist, silence_seconds, np.zeros(0, np.uint8)
        self.rank = self.size = -1
        self.asked = threading.Event()
        with self._talking():
            self._group = self._beside() if dist.is_initialized() else self._join()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        machines = self.gather_text(f"{socket.gethostname()} {boot()}")
        beside = [rank for rank, machine in enumerate(machines) if machine == machines[self.rank]]
        self.local_rank, self.local_size = beside.index(self.rank), len(beside)
        if self.rank == 0:
            logger.info("%d processes train together", self.size)

    def _join(self) -> Any:
        dist = self._dist
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
        store.set(f"sasrec/{rank}", "here")
        store.wait([f"sasrec/{i}" for i in range(size)], timedelta(seconds=JOIN_SECONDS))
        silence = timedelta(seconds=self._silence)
        dist.init_process_group(self._backend, store=store, rank=rank, world_size=size, timeout=silence)
        return dist.group.WORLD

    def _beside(self) -> Any:
        """A group of the same processes, beside one that somebody else has made."""
        return self._dist.new_group(timeout=timedelta(seconds=self._silence), backend=self._backend)

    @property
    def _backend(self) -> str:
        import torch

        return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and self._dist.is_nccl_available() else "gloo"

    def leave(self) -> None:
        """End this world's own group, and wait for its threads.

        A thread that still lets go of a tensor while Python ends would end the process by SIGABRT. torch waits for
        threads once nothing refers to the group any more.
        """
        self._dist.destroy_process_group(self._group)
        self._group = None

    def gather(self, values: Float64) -> Float64:
        import torch

        told = np.empty((self.size, len(values)))
        with self._talking():
            self._dist.all_gather(list(torch.from_numpy(told)), torch.from_numpy(values), group=self._group)
        return told

    def gather_rows(self, rows: NDArray[Any], counts: Sequence[int]) -> list[NDArray[Any]]:
        import torch

        row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
        longest = row_bytes * max(counts)
        if longest == 0:
            return [rows] * self.size
        if self._padded.size < longest:
            self._padded = np.zeros(longest, np.uint8)
        mine, told = self._padded[:longest], np.empty((self.size, longest), np.uint8)
        mine[: rows.nbytes] = rows.reshape(-1).view(np.uint8)
        with self._talking():
            self._dist.all_gather(list(torch.from_numpy(told)), torch.from_numpy(mine), group=self._group)
        shape = rows.shape[1:]
        return [
            told[rank, : n * row_bytes].view(rows.dtype).reshape(n, *shape) for rank, n in enumerate(map(int, counts))
        ]

    def gather_text(self, text: str) -> list[str]:
        letters = np.frombuffer(text.encode(), np.uint8)
        counts = self.gather(np.array([float(len(letters))]))[:, 0].astype(int)
        return [part.tobytes().decode() for part in self.gather_rows(letters, list(counts))]

    def add(self, values: Any) -> None:
        import torch

        tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
        with self._talking():
            self._dist.all_reduce(tensor, group=self._group)

    def broadcast(self, arrays: Mapping[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
        import torch

        mine = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
        kinds = "\n".join(f"{a.dtype.str} {' '.join(map(str, a.shape))}\t{name}" for name, a in mine.items())
        told: dict[str, NDArray[Any]] = {}
        for line in self.gather_text(kinds)[0].splitlines():
            kind, _, name = line.partition("\t")
            dtype, *shape = kind.split()
            told[name] = mine[name] if mine else np.empty([int(n) for n in shape], dtype)
            if told[name].size:
                with self._talking():
                    self._dist.broadcast(torch.from_numpy(told[name].reshape(-1)), 0, group=self._group)
        return told

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            logger.debug("torch.distributed: %s", error)
            timed_out = "imed out" in str(error) or "imeout" in str(error)
            why = f"no answer for {self._silence:g} s" if timed_out else "the connection was closed"
            who = "this process" if self.rank < 0 else f"process {self.rank} of {self.size}"
            raise LostProcessError(
                f"{who} cannot reach the others ({why}): one of them has ended, or the network between them is cut; "
                "what was saved is whole, so the same command with --resume goes on"
            ) from error


def placed(model: ModelConfig, train: TrainConfig, world: World) -> TrainConfig:
    """The settings of a process's own engine: its CUDA device and, where none are set, its threads.

    Processes of one machine share its CPUs. All take as many threads as the one that has the fewest. As in one process,
    device=auto leaves what the compiled core can do to it.

    Raises:
        ConfigError: there are fewer CUDA devices than processes on this machine.
    """
    fewest = int(world.gather(np.array([max(1.0, usable_cpus() // world.local_size)])).min())
    is_cores = train.device == "auto" and train.engine != "torch" and not unsupported(model, train)
    device = train.device if is_cores and load_native().module else _device(train.device, world)
    return replace(train, threads=train.threads or fewest, device=device)


def _device(device: str, world: World) -> str:
    if device == "cpu" or ":" in device:
        return device
    import torch

    n_devices = torch.cuda.device_count()
    if n_devices == 0:
        return device  # the engine says what it thinks of that
    if n_devices < world.local_size:
        raise ConfigError(
            f"device={device}: this machine has {n_devices} CUDA devices for {world.local_size} processes; start as "
            "many processes as devices"
        )
    return f"cuda:{world.local_rank}"

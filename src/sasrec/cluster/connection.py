"""A Ray cluster that does the work of a command: one that runs already, or one of this machine while it is needed.

Source: Ray's documentation of `ray.init`, tasks and actors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sasrec import __version__
from sasrec.core.errors import ConfigError, TrainingError, first_line
from sasrec.core.extras import require
from sasrec.core.threads import usable_cpus

logger = logging.getLogger(__name__)

SCHEME = "ray://"
ADDRESS = "RAY_ADDRESS"  # the variable by which Ray's own tools are told of a cluster
OUTWARD = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # where it is 0, Ray listens at localhost alone, on any system
OBJECT_STORE = 512 * 2**20  # bytes that objects of a cluster of this machine may take in memory; more goes to disk
LOOK_SECONDS = 0.3  # between looks at what is done
RETRIES = 3  # of what a worker was doing when it was lost


@dataclass(frozen=True)
class Cluster:
    """What a command was given to work on."""

    ray: Any  # the package, connected
    workers: int | None  # that were asked for

    @property
    def n_cpus(self) -> int:
        """CPUs of all machines."""
        return int(self.ray.cluster_resources().get("CPU", 1))

    @property
    def n_machines(self) -> int:
        """Machines that are there."""
        return sum(node["Alive"] for node in self.ray.nodes())

    def task(self, work: Callable[..., Any], **options: Any) -> _Task:
        """A function as Ray calls it on a worker, again if that is lost."""
        return _Task(self.ray.remote(max_retries=RETRIES, **options)(_in_folder), work)

    def check(self, place: Path) -> None:
        """Refuse machines that do not see a folder, or have another sasrec than this one.

        Raises:
            ConfigError: there is one.
        """
        strategy = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        for node in nodes:
            where = strategy(node["NodeID"], soft=False)
            asked = self.task(_sees, num_cpus=0, scheduling_strategy=where).remote(str(place))
            name = node["NodeManagerAddress"]
            try:
                version, sees = self.ray.get(asked)
            except self.ray.exceptions.RayError as error:
                raise ConfigError(f"machine {name} of the cluster cannot run sasrec: {first_line(error)}") from error
            if version != __version__:
                raise ConfigError(f"machine {name} of the cluster has sasrec {version}, and this one {__version__}")
            if not sees:
                raise ConfigError(f"machine {name} of the cluster does not see {place}; write where all machines do")

    def results(self, references: Sequence[Any], progress: Callable[[int], None]) -> list[Any]:
        """What tasks return, in their order; the error of the first one that failed is raised.

        Args:
            references: of the tasks.
            progress: is told how many are done.

        Raises:
            SASRecError: as the task raised it.
            TrainingError: workers were lost again and again.
        """
        waiting = list(references)
        try:
            while waiting:
                done, waiting = self.ray.wait(waiting, num_returns=1, timeout=LOOK_SECONDS)
                if done:
                    progress(len(references) - len(waiting))
            return [self.result(reference) for reference in references]
        except BaseException:
            for reference in waiting:
                self.ray.cancel(reference, force=False)
            raise

    def result(self, reference: Any) -> Any:
        """What a task returns, once it is done."""
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as error:
            raise error.cause from None
        except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as error:
            raise TrainingError(f"workers of the cluster were lost again and again: {first_line(error)}") from error


@dataclass(frozen=True)
class _Task:
    call: Any
    work: Callable[..., Any]

    def remote(self, *given: Any) -> Any:
        """A reference to what it will return."""
        return self.call.remote(str(Path.cwd()), self.work, *given)


def _in_folder(folder: str, work: Callable[..., Any], *given: Any) -> Any:
    """Work where relative paths mean what they mean here."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
    return work(*given)


def _sees(place: str) -> tuple[str, bool]:
    return __version__, Path(place).is_dir()


def _close_to_others() -> None:
    """Have the cluster of this machine listen at localhost, let nobody else in, and report to nobody.

    Ray reads these when it is imported; where a variable is set already, that counts.
    """
    told = {OUTWARD: "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    told |= {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in told.items():
        os.environ.setdefault(name, value)


def check_place(on: str | None, workers: int | None) -> None:
    """Refuse a place that is none.

    Raises:
        ConfigError: it is not Ray; or workers without a cluster, or fewer than one.
    """
    if on is None and workers is not None:
        raise ConfigError("--workers is for a cluster: add --on ray")
    if on is not None and on != "ray" and not (on.startswith(SCHEME) and len(on) > len(SCHEME)):
        raise ConfigError(f"--on {on} is no cluster; use ray for this machine, or ray://HOST:PORT")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers} is too few; it takes 1 or more")


class _OfThisThread:
    """Standard output to which the thread that made it writes; what others print goes to stderr.

    Ray's own thread prints what happens to workers, in the middle of what a command prints as JSON.
    """

    def __init__(self) -> None:
        self._out, self._thread = sys.stdout, threading.get_ident()

    def write(self, text: str) -> int:
        is_ours = threading.get_ident() == self._thread
        return (self._out if is_ours else sys.stderr).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


@contextlib.contextmanager
def connected(on: str, workers: int | None) -> Iterator[Cluster]:
    """The cluster, while inside.

    Args:
        on: `ray` = the cluster that RAY_ADDRESS names, else one of this machine, on localhost alone, that ends with
            the command; `ray://HOST:PORT` as Ray's client takes it; `ray://auto` = the one that this machine is in.
        workers: how many processes are to work; None = as many as there are CPUs, and of a training one a machine.

    Raises:
        ConfigError: Ray is not installed, or cannot be reached.
    """
    address = on.removeprefix(SCHEME) if on == f"{SCHEME}auto" else on if on != "ray" else os.environ.get(ADDRESS)
    told: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cpus = max(usable_cpus(), workers or 1)
        told |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        _close_to_others()
    require("ray", "--on ray", extra="ray")
    import ray

    try:
        ray.init(address or "local", **told)
    except (ConnectionError, OSError, RuntimeError, ValueError, ImportError) as error:
        raise ConfigError(f"Ray cannot be reached at {address or 'this machine'}: {first_line(error)}") from error
    try:
        cluster = Cluster(ray, workers)
        n_machines = cluster.n_machines
        logger.info("on Ray: %d machine%s with %d CPUs", n_machines, "s" * (n_machines != 1), cluster.n_cpus)
        with contextlib.redirect_stdout(_OfThisThread()):
            yield cluster
    finally:
        ray.shutdown()

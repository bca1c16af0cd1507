"""A training on the machines of a cluster: Ray Train starts its processes, and starts them again when one is lost.

Each process makes the same call of `fit_log`, as with torchrun; process 0 writes the run folder, on storage that all
machines see. When processes are lost, all of them begin anew from the last saved state.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sasrec.cluster.connection import LOOK_SECONDS, RETRIES, Cluster
from sasrec.cluster.messages import Board, repeat, told_to
from sasrec.core import errors
from sasrec.core.errors import SASRecError, TrainingError, first_line
from sasrec.core.extras import require
from sasrec.core.files import atomic_write, disk_errors
from sasrec.core.world import LostProcessError, OtherFailedError, World, together
from sasrec.data.logs import Reading, load_log
from sasrec.engine.distributed import TorchWorld
from sasrec.fitting import FitOptions, fit_log
from sasrec.runs.lock import replaced_by
from sasrec.training.progress import Progress

logger = logging.getLogger(__name__)

BEGAN, ENDED, FAILED = "began", "ended.json", "failed.json"  # files by which workers tell how it stands
WAIT_SECONDS = 5.0  # until the one that failed has said why


@dataclass(frozen=True)
class TrainingJob:
    """What each process is told to do."""

    log: list[str]  # sources, which all machines see
    reading: Reading
    options: FitOptions
    settings: dict[str, Any]
    folder: Path  # that relative paths are meant from
    spent: float = 0.0  # seconds of max_minutes that have passed


@dataclass(frozen=True)
class Ended:
    """How a training ended; the figures are in the run folder."""

    best_epoch: int
    valid: dict[str, float]
    epochs: int
    seconds: float
    stopped: str


def train_on(cluster: Cluster, job: TrainingJob, place: Path, progress: Callable[[Progress], None] | None) -> Ended:
    """Train on a cluster.

    Args:
        cluster: trains.
        job: the training.
        place: a folder that all machines see, for what has to be known after a process is lost.
        progress: as in `fit`.

    Raises:
        SASRecError: as `fit` raises it.
        TrainingError: processes were lost again and again.
    """
    require("ray.train.torch", "training on Ray", extra="ray")
    place, ray = place / f"training-{uuid.uuid4().hex}", cluster.ray
    with disk_errors(place):
        place.mkdir()
    board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
    n_workers = cluster.workers or cluster.n_machines
    _say_needs(cluster, n_workers, job)
    run = ray.remote(num_cpus=0, max_retries=0)(_conduct).remote(job, board, n_workers, str(place))
    is_done = False
    while not (is_done or (place / ENDED).exists() or (place / FAILED).exists()):  # Ray takes long to clean up
        try:
            is_done = bool(ray.wait([run], timeout=LOOK_SECONDS)[0])
            repeat(board, ray, progress)
        except KeyboardInterrupt:
            if ray.get(board.is_asked.remote()):
                raise
            board.ask.remote()
    repeat(board, ray, progress)
    _raise_failure(place)
    if not (place / ENDED).exists():
        _raise_loss(cluster, run)
    return Ended(**json.loads((place / ENDED).read_text()))


def _say_needs(cluster: Cluster, n_workers: int, job: TrainingJob) -> None:
    needed = n_workers * _cpus_of(job)
    if needed > cluster.n_cpus:
        logger.warning(
            "%d workers need %d CPUs, and the cluster has %d: they begin when it has more; --workers and --threads "
            "make them fewer",
            n_workers, needed, cluster.n_cpus,
        )  # fmt: skip


def _cpus_of(job: TrainingJob) -> int:
    return int(job.settings.get("threads") or 1)


def _raise_loss(cluster: Cluster, run: Any) -> None:
    """Raise why Ray has given up."""
    try:
        cluster.result(run)
    except SASRecError:
        raise
    except Exception as error:  # of any of Ray's classes
        raise TrainingError(f"the training failed on the cluster: {first_line(error)}") from error
    raise TrainingError("the training ended on the cluster without a word; its log is in Ray's session folder")


def _raise_failure(place: Path) -> None:
    """Raise what a process has raised, in the class that it had."""
    with contextlib.suppress(FileNotFoundError):
        told = json.loads((place / FAILED).read_text())
        raise getattr(errors, told["kind"], TrainingError)(told["text"])


def _conduct(job: TrainingJob, board: Any, n_workers: int, place: str) -> None:
    """Start the processes, and again when some are lost; runs on a machine of the cluster."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    on_cuda = str(job.settings.get("device", "")).startswith("cuda")
    scaling = ScalingConfig(
        num_workers=n_workers,
        use_gpu=on_cuda,
        resources_per_worker={"CPU": _cpus_of(job), **({"GPU": 1} if on_cuda else {})},
        placement_strategy="SPREAD",
    )
    trainer = TorchTrainer(
        _train,
        train_loop_config={"job": job, "board": board, "place": place},
        torch_config=TorchConfig(backend="nccl" if on_cuda else "gloo"),
        scaling_config=scaling,
        run_config=RunConfig(name="ray", storage_path=place, failure_config=FailureConfig(max_failures=RETRIES)),
    )
    trainer.fit()


def _train(told: dict[str, Any]) -> None:
    """What each process does. Only where another is lost it ends with an error, so that Ray starts all again."""
    job, board, place = told["job"], told["board"], Path(told["place"])
    with contextlib.suppress(OSError):
        os.chdir(job.folder)
    world = TorchWorld()
    try:
        with contextlib.ExitStack() as stack:
            if world.rank == 0:
                stack.enter_context(told_to(board, world.asked))
            _fit(job, world, place, board)
        world.leave()
    except LostProcessError:
        if not _failure_is_known(place, 0):
            raise
    except OtherFailedError:
        if not _failure_is_known(place, WAIT_SECONDS):
            raise
    except SASRecError as error:
        atomic_write(place / FAILED, json.dumps({"kind": type(error).__name__, "text": str(error)}))


def _failure_is_known(place: Path, seconds: float) -> bool:
    """Whether a process has said why it failed, or does within some seconds."""
    end = time.monotonic() + seconds
    while not (place / FAILED).exists():
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
    return True


def _fit(job: TrainingJob, world: World, place: Path, board: Any) -> None:
    os.environ.pop("OMP_NUM_THREADS", None)  # of Ray; the engine takes the threads it is given
    options = replace(_begun(job.options, place), world=world, began=time.monotonic() - job.spent)
    world.gather_text("")  # all have looked before one marks the beginning
    if world.rank == 0:
        (place / BEGAN).touch()
    log = together(world, lambda: load_log(job.log, job.reading))
    recommender = fit_log(log, options, job.settings, board.show.remote if world.rank == 0 else None)
    result = recommender.train_result
    assert result is not None
    if world.rank == 0:
        ended = Ended(result.best_epoch, result.valid, result.epochs, result.seconds, result.stopped)
        atomic_write(place / ENDED, json.dumps(asdict(ended)))


def _begun(options: FitOptions, place: Path) -> FitOptions:
    """Those of processes that take the place of lost ones: they go on where there is something to go on with."""
    output = options.output
    assert output is not None
    if not (place / BEGAN).exists():
        return options
    logger.warning("a process was lost; all of them begin again from the last saved state")
    is_as_before = not output.exists() or (options.overwrite and replaced_by(output).is_dir())
    return options if is_as_before else replace(options, resume=True, overwrite=False)

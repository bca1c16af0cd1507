"""Who trains the trials of a search: this process one after the other, or several processes side by side.

A process beside this one is `python -m sasrec.experiments.trial_process`. It is told of a trial in a line of JSON, and
tells of each validated epoch and of the end in a line each; so nothing is unpickled, and no user's script is run again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from sasrec.core.errors import ConfigError, TrainingError
from sasrec.core.scalars import plain
from sasrec.core.threads import set_threads, usable_cpus
from sasrec.data.logs import Log
from sasrec.fitting import configure, engine_for
from sasrec.runs.folder import RunFolder
from sasrec.runs.record import EpochLine
from sasrec.training.callbacks import Callbacks
from sasrec.training.interrupts import interruptible
from sasrec.training.progress import Progress
from sasrec.training.trainer import train

logger = logging.getLogger(__name__)

PROCESS = "sasrec.experiments.trial_process"
LOOK_SECONDS = 0.2  # between looks at whether the search is to end
LOSSES = 3  # processes that may be lost before a search gives up
END_SECONDS = 10.0  # that a process has to end when it is told to


@dataclass(frozen=True)
class TrialJob:
    """A trial to train."""

    number: int  # of the trial in Optuna's study
    preset: str
    settings: dict[str, Any]  # on top of the preset


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended."""

    number: int
    value: float = 0.0  # the best valid metric
    epochs: int = 0
    seconds: float = 0.0
    stopped: str = ""  # what ended it, in the words of `TrainResult`
    error: str = ""  # why it failed by itself


class Conductor(Protocol):
    """The search, as those who train its trials know it."""

    def next_job(self) -> TrialJob | None:
        """The next trial; None = no more, at least until a trial ends."""

    def on_epoch(self, number: int, epoch: int, value: float) -> bool:
        """An epoch of a trial was validated; whether to end the trial."""

    def on_end(self, end: TrialEnd) -> None:
        """A trial ended."""

    def on_lost(self, number: int) -> None:
        """A trial came to nothing by no fault of its own; it is to be tried again."""

    def show(self, number: int, progress: Progress) -> None:
        """How far a trial is."""


class Trainers(Protocol):
    """Who trains trials."""

    size: int  # trials at a time

    def train(self, conductor: Conductor, metric: str) -> None:
        """Train what the search gives until it gives no more and all have ended.

        An interrupted search hears of trials that stopped by "interrupted".

        Raises:
            ConfigError: the settings of a trial cannot be.
            TrainingError: processes were lost again and again.
        """


def train_trial(
    log: Log,
    job: TrialJob,
    metric: str,
    report: Callable[[int, float], bool],
    show: Callable[[Progress], None] | None = None,
) -> TrialEnd:
    """Train one trial.

    Args:
        log: what it is trained on.
        job: which settings.
        metric: of valid; the trial's value is that of the best epoch.
        report: is told of each validated epoch and its metric; True ends the trial.
        show: is told of its progress.

    Raises:
        ConfigError: the settings cannot be.
    """

    class Reports:
        def on_epoch(self, line: EpochLine) -> bool:
            return line.valid is not None and report(line.epoch, line.valid[metric])

    began = time.monotonic()
    try:
        split, config = configure(log, job.preset, job.settings)
        engine = engine_for(config, split, log.vocabulary, None)
        set_threads(engine.threads)
        callbacks = Callbacks([Reports()])
        result = train(engine, split, config.model, config.train, config.eval, progress=show, callbacks=callbacks)
    except TrainingError as error:
        return TrialEnd(job.number, error=str(error))
    value, seconds = result.valid.get(metric, 0.0), time.monotonic() - began
    return TrialEnd(job.number, value, result.epochs, seconds, result.stopped)


class OneByOne:
    """Trials in this process.

    Args:
        log: what is trained on.
    """

    size = 1

    def __init__(self, log: Log) -> None:
        self.log = log

    def train(self, conductor: Conductor, metric: str) -> None:
        """One trial after the other."""
        while (job := conductor.next_job()) is not None:
            number = job.number

            def report(epoch: int, value: float, number: int = number) -> bool:
                return conductor.on_epoch(number, epoch, value)

            def show(progress: Progress, number: int = number) -> None:
                conductor.show(number, progress)

            conductor.on_end(train_trial(self.log, job, metric, report, show))


@contextlib.contextmanager
def shared_log(log: Log, folder: Path) -> Iterator[Path]:
    """A prepared folder of the log that all trials map, while inside."""
    path = folder / "log"
    shutil.rmtree(path, ignore_errors=True)  # of a search that was killed
    try:
        with RunFolder.claim(path) as prepared:
            prepared.save_data(log.vocabulary, log.sequences)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def share_of(settings: Mapping[str, Any], size: int, cpus: int | None = None) -> dict[str, Any]:
    """The settings of one of several trials at a time: its share of the threads."""
    threads = settings.get("threads") or cpus or usable_cpus()
    return {**settings, "threads": max(1, threads // size)}


class SideBySide:
    """Trials in processes beside this one, each with its share of the threads.

    Args:
        log: what is trained on.
        folder: of the search; the log that the processes map lies in it meanwhile.
        size: processes.
    """

    def __init__(self, log: Log, folder: Path, size: int) -> None:
        self.log, self.folder, self.size = log, folder, size

    def train(self, conductor: Conductor, metric: str) -> None:
        """As many trials at a time as there are processes."""
        with shared_log(self.log, self.folder) as path, interruptible() as asked:
            pool = _Pool(path, metric)
            try:
                while not asked.is_set() and (self._begin(pool, conductor) or pool.busy):
                    n_busy = len(pool.busy)
                    while len(pool.busy) == n_busy and not asked.is_set():  # only an end makes room
                        pool.hear(conductor)
                for number in list(pool.busy.values()) if asked.is_set() else []:
                    conductor.on_end(TrialEnd(number, stopped="interrupted"))
            finally:
                pool.end()

    def _begin(self, pool: _Pool, conductor: Conductor) -> bool:
        """Begin trials while processes are free; whether one began."""
        began = False
        while len(pool.busy) < self.size and (job := conductor.next_job()) is not None:
            pool.begin(TrialJob(job.number, job.preset, share_of(job.settings, self.size)))
            began = True
        return began


class _Pool:
    """Processes that train trials; one that is free is used again."""

    def __init__(self, log: Path, metric: str) -> None:
        self.log, self.metric = log, metric
        self.free: list[_Process] = []
        self.busy: dict[_Process, int] = {}  # to the number of its trial
        self.told: queue.SimpleQueue[tuple[_Process, str]] = queue.SimpleQueue()
        self.n_lost = 0

    def begin(self, job: TrialJob) -> None:
        """Begin a trial."""
        process = self.free.pop() if self.free else _Process(self.log, self.metric, self.told)
        self.busy[process] = job.number
        process.tell({**asdict(job), "settings": {name: plain(value) for name, value in job.settings.items()}})

    def hear(self, conductor: Conductor) -> None:
        """Pass on what a process tells, or wait a while."""
        try:
            process, line = self.told.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            return
        number = self.busy.get(process)
        if number is None:
            return
        told = json.loads(line) if line.endswith("\n") else {}
        if "epoch" in told:
            process.tell(conductor.on_epoch(number, told["epoch"], told["value"]))
        elif "progress" in told:
            conductor.show(number, Progress(**told["progress"]))
        elif "end" in told:
            del self.busy[process]
            self.free.append(process)
            conductor.on_end(TrialEnd(**told["end"]))
        elif "refused" in told:
            raise ConfigError(told["refused"])
        else:
            self._lose(process, conductor)

    def _lose(self, process: _Process, conductor: Conductor) -> None:
        self.n_lost += 1
        number, code = self.busy.pop(process), process.end()
        if self.n_lost > LOSSES:
            raise TrainingError(f"processes of trials were lost again and again, the last one with exit code {code}")
        logger.warning("the process of a trial was lost (exit code %d); the trial is tried again", code)
        conductor.on_lost(number)

    def end(self) -> None:
        """End all processes."""
        for process in (*self.busy, *self.free):
            process.end()


class _Process:
    """A process that trains one trial after the other; what it tells comes into a queue, an empty line at its end."""

    def __init__(self, log: Path, metric: str, told: queue.SimpleQueue[tuple[_Process, str]]) -> None:
        package = str(Path(__file__).parents[2])
        found = os.environ.get("PYTHONPATH")
        self.child = subprocess.Popen(
            [sys.executable, "-m", PROCESS, str(log), metric],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": package if not found else f"{package}{os.pathsep}{found}"},
        )
        self.listener = threading.Thread(target=self._listen, args=(told,), daemon=True)
        self.listener.start()

    def _listen(self, told: queue.SimpleQueue[tuple[_Process, str]]) -> None:
        assert self.child.stdout is not None
        with self.child.stdout as lines:
            for line in lines:
                told.put((self, line))
        told.put((self, ""))

    def tell(self, what: Any) -> None:
        """Write a line to it; where it has ended, that is heard of by its silence."""
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.write(json.dumps(what) + "\n")
            self.child.stdin.flush()

    def end(self) -> int:
        """Have it end; its exit code."""
        self.child.terminate()
        try:
            code = self.child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            code = self.child.wait()
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()
        self.listener.join()
        return code

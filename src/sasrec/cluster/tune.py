"""Trials of a search on the machines of a cluster: each worker maps the log and trains one trial after the other.

Optuna's study stays with the command. Whether a trial is to end early travels by a board, so it may train an epoch
more.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from sasrec.cluster.connection import LOOK_SECONDS, RETRIES, Cluster
from sasrec.data.logs import Log, load_log
from sasrec.experiments.trial_workers import Conductor, TrialEnd, TrialJob, share_of, shared_log, train_trial
from sasrec.training.interrupts import interruptible
from sasrec.training.progress import Progress


class TrialBoard:
    """Where workers and the search leave what the other should know; Ray makes an actor of it."""

    def __init__(self) -> None:
        self.epochs: list[tuple[int, int, float]] = []  # trial, epoch, valid metric
        self.progress: dict[int, Progress] = {}
        self.ended: set[int] = set()

    def report(self, number: int, epoch: int, value: float) -> bool:
        """An epoch of a trial was validated; whether to end the trial, as far as is known."""
        self.epochs.append((number, epoch, value))
        return number in self.ended

    def show(self, number: int, progress: Progress) -> None:
        """How far a trial is."""
        self.progress[number] = progress

    def news(self) -> tuple[list[tuple[int, int, float]], dict[int, Progress]]:
        """What has come since the last time."""
        epochs, progress, self.epochs, self.progress = self.epochs, self.progress, [], {}
        return epochs, progress

    def end(self, number: int) -> None:
        """Wish a trial to end."""
        self.ended.add(number)


class TrialWorker:
    """A process of the cluster that trains trials; Ray makes an actor of it.

    Args:
        log: the prepared folder, which all machines see.
        metric: of valid.
        board: the actor that knows which trials are to end.
    """

    def __init__(self, log: Path, metric: str, board: Any) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)  # of Ray; the engine takes the threads it is given
        self.log, self.metric, self.board = load_log(log), metric, board

    def train(self, job: TrialJob) -> TrialEnd:
        """Train one."""
        import ray

        def report(epoch: int, value: float) -> bool:
            return bool(ray.get(self.board.report.remote(job.number, epoch, value)))

        def show(progress: Progress) -> None:
            self.board.show.remote(job.number, progress)

        return train_trial(self.log, job, self.metric, report, show)


class ClusterTrainers:
    """Workers of a cluster that train trials; see `experiments.trial_workers.Trainers`.

    Args:
        cluster: trains.
        log: what is trained on.
        folder: of the search, which all machines see; the log that workers map lies in it meanwhile.
    """

    def __init__(self, cluster: Cluster, log: Log, folder: Path) -> None:
        self.cluster, self.log, self.folder = cluster, log, folder.absolute()
        self.size = cluster.workers or cluster.n_cpus

    def train(self, conductor: Conductor, metric: str) -> None:
        """As many trials at a time as there are workers."""
        cluster, ray = self.cluster, self.cluster.ray
        threads = max(1, cluster.n_cpus // self.size)
        begin = ray.remote(num_cpus=threads, max_restarts=RETRIES, max_task_retries=RETRIES)(TrialWorker).remote
        board = ray.remote(num_cpus=0)(TrialBoard).remote()
        busy: dict[Any, tuple[int, Any]] = {}
        free: list[Any] = []
        with shared_log(self.log, self.folder) as path, interruptible() as asked:
            while not asked.is_set():
                while len(busy) < self.size and (job := conductor.next_job()) is not None:
                    worker = free.pop() if free else begin(path, metric, board)
                    settings = share_of(job.settings, self.size, cluster.n_cpus)
                    busy[worker.train.remote(replace(job, settings=settings))] = job.number, worker
                if not busy:
                    return
                done: list[Any] = []
                while not done and not asked.is_set():
                    done = ray.wait(list(busy), num_returns=1, timeout=LOOK_SECONDS)[0]
                    self._hear(conductor, board)
                for reference in done:
                    free.append(busy.pop(reference)[1])
                    conductor.on_end(cluster.result(reference))
            for number, worker in busy.values():
                ray.kill(worker)
                conductor.on_end(TrialEnd(number, stopped="interrupted"))

    def _hear(self, conductor: Conductor, board: Any) -> None:
        epochs, progress = self.cluster.ray.get(board.news.remote())
        for number, epoch, value in epochs:
            if conductor.on_epoch(number, epoch, value):
                board.end.remote(number)
        for number, shown in progress.items():
            conductor.show(number, shown)

"""Lists of many users that several machines compute: each worker has the model, and takes one part after the other."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sasrec.cluster.connection import LOOK_SECONDS, RETRIES, Cluster
from sasrec.core.errors import CheckpointError
from sasrec.export.all_users import PartWork, Rows, write_whole
from sasrec.recommender import load


class ClusterMakers:
    """Workers that compute parts; see `export.all_users.Makers`.

    Args:
        cluster: does the work.
        run: the folder of the model, which all machines see.
    """

    def __init__(self, cluster: Cluster, run: Path) -> None:
        self.cluster, self.run = cluster, run

    def made(self, work: PartWork, parts: Sequence[tuple[Rows, Path]]) -> Iterator[tuple[int, Path]]:
        """Each part, as soon as it is there."""
        cluster, ray = self.cluster, self.cluster.ray
        n_workers = min(cluster.workers or cluster.n_cpus, len(parts))
        threads = max(1, cluster.n_cpus // max(n_workers, 1))
        begin = ray.remote(num_cpus=threads, max_restarts=RETRIES, max_task_retries=RETRIES)(PartWorker).remote
        told, waiting = ray.put(work), list(enumerate(parts))[::-1]
        busy: dict[Any, tuple[int, Any]] = {}
        free = [begin(self.run, told, threads) for _ in range(n_workers)]
        while busy or waiting:
            while free and waiting:
                worker, (at, (rows, path)) = free.pop(), waiting.pop()
                busy[worker.write.remote(rows, path)] = at, worker
            for reference in ray.wait(list(busy), num_returns=1, timeout=LOOK_SECONDS)[0]:
                at, worker = busy.pop(reference)
                free.append(worker)
                yield at, cluster.result(reference)


class PartWorker:
    """A process of the cluster that has the model; Ray makes an actor of it.

    Args:
        run: the folder of the model.
        work: what is computed of each part.
        threads: of this process.

    Raises:
        CheckpointError: it is another model by now.
    """

    def __init__(self, run: Path, work: PartWork, threads: int) -> None:
        self.recommender, self.work = load(run, threads=threads), work
        if self.recommender.model_version != work.model_version:
            raise CheckpointError(f"{run} has changed meanwhile; run the command again")

    def write(self, rows: Rows, path: Path) -> Path:
        """Write the lists of some users beside their place; the file that has them."""
        own = path.with_name(f"{path.stem}-{uuid.uuid4().hex}{path.suffix}")
        write_whole(self.work.frame(self.recommender, rows), own)
        return own

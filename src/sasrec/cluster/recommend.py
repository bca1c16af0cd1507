"""Lists of many users that several machines compute: each worker has the model, and takes one part after the other."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sasrec.cluster.connection import LOOK_SECONDS, RETRIES, Cluster
from sasrec.core.errors import CheckpointError
from sasrec.export.all_users import Listing, Made, Part
from sasrec.recommender import load


class ClusterMakers:
    """Workers that compute parts; see `export.all_users.Makers`.

    Args:
        cluster: does the work.
        run: the folder of the model, which all machines see.
    """

    def __init__(self, cluster: Cluster, run: Path) -> None:
        self.cluster, self.run = cluster, run

    def made(self, listing: Listing, parts: Sequence[Part], folder: Path) -> Iterator[Made]:
        """Each part, as soon as its file is there."""
        cluster, ray = self.cluster, self.cluster.ray
        n_workers = min(cluster.workers or cluster.n_cpus, len(parts))
        threads = max(1, cluster.n_cpus // max(n_workers, 1))
        begin = ray.remote(num_cpus=threads, max_restarts=RETRIES, max_task_retries=RETRIES)(PartWorker).remote
        told, waiting = ray.put(replace(listing, users=None)), list(parts)[::-1]  # a part has its own users
        free = [begin(self.run, told, folder.absolute(), threads) for _ in range(n_workers)]
        busy: dict[Any, tuple[Part, Any]] = {}
        while busy or waiting:
            while free and waiting:
                worker, part = free.pop(), waiting.pop()
                busy[worker.write.remote(part)] = part, worker
            for reference in ray.wait(list(busy), num_returns=1, timeout=LOOK_SECONDS)[0]:
                part, worker = busy.pop(reference)
                free.append(worker)
                yield Made(part, folder / cluster.result(reference))


class PartWorker:
    """A process of the cluster that has the model; Ray makes an actor of it.

    Args:
        run: the folder of the model.
        listing: what is computed.
        folder: of the parts.
        threads: of this process.

    Raises:
        CheckpointError: it is another model by now.
    """

    def __init__(self, run: Path, listing: Listing, folder: Path, threads: int) -> None:
        self.recommender, self.listing, self.folder = load(run, threads=threads), listing, folder
        if self.recommender.model_version != listing.plan.model_version:
            raise CheckpointError(f"{run} has changed meanwhile; run the command again")

    def write(self, part: Part) -> str:
        """Write the lists of some users beside their place; the name of the file that has them.

        Each try has a file of its own: a worker that was taken for lost may still write.
        """
        path = (self.folder / part.name).with_stem(f"{Path(part.name).stem}-{uuid.uuid4().hex}")
        self.listing.write_part(self.recommender, part.rows, path)
        return path.name

"""Our side of the benchmarks. In: requests of harness.Session; out: seconds, metrics, memory."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from harness import Answer, latency, memory_mib, seconds_of, serve, whole

from sasrec.core.config import Protocol, to_dict
from sasrec.core.provenance import isa_of, versions
from sasrec.core.threads import set_threads
from sasrec.data.batches import TrainBatches
from sasrec.data.logs import load_log
from sasrec.data.splits import Split, split_sequences
from sasrec.data.targets import Targets
from sasrec.engine.protocol import create_engine
from sasrec.evaluation.protocols import evaluate
from sasrec.export.all_users import PART_USERS, recommend_all
from sasrec.fitting import FitOptions, configure, fit_log
from sasrec.ranking.scorers import ModelScorer
from sasrec.recommender import Recommender
from sasrec.runs.folder import RunFolder
from sasrec.training.progress import Progress
from sasrec.training.trainer import train

N_CANDIDATES = 101  # the target and 100 negatives, as the published evaluation scores them


class Ours:
    """The package on one log with one configuration.

    Args:
        setup: data, preset, engine, threads and settings, as harness.Session sends them.
    """

    def __init__(self, setup: Answer) -> None:
        self.data, self.preset = setup["data"], setup["preset"]
        self.settings = {"engine": setup["engine"], "threads": setup["threads"], **setup["settings"]}
        self.log = load_log(self.data)
        self.sequences, self.vocabulary = self.log.sequences, self.log.vocabulary
        self.split, self.config = configure(self.log, self.preset, self.settings)
        self.engine = create_engine(self.config.model, len(self.vocabulary), self.config.train)
        set_threads(self.engine.threads)
        self.batches = TrainBatches(self.split, self.config.model, self.config.train)
        self.epochs = 0

    def about(self) -> Answer:
        """What runs here."""
        return {
            "engine": self.engine.name,
            "isa": isa_of(self.engine),
            "versions": versions(),
            "settings": {**to_dict(self.config.model), **to_dict(self.config.train), "k": list(self.config.eval.k)},
        }

    def load(self, source: str | None = None) -> Answer:
        """Read a log, or a folder from `prepare`, to sequences and their split."""
        return {"seconds": seconds_of(lambda: self._load(source or self.data))}

    def _load(self, source: str) -> Split:
        return split_sequences(load_log(source).sequences, self.config.eval)

    def prepare(self, folder: str) -> Answer:
        """Write the folder that `load` maps."""
        run = RunFolder.create(Path(folder))
        return {"seconds": seconds_of(lambda: run.save_data(self.vocabulary, self.sequences))}

    def train(self, steps: int | None = None, epochs: int = 1) -> Answer:
        """Mean seconds of an epoch, or of its first steps: batches, gradients, Adam, and the loss at the end."""
        steps = min(steps or self.batches.steps_per_epoch, self.batches.steps_per_epoch)
        seconds = seconds_of(lambda: self._train(steps), epochs)
        return {"seconds": seconds / epochs, "steps": steps, "steps_per_epoch": self.batches.steps_per_epoch}

    def work(self) -> Answer:
        """Arithmetic of an epoch in GFLOP, memory that dense Adam moves in GB, and positions; see roofline.py."""
        model = self.config.model
        lengths = np.minimum((self.batches.ends - self.batches.starts)[self.batches.users] - 1, model.max_seq_len)
        n, dim, hidden = int(lengths.sum()), model.embedding_dim, model.ffn_dim or model.embedding_dim
        matrices = (
            4 * dim**2 + (3 if model.block == "ligr" else 2) * dim * hidden + 2 * dim**2 * (model.block == "ligr")
        )
        attention = 2 * dim * float((lengths * (lengths + 1) / 2).sum())  # multiply-adds of scores and of mixing
        scores = n * dim * (1 + self.config.train.n_negatives)
        forward = model.n_blocks * (n * matrices + attention) + scores
        values = sum(w.size for w in self.engine.weights().values())
        moved = 4 * values * 6 * self.batches.steps_per_epoch  # p, m and v, read and written
        return {"gflop": 3 * 2 * forward / 1e9, "adam_gb": moved / 1e9, "positions": n}

    def _train(self, steps: int) -> float:
        for batch in islice(self.batches.epoch(self.epochs), steps):
            self.engine.forward_backward(batch)
            self.engine.optimizer_step(self.engine.train_config.learning_rate)
        self.epochs += 1
        return self.engine.pop_loss()

    def evaluate(self, protocol: Protocol, users: int | None = None) -> Answer:
        """Seconds to rank the test targets, draws and metrics included, of all users or the first few."""
        split = replace(self.split, test=_first(self.split.test, users))
        config = replace(self.config.eval, protocol=protocol)
        began = time.perf_counter()
        scorer = ModelScorer(self.engine, self.config.model.max_seq_len)
        result = evaluate(scorer, split, "test", config, baselines=False)
        seconds = time.perf_counter() - began
        metrics = {name: result.metrics[name]["value"] for name in ("ndcg@10", "hr@10") if name in result.metrics}
        return {"seconds": seconds, "n_users": result.n_users, "metrics": metrics}

    def score_user(self, n: int) -> Answer:
        """Seconds to score the candidates of one user, over n users."""
        recommender, ids, rng = self._recommender(), self.vocabulary.item_ids, np.random.default_rng(0)
        requests = [
            (history, ids.gather(rng.integers(0, len(ids), N_CANDIDATES)).to_list()) for history in self._histories(n)
        ]
        return latency(lambda request: recommender.score([request[0]], request[1]), requests)

    def recommend_user(self, n: int) -> Answer:
        """Seconds to find the top 10 of all items for one user, over n users."""
        recommender = self._recommender()
        return latency(lambda history: recommender.recommend([history], k=10), self._histories(n))

    def recommend_users(self, users: int | None = None) -> Answer:
        """Seconds until all users, or the first few, have their top 10, as parts of `recommend_all`."""
        recommender, n = self._recommender(), min(users or len(self.sequences), len(self.sequences))
        parts = [slice(start, min(start + PART_USERS, n)) for start in range(0, n, PART_USERS)]
        return {"seconds": seconds_of(lambda: [recommender.recommend_rows(rows, 10) for rows in parts]), "n_users": n}

    def recommend_all(self, users: int | None = None) -> Answer:
        """Seconds until the lists of all users, however few are asked for, lie in a Parquet file."""
        with tempfile.TemporaryDirectory() as folder:
            summary = recommend_all(self._recommender(), Path(folder) / "lists.parquet", 10)
        seconds = summary.seconds + summary.seconds_writing
        return {"seconds": seconds, "n_users": summary.n_users, "seconds_writing": summary.seconds_writing}

    def _recommender(self) -> Recommender:
        return Recommender(self.engine, self.vocabulary, self.config, self.sequences)

    def _histories(self, n: int) -> list[list[Any]]:
        """Histories of n test users, in the log's own ids."""
        chosen = np.random.default_rng(0).choice(len(self.split.test), n)
        targets = Targets(self.split.test.users[chosen], self.split.test.positions[chosen])
        histories = targets.histories(self.sequences)
        return [self.vocabulary.ids_of(histories.row(i)).to_list() for i in range(n)]

    def fit(self) -> Answer:
        """Train as `sasrec train` does, with the epoch chosen by valid, and measure."""
        recommender = whole(fit_log(self.log, FitOptions(self.preset), self.settings), "training", "it has no figures")
        result = recommender.train_result
        assert result is not None
        return {
            "results": [result.to_dict() for result in recommender.results],
            "train_seconds": result.seconds,
            "best_epoch": result.best_epoch,
            "epochs": result.epochs,
        }

    def train_epochs(self, epochs: int, max_steps: int | None = None) -> Answer:
        """Train and validate as `sasrec train` does; resident memory and seconds at the end of each epoch.

        Args:
            epochs: how many.
            max_steps: of each epoch; the split keeps only as many users as they need.
        """
        split = self.split if max_steps is None else _first_users(self.split, max_steps * self.config.train.batch_size)
        config = replace(self.config.train, max_epochs=epochs, patience=0)
        memory: list[float | None] = []

        def at_the_end_of_an_epoch(progress: Progress) -> None:
            if progress.valid is not None:
                memory.append(memory_mib())

        result = train(self.engine, split, self.config.model, config, self.config.eval, progress=at_the_end_of_an_epoch)
        seconds = [line.seconds for line in result.history]
        return {"rss_mib": memory, "seconds": seconds, "peak_rss_mib": memory_mib("VmHWM")}


def _first(targets: Targets, n: int | None) -> Targets:
    return Targets(targets.users[:n], targets.positions[:n])


def _first_users(split: Split, n: int) -> Split:
    """The split with nothing to train on or to predict beyond the first n users."""
    train_ends = split.train_ends.copy()
    train_ends[n:] = split.sequences.offsets[:-1][n:]
    valid, test = (_first(part, int(np.searchsorted(part.users, n))) for part in (split.valid, split.test))
    return Split(split.sequences, train_ends, valid, test, split.method)


if __name__ == "__main__":
    serve(Ours)

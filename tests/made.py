"""Small made logs, a scorer with given scores and a result, for tests of evaluation and of what is told of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.data.batches import TrainBatches
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged
from sasrec.data.sampling import generator
from sasrec.data.sequences import LogFacts, build_sequences
from sasrec.data.splits import Split, split_leave_one_out
from sasrec.data.vocabulary import Vocabulary
from sasrec.evaluation.intervals import Estimate, without_interval
from sasrec.evaluation.results import Result
from sasrec.model.weights import ITEM_TABLE, OUTPUT_TABLE, Weights, initial_weights
from sasrec.runs.record import EpochLine, TrainingFacts

SETTINGS: dict[str, Any] = {  # of runs that take a moment
    "embedding_dim": 8, "n_blocks": 1, "max_seq_len": 8, "max_epochs": 2, "batch_size": 32, "threads": 1,
}  # fmt: skip
OVERRIDES = {name: value for name, value in SETTINGS.items() if name != "threads"}  # what a line tells of them


def make_split(histories: list[list[int]]) -> tuple[Split, Vocabulary]:
    """Leave-one-out of users 1, 2, ... with these items."""
    users = [u for u, items in enumerate(histories, 1) for _ in items]
    log = pl.DataFrame({"user_id": users, "item_id": [i for items in histories for i in items]})
    sequences, vocabulary = build_sequences(log)
    return split_leave_one_out(sequences), vocabulary


def make_batches(
    split: Split, max_seq_len: int, batch_size: int, n_negatives: int, seed: int = 0, **train: Any
) -> TrainBatches:
    """Batches by plain numbers; 0 negatives are those of cross-entropy."""
    drawn = {"n_negatives": n_negatives} if n_negatives else {"loss": "cross_entropy"}
    return TrainBatches(
        split, ModelConfig(max_seq_len=max_seq_len), TrainConfig(batch_size=batch_size, seed=seed, **drawn, **train)
    )


def random_histories(seed: int, n_users: int, n_items: int, longest: int = 12) -> list[list[int]]:
    """Histories of 3 and more items, without repeats where the catalogue allows it; every item occurs."""
    rng = np.random.default_rng(seed)
    longest = max(3, min(longest, n_items))
    rows = [rng.permutation(n_items)[: rng.integers(3, longest + 1)] + 1 for _ in range(n_users)]
    return [row.tolist() for row in rows] + [list(range(1, n_items + 1))]


class Table:
    """Gives user row u of the evaluated part the scores of row u of a table; blocks must come in order."""

    name = "table"

    def __init__(self, table: NDArray[np.float32]) -> None:
        self.table, self.at = table, 0

    def scores(self, histories: Ragged) -> NDArray[np.float32]:
        self.at += len(histories)
        return self.table[self.at - len(histories) : self.at]

    def candidate_scores(self, histories: Ragged, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        return np.take_along_axis(self.scores(histories), candidates, axis=1)


ML_1M = LogFacts(999_611, 6040, 3416, 0.0, 0.0, 0, False, "f" * 32)


def estimate(value: float, stderr: float | None = 0.01) -> Estimate:
    if stderr is None:
        return without_interval(value)
    return Estimate(value=value, stderr=stderr, low=value - 2 * stderr, high=value + 2 * stderr)


def make_result(**changes: Any) -> Result:
    """A result on test by the full protocol, the model above both baselines."""
    result = Result(
        split="test",
        protocol="full",
        candidates="all 12 items",
        excluded="the user's items before the target, but not the target",
        ties="expected",
        seed=None,
        n_users=5,
        metrics={"ndcg@10": estimate(0.5), "hr@10": estimate(0.75), "coverage@10": estimate(0.625, None)},
        baselines={
            "popularity": {"ndcg@10": estimate(0.25), "hr@10": estimate(0.3), "coverage@10": estimate(0.1, None)},
            "last_item": {"ndcg@10": estimate(0.4), "hr@10": estimate(0.5)},
        },
        n_targets=5,
        n_cold=0,
        cold_share=0.0,
        filter_seen=True,
        split_method="leave_one_out",
        k=(10,),
        data="0" * 32,
    )
    return replace(result, **changes)


def make_line(**changes: Any) -> dict[str, Any]:
    """A line of a results file, as JSON has it: two seeds, on test by the full protocol."""
    line = {
        "split": "test", "split_method": "leave_one_out", "protocol": "full", "candidates": "all 12 items",
        "excluded": "nothing", "ties": "expected", "n_users": 9,
        "metrics": {"ndcg@10": {"mean": 0.5, "std": 0.01, "users_stderr": 0.03}, "hr@10": {"mean": 0.75, "std": None}},
        "baselines": {"popularity": {"ndcg@10": 0.25, "hr@10": 0.5}},
        "data": "ml-100k", "seeds": [0, 1], "train_seconds": 61.5, "best_epochs": [3, 5], "preset": "paper",
        "overrides": {}, "settings": {"k": [10]}, "fingerprint": "f" * 32, "engine": "native", "isa": "avx2",
        "threads": 2, "machine": "a machine", "versions": {"sasrec": "9.9"}, "commit": "0123abc",
        "command": "sasrec benchmark ml-100k",
    }  # fmt: skip
    return line | changes


def make_epoch(epoch: int, **changes: Any) -> EpochLine:
    """A line of history.jsonl, of an epoch that was not validated."""
    line = EpochLine(
        epoch=epoch,
        step=7 * epoch,
        train_loss=1 / 3,
        seconds=0.5,
        users_per_second=400.0,
        learning_rate=0.001,
        total_seconds=0.75 * epoch,
    )
    return replace(line, **changes)


def make_training(**changes: Any) -> TrainingFacts:
    """A training of three epochs, the second the best."""
    facts = TrainingFacts(
        best_epoch=2,
        epochs=3,
        seconds=61.5,
        stopped="max_epochs",
        engine="native",
        isa="avx2",
        threads=2,
        machine="a machine",
        versions={"sasrec": "9.9"},
        commit="0123abc",
    )
    return replace(facts, **changes)


SAMPLED = {
    "protocol": "sampled",
    "candidates": "the target and 100 items drawn uniformly with replacement",
    "excluded": "the user's train items",
    "seed": 42,
    "filter_seen": False,
}


def spread_weights(config: ModelConfig, n_items: int, seed: int = 0, size: float = 0.3) -> Weights:
    """Weights in which biases and norms matter too."""
    rng = np.random.default_rng(seed)
    weights = initial_weights(config, n_items, generator(seed))
    for name, value in weights.items():
        value += (size * rng.standard_normal(value.shape) / value.shape[-1] ** 0.5).astype(np.float32)
        if name in (ITEM_TABLE, OUTPUT_TABLE):
            value[0] = 0
    return weights


def make_features(n_items: int, n_features: int, vector_dim: int = 0, seed: int = 0) -> ItemFeatures:
    """Some features of items, of each third item none, and of each sixth no vector either."""
    rng = np.random.default_rng(seed)
    rows = [
        np.sort(rng.choice(n_features, rng.integers(1, min(n_features, 6) + 1), replace=False))
        if item % 3 and n_features
        else []
        for item in range(n_items + 1)
    ]
    vectors = 0.2 * rng.standard_normal((n_items + 1, vector_dim), np.float32)  # rows stay as large as without
    vectors[::6] = 0
    return ItemFeatures(Ragged.from_lists(rows), n_features, vectors if vector_dim else None)


def without(folder: Path, *packages: str) -> dict[str, str]:
    """The environment of a process in which these packages cannot be imported, as if they were not installed."""
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    for package in packages:
        (hidden / f"{package}.py").write_text("raise ModuleNotFoundError('not installed')")
    earlier = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{hidden}{os.pathsep}{earlier}" if earlier else str(hidden)}


def run_program(code: str, *arguments: object, timeout: float = 120) -> str:
    """What a program prints that runs in a process of its own; the processes it leaves are killed with it."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            printed, _ = process.communicate(timeout=timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0
    return printed


def make_shop_log(n_users: int = 500, n_items: int = 80, noise: float = 0.1, seed: int = 0) -> pl.DataFrame:
    """Users who look at one item after another, and sometimes buy what goes with the one they looked at last.

    After a view of item i comes a view of 7 i + 3 or, one time in five, a purchase of 11 i + 5 (mod n_items), and noise
    instead of either. A purchase tells nothing of the next one, for many views lie between. Each user buys five times.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int, str]] = []
    for user in range(1, n_users + 1):
        item, bought = int(rng.integers(n_items)), 0
        while bought < 5:
            buys = rng.random() < 0.2
            made_up = int(rng.integers(n_items)) if rng.random() < noise else None
            if buys:
                rows.append((user, (11 * item + 5) % n_items if made_up is None else made_up, "purchase"))
                bought += 1
            else:
                item = (7 * item + 3) % n_items if made_up is None else made_up
                rows.append((user, item, "view"))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "event"], orient="row")


def train_of(split: Split) -> Ragged:
    """Each user's train items, all of them."""
    return Ragged.cut(split.sequences.items, split.sequences.offsets[:-1], split.train_ends)

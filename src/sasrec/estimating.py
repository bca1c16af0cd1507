"""What a training will take, before it is begun: memory by what it is for, time by trying some of it.

Memory is computed from sizes. Time is measured: a few steps are trained and some targets ranked, and what that takes
is multiplied. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.threads import set_threads
from sasrec.data.batches import TrainBatches
from sasrec.data.logs import Log
from sasrec.data.splits import Split
from sasrec.engine.prefetch import batches_for
from sasrec.engine.protocol import Engine
from sasrec.evaluation.protocols import evaluate
from sasrec.fitting import FitOptions, configure, engine_for, origin_of
from sasrec.model.weights import ITEM_TABLE, OUTPUT_TABLE, weight_shapes
from sasrec.ranking.scorers import ModelScorer
from sasrec.runs.folder import RunConfig
from sasrec.training.steps import take_step

TRY_SECONDS = 3.0  # of steps, after the first two, which are slower
MOST_TRIED = 200  # steps
TRIED_TARGETS = 256
PROGRAM_BYTES = 180 * 2**20  # Python, NumPy, Polars and the core
ROW_BYTES = 28  # beside the weights of an item's row: the steps after which it stands, and its gradient's place
ITEM_BYTES = 120  # of an item's id in Python


@dataclass(frozen=True)
class Estimate:
    """What a training will take."""

    memory: dict[str, int]  # bytes by what they are for
    seconds_per_step: float
    steps_per_epoch: int
    seconds_per_valid: float  # of a validation; 0 without targets
    max_epochs: int
    seconds: float  # of all epochs with their validations, and of measuring at the end; patience may end it sooner
    max_minutes: float  # 0 = no limit

    @property
    def bytes(self) -> int:
        """Of all parts together: the peak, once the log is read."""
        return sum(self.memory.values())

    @property
    def is_limited(self) -> bool:
        """Whether max_minutes ends it."""
        return bool(self.max_minutes) and self.seconds >= 60 * self.max_minutes

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "bytes": self.bytes}


def estimate(log: Log, options: FitOptions, settings: Mapping[str, Any]) -> Estimate:
    """Estimate the training that `fit_log` would do with the same arguments.

    Raises:
        SASRecError: as `fit_log` would.
    """
    origin = origin_of(options)
    split, config = configure(log, options.preset, settings, origin)
    engine = engine_for(config, split, log.vocabulary, origin)
    set_threads(engine.threads)
    batches = TrainBatches(split, config.model, config.train)
    step = _seconds_per_step(engine, batches, config)
    valid, n_final = _seconds_per_valid(engine, split, config)
    train = config.train
    n_steps = train.max_epochs * batches.steps_per_epoch
    if train.max_steps:
        n_steps = min(n_steps, train.max_steps)
    n_epochs = -(-n_steps // batches.steps_per_epoch)
    seconds = step * n_steps + valid * (n_epochs // train.valid_every + n_final)
    if train.max_minutes:
        seconds = min(seconds, 60 * train.max_minutes)
    return Estimate(
        memory=_memory(log, split, config),
        seconds_per_step=step,
        steps_per_epoch=batches.steps_per_epoch,
        seconds_per_valid=valid,
        max_epochs=train.max_epochs,
        seconds=seconds,
        max_minutes=train.max_minutes,
    )


def _seconds_per_step(engine: Engine, batches: TrainBatches, config: RunConfig) -> float:
    """The mean over steps that are trained in some seconds."""
    began, n = time.perf_counter(), 0
    for n, batch in enumerate(batches_for(engine, batches.epoch(0)), 1):
        take_step(engine, batch, config.train, batches.steps_per_epoch)
        if n == 2 < batches.steps_per_epoch:
            engine.pop_loss()  # waits for a GPU, which works behind
            began = time.perf_counter()
        if n >= MOST_TRIED or (n > 2 and time.perf_counter() - began > TRY_SECONDS):
            break
    engine.pop_loss()
    return (time.perf_counter() - began) / (n - 2 if n > 2 else n)


def _seconds_per_valid(engine: Engine, split: Split, config: RunConfig) -> tuple[float, int]:
    """What a validation takes, and how many times as much the results at the end take: valid, test, two baselines."""
    targets = split.bounded("valid", config.eval).valid
    if not len(targets):
        return 0.0, 0
    n = min(len(targets), TRIED_TARGETS)
    some = replace(split, valid=targets.take(np.arange(n)))
    protocol = replace(config.eval, protocol=config.train.valid_protocol, valid_users=0)
    scorer = ModelScorer(engine, config.model.max_seq_len)
    evaluate(scorer, some, "valid", protocol, baselines=False, lists=False)  # the table is packed the first time
    began = time.perf_counter()
    evaluate(scorer, some, "valid", protocol, baselines=False, lists=False)
    return (time.perf_counter() - began) * len(targets) / n, 6


def _memory(log: Log, split: Split, config: RunConfig) -> dict[str, int]:
    """Bytes by what they are for."""
    n_items = split.sequences.n_items
    shapes = weight_shapes(config.model, n_items)
    tables = sum(4 * prod(shapes[name]) for name in {ITEM_TABLE, OUTPUT_TABLE} & set(shapes))
    weights = sum(4 * prod(shape) for shape in shapes.values())
    folded = tables if config.model.has_features else 0
    n_users = len(split.sequences)
    per_user = 8 * n_users  # an array of 8 bytes a user
    parts = [split.train_ends, split.valid.users, split.valid.positions, split.test.users, split.test.positions]
    vocabulary = log.vocabulary
    told = 0 if vocabulary.attributes is None else int(vocabulary.attributes.estimated_size())
    ids = int(split.sequences.user_ids.estimated_size())
    per_item = ITEM_BYTES + 12 + config.model.embedding_dim  # ids, counts, and a byte of each value while one user asks
    return {
        "program": PROGRAM_BYTES,
        "events": split.sequences.nbytes - split.sequences.offsets.nbytes,
        "users": ids + 4 * per_user + sum(map(_own_bytes, parts)),  # ends of rows, whose turn it is, who is measured
        "items": per_item * n_items + told,
        "weights": weights + folded,
        "moments": 2 * weights + ROW_BYTES * n_items,
        "average": weights if config.train.ema_decay else 0,
        "best weights": weights,
        "measuring": 2 * (4 * prod(shapes[ITEM_TABLE])),
    }


def _own_bytes(array: NDArray[Any]) -> int:
    return 0 if array.base is not None else array.nbytes

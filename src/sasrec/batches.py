"""Training batches. In: a Split; out: ragged Batch(inputs, targets, negatives), in a seeded order.

Shape legend: B batch, T real positions of all rows of a batch, N negatives, L max_seq_len.

A user with train items 4 8 6 9 gives   inputs  4 8 6
                                        targets 8 6 9    (the next item)
Random numbers are keyed by (seed, purpose, epoch or step), not drawn from a running stream: a resumed run, or one
that skips to a step, draws what an uninterrupted run would have drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sasrec.config import ModelConfig, TrainConfig
from sasrec.errors import DataError
from sasrec.sequences import Int32, Int64, Ragged, Split, flat_index

logger = logging.getLogger(__name__)

WEIGHTS, SHUFFLE, NEGATIVES, DROPOUT, CANDIDATES = range(5)  # purposes of random numbers
MASK_SHARE = 8  # keys per draw up to which a mask of all keys is made
MAX_REJECTIONS = 32  # rounds of rejection before drawing from the complement itself


def generator(seed: int, *key: int) -> np.random.Generator:
    """The generator of one purpose at one step: the same key always gives the same numbers."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, *key))))


@dataclass(frozen=True)
class Batch:
    """One training step's data."""

    users: Int64  # (B,) rows of Sequences
    inputs: Ragged  # B rows, T values
    targets: Int32  # (T,) the item that follows each input
    negatives: Int32  # (T, N) items the user has not got in train; (N,) any items, shared by all positions
    step: int  # counted over the whole run; keys the dropout masks

    def to_padded(self, max_seq_len: int) -> tuple[Int32, Int32, Int32]:
        """(seq, pos, neg), each (B, max_seq_len), zeros on the left, as the published sampler gives them.

        Longer rows keep their newest positions.

        Source: sample_function in utils.py of pmixer/SASRec.pytorch fde8a9c. `neg` is the first negative, if any.
        """
        rows = self.inputs.row_of
        columns = max_seq_len - self.inputs.offsets[1:][rows] + np.arange(len(rows))
        kept = columns >= 0
        padded = np.zeros((3, len(self.users), max_seq_len), np.int32)
        first = self.negatives[..., 0] if self.negatives.size else 0
        values = np.stack([self.inputs.values, self.targets, np.broadcast_to(first, len(rows))])
        padded[:, rows[kept], columns[kept]] = values[:, kept]
        return padded[0], padded[1], padded[2]


class TrainBatches:
    """Epochs of batches over the users that have at least two train items, each user once an epoch.

    Args:
        split: the log; only its train part is read.
        max_seq_len: inputs a user gives at most; the newest are kept.
        batch_size: users per step.
        n_negatives: negatives per position; 0 = none are drawn.
        seed: decides order and negatives.
        shared: a batch has one set of negatives, uniform over all items: what one user has, another has not.

    Raises:
        DataError: no user has two train items.
    """

    def __init__(
        self, split: Split, max_seq_len: int, batch_size: int, n_negatives: int, seed: int, shared: bool = False
    ) -> None:
        self.max_seq_len, self.batch_size, self.n_negatives, self.seed = max_seq_len, batch_size, n_negatives, seed
        self.shared = shared
        self.items, self.n_items = split.sequences.items, split.sequences.n_items
        starts = split.sequences.offsets[:-1]
        self.users = np.flatnonzero(split.train_ends - starts >= 2)
        if not len(self.users):
            raise DataError("no user has two events to train on; a longer log is needed")
        self.starts, self.ends = starts, split.train_ends
        self.steps_per_epoch = -(-len(self.users) // batch_size)
        self.positions_per_epoch = int(np.minimum((self.ends - starts)[self.users] - 1, max_seq_len).sum())

    @classmethod
    def of(cls, split: Split, model: ModelConfig, train: TrainConfig) -> TrainBatches:
        """The batches that a configuration trains on."""
        return cls(
            split, model.max_seq_len, train.batch_size, train.negatives_drawn, train.seed, train.shared_negatives
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), from its step `first_step` on."""
        order = generator(self.seed, SHUFFLE, epoch).permutation(self.users)
        for step in range(first_step, self.steps_per_epoch):
            users = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self._batch(users, epoch * self.steps_per_epoch + step)

    def _batch(self, users: Int64, step: int) -> Batch:
        ends = self.ends[users]
        starts = np.maximum(self.starts[users], ends - 1 - self.max_seq_len)
        inputs = Ragged.cut(self.items, starts, ends - 1)
        targets = self.items[flat_index(starts + 1, inputs.offsets)]
        return Batch(users, inputs, targets, self._negatives(users, inputs, step), step)

    def _negatives(self, users: Int64, inputs: Ragged, step: int) -> Int32:
        n = self.n_negatives
        if not n:
            return np.empty((len(inputs.values), 0), np.int32)
        rng = generator(self.seed, NEGATIVES, step)
        if self.shared:
            return rng.integers(1, self.n_items + 1, n, dtype=np.int32)
        train_items = Ragged.cut(self.items, self.starts[users], self.ends[users])
        return draw_outside(rng, np.repeat(inputs.row_of, n), train_items, self.n_items).reshape(-1, n)


def draw_outside(rng: np.random.Generator, rows: Int64, excluded: Ragged, n_items: int) -> Int32:
    """Uniform items, with replacement, that the row does not exclude.

    Args:
        rng: where the numbers come from.
        rows: (M,) which row of `excluded` each draw belongs to.
        excluded: items that row must not get. A row that excludes every item gets any item, and a warning is logged.
        n_items: items are 1..n_items.

    Returns:
        (M,) item indices.
    """
    keys = _unique_keys(excluded, n_items)
    full = np.bincount(keys // (n_items + 1), minlength=len(excluded)) >= n_items
    draws = rng.integers(1, n_items + 1, len(rows), dtype=np.int32)
    pending = np.arange(len(rows))
    if full.any():
        _warn_once(int(full.sum()))
        pending = pending[~full[rows]]
    n_keys = len(excluded) * (n_items + 1)
    mask = None
    if n_keys <= MASK_SHARE * len(rows):  # many draws: a look-up each costs less than a search
        mask = np.zeros(n_keys, bool)
        mask[keys] = True
    for _ in range(MAX_REJECTIONS):
        wanted = rows[pending] * (n_items + 1) + draws[pending]
        pending = pending[_contains(keys, wanted) if mask is None else mask[wanted]]
        if not len(pending):
            return draws
        draws[pending] = rng.integers(1, n_items + 1, len(pending), dtype=np.int32)
    for row in np.unique(rows[pending]):  # users who have nearly everything
        mine = pending[rows[pending] == row]
        free = np.setdiff1d(np.arange(1, n_items + 1, dtype=np.int32), excluded.row(row))
        draws[mine] = rng.choice(free, len(mine))
    return draws


def _unique_keys(excluded: Ragged, n_items: int) -> Int64:
    """Sorted unique row * (n_items + 1) + item."""
    keys = excluded.row_of * (n_items + 1) + excluded.values
    keys.sort()
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


def _contains(keys: Int64, wanted: Int64) -> NDArray[np.bool_]:
    """Which of `wanted` are among the sorted keys."""
    if not len(keys):
        return np.zeros(len(wanted), bool)
    place = np.searchsorted(keys, wanted)
    place[place == len(keys)] = 0
    found: NDArray[np.bool_] = keys[place] == wanted
    return found


_warned = False


def _warn_once(n_full: int) -> None:
    global _warned
    if not _warned:
        logger.warning("%d users have had every item; their negatives are drawn from all items", n_full)
        _warned = True

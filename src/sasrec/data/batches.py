"""Training batches: inputs, targets and negatives of some users, in an order that the seed decides.

Shape legend: B batch, T real positions of all rows of a batch, N negatives, L max_seq_len, V n_items + 1.

A user with train items 4 8 6 9 gives   inputs  4 8 6
                                        targets 8 6 9    (the next item)
Random numbers are keyed by (seed, purpose, epoch or step), not drawn from a running stream: a resumed run, or one
that skips to a step, draws what an uninterrupted run would have drawn.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sasrec.core.arrays import Bool, Float32, Int32, Int64
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import DataError
from sasrec.data.event_types import event_weights
from sasrec.data.ragged import Ragged, flat_index, offsets_of
from sasrec.data.sampling import (
    NEGATIVES,
    ORDER,
    SHUFFLE,
    WINDOWS,
    ItemDrawer,
    Numbering,
    Parts,
    draw_unseen,
    generator,
)
from sasrec.data.splits import Split

logger = logging.getLogger(__name__)

ORDER_SHARE = 0.5  # of the windows of a batch that order_noise is for
MOST_STEPS_AT_ONCE, DRAWN_AT_ONCE = 64, 2**16  # steps, and draws, that are made at once


@dataclass(frozen=True)
class Share:
    """Which part of a step's batch a process computes."""

    rank: int  # of the process
    weight: float  # of the whole batch: what losses are divided by
    is_first: bool  # whether what is counted once a step is counted here


@dataclass(frozen=True)
class Batch:
    """One training step's data."""

    users: Int64  # (B,) rows of Sequences
    inputs: Ragged  # B rows, T values
    targets: Int32  # (T,) the item that follows each input
    negatives: Int32  # (T, N) items the user has not got in train; (N,) any items, shared by all positions
    corrections: Float32  # (V,) what sampled_softmax adds to an item's score as a negative; (0,) without negatives
    step: int  # counted over the whole run; keys the dropout masks
    # B rows: train items before the inputs; None = seen items compete with targets, or cannot (a position's negatives)
    earlier: Ragged | None = None
    seen: Int32 | None = None  # (T,) beside earlier: the input where it counts as seen, else 0; None = all inputs do
    weights: Float32 | None = None  # (T,) how much each position counts in the loss, from 0; None = all 1
    candidates: Int32 | None = None  # (C,) ascending, the items that compete with a target; None = all
    share: Share | None = None  # which part of a step's batch this is, the rest of which others have; None = all of it

    def n_candidates(self, n_items: int) -> int:
        """How many of the items compete with a target."""
        return n_items if self.candidates is None else len(self.candidates)

    @property
    def total_weight(self) -> float:
        """The sum of the weights, which the loss is divided by; a step of 0 changes nothing."""
        return len(self.targets) if self.weights is None else float(self.weights.sum(dtype=np.float64))

    @property
    def counts_penalty(self) -> bool:
        """Whether a penalty on weights, which counts once a step, is part of this batch's loss."""
        return self.share is None or self.share.is_first

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

    Users none of whose positions can have a weight are left out. Negatives are drawn for positions of weight 0, too.

    Args:
        split: the log; only its train part is read.
        model: how many of a user's items are inputs; the newest are kept.
        train: batch size, seed, negatives, windows, order; see the fields of TrainConfig.

    Raises:
        DataError: no user has two train items, or no position has a weight.
        ConfigError: event_weights names a type that the log has not.
    """

    def __init__(self, split: Split, model: ModelConfig, train: TrainConfig) -> None:
        self.max_seq_len, self.batch_size, self.seed = model.max_seq_len, train.batch_size, train.seed
        self.n_negatives, self.shared = train.negatives_drawn, train.shared_negatives
        self.random_windows, self.order_noise = train.random_windows, train.order_noise
        # a position's own negatives are never seen items
        self.mask_seen = train.mask_seen and (self.shared or not self.n_negatives)
        self.split, self.items, self.n_items = split, split.sequences.items, split.sequences.n_items
        self.weights = event_weights(split.sequences, train.event_weights, split.target_types)
        starts = split.sequences.offsets[:-1]
        self.starts, self.ends = starts, split.train_ends
        self.users = np.flatnonzero(self.ends - starts >= 2)
        if not len(self.users):
            raise DataError("no user has two events to train on; a longer log is needed")
        if self.weights is not None:
            self.users = self.users[self._can_train(self.weights)]
        if not len(self.users):
            raise DataError(
                "no train event after a user's first has a weight above 0, so there is nothing to learn from; give "
                "--event-weights or --target-events that such events have"
            )
        self.seen = self._seen()
        self.steps_per_epoch = -(-len(self.users) // self.batch_size)
        by_popularity = train.negative_sampling == "popularity" and self.n_negatives
        counts = split.train_counts[1:] if by_popularity else None
        self.numbering = _numbering(split) if model.has_features else None
        if self.numbering is None:
            self.drawer = ItemDrawer(self.n_items, counts)
            self.corrections = log_corrections(self.n_items, self.n_negatives, self.shared, counts)
        else:
            n, counts = len(self.numbering.items), None if counts is None else counts[self.numbering.items - 1]
            self.drawer = ItemDrawer(n, counts)
            corrections = log_corrections(n, self.n_negatives, self.shared, counts)
            self.corrections = self.numbering.spread(corrections) if len(corrections) else corrections
        self.positions_per_epoch = int(np.minimum((self.ends - starts)[self.users] - 1, self.max_seq_len).sum())
        drawn = 1 if self.shared else max(1, self.n_negatives)  # of a position
        drawn_per_step = self.positions_per_epoch / self.steps_per_epoch * drawn
        self.steps_at_once = max(1, min(MOST_STEPS_AT_ONCE, int(DRAWN_AT_ONCE / drawn_per_step)))

    def _can_train(self, weights: Float32) -> Bool:
        """(n,) whether a window of each of the users can have a position with a weight."""
        starts, ends = self.starts[self.users], self.ends[self.users]
        first = starts + 1
        if not self.random_windows:
            first = np.maximum(first, ends - self.max_seq_len)
        before = np.zeros(len(weights) + 1, np.int64)
        np.cumsum(weights > 0, out=before[1:])
        can: Bool = before[ends] > before[first]
        return can

    def _seen(self) -> Parts:
        """The items of each user that are not drawn as its negatives."""
        if self.split.is_target is None:
            return Parts(self.items, self.starts, self.ends)
        rows = self.split.seen(self.starts, self.ends)
        return Parts(rows.values, rows.offsets[:-1], rows.offsets[1:])

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), from its step `first_step` on.

        Some steps are made at once: most of what a small step costs is NumPy's price of a call.
        """
        order = generator(self.seed, SHUFFLE, epoch).permutation(self.users)
        for first in range(first_step, self.steps_per_epoch, self.steps_at_once):
            last = min(first + self.steps_at_once, self.steps_per_epoch)
            users = order[first * self.batch_size : last * self.batch_size]
            yield from self._batches(users, epoch * self.steps_per_epoch + first)

    def _batches(self, users: Int64, first_step: int) -> Iterator[Batch]:
        """The batches of consecutive steps, of the users of all of them."""
        n = len(users)
        rows = [slice(i, min(i + self.batch_size, n)) for i in range(0, n, self.batch_size)]  # of each step
        steps = range(first_step, first_step + len(rows))
        starts, events, offsets = self._windows(users, rows, steps)
        window = Ragged(self.items[events], offsets)
        inputs = Ragged.cut(window.values, offsets[:-1], offsets[1:] - 1)
        place = flat_index(offsets[:-1] + 1, inputs.offsets)  # of each target in the windows
        targets = window.values[place]
        weights = None if self.weights is None else self.weights[events[place]]
        earlier = self.split.seen(self.starts[users], starts) if self.mask_seen else None
        seen = None
        if self.mask_seen and self.split.is_target is not None:
            seen = np.where(self.split.is_target[events[place - 1]], inputs.values, 0).astype(np.int32)
        step_ends = inputs.offsets[[r.stop for r in rows]]
        negatives = self._negatives(users, inputs, step_ends, steps)
        for i, (r, step) in enumerate(zip(rows, steps, strict=True)):
            mine = slice(step_ends[i - 1] if i else 0, step_ends[i])
            yield Batch(
                users[r],
                inputs.part(r),
                targets[mine],
                negatives[i],
                self.corrections,
                step,
                None if earlier is None else earlier.part(r),
                None if seen is None else seen[mine],
                None if weights is None or (weights[mine] == 1).all() else weights[mine],
                None if self.numbering is None else self.numbering.items,
            )

    def _windows(self, users: Int64, rows: Sequence[slice], steps: range) -> tuple[Int64, Int64, Int64]:
        """Where each user's window begins in the log, the events of all windows, and where among these each begins."""
        ends = self.ends[users]
        if self.random_windows:
            ends = np.concatenate([self._window_ends(users[r], step) for r, step in zip(rows, steps, strict=True)])
        starts = np.maximum(self.starts[users], ends - 1 - self.max_seq_len)
        offsets = offsets_of(ends - starts)
        events = flat_index(starts, offsets)
        if self.order_noise > 1:
            for r, step in zip(rows, steps, strict=True):
                first, last = offsets[r.start], offsets[r.stop]
                order = self._another_order(np.diff(offsets[r.start : r.stop + 1]), step)
                events[first:last] = events[first:last][order]
        return starts, events, offsets

    def _window_ends(self, users: Int64, step: int) -> Int64:
        """(B,) where each user's window ends: at its last train event, or anywhere that leaves it full."""
        rng = generator(self.seed, WINDOWS, step)
        first, last = self.starts[users] + self.max_seq_len + 1, self.ends[users]
        moved = (last > first) & (rng.random(len(users)) < self.random_windows)
        ends: Int64 = np.where(moved, rng.integers(first, np.maximum(first, last) + 1), last)
        return ends

    def _another_order(self, lengths: Int64, step: int) -> Int64:
        """An order of the events of windows of which half, at random, have noise on the place of each event.

        Logs tell little of what came first within a moment: of a day's purchases, of films rated one after another.
        """
        rng = generator(self.seed, ORDER, step)
        noise = self.order_noise * (rng.random(len(lengths)) < ORDER_SHARE)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        places = np.arange(len(rows)) + rng.random(len(rows)) * noise[rows]
        return np.lexsort((places, rows))

    def _negatives(self, users: Int64, inputs: Ragged, step_ends: Int64, steps: range) -> Sequence[Int32]:
        """Of each step what Batch.negatives says; `step_ends` are where the steps' positions end."""
        n = self.n_negatives
        if not n:
            return [np.empty((size, 0), np.int32) for size in np.diff(step_ends, prepend=0)]
        keys = [(self.seed, NEGATIVES, step) for step in steps]
        if self.shared:
            return [self._items_drawn(self.drawer.draw(generator(*key), n)) for key in keys]
        seen = Parts(self.seen.items, self.seen.starts[users], self.seen.ends[users])
        if self.numbering is not None:
            seen = self.numbering.numbers(seen)
        drawn = self._items_drawn(draw_unseen(keys, n * step_ends, n * inputs.lengths, seen, self.drawer))
        return np.split(drawn.reshape(-1, n), step_ends[:-1])

    def _items_drawn(self, drawn: Int32) -> Int32:
        return drawn if self.numbering is None else self.numbering.items_at(drawn)


def _numbering(split: Split) -> Numbering | None:
    """The items that have train events, numbered; None = all have.

    Features tell something of an item that nobody had yet. As a negative or a candidate it would only be pushed down.
    """
    trained = np.flatnonzero(split.train_counts).astype(np.int32)
    return None if len(trained) == split.sequences.n_items else Numbering(trained, split.sequences.n_items)


def checked_weight(batch: Batch) -> float:
    """The sum of a batch's weights, which a loss can be divided by.

    Raises:
        ValueError: there is none: a weight is negative or not a number, or all are 0.
    """
    total, weights = batch.total_weight, batch.weights
    if weights is not None and not ((weights >= 0).all() and 0 < total < math.inf):
        raise ValueError("weights of a batch must not be negative, and must have a positive sum")
    return total


def seen_candidates(batch: Batch, candidates: Int32) -> tuple[Int64, Int64]:
    """Which candidates do not compete at which positions: what the user had before the position or at it.

    The target of a position does, also if the user had it already.

    Args:
        batch: with `earlier`.
        candidates: (C,) item indices, shared by all positions; repeats allowed.

    Returns:
        (M,) positions, ascending, and (M,) columns of `candidates`.
    """
    assert batch.earlier is not None
    inputs, earlier = batch.inputs, batch.earlier
    items = np.concatenate([earlier.values, inputs.values if batch.seen is None else batch.seen])  # 0 is no candidate
    first = np.concatenate([inputs.offsets[:-1][earlier.row_of], np.arange(len(inputs.values))])
    last = inputs.offsets[1:][np.concatenate([earlier.row_of, inputs.row_of])]
    order = np.argsort(candidates, kind="stable")
    begin, end = (np.searchsorted(candidates, items, side, sorter=order) for side in ("left", "right"))
    event = np.repeat(np.arange(len(items)), end - begin)  # of each pair of an event and a candidate
    column = order[flat_index(begin, np.concatenate([[0], np.cumsum(end - begin)]))]
    lengths = (last - first)[event]
    positions = flat_index(first[event], np.concatenate([[0], np.cumsum(lengths)]))
    columns = np.repeat(column, lengths)
    keep = candidates[columns] != batch.targets[positions]
    positions, columns = positions[keep], columns[keep]
    by_position = np.argsort(positions, kind="stable")
    return positions[by_position], columns[by_position]


def log_corrections(n_items: int, n_negatives: int, shared: bool, counts: Int64 | None) -> Float32:
    """What sampled_softmax adds to the score of each item as a negative: the log of how many items it stands for.

    An item drawn with probability q comes n q times among n negatives, and so stands for 1 / (n q). Negatives of a
    position are drawn from the n_items - 1 that are not its target, shared ones from all. Only hits of the target are
    left out afterwards, so both make the sum of exp(score) over negatives an unbiased estimate of that over all items
    but the target (taking the user's own items, which positions do not draw, for average).

    Args:
        n_items: items are 1..n_items.
        n_negatives: of a position, or shared by a batch; 0 = none are drawn.
        shared: whether a batch shares them.
        counts: (n_items,) how likely each item is, in proportion; None = all the same.

    Returns:
        (n_items + 1,) corrections, 0 for padding and for what is never drawn; (0,) without negatives.

    Source: Bengio & Senecal 2008, equation 8.
    """
    if not n_negatives:
        return np.zeros(0, np.float32)
    corrections = np.zeros(n_items + 1, np.float32)
    if counts is None:
        corrections[1:] = math.log((n_items if shared else max(1, n_items - 1)) / n_negatives)
    else:
        drawn = counts > 0
        corrections[1:][drawn] = np.log(counts.sum() / (n_negatives * counts[drawn]))
    return corrections

"""What a log is like, found piece by piece, so that no piece need be all of it: order, repeats, ties, fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec.core.arrays import Int32, Int64
from sasrec.core.isa import load_native
from sasrec.data.ragged import Ragged

PIECE = 2**22  # events, or ids, that are looked at together
FEW_EVENTS = 3  # users with fewer only train


def row_slices(offsets: Int64, n: int = PIECE) -> Iterator[slice]:
    """Consecutive rows with at most n values together, or one row."""
    begin = 0
    while begin < len(offsets) - 1:
        end = int(np.searchsorted(offsets, offsets[begin] + n, side="right")) - 1
        yield slice(begin, max(end, begin + 1))
        begin = max(end, begin + 1)


def pieces(array: NDArray[Any], n: int = PIECE) -> Iterator[NDArray[Any]]:
    """An array in pieces, all of it."""
    return (array[begin : begin + n] for begin in range(0, len(array), n))


def order_by(index: Int32) -> Int64:
    """The stable order of indices from 0, such as the users of events."""
    return _order_of(index.astype(np.int64))


def order_and_counts(keys: Int32, n: int) -> tuple[Int64, Int64]:
    """The stable order of keys from 0 to n - 1, of which there are few, and how often each occurs."""
    module = load_native().module
    if module is None:
        return order_by(keys), np.bincount(keys, minlength=n)
    order, counts = np.empty(len(keys), np.int64), np.empty(n, np.int64)
    module.order_of(keys, order, counts)
    return order, counts


def _order_of(keys: Int64) -> Int64:
    """The stable order of numbers from 0, which are overwritten, of at most as many bits as places leave.

    A number and its place behind it are one number. To sort these is several times as fast as to sort places.
    """
    shift = len(keys).bit_length()
    keys <<= shift
    keys |= np.arange(len(keys))
    keys.sort()
    keys &= (1 << shift) - 1
    return keys


def _order_of_times(times: NDArray[Any]) -> Int64:
    """The stable order of times."""
    if times.dtype == np.int64 and int(times.max()) - int(times.min()) < 1 << (63 - len(times).bit_length()):
        return _order_of(times - times.min())
    order: Int64 = np.argsort(times, kind="stable")
    return order


def order_by_user(user_index: Int32, offsets: Int64, times: NDArray[Any] | None) -> Int64 | None:
    """The stable order of events by user, then time; None when they are in it already.

    Args:
        user_index: (n_events,) whose events they are.
        offsets: (n_users + 1,) where each user's begin, once they are in order.
        times: (n_events,) or None.
    """
    step = np.diff(user_index)
    if times is None:
        return None if (step >= 0).all() else order_by(user_index)
    if ((step > 0) | ((step == 0) & (np.diff(times) >= 0))).all():
        return None
    order = order_by(user_index)
    for rows in row_slices(offsets):
        events = order[offsets[rows.start] : offsets[rows.stop]]
        users, own = user_index[events], times[events]
        if not ((np.diff(own) >= 0) | (np.diff(users) > 0)).all():
            by_time = _order_of_times(own)
            events[:] = events[by_time[order_by(users[by_time] - users[0])]]
    return order


@dataclass
class Tally:
    """Counts of events in order, of whole users."""

    n_events: int = 0
    n_first: int = 0  # users that have events
    n_short: int = 0  # users with fewer than FEW_EVENTS
    n_repeats: int = 0  # events of an item that the user had before
    n_tied: int = 0  # events with the time of the user's event before

    def add(self, events: Ragged, times: NDArray[Any] | None, n_items: int) -> Tally:
        """Count further users."""
        lengths = events.lengths
        self.n_events += len(events.values)
        self.n_first += int((lengths > 0).sum())
        self.n_short += int((lengths < FEW_EVENTS).sum())
        self.n_repeats += n_repeats(events, n_items)
        if times is not None and len(times):
            same = times[1:] == times[:-1]
            begins = events.offsets[1:-1]
            same[begins[(begins > 0) & (begins < len(times))] - 1] = False  # across two users
            self.n_tied += int(same.sum())
        return self

    @property
    def after_first(self) -> int:
        """Events after a user's first, at least 1: what shares are of."""
        return max(self.n_events - self.n_first, 1)


def n_repeats(histories: Ragged, n_items: int) -> int:
    """How many events are of an item that the user had before."""
    found = 0
    for rows in row_slices(histories.offsets):
        some = histories.part(rows)
        keys = some.row_of * (n_items + 1) + some.values
        keys.sort()
        found += int((keys[1:] == keys[:-1]).sum())
    return found


def repeat_share(parts: Iterable[Ragged], n_items: int) -> float:
    """Of events after a user's first, how many are of an item that the user had before.

    Args:
        parts: the users' histories, some users at a time.
        n_items: items are 1..n_items.
    """
    after_first = repeated = 0
    for histories in parts:
        after_first += len(histories.values) - int((histories.lengths > 0).sum())
        repeated += n_repeats(histories, n_items)
    return repeated / max(after_first, 1)


def fingerprint(
    events: Iterable[Iterable[NDArray[Any]]],
    types: Iterable[NDArray[Any]] | None,
    weights: Iterable[NDArray[Any]] | None,
    ids: Iterable[pl.Series],
    names: Sequence[str],
) -> str:
    """A short hash of who had what, when and in which order; it does not depend on the version of Polars.

    Types and weights of events are told apart from times by a word before each; a log without any has none of these.

    Args:
        events: items, offsets and, if there are any, times; each in pieces.
        types: in pieces, or None.
        weights: in pieces, or None.
        ids: users and items.
        names: of types.
    """
    digest = hashlib.blake2b(digest_size=16)

    def take(array: Iterable[NDArray[Any]]) -> None:
        for piece in array:
            digest.update(np.ascontiguousarray(piece).data)

    for array in events:
        take(array)
    if types is not None:
        digest.update(json.dumps(["types", *names]).encode())
        take(types)
    if weights is not None:
        digest.update(b"weights")
        take(weights)
    for series in ids:
        if series.dtype == pl.String:
            parts = [series.slice(begin, PIECE) for begin in range(0, len(series), PIECE)]
            take(part.str.len_bytes().to_numpy() for part in parts)
            for part in parts:
                digest.update(str(part.str.join("")[0]).encode())
        else:
            take([series.to_numpy()])
    return digest.hexdigest()

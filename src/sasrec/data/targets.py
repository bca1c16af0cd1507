"""Events to predict, and which of a user's events after a point in time they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sasrec.core.arrays import Bool, Int32, Int64
from sasrec.core.config import TemporalTargets
from sasrec.data.ragged import Ragged, flat_index, offsets_of
from sasrec.data.sampling import USERS, generator
from sasrec.data.sequences import Sequences


@dataclass(frozen=True)
class Targets:
    """Events to predict: event `positions[i]` of Sequences.items belongs to user row `users[i]`."""

    users: Int64  # (n,) rows, ascending
    positions: Int64  # (n,)

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: Int64) -> Targets:
        """Some of them, in ascending order."""
        return Targets(self.users[rows], self.positions[rows])

    def without(self, events: Int64) -> Targets:
        """All but these events."""
        kept = ~np.isin(self.positions, events)
        return Targets(self.users[kept], self.positions[kept])

    @cached_property
    def n_users(self) -> int:
        """How many users have a target."""
        return int(np.count_nonzero(np.diff(self.users))) + 1 if len(self) else 0

    def sample(self, n_users: int, seed: int) -> Int64:
        """Rows of the targets of so many users, drawn with a seed, in their order; all rows if there are no more."""
        starts = np.flatnonzero(np.diff(self.users, prepend=-1))  # of each user's targets
        if len(starts) <= n_users:
            return np.arange(len(self))
        drawn = np.sort(generator(seed, USERS).choice(len(starts), n_users, replace=False))
        ends = np.append(starts[1:], len(self))
        return flat_index(starts[drawn], offsets_of(ends[drawn] - starts[drawn]))

    def items(self, sequences: Sequences) -> Int32:
        """(n,) the item indices to predict."""
        return np.asarray(sequences.items[self.positions])

    def histories(self, sequences: Sequences, last: int | None = None) -> Ragged:
        """What each user had before the target, oldest first; only the last few when `last` is given."""
        starts = sequences.offsets[self.users]
        if last is not None:
            starts = np.maximum(starts, self.positions - last)
        return Ragged.cut(sequences.items, starts, self.positions)


def chosen_targets(events: Int64, offsets: Int64, targets: TemporalTargets) -> Targets:
    """The first, the last or all of each user's events, as far as anything is before them.

    Where a user's first one has nothing before it, "first" has no target of that user.

    Args:
        events: (n,) positions of Sequences.items, ascending.
        offsets: (n_users + 1,) of all users.
        targets: which of them.
    """
    owners = np.searchsorted(offsets, events, side="right") - 1
    change = np.diff(owners) != 0
    if targets == "first":
        keep = np.concatenate([[True], change])[: len(events)]
    elif targets == "last":
        keep = np.concatenate([change, [True]])[-len(events) :] if len(events) else change
    else:
        keep = np.ones(len(events), bool)
    keep &= events > offsets[owners]
    return Targets(owners[keep], events[keep])


def last_before(ends: Int64, is_target: Bool | None) -> Int64:
    """(n,) the last event before each position that may be a target, of whatever user; -1 where there is none.

    Args:
        ends: (n,) positions of Sequences.items.
        is_target: (n_events,) which events may be; None = all.
    """
    if is_target is None:
        return ends - 1
    places = np.append(np.flatnonzero(is_target), -1)
    last: Int64 = places[np.searchsorted(places[:-1], ends) - 1]
    return last

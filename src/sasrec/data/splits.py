"""Cut a log into train, valid and test.

Leave-one-out of a user with items 2 2 7: train [2], valid target 2, test target 7.
Where only some types of events are targets, others are history, and nothing from the first target held out on trains.
With purchases as targets, 5 9 5! 3 7! 8 is: train [5 9], valid target 5 after 5 9, test target 7 after 5 9 5 3.
Temporal by user, with the cut in 4 6 | 2: train [4 6], test target 2; a validating user has valid target 6, no train.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Bool, Int64
from sasrec.core.config import EvalConfig, TemporalTargets
from sasrec.core.errors import ConfigError, DataError
from sasrec.core.presets import LogStatistics
from sasrec.core.suggestions import suggestion
from sasrec.data.event_types import are_of_types, types_in_words
from sasrec.data.facts import repeat_share
from sasrec.data.ragged import Ragged, flat_index, offsets_of
from sasrec.data.sampling import VALIDATING, generator
from sasrec.data.sequences import LogFacts, Sequences
from sasrec.data.targets import Targets, chosen_targets, last_before

REPEAT_THRESHOLD = 0.05  # above this share of next events that repeat an item, seen items are not hidden


@dataclass(frozen=True)
class Split:
    """One log cut into train, valid and test. A user's train part is items[offsets[u]:train_ends[u]]."""

    sequences: Sequences
    train_ends: Int64  # (n_users,)
    valid: Targets
    test: Targets
    method: str
    target_types: tuple[str, ...] = ()  # the types of events that are predicted; () = all
    n_seen: tuple[int, int] = (
        0,
        0,
    )  # targets of valid and test left out: the model that training began from knows them

    sampled_of: tuple[int, int] = (0, 0)  # users with targets of valid and test, where those here are a sample
    cut: float | None = None  # temporal_by_user: the time, in the log's unit, from which events are test; else None
    temporal_targets: TemporalTargets = "first"  # which events after a cut are targets; "first" also without a cut

    def part(self, name: str) -> Targets:
        """The targets of "valid" or "test".

        Raises:
            ConfigError: another name.
        """
        if name not in ("valid", "test"):
            raise ConfigError(f"split {name!r} is not one of valid, test{suggestion(name, ('valid', 'test'))}")
        return self.valid if name == "valid" else self.test

    def train_parts(self) -> Iterator[Ragged]:
        """Each user's train items, in parts of consecutive users: of a log larger than memory, one exists at a time.

        Rows of users without any are empty.
        """
        for users in self.sequences.parts():
            yield Ragged.cut(self.sequences.items, self.sequences.offsets[:-1][users], self.train_ends[users])

    @cached_property
    def train_counts(self) -> Int64:
        """(n_items + 1,) how often each item occurs in train; row 0 is padding."""
        counts = np.zeros(self.sequences.n_items + 1, np.int64)
        for part in self.train_parts():
            counts += np.bincount(part.values, minlength=len(counts))
        return counts

    @cached_property
    def repeat_share(self) -> float:
        """Of a user's train events after the first, how many are of an item that the user had before.

        As far as they are of types that are predicted.
        """
        if not self.sequences.facts.repeat_share:  # of all events
            return 0.0
        return repeat_share(self._seen_parts(self.train_ends), self.sequences.n_items)

    def _seen_parts(self, ends: Int64) -> Iterator[Ragged]:
        """What counts as seen of each user's events up to its end, in parts of consecutive users."""
        for users in self.sequences.parts():
            yield self.seen(self.sequences.offsets[:-1][users], ends[users])

    @cached_property
    def facts(self) -> LogFacts:
        """The log's facts, in which repeats are those of the types that are predicted."""
        if self.is_target is None:
            return self.sequences.facts
        share = repeat_share(self._seen_parts(self.sequences.offsets[1:]), self.sequences.n_items)
        return replace(self.sequences.facts, repeat_share=share)

    @cached_property
    def is_target(self) -> Bool | None:
        """(n_events,) whether an event is of a type that is predicted; None = all are."""
        return are_of_types(self.sequences, self.target_types)

    def seen(self, starts: Int64, ends: Int64) -> Ragged:
        """What counts as seen of the events starts[i]:ends[i]: the items of those of types that are predicted."""
        return seen_items(self.sequences, self.is_target, starts, ends)

    def is_train(self, events: Int64) -> Bool:
        """(n,) which of these events, positions of Sequences.items, are in a user's train part."""
        owners = np.searchsorted(self.sequences.offsets, events, side="right") - 1
        return events < self.train_ends[owners]

    @property
    def statistics(self) -> LogStatistics:
        """What presets may look at."""
        lengths = self.train_ends - self.sequences.offsets[:-1]
        return LogStatistics(
            n_users=len(self.sequences),
            n_items=self.sequences.facts.n_items,
            n_events=int(lengths.sum()),
            mean_train_len=float(lengths.mean()),
        )

    def bounded(self, part: str, config: EvalConfig) -> Split:
        """The same with no more users' targets in a part than the settings allow."""
        targets, n_users = self.part(part), config.users_of(part)
        if not n_users or targets.n_users <= n_users:
            return self
        rows = targets.sample(n_users, config.eval_seed)
        valid, test = self.sampled_of
        if part == "valid":
            return replace(self, valid=targets.take(rows), sampled_of=(valid or targets.n_users, test))
        return replace(self, test=targets.take(rows), sampled_of=(valid, test or targets.n_users))

    def drawn_as(self, other: Split) -> Split:
        """The same test targets beside what trains and validates in another split, where both have the same cut.

        Then they differ in the users drawn to validate, who are those of the other.
        """
        if self.cut is None or self.cut != other.cut:
            return self
        return replace(self, train_ends=other.train_ends, valid=other.valid, sampled_of=other.sampled_of)

    def all_events(self) -> Split:
        """The same log with every event in train and nothing to predict: what --refit trains on."""
        nothing = Targets(np.zeros(0, np.int64), np.zeros(0, np.int64))
        return Split(self.sequences, self.sequences.offsets[1:], nothing, nothing, "all_events", self.target_types)


def seen_items(sequences: Sequences, is_target: Bool | None, starts: Int64, ends: Int64) -> Ragged:
    """The items of the events starts[i]:ends[i] that are targets; None = all are."""
    events = Ragged.cut(sequences.items, starts, ends)
    if is_target is None:
        return events
    kept = is_target[flat_index(starts, events.offsets)]
    return Ragged(events.values[kept], offsets_of(kept.astype(np.int64))[events.offsets])


def split_leave_one_out(sequences: Sequences, min_items: int = 3, target_types: tuple[str, ...] = ()) -> Split:
    """Last event to test, second to last to valid, the rest to train; shorter users only train.

    Args:
        sequences: the log.
        min_items: events that a user needs, the two targets among them.
        target_types: only events of these are targets. Then a user needs two of them, and min_items - 2 events of any
            type before the first of the two, where train ends; other users only train.

    Source: Kang & McAuley 2018, section IV.A; min_items=4 is data_partition of pmixer/SASRec.pytorch fde8a9c.

    Raises:
        DataError: no user has enough events.
        ConfigError: the log has no such types of events.
    """
    is_target = are_of_types(sequences, target_types)
    if is_target is not None:
        return _leave_targets_out(sequences, is_target, min_items, target_types)
    ends = sequences.offsets[1:]
    users = np.flatnonzero(np.diff(sequences.offsets) >= min_items)
    if not len(users):
        raise DataError(
            f"none of the {len(sequences)} users has {min_items} events or more; leave-one-out needs one to train, "
            "one to validate and one to test"
        )
    train_ends = ends.copy()
    train_ends[users] -= 2
    return Split(
        sequences, train_ends, Targets(users, ends[users] - 2), Targets(users, ends[users] - 1), "leave_one_out"
    )


def _leave_targets_out(sequences: Sequences, is_target: Bool, min_items: int, types: tuple[str, ...]) -> Split:
    """Leave-one-out in which a user's last two targets are held out, and train ends at the first of the two."""
    places = np.flatnonzero(is_target)  # of targets among events
    first = np.searchsorted(places, sequences.offsets)  # of each user's among places
    users = np.flatnonzero(np.diff(first) >= 2)
    valid, test = (places[first[1:][users] - n] for n in (2, 1))
    enough = valid - sequences.offsets[users] >= min_items - 2
    users, valid, test = users[enough], valid[enough], test[enough]
    if not len(users):
        raise DataError(
            f"none of the {len(sequences)} users has two events of {', '.join(types)} after {min_items - 2} of any "
            f"type, which leave-one-out needs; the log has {types_in_words(sequences.facts.event_types)}"
        )
    train_ends = sequences.offsets[1:].copy()
    train_ends[users] = valid
    return Split(sequences, train_ends, Targets(users, valid), Targets(users, test), "leave_one_out", types)


def split_temporal(
    sequences: Sequences,
    valid_cut: float,
    test_cut: float,
    targets: TemporalTargets = "first",
    target_types: tuple[str, ...] = (),
) -> Split:
    """One global cut in time: train before valid_cut, valid before test_cut, test from test_cut on.

    A user's events from a cut on are targets (the first, the last or all of them); the events before each target are
    its history. Targets without any history are left out. Where `target_types` names any, only events of these are
    targets.

    Raises:
        DataError: the log has no timestamps, or a part would be empty.
        ConfigError: the log has no such types of events.
    """
    all_times = _times_of(sequences)
    is_target = are_of_types(sequences, target_types)
    before = np.zeros(len(sequences), np.int64)
    found: list[tuple[Int64, Int64]] = []
    for users in sequences.parts():
        events = slice(sequences.offsets[users.start], sequences.offsets[users.stop])
        times = all_times[events]
        in_train = np.append(0, np.cumsum(times < valid_cut))
        cuts = sequences.offsets[users.start : users.stop + 1] - events.start
        before[users] = np.diff(in_train[cuts])
        may_be = True if is_target is None else is_target[events]
        in_valid = np.flatnonzero((times >= valid_cut) & (times < test_cut) & may_be)
        found.append((in_valid + events.start, np.flatnonzero((times >= test_cut) & may_be) + events.start))
    valid, test = (np.concatenate(part) for part in zip(*found, strict=True))
    split = Split(
        sequences,
        sequences.offsets[:-1] + before,
        chosen_targets(valid, sequences.offsets, targets),
        chosen_targets(test, sequences.offsets, targets),
        "temporal",
        target_types,
        temporal_targets=targets,
    )
    if not before.any():
        raise DataError(f"no event is before the valid cut {valid_cut:g}; there is nothing to train on")
    for name in ("valid", "test"):
        if not len(split.part(name)):
            raise DataError(f"the temporal split leaves no {name} targets; move the cuts or enlarge the fractions")
    return split


def split_temporal_by_user(
    sequences: Sequences,
    cut: float,
    n_validating_users: int,
    seed: int,
    targets: TemporalTargets = "first",
    target_types: tuple[str, ...] = (),
) -> Split:
    """One global cut in time; users drawn from those before it validate, and train on nothing.

    Train has the events before the cut of users with two or more of them. Of a validating user, the last one is the
    valid target. A user's events from the cut on are test targets (the first with anything before it, the last or all).

    Args:
        sequences: the log.
        cut: the time from which events are test.
        n_validating_users: how many users are drawn.
        seed: of the draw.
        targets: which events from the cut on are test targets.
        target_types: only events of these are targets; () = all.

    Source: GlobalTimeSplitter with validation_type="by_user" in src/splits.py of monkey0head/time-to-split 5a33f9f,
    where it draws other users; SuccessivePredictionDataset in its src/datasets.py for first and all.

    Raises:
        DataError: the log has no timestamps, or a part would be empty.
        ConfigError: the log has no such types of events, or no user would be left to train on.
    """
    is_target = are_of_types(sequences, target_types)
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]
    middles = starts + _counts_before(sequences, cut)
    trains = middles - starts >= 2
    last = last_before(middles, is_target)
    may_validate = np.flatnonzero(trains & (last > starts))
    if not len(may_validate):
        raise DataError(f"no user has two events before the cut {cut:.15g}; there is nothing to train on")
    n_trains = np.count_nonzero(trains)
    if n_validating_users > len(may_validate) or n_validating_users >= n_trains:
        raise ConfigError(
            f"n_validating_users={n_validating_users} is too many: of {n_trains} users with two events before the cut, "
            f"{len(may_validate)} can validate, and one has to train; use fewer"
        )
    rng = generator(seed, VALIDATING)
    validating = np.sort(rng.choice(may_validate, n_validating_users, replace=False))
    trains[validating] = False
    held_out = flat_index(middles, offsets_of(ends - middles))
    held_out = held_out[held_out > np.repeat(starts, ends - middles)]  # with anything before it
    test = chosen_targets(held_out if is_target is None else held_out[is_target[held_out]], sequences.offsets, targets)
    if not len(test):
        raise DataError(f"the split leaves no test targets from the cut {cut:.15g} on; use an earlier cut")
    return Split(
        sequences,
        np.where(trains, middles, starts),
        Targets(validating, last[validating]),
        test,
        "temporal_by_user",
        target_types,
        sampled_of=(len(may_validate), 0),
        cut=cut,
        temporal_targets=targets,
    )


def _counts_before(sequences: Sequences, cut: float) -> Int64:
    """(n_users,) how many events of each user are before a time."""
    times, counts = _times_of(sequences), np.zeros(len(sequences), np.int64)
    for users in sequences.parts():
        offsets = sequences.offsets[users.start : users.stop + 1]
        before = np.append(0, np.cumsum(times[offsets[0] : offsets[-1]] < cut))
        counts[users] = np.diff(before[offsets - offsets[0]])
    return counts


def cut_after(sequences: Sequences, share: float) -> float:
    """The first time above the quantile 1 - share of all events' times: events from it on are at most that share.

    Events at the quantile itself are before the cut. Source: split_by_time in src/splits.py of
    monkey0head/time-to-split 5a33f9f, whose quantile lies between two times and tells the same events apart.

    Raises:
        DataError: the log has no timestamps, or no event is later.
    """
    times = _times_of(sequences)
    place = int((len(times) - 1) * (1 - share))
    later = times[times > np.partition(times, place)[place]]
    if not len(later):
        raise DataError(
            f"no event is later than the quantile {1 - share:g} of the times; use a larger test_fraction, or test_cut"
        )
    cut: float = later.min().item()  # in the log's own type: nanoseconds are no floats
    return cut


def _times_of(sequences: Sequences) -> NDArray[Any]:
    if sequences.timestamps is None:
        raise DataError("a temporal split needs timestamps, and this log has none; use split_method=leave_one_out")
    return sequences.timestamps


def split_sequences(sequences: Sequences, config: EvalConfig) -> Split:
    """The split that a config asks for, without targets that the model which training began from knows."""
    sequences.check_maps()
    split = _split(sequences, config)
    if sequences.seen is None:
        return split
    valid, test = split.valid.without(sequences.seen), split.test.without(sequences.seen)
    n_seen = len(split.valid) - len(valid), len(split.test) - len(test)
    return replace(split, valid=valid, test=test, n_seen=n_seen)


def cut_alike(one: EvalConfig, other: EvalConfig) -> bool:
    """Whether settings differ in nothing that the cut may depend on: of a large log a second one takes a gigabyte."""
    alike = replace(one, protocol=other.protocol, k=other.k, ties=other.ties, n_candidates=other.n_candidates)
    return alike == other


def _split(sequences: Sequences, config: EvalConfig) -> Split:
    if config.split_method == "leave_one_out":
        return split_leave_one_out(sequences, config.min_items, config.target_types)
    times = _times_of(sequences)
    if config.split_method == "temporal_by_user":
        cut = config.test_cut or cut_after(sequences, config.test_fraction)
        n, seed = config.n_validating_users, config.eval_seed
        return split_temporal_by_user(sequences, cut, n, seed, config.temporal_targets, config.target_types)
    held_out = [config.valid_fraction + config.test_fraction, config.test_fraction]
    by_fraction = np.quantile(times, 1 - np.array(held_out), method="higher")
    valid_cut = config.valid_cut or float(by_fraction[0])
    test_cut = config.test_cut or float(by_fraction[1])
    return split_temporal(sequences, valid_cut, test_cut, config.temporal_targets, config.target_types)


def hides_seen(split: Split, config: EvalConfig) -> bool:
    """Whether seen items are hidden: as set or, for auto, unless more than 5 % of next events repeat one."""
    return hides_repeats(split.facts, config)


def hides_repeats(facts: LogFacts, config: EvalConfig) -> bool:
    """`hides_seen` for those who have only the log's facts."""
    if config.filter_seen != "auto":
        return config.filter_seen == "yes"
    return facts.repeat_share <= REPEAT_THRESHOLD

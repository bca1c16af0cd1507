"""Users' histories as flat arrays. In: a frame user_id, item_id[, timestamp]; out: Vocabulary, Sequences, Split.

From here to the recommender there are only dense int32 item indices from 1; 0 is padding and never a real item.

Sequences of three users, two events of the first:      items    [5 9 | 2 2 7 | 1]
                                                        offsets  [0    2       5   6]
Leave-one-out of the second user (2 2 7):               train [2], valid target 2, test target 7
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec.config import EvalConfig, LogStatistics, TemporalTargets
from sasrec.errors import ConfigError, DataError, UnknownItemError
from sasrec.interactions import canonical_ids

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

logger = logging.getLogger(__name__)

FEW_IDS = 256  # ids looked up one by one
REPEAT_THRESHOLD = 0.05  # above this share of next events that repeat an item, seen items are not hidden


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths laid end to end: row i is values[offsets[i]:offsets[i + 1]]."""

    values: Int32  # (T,)
    offsets: Int64  # (n_rows + 1,), from 0 to T

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> Int32:
        """Row i, a view."""
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> Int64:
        """(n_rows,) length of each row."""
        return np.diff(self.offsets)

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int] | Int32]) -> Ragged:
        """Lay lists of indices end to end."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        values = np.concatenate([np.asarray(row, np.int32) for row in rows]) if lengths.sum() else np.zeros(0, np.int32)
        return cls(values, offsets_of(lengths))

    @classmethod
    def cut(cls, values: Int32, starts: Int64, ends: Int64) -> Ragged:
        """The pieces values[starts[i]:ends[i]] as rows."""
        offsets = offsets_of(ends - starts)
        return cls(values[flat_index(starts, offsets)], offsets)

    def take(self, rows: Int64 | slice) -> Ragged:
        """Some of the rows, in the order asked for."""
        return Ragged.cut(self.values, self.offsets[:-1][rows], self.offsets[1:][rows])

    def part(self, rows: slice) -> Ragged:
        """Consecutive rows: their values are a view."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def last(self, n: int) -> Ragged:
        """The last n values of each row."""
        ends = self.offsets[1:]
        return Ragged.cut(self.values, np.maximum(self.offsets[:-1], ends - n), ends)

    @property
    def row_of(self) -> Int64:
        """(T,) the row that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)


def offsets_of(lengths: Int64) -> Int64:
    """(n + 1,) where each of n rows of these lengths starts, and where the last one ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def flat_index(starts: Int64, offsets: Int64) -> Int64:
    """(T,) where each element of rows that begin at `starts` lies in the array they are cut from."""
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))


class Vocabulary:
    """Your item ids <-> item indices 1..n_items, in ascending order of id.

    Args:
        item_ids: (n_items,) unique ids, Int64 or String; row i has item_index i + 1.
        counts: (n_items,) events per item in the log.
        titles: (n_items,) text to show, or None.
    """

    def __init__(self, item_ids: pl.Series, counts: Int64 | None = None, titles: pl.Series | None = None) -> None:
        self.item_ids = canonical_ids(item_ids).rename("item_id")
        self.counts = np.zeros(len(item_ids), np.int64) if counts is None else counts
        self.titles = titles

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def ids(self) -> list[int | str]:
        """All ids as a list: that of item_index i is ids[i - 1]."""
        return self.item_ids.to_list()

    @cached_property
    def _index(self) -> dict[int | str, int]:
        return dict(zip(self.ids, range(1, len(self) + 1), strict=True))

    @property
    def has_integer_ids(self) -> bool:
        """Whether ids are integers; then "2969" and 2969 are the same item."""
        return isinstance(self.item_ids.dtype, pl.Int64)

    def index_of(self, item_id: object) -> int:
        """The index of an id; 0 when it is unknown. An integer and its canonical text are the same id."""
        return self._index.get(canonical_id(item_id, self.has_integer_ids), 0)

    def indices_of(self, item_ids: Iterable[object]) -> Int32:
        """(n,) indices of ids; 0 where unknown."""
        index, integers = self._index, self.has_integer_ids
        own = int if integers else str  # ids of the vocabulary's own type are canonical
        return np.array([index.get(i if type(i) is own else canonical_id(i, integers), 0) for i in item_ids], np.int32)

    def known_index(self, item_id: object) -> int:
        """The index of an id that must exist.

        Raises:
            UnknownItemError: the vocabulary does not hold it.
        """
        index = self.index_of(item_id)
        if not index:
            raise UnknownItemError(f"item {item_id!r} is not in the log this model was trained on ({len(self)} items)")
        return index

    def known_indices(self, item_ids: Sequence[object]) -> Int32:
        """(n,) indices of ids that must exist.

        Raises:
            UnknownItemError: the vocabulary does not hold one of them.
        """
        indices = self.indices_of(item_ids)
        for position in np.flatnonzero(indices == 0)[:1]:
            self.known_index(item_ids[position])
        return indices

    def ids_of(self, indices: Int32) -> pl.Series:
        """The ids of indices from 1 on."""
        rows = np.asarray(indices, np.int64) - 1
        if len(rows) > FEW_IDS:
            ids: pl.Series = self.item_ids.gather(rows)
            return ids
        own = self.ids  # for a few ids, Polars' own gather takes longer than all the rest of an answer
        return pl.Series("item_id", [own[row] for row in rows.tolist()], self.item_ids.dtype)

    def titles_of(self, indices: Int32) -> list[str]:
        """Titles to show; an item without one shows its id."""
        ids = self.ids_of(indices).to_list()
        if self.titles is None:
            return [str(i) for i in ids]
        titles = self.titles.gather(np.asarray(indices, np.int64) - 1).to_list()
        return [str(i) if title is None else str(title) for i, title in zip(ids, titles, strict=True)]

    def to_frame(self) -> pl.DataFrame:
        """item_index, item_id, count and, when known, title: the contents of items.parquet."""
        frame = pl.DataFrame(
            {
                "item_index": pl.Series(np.arange(1, len(self) + 1, dtype=np.int32)),
                "item_id": self.item_ids,
                "count": pl.Series(self.counts, dtype=pl.Int64),
            }
        )
        return frame if self.titles is None else frame.with_columns(self.titles.rename("title"))

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Vocabulary:
        """Read back what `to_frame` wrote."""
        frame = frame.sort("item_index")
        titles = frame["title"] if "title" in frame.columns else None
        return cls(frame["item_id"], frame["count"].to_numpy(), titles)

    def with_titles(self, titles: pl.DataFrame) -> Vocabulary:
        """The same items with the titles of a frame item_id, title; ids it does not name stay without one."""
        titles = titles.select(canonical_ids(titles["item_id"]).alias("item_id"), "title").unique("item_id")
        if titles["item_id"].dtype != self.item_ids.dtype:
            titles = titles.with_columns(pl.col("item_id").cast(self.item_ids.dtype, strict=False))
        joined = self.item_ids.to_frame().join(titles, on="item_id", how="left", maintain_order="left")
        return Vocabulary(self.item_ids, self.counts, joined["title"])


def canonical_id(value: object, integers: bool) -> int | str:
    """One id in the vocabulary's own type: 2969 and "2969" meet; "02969" stays another id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value)  # no id is empty, so nothing matches None
    if not integers:
        return text
    try:
        number = int(text)
    except ValueError:
        return text
    return number if str(number) == text else text


@dataclass(frozen=True)
class LogFacts:
    """What a log is like; shown in reports and saved beside the sequences."""

    n_events: int
    n_users: int
    n_items: int
    repeat_share: float  # of events after a user's first, how many are of an item the user had before
    tied_share: float  # of events after a user's first, how many have the timestamp of the one before
    n_short_users: int  # users with fewer than 3 events; they only train
    has_timestamps: bool
    fingerprint: str  # of users, items, times and their order


@dataclass(frozen=True)
class Sequences:
    """All users' events in time order, users in ascending order of id.

    `items` and `timestamps` may be memory maps.
    """

    user_ids: pl.Series  # (n_users,) Int64 or String
    items: Int32  # (n_events,) item indices
    offsets: Int64  # (n_users + 1,)
    facts: LogFacts
    timestamps: NDArray[Any] | None = None  # (n_events,) int64 or float64, the log's own unit

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        """Items in the log; indices go from 1 to this."""
        return self.facts.n_items

    def history(self, user: int) -> Int32:
        """The items of the user at this row, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @cached_property
    def _rows(self) -> dict[int | str, int]:
        return dict(zip(self.user_ids.to_list(), range(len(self)), strict=True))

    def row_of_user(self, user_id: object) -> int:
        """The row of a user id.

        Raises:
            UnknownItemError: no such user.
        """
        row = self._rows.get(canonical_id(user_id, self.user_ids.dtype == pl.Int64))
        if row is None:
            raise UnknownItemError(
                f"user {user_id!r} is not in the log ({len(self)} users); give a history of items instead"
            )
        return row

    def save(self, folder: Path) -> None:
        """Write items.npy, offsets.npy, timestamps.npy, users.parquet and facts.json into an existing folder."""
        np.save(folder / "items.npy", self.items)
        np.save(folder / "offsets.npy", self.offsets)
        if self.timestamps is not None:
            np.save(folder / "timestamps.npy", self.timestamps)
        self.user_ids.to_frame("user_id").write_parquet(folder / "users.parquet")
        (folder / "facts.json").write_text(json.dumps(asdict(self.facts), indent=1))

    @classmethod
    def load(cls, folder: Path) -> Sequences:
        """Map what `save` wrote; the events stay on disk until they are used.

        Raises:
            ValueError: the files are not of one log.
        """
        stamps = folder / "timestamps.npy"
        sequences = cls(
            user_ids=pl.read_parquet(folder / "users.parquet")["user_id"],
            items=np.load(folder / "items.npy", mmap_mode="r"),
            offsets=np.load(folder / "offsets.npy"),
            facts=LogFacts(**json.loads((folder / "facts.json").read_text())),
            timestamps=np.load(stamps, mmap_mode="r") if stamps.exists() else None,
        )
        sequences._check_sizes()
        return sequences

    def _check_sizes(self) -> None:
        facts = self.facts
        expected = (facts.n_events, facts.n_users, facts.n_users + 1, facts.n_events * facts.has_timestamps)
        n_times = 0 if self.timestamps is None else len(self.timestamps)
        found = (len(self.items), len(self.user_ids), len(self.offsets), n_times)
        if found != expected or self.offsets[-1] != facts.n_events:
            raise ValueError("its files are not of one log")


def build_sequences(log: pl.DataFrame, vocabulary: Vocabulary | None = None) -> tuple[Sequences, Vocabulary]:
    """Group a log by user, in time order.

    Events are ordered by timestamp when there is one, else by position in the frame; ties keep their input order.

    Args:
        log: user_id, item_id and optionally timestamp, as `read_interactions` returns it.
        vocabulary: the items to use, for a log that goes with an existing model; None makes it from the log.

    Raises:
        DataError: the log is empty, or has an item that the given vocabulary lacks.
    """
    if not len(log):
        raise DataError("the log has no events; it needs at least one line with a user and an item")
    users, user_index = _dense(log["user_id"])
    if vocabulary is None:
        item_ids, item_index = _dense(log["item_id"])
        counts = np.bincount(item_index, minlength=len(item_ids)).astype(np.int64)
        vocabulary = Vocabulary(item_ids, counts)
        item_index += 1
    else:
        item_index = _known_indices(log["item_id"], vocabulary)
    times = log["timestamp"].to_numpy() if "timestamp" in log.columns else None
    order = _event_order(user_index, times)
    if order is not None:
        item_index, times = item_index[order], None if times is None else times[order]
    offsets = offsets_of(np.bincount(user_index, minlength=len(users)).astype(np.int64))
    facts = _facts(item_index, offsets, times, users, vocabulary.item_ids)
    _warn(facts)
    return Sequences(users, item_index, offsets, facts, times), vocabulary


def _dense(ids: pl.Series) -> tuple[pl.Series, Int32]:
    """Unique ids in ascending order, and each element's position among them."""
    unique = ids.unique().sort()
    if ids.dtype == pl.Int64:
        low, high = int(unique[0]), int(unique[-1])
        if high - low < 4 * len(ids) + 1024:  # a look-up table is cheaper than a search
            table = np.zeros(high - low + 1, np.int32)
            table[unique.to_numpy() - low] = np.arange(len(unique), dtype=np.int32)
            return unique, table[ids.to_numpy() - low]
        return unique, np.searchsorted(unique.to_numpy(), ids.to_numpy()).astype(np.int32)
    positions = pl.DataFrame({"id": unique, "index": np.arange(len(unique), dtype=np.int32)})
    joined = ids.to_frame("id").join(positions, on="id", how="left", maintain_order="left")
    return unique, joined["index"].to_numpy().copy()


def _known_indices(ids: pl.Series, vocabulary: Vocabulary) -> Int32:
    """Indices of a column of ids, all of which the vocabulary must hold."""
    unique, position = _dense(ids)
    indices = vocabulary.indices_of(unique.to_list())
    if not indices.all():
        missing = unique.gather(np.flatnonzero(indices == 0)).to_list()
        raise DataError(
            f"the log has {len(missing)} items that the model's vocabulary lacks, such as {missing[0]!r}; "
            "use the log the model was trained on"
        )
    return indices[position]


def _event_order(user_index: Int32, times: NDArray[Any] | None) -> Int64 | None:
    """The stable order by user, then time; None when the log is in it already."""
    step = np.diff(user_index)
    if times is None:
        return None if (step >= 0).all() else np.argsort(user_index, kind="stable")
    if ((step > 0) | ((step == 0) & (np.diff(times) >= 0))).all():
        return None
    by_time = np.argsort(times, kind="stable")
    return by_time[np.argsort(user_index[by_time], kind="stable")]


def _facts(items: Int32, offsets: Int64, times: NDArray[Any] | None, users: pl.Series, ids: pl.Series) -> LogFacts:
    n, n_users, lengths = len(items), len(offsets) - 1, np.diff(offsets)
    after_first = max(n - int((lengths > 0).sum()), 1)
    keys = np.repeat(np.arange(n_users), lengths) * (len(ids) + 1) + items
    keys.sort()
    repeats = int((keys[1:] == keys[:-1]).sum())
    tied = 0
    if times is not None and n:
        same = times[1:] == times[:-1]
        same[offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < n)] - 1] = False  # across two users
        tied = int(same.sum())
    return LogFacts(
        n_events=n,
        n_users=n_users,
        n_items=len(ids),
        repeat_share=repeats / after_first,
        tied_share=tied / after_first,
        n_short_users=int((lengths < 3).sum()),
        has_timestamps=times is not None,
        fingerprint=_fingerprint(items, offsets, times, users, ids),
    )


def _fingerprint(items: Int32, offsets: Int64, times: NDArray[Any] | None, users: pl.Series, ids: pl.Series) -> str:
    """A short hash of who had what, when and in which order; it does not depend on the version of Polars."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (items, offsets, *([] if times is None else [times])):
        digest.update(np.ascontiguousarray(array).data)
    for series in (users, ids):
        if series.dtype == pl.String:
            digest.update(series.str.len_bytes().to_numpy().data)
            digest.update(str(series.str.join("")[0]).encode())
        else:
            digest.update(series.to_numpy().data)
    return digest.hexdigest()


def _warn(facts: LogFacts) -> None:
    if facts.tied_share > 0:
        logger.warning(
            "%.1f %% of events share their timestamp with the event before; they keep their input order",
            100 * facts.tied_share,
        )
    if facts.n_short_users:
        logger.warning("%d of %d users have fewer than 3 events; they only train", facts.n_short_users, facts.n_users)


@dataclass(frozen=True)
class Targets:
    """Events to predict: event `positions[i]` of Sequences.items belongs to user row `users[i]`."""

    users: Int64  # (n,) rows, ascending
    positions: Int64  # (n,)

    def __len__(self) -> int:
        return len(self.users)

    def items(self, sequences: Sequences) -> Int32:
        """(n,) the item indices to predict."""
        return np.asarray(sequences.items[self.positions])

    def histories(self, sequences: Sequences, last: int | None = None) -> Ragged:
        """What each user had before the target, oldest first; only the last few when `last` is given."""
        starts = sequences.offsets[self.users]
        if last is not None:
            starts = np.maximum(starts, self.positions - last)
        return Ragged.cut(sequences.items, starts, self.positions)


@dataclass(frozen=True)
class Split:
    """One log cut into train, valid and test. A user's train part is items[offsets[u]:train_ends[u]]."""

    sequences: Sequences
    train_ends: Int64  # (n_users,)
    valid: Targets
    test: Targets
    method: str

    def part(self, name: str) -> Targets:
        """The targets of "valid" or "test".

        Raises:
            ConfigError: another name.
        """
        if name not in ("valid", "test"):
            raise ConfigError(f"split {name!r} is not one of valid, test")
        return self.valid if name == "valid" else self.test

    @cached_property
    def train(self) -> Ragged:
        """Each user's train items, all of them; rows of users without any are empty."""
        return Ragged.cut(self.sequences.items, self.sequences.offsets[:-1], self.train_ends)

    @cached_property
    def train_counts(self) -> Int64:
        """(n_items + 1,) how often each item occurs in train; row 0 is padding."""
        return np.bincount(self.train.values, minlength=self.sequences.n_items + 1).astype(np.int64)

    @property
    def statistics(self) -> LogStatistics:
        """What presets may look at."""
        lengths = self.train_ends - self.sequences.offsets[:-1]
        return LogStatistics(
            n_users=len(self.sequences),
            n_items=self.sequences.n_items,
            n_events=int(lengths.sum()),
            mean_train_len=float(lengths.mean()),
        )

    def all_events(self) -> Split:
        """The same log with every event in train and nothing to predict: what --refit trains on."""
        nothing = Targets(np.zeros(0, np.int64), np.zeros(0, np.int64))
        return Split(self.sequences, self.sequences.offsets[1:], nothing, nothing, "all_events")


def split_leave_one_out(sequences: Sequences, min_items: int = 3) -> Split:
    """Last event to test, second to last to valid, the rest to train; shorter users only train.

    Source: Kang & McAuley 2018, section IV.A; min_items=4 is data_partition of pmixer/SASRec.pytorch fde8a9c.

    Raises:
        DataError: no user has min_items events.
    """
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


def split_temporal(
    sequences: Sequences,
    valid_cut: float,
    test_cut: float,
    targets: TemporalTargets = "first",
) -> Split:
    """One global cut in time: train before valid_cut, valid before test_cut, test from test_cut on.

    A user's events from a cut on are targets (the first, the last or all of them); the events before each target are
    its history. Targets without any history are left out.

    Raises:
        DataError: the log has no timestamps, or a part would be empty.
    """
    if sequences.timestamps is None:
        raise DataError("a temporal split needs timestamps, and this log has none; use split_method=leave_one_out")
    times, starts = np.asarray(sequences.timestamps), sequences.offsets[:-1]
    users = np.repeat(np.arange(len(sequences)), np.diff(sequences.offsets))
    before = np.bincount(users[times < valid_cut], minlength=len(sequences)).astype(np.int64)
    in_valid = np.flatnonzero((times >= valid_cut) & (times < test_cut))
    in_test = np.flatnonzero(times >= test_cut)
    split = Split(
        sequences,
        starts + before,
        _temporal_targets(in_valid, users, starts, targets),
        _temporal_targets(in_test, users, starts, targets),
        "temporal",
    )
    if not before.any():
        raise DataError(f"no event is before the valid cut {valid_cut:g}; there is nothing to train on")
    for name in ("valid", "test"):
        if not len(split.part(name)):
            raise DataError(f"the temporal split leaves no {name} targets; move the cuts or enlarge the fractions")
    return split


def _temporal_targets(events: Int64, users: Int64, starts: Int64, targets: TemporalTargets) -> Targets:
    owners = users[events]
    change = np.diff(owners) != 0
    if targets == "first":
        keep = np.concatenate([[True], change])[: len(events)]
    elif targets == "last":
        keep = np.concatenate([change, [True]])[-len(events) :] if len(events) else change
    else:
        keep = np.ones(len(events), bool)
    keep &= events > starts[owners]
    return Targets(owners[keep], events[keep])


def split_sequences(sequences: Sequences, config: EvalConfig) -> Split:
    """The split that a config asks for."""
    if config.split_method == "leave_one_out":
        return split_leave_one_out(sequences, config.min_items)
    if sequences.timestamps is None:
        raise DataError("a temporal split needs timestamps, and this log has none; use split_method=leave_one_out")
    held_out = [config.valid_fraction + config.test_fraction, config.test_fraction]
    by_fraction = np.quantile(sequences.timestamps, 1 - np.array(held_out), method="higher")
    valid_cut = config.valid_cut or float(by_fraction[0])
    test_cut = config.test_cut or float(by_fraction[1])
    return split_temporal(sequences, valid_cut, test_cut, config.temporal_targets)


def hides_seen(split: Split, config: EvalConfig) -> bool:
    """Whether seen items are hidden: as set or, for auto, unless more than 5 % of next events repeat one."""
    return hides_repeats(split.sequences.facts, config)


def hides_repeats(facts: LogFacts, config: EvalConfig) -> bool:
    """`hides_seen` for those who have only the log's facts."""
    if config.filter_seen != "auto":
        return config.filter_seen == "yes"
    if facts.repeat_share > REPEAT_THRESHOLD:
        logger.info("%.0f %% of events repeat one of the user's, so seen items stay", 100 * facts.repeat_share)
    return facts.repeat_share <= REPEAT_THRESHOLD

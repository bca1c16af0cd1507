"""All users' histories as flat arrays of item indices.

From here to the recommender, an item is a dense int32 index from 1. Index 0 is padding and never a real item.

Three users with 2, 3 and 1 events:    items    [5 9 | 2 2 7 | 1]
                                       offsets  [0     2       5   6]
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec.core.arrays import Float32, Int32, Int64, UInt8
from sasrec.core.digests import WHOLE_BYTES
from sasrec.core.errors import DataError, UnknownItemError
from sasrec.core.files import check_map, load_array, save_array
from sasrec.core.forks import needs_threads_of
from sasrec.data.facts import PIECE, Tally, fingerprint, order_by_user, pieces, row_slices
from sasrec.data.ragged import Ragged, offsets_of
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.id_counts import IdIndex
from sasrec.reading.ids import canonical_id
from sasrec.reading.understanding import LOG, Understanding, load_understanding, save_understanding

logger = logging.getLogger(__name__)
TYPES, WEIGHTS, SEEN = "event_types.npy", "event_weights.npy", "seen.npy"
MANY_USERS = 1 << 20  # from here on a user is searched for among the ids, and no table is made of them
PART_EVENTS = PIECE  # what is computed of all events takes some ten bytes for each of so many
FILES = (  # of the folder `save` fills
    "items.npy", "offsets.npy", "timestamps.npy", TYPES, WEIGHTS, "users.parquet", "facts.json", LOG, SEEN,
)  # fmt: skip


@dataclass(frozen=True)
class LogFacts:
    """What a log is like; shown in reports and saved beside the sequences."""

    n_events: int
    n_users: int
    n_items: int
    repeat_share: float  # of events after a user's first, how many are of an item the user had before
    tied_share: float  # of events after a user's first, how many have the timestamp of the one before
    n_short_users: int  # users with fewer than 3 events; leave-one-out measures none of them
    has_timestamps: bool
    fingerprint: str  # of users, items, times and their order, and of types and weights where there are any
    event_types: dict[str, int] = field(default_factory=dict)  # events of each type, in the order of type indices
    has_weights: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; types and weights are told where events have them."""
        values = asdict(self)
        absent = [name for name in ("event_types", "has_weights") if not values[name]]
        return {name: value for name, value in values.items() if name not in absent}

    @classmethod
    def read(cls, values: object) -> LogFacts:
        """From JSON.

        Raises:
            ValueError: a fact is missing, or not of its type.
        """
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"facts of the log: {error}") from error


@dataclass(frozen=True)
class Sequences:
    """All users' events in time order, users in ascending order of id.

    `items`, `timestamps`, `types` and `weights` may be memory maps.
    """

    user_ids: pl.Series  # (n_users,) Int64 or String
    items: Int32  # (n_events,) item indices
    offsets: Int64  # (n_users + 1,)
    facts: LogFacts
    timestamps: NDArray[Any] | None = None  # (n_events,) int64 or float64, the log's own unit
    understanding: Understanding | None = None  # how the log was read; None = saved by an earlier version, or made
    types: UInt8 | None = None  # (n_events,) places among facts.event_types; None = events have no types
    weights: Float32 | None = None  # (n_events,) from 0; None = every event weighs 1
    n_catalogue: int = 0  # items of the vocabulary, those without events among them; 0 = those of the log
    seen: Int64 | None = None  # events that the model which training began from knows: no targets; None = it began anew

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        """Items that there are, with events in the log or without; indices go from 1 to this."""
        return self.n_catalogue or self.facts.n_items

    def with_catalogue(self, n_items: int) -> Sequences:
        """The same events of a catalogue of so many items: those of the log come first."""
        return self if n_items == self.n_items else replace(self, n_catalogue=n_items)

    def history(self, user: int) -> Int32:
        """The items of the user at this row, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def parts(self) -> Iterator[slice]:
        """Consecutive users whose events are about PART_EVENTS: what is computed of all events is computed by parts."""
        return row_slices(self.offsets, PART_EVENTS)

    @cached_property
    def _rows(self) -> dict[int | str, int]:
        """The rows of users by id: quick, and a hundred bytes a user."""
        return dict(zip(self.user_ids.to_list(), range(len(self)), strict=True))

    def row_of_user(self, user_id: object) -> int:
        """The row of a user id.

        Raises:
            UnknownItemError: no such user.
        """
        canonical = canonical_id(user_id, self.user_ids.dtype == pl.Int64)
        row = self._rows.get(canonical) if len(self) <= MANY_USERS else self._found(canonical)
        if row is None:
            raise UnknownItemError(
                f"user {user_id!r} is not in the log ({len(self)} users); give a history of items instead"
            )
        return row

    def _found(self, canonical: int | str) -> int | None:
        """The row of a user by a search among the ascending ids."""
        if isinstance(canonical, int) != (self.user_ids.dtype == pl.Int64):
            return None
        if isinstance(canonical, int) and not -(2**63) <= canonical < 2**63:
            return None
        row = int(self.user_ids.search_sorted(canonical))
        return row if row < len(self) and self.user_ids[row] == canonical else None

    @property
    def nbytes(self) -> int:
        """Of all arrays together."""
        return self.offsets.nbytes + sum(array.nbytes for array in self._of_events())

    def _of_events(self) -> list[NDArray[Any]]:
        arrays = (self.items, self.timestamps, self.types, self.weights)
        return [array for array in arrays if array is not None]

    def check_maps(self) -> None:
        """Raise CheckpointError if a mapped file was cut off since it was opened."""
        for array in self._of_events():
            check_map(array)

    def has_fingerprint_of(self, vocabulary: Vocabulary) -> bool:
        """Whether these events, with the items of this vocabulary, have the fingerprint that is among the facts."""
        events = _Events(self.items, self.offsets, self.timestamps, self.types, self.weights)
        ids, names = vocabulary.item_ids.head(self.facts.n_items), list(self.facts.event_types)  # others have no events
        return _fingerprint(events, self.user_ids, ids, names) == self.facts.fingerprint

    def save(self, folder: Path) -> None:
        """Write the files of FILES, but for what the log has not, into an existing folder."""
        save_array(folder / "items.npy", self.items)
        for name, array in (("timestamps.npy", self.timestamps), (TYPES, self.types), (WEIGHTS, self.weights)):
            if array is not None:
                save_array(folder / name, array)
        self.save_beside_events(folder)

    def save_beside_events(self, folder: Path) -> None:
        """Write what `save` writes, but for the arrays with a number for each event."""
        np.save(folder / "offsets.npy", self.offsets)
        self.user_ids.to_frame("user_id").write_parquet(folder / "users.parquet")
        (folder / "facts.json").write_text(json.dumps(self.facts.to_dict(), indent=1))
        if self.understanding is not None:
            save_understanding(folder, self.understanding)
        if self.seen is not None:
            np.save(folder / SEEN, self.seen)

    @classmethod
    def load(cls, folder: Path, *, checked: bool = True) -> Sequences:
        """Map what `save` wrote; the events stay on disk until they are used.

        Args:
            folder: that holds it.
            checked: look whether indices are in order; without it no event is read.

        Raises:
            ValueError: the files are not of one log, or not what `save` wrote.
        """

        def mapped(name: str, *dtypes: type[np.generic]) -> NDArray[Any] | None:
            return load_array(folder / name, dtypes, mapped=True) if (folder / name).exists() else None

        seen = folder / SEEN
        sequences = cls(
            user_ids=pl.read_parquet(folder / "users.parquet", glob=False)["user_id"],
            items=load_array(folder / "items.npy", (np.int32,), mapped=True),
            offsets=load_array(folder / "offsets.npy", (np.int64,), mapped=False),
            facts=LogFacts.read(json.loads((folder / "facts.json").read_text())),
            timestamps=mapped("timestamps.npy", np.int64, np.float64),
            understanding=load_understanding(folder),
            types=mapped(TYPES, np.uint8),
            weights=mapped(WEIGHTS, np.float32),
            seen=load_array(seen, (np.int64,), mapped=False) if seen.exists() else None,
        )
        sequences._check_sizes()
        if checked:
            sequences._check_order()
        return sequences

    def _check_sizes(self) -> None:
        facts = self.facts
        n = facts.n_events
        lengths = [0 if array is None else len(array) for array in (self.timestamps, self.types, self.weights)]
        there = (facts.has_timestamps, len(facts.event_types) > 0, facts.has_weights)
        expected = [n, facts.n_users, facts.n_users + 1, *(n * is_there for is_there in there)]
        found = [len(self.items), len(self.user_ids), len(self.offsets), *lengths]
        if found != expected or self.offsets[-1] != facts.n_events:
            raise ValueError("its files are not of one log")

    def _check_order(self) -> None:
        """Refuse rows that overlap, users out of order, and indices of no item (looked for where that is quick)."""
        if self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise ValueError("offsets.npy does not cut the events into users")
        if self.user_ids.dtype not in (pl.Int64, pl.String) or not (self.user_ids[1:] > self.user_ids[:-1]).all():
            raise ValueError("users.parquet does not hold different ids in ascending order")
        if self.seen is not None and not _ascends(self.seen, self.facts.n_events):
            raise ValueError(f"{SEEN} does not hold ascending events of the log")
        if self.items.nbytes > WHOLE_BYTES:
            return
        if len(self.items) and not 1 <= self.items.min() <= self.items.max() <= self.n_items:
            raise ValueError(f"items.npy does not hold items from 1 to {self.n_items}")
        if self.types is not None and len(self.types) and self.types.max() >= len(self.facts.event_types):
            raise ValueError(f"{TYPES} does not hold the types that facts.json names")
        if self.weights is not None and not (np.isfinite(self.weights) & (self.weights >= 0)).all():
            raise ValueError(f"{WEIGHTS} does not hold numbers from 0")


def _ascends(events: Int64, n_events: int) -> bool:
    return bool((np.diff(events, prepend=-1, append=n_events) > 0).all())


def build_sequences(log: pl.DataFrame, vocabulary: Vocabulary | None = None) -> tuple[Sequences, Vocabulary]:
    """Group a log by user, in time order.

    Events are ordered by timestamp when there is one, else by position in the frame; ties keep their input order.

    Args:
        log: user_id, item_id and optionally timestamp, event and weight, as `read_interactions` returns it.
        vocabulary: the items to use, for a log that goes with an existing model; None makes it from the log.

    Raises:
        DataError: the log is empty, or has an item that the given vocabulary lacks.
    """
    needs_threads_of("Polars")
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
    types, names = _types_of(log)
    weights = log["weight"].to_numpy() if "weight" in log.columns else None
    offsets = offsets_of(np.bincount(user_index, minlength=len(users)).astype(np.int64))
    order = order_by_user(user_index, offsets, times)
    events = _Events(item_index, offsets, times, types, weights).in_order(order)
    facts = _facts(events, users, vocabulary.item_ids, names)
    warn_of(facts)
    sequences = Sequences(users, events.items, offsets, facts, events.times, types=events.types, weights=events.weights)
    return sequences, vocabulary


@dataclass(frozen=True)
class _Events:
    """What there is of each event, and where users begin."""

    items: Int32
    offsets: Int64
    times: NDArray[Any] | None
    types: UInt8 | None
    weights: Float32 | None

    def in_order(self, order: Int64 | None) -> _Events:
        """The same events in another order; None = as they are."""
        if order is None:
            return self
        return _Events(
            self.items[order],
            self.offsets,
            None if self.times is None else self.times[order],
            None if self.types is None else self.types[order],
            None if self.weights is None else self.weights[order],
        )


def _types_of(log: pl.DataFrame) -> tuple[UInt8 | None, list[str]]:
    """The type of each event as a place among their names, and the names in ascending order."""
    if "event" not in log.columns:
        return None, []
    names, places = _dense(log["event"])
    return places.astype(np.uint8), names.to_list()


def _dense(ids: pl.Series) -> tuple[pl.Series, Int32]:
    """Unique ids in ascending order, and each element's position among them."""
    unique = ids.unique().sort()
    if ids.dtype == pl.Int64:
        return unique, IdIndex(unique).places_of(ids)
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


def _facts(events: _Events, users: pl.Series, ids: pl.Series, names: Sequence[str]) -> LogFacts:
    tally = Tally().add(Ragged(events.items, events.offsets), events.times, len(ids))
    return facts_of(
        tally,
        (len(users), len(ids)),
        _fingerprint(events, users, ids, names),
        has_timestamps=events.times is not None,
        event_types={} if events.types is None else _counted(events.types, names),
        has_weights=events.weights is not None,
    )


def facts_of(tally: Tally, sizes: tuple[int, int], digest: str, **of_events: Any) -> LogFacts:
    """The facts of events that were counted.

    Args:
        tally: of all events.
        sizes: how many users and items there are.
        digest: the log's fingerprint.
        of_events: further facts: has_timestamps, event_types, has_weights.
    """
    return LogFacts(
        n_events=tally.n_events,
        n_users=sizes[0],
        n_items=sizes[1],
        repeat_share=tally.n_repeats / tally.after_first,
        tied_share=tally.n_tied / tally.after_first,
        n_short_users=tally.n_short,
        fingerprint=digest,
        **of_events,
    )


def _counted(types: UInt8, names: Sequence[str]) -> dict[str, int]:
    return dict(zip(names, np.bincount(types, minlength=len(names)).tolist(), strict=True))


def _fingerprint(events: _Events, users: pl.Series, ids: pl.Series, names: Sequence[str]) -> str:
    arrays: list[NDArray[Any]] = [events.items, events.offsets, *([] if events.times is None else [events.times])]
    types, weights = (None if array is None else pieces(array) for array in (events.types, events.weights))
    return fingerprint((pieces(array) for array in arrays), types, weights, (users, ids), names)


def warn_of(facts: LogFacts) -> None:
    """Warn of ties in time and of users with few events."""
    if facts.tied_share > 0:
        logger.warning(
            "%.1f %% of events share their timestamp with the event before; they keep their input order",
            100 * facts.tied_share,
        )
    if facts.n_short_users:
        told = "%d of %d users have fewer than 3 events; leave_one_out measures none of them"
        logger.warning(told, facts.n_short_users, facts.n_users)

"""The lists of all users of a log, or of those asked for, in one file: .parquet, .csv or .jsonl.

Users are taken some thousands at a time, so that memory does not grow with their number. Each part is written, whole or
not at all, into the folder `.NAME.parts` beside the output, and its digest is noted. At the end the parts are joined
into the output, and the folder is removed. After Ctrl-C or a kill, the same call goes on behind the parts that are
there and are as they were written.

`plan_lists` tells the parts of a file, and `Listing.write_part` computes one of them, here or in another process;
`sasrec.export.parts.join_parts` makes one file of all.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl

from sasrec.core.arrays import Int32, Int64
from sasrec.core.digests import digest_of, note, noting
from sasrec.core.errors import ConfigError
from sasrec.core.files import atomic_file
from sasrec.core.forks import needs_threads_of
from sasrec.core.scalars import check_number, check_truth
from sasrec.data.histories import rows_of_users
from sasrec.export.parts import Plan, join_parts, parts_folder
from sasrec.ranking.diversity import check_diversity
from sasrec.ranking.order import check_k
from sasrec.recommender import Recommender

logger = logging.getLogger(__name__)

PART_USERS = 2**14
PART_ROWS = 2**21  # of the output
WRITERS: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    ".parquet": lambda frame, path: frame.write_parquet(path),
    ".csv": lambda frame, path: frame.write_csv(path),
    ".jsonl": lambda frame, path: frame.write_ndjson(path),
}
OnUsers = Callable[[int, int], None]  # users done, users in all


def writer_of(path: Path) -> Callable[[pl.DataFrame, Path], Any]:
    """The function that writes a frame in the format of a file's name.

    Raises:
        ConfigError: another ending.
    """
    if path.suffix not in WRITERS:
        raise ConfigError(f"output {path} must end in {', '.join(WRITERS)}")
    return WRITERS[path.suffix]


def write_frame(frame: pl.DataFrame, path: Path, *, guard_cells: bool = False) -> None:
    """Write a frame, whole or not at all, in the format of the file's name.

    Args:
        frame: what is written.
        path: a file .parquet, .csv or .jsonl.
        guard_cells: of a .csv, put an apostrophe before texts that a spreadsheet would take for a formula.

    Raises:
        ConfigError: another ending, or guard_cells for one that no spreadsheet reads so.
        CheckpointError: the file cannot be written.
    """
    check_guard(path, guard_cells)
    _write(guarded(frame) if guard_cells else frame, path)


def check_guard(path: Path, guard_cells: bool) -> None:
    """Raise ConfigError if cells are to be guarded in a file that holds no texts for a spreadsheet."""
    if guard_cells and path.suffix != ".csv":
        raise ConfigError(f"guard_cells is for .csv, which spreadsheets read as formulas, and not for {path.name}")


def guarded(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame whose texts no spreadsheet takes for formulas: an apostrophe stands before =, +, -, @ and controls."""
    text = pl.col(pl.String)
    return frame.with_columns(pl.when(text.str.contains(r"^[=+\-@\t\r]")).then("'" + text).otherwise(text).name.keep())


def _write(frame: pl.DataFrame, path: Path, before: Callable[[Path], None] | None = None) -> None:
    write = writer_of(path)
    with atomic_file(path, before) as temporary:
        write(frame, temporary)


@dataclass(frozen=True)
class Summary:
    """What was done. Both kinds of seconds are of this call alone, not of an earlier one that it continues."""

    n_users: int
    n_resumed: int  # users whose lists were there already
    seconds: float  # of recommending
    seconds_writing: float


class Part(NamedTuple):
    """Consecutive users of a file of lists."""

    name: str  # of its file
    first: int  # place of its first user among those of the file
    rows: slice | Int64  # of its users in the log

    @property
    def n_users(self) -> int:
        """How many."""
        return self.rows.stop - self.rows.start if isinstance(self.rows, slice) else len(self.rows)


@dataclass(frozen=True)
class Listing:
    """A file of lists that is to be made: its users, in parts, and what decides their lists. It can be pickled."""

    plan: Plan
    suffix: str  # of the output
    n_users: int
    users: Int64 | None  # (n_users,) their rows in the log; None = all users
    filters: dict[str, Any]  # of `recommend_rows`

    def parts(self) -> Iterator[Part]:
        """All parts, in the order of the output; one without users where nobody is asked for."""
        for first in range(0, max(self.n_users, 1), self.plan.part_users):
            rows = slice(first, min(first + self.plan.part_users, self.n_users))
            yield Part(f"{first:012}{self.suffix}", first, rows if self.users is None else self.users[rows])

    def frame(self, recommender: Recommender, rows: slice | Int64) -> pl.DataFrame:
        """The lists of the users at some rows of the log.

        Raises:
            CheckpointError: the events were cut off since they were opened.
        """
        if recommender.sequences is not None:
            recommender.sequences.check_maps()
        frame = recommender.recommend_rows(rows, self.plan.k, **self.filters)
        return guarded(frame) if self.plan.guard_cells else frame

    def write_part(
        self,
        recommender: Recommender,
        rows: slice | Int64,
        path: Path,
        before: Callable[[Path], None] | None = None,
    ) -> float:
        """Compute the lists of one part and write them, whole or not at all.

        Args:
            recommender: the model that the plan is of.
            rows: of the part.
            path: where the part is to lie; it ends as the output does.
            before: called with what was written under a temporary name, such as `noting` of the folder of parts, which
                one process at a time may do.

        Returns:
            Seconds of writing.

        Raises:
            CheckpointError: the events were cut off, or the part cannot be written.
        """
        frame, began = self.frame(recommender, rows), time.perf_counter()
        _write(frame, path, before)
        return time.perf_counter() - began


def plan_lists(
    recommender: Recommender,
    output: Path | str,
    k: int = 10,
    *,
    users: Iterable[Any] | None = None,
    allow: Iterable[Any] | None = None,
    deny: Iterable[Any] | None = None,
    keep_seen: bool | None = None,
    where: str | None = None,
    diversity: float = 0.0,
    part_users: int | None = None,
    part_rows: int = PART_ROWS,
    guard_cells: bool = False,
) -> Listing:
    """Check what `recommend_all` is asked for, and cut it into parts; nothing is written.

    The arguments are those of `recommend_all`, and so are the errors, but for those of writing.
    """
    output = Path(output)
    writer_of(output)
    check_guard(output, guard_cells)
    items = recommender.item_filter(allow, deny, where)
    k, kept = check_k(k), check_truth("keep_seen", keep_seen)
    filters: dict[str, Any] = {
        "allowed": items.mask(),
        "keep_seen": not recommender.hides_seen if kept is None else kept,
        "diversity": check_diversity(diversity),
    }
    recommender.recommend_rows(slice(0, 0), k, **filters)  # wrong filters fail before anything is written
    rows = None if users is None or recommender.sequences is None else rows_of_users(recommender.sequences, users)
    longest = min(k, len(recommender.vocabulary))
    most = PART_USERS if part_users is None else check_number("part_users", part_users, "users")
    plan = Plan(
        recommender.model_version,
        recommender.config.data.fingerprint,
        k,
        _digest(items.allowed),
        _digest(items.denied),
        filters["keep_seen"],
        max(1, min(most, check_number("part_rows", part_rows, "rows") // longest)),
        guard_cells,
        _digest(None if items.where is None else np.flatnonzero(items.where).astype(np.int32)),
        filters["diversity"],
        "" if rows is None else _digest_in_order(rows),
    )
    return Listing(plan, output.suffix, recommender.n_users if rows is None else len(rows), rows, filters)


def recommend_all(
    recommender: Recommender,
    output: Path | str,
    k: int = 10,
    *,
    users: Iterable[Any] | None = None,
    allow: Iterable[Any] | None = None,
    deny: Iterable[Any] | None = None,
    keep_seen: bool | None = None,
    where: str | None = None,
    diversity: float = 0.0,
    progress: OnUsers | None = None,
    part_users: int | None = None,
    part_rows: int = PART_ROWS,
    guard_cells: bool = False,
    makers: Makers | None = None,
) -> Summary:
    """Write the top k next items of users of the log, as `Recommender.recommend_users` gives them, in parts.

    Args:
        recommender: a model with its users' histories.
        output: a file .parquet, .csv or .jsonl: user_id, item_id, score, rank.
        k: how many.
        users: their ids, in the order that they are to stand in; one that is given twice gets its list twice.
            None = all users, in ascending order of id.
        allow: only these items; None = all.
        deny: never these items.
        keep_seen: as in `recommend`.
        where: only items whose attributes fulfil this expression.
        diversity: as in `recommend`.
        progress: called after each part.
        part_users: at most so many users at a time; None = PART_USERS.
        part_rows: at most so many rows of the output at a time: long lists make parts of fewer users.
        guard_cells: as in `write_frame`.
        makers: others that compute the parts, side by side; None = this process does.

    Raises:
        ConfigError: another ending of the output, another process is writing the same output, a number is out of its
            range, or `where` is no expression over the items' columns.
        DataError: `users`, `allow` or `deny` is not a list of ids.
        UnknownItemError: a user is not in the log; or `allow` or `deny` names items, and none of them is known.
        CheckpointError: the model was saved without histories, or the output cannot be written.
    """
    needs_threads_of("Polars")
    output = Path(output)
    options: dict[str, Any] = {"allow": allow, "deny": deny, "keep_seen": keep_seen, "where": where}
    sizes: dict[str, Any] = {"part_users": part_users, "part_rows": part_rows}
    listing = plan_lists(
        recommender, output, k, users=users, diversity=diversity, guard_cells=guard_cells, **options, **sizes
    )
    with parts_folder(output, listing.plan) as folder:
        made_by = partial(_made_here, recommender) if makers is None else makers.made
        return _write_all(listing, folder, output, progress or (lambda done, total: None), made_by)


class Makers(Protocol):
    """Others that compute parts, side by side; they may write into the folder of parts, beside what it has."""

    def made(self, listing: Listing, parts: Sequence[Part], folder: Path) -> Iterator[Made]:
        """Each part, as soon as its file is there."""


class Made(NamedTuple):
    """A part that is done."""

    part: Part
    file: Path  # that has it; it may be another one than its place, in the same folder
    seconds_writing: float = 0.0  # that this process took for it


def _made_here(recommender: Recommender, listing: Listing, parts: Sequence[Part], folder: Path) -> Iterator[Made]:
    for part in parts:
        path = folder / part.name
        yield Made(part, path, listing.write_part(recommender, part.rows, path, noting(folder, part.name)))


def _write_all(
    listing: Listing,
    folder: Path,
    output: Path,
    progress: OnUsers,
    made_by: Callable[[Listing, Sequence[Part], Path], Iterator[Made]],
) -> Summary:
    """Have the parts made that are not there yet, and the output of all."""
    n_users, parts = listing.n_users, list(listing.parts())
    missing = [part for part in parts if not (folder / part.name).exists()]
    n_resumed = n_users - sum(part.n_users for part in missing)
    if n_resumed:
        logger.info("going on behind the %s users that %s holds", f"{n_resumed:,}", folder)
    began, seconds_writing, done = time.perf_counter(), 0.0, n_resumed
    for made in made_by(listing, missing, folder):
        place = folder / made.part.name
        if made.file != place:
            note(folder, {place.name: digest_of(made.file)})
            made.file.replace(place)
        seconds_writing, done = seconds_writing + made.seconds_writing, done + made.part.n_users
        progress(done, n_users)
    seconds, began = time.perf_counter() - began - seconds_writing, time.perf_counter()
    join_parts([folder / part.name for part in parts], output)
    seconds_writing += time.perf_counter() - began
    n_new = n_users - n_resumed
    rate = f"{n_new / max(seconds, 1e-9):,.0f}"
    logger.info("%s users in %.2f s: %s users/s; %.2f s more for writing", f"{n_new:,}", seconds, rate, seconds_writing)
    return Summary(n_users, n_resumed, seconds, seconds_writing)


def _digest(indices: Int32 | None) -> str:
    """A digest of a set of items; "" where there is no list."""
    if indices is None:
        return ""
    return hashlib.blake2b(np.unique(indices).tobytes(), digest_size=8).hexdigest()


def _digest_in_order(rows: Int64) -> str:
    """A digest of users in the order that they are asked for."""
    return hashlib.blake2b(rows.tobytes(), digest_size=8).hexdigest()

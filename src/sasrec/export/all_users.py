"""The lists of all users of a log, or of many, in one file: .parquet, .csv or .jsonl.

Users are taken some thousands at a time, so that memory does not grow with their number. Each part is written, whole or
not at all, into the folder `.NAME.parts` beside the output, and its digest is noted. At the end the parts are joined
into the output, and the folder is removed. After Ctrl-C or a kill, the same call goes on behind the parts that are
there and are as they were written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from sasrec import __version__
from sasrec.core.arrays import Int32, Int64
from sasrec.core.digests import digest_of, is_as_written, note, noting, read_book
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.files import atomic_file, atomic_write, disk_errors, is_temporary
from sasrec.core.forks import needs_threads_of
from sasrec.core.scalars import check_number, check_truth
from sasrec.data.histories import rows_of_users
from sasrec.ranking.diversity import check_diversity
from sasrec.ranking.order import check_k
from sasrec.recommender import Recommender
from sasrec.runs.lock import LOCK, lock

logger = logging.getLogger(__name__)

PART_USERS = 2**14
PART_ROWS = 2**21  # of the output
WRITERS: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    ".parquet": lambda frame, path: frame.write_parquet(path),
    ".csv": lambda frame, path: frame.write_csv(path),
    ".jsonl": lambda frame, path: frame.write_ndjson(path),
}
Rows = slice | Int64  # of users of the log
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
    write_whole(guarded(frame) if guard_cells else frame, path)


def check_guard(path: Path, guard_cells: bool) -> None:
    """Raise ConfigError if cells are to be guarded in a file that holds no texts for a spreadsheet."""
    if guard_cells and path.suffix != ".csv":
        raise ConfigError(f"guard_cells is for .csv, which spreadsheets read as formulas, and not for {path.name}")


def guarded(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame whose texts no spreadsheet takes for formulas: an apostrophe stands before =, +, -, @ and controls."""
    text = pl.col(pl.String)
    return frame.with_columns(pl.when(text.str.contains(r"^[=+\-@\t\r]")).then("'" + text).otherwise(text).name.keep())


def write_whole(frame: pl.DataFrame, path: Path, before: Callable[[Path], None] | None = None) -> None:
    """Write a frame in the format of the file's name, as `atomic_file` does."""
    write = writer_of(path)
    with atomic_file(path, before) as temporary:
        write(frame, temporary)


@dataclass(frozen=True)
class Plan:
    """Everything that decides the contents of the parts; only parts of an equal plan are kept."""

    model_version: str
    data: str  # fingerprint of the log
    k: int
    allow: str  # digest of the items; "" = all
    deny: str
    keep_seen: bool
    part_users: int
    guard_cells: bool = False
    where: str = ""  # digest of the items that fulfil the expression; "" = there is none
    diversity: float = 0.0
    users: str = ""  # digest of the rows of the users; "" = all
    sasrec: str = __version__

    def to_json(self) -> str:
        """The text of plan.json."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True)
class Summary:
    """What was done. Both kinds of seconds are of this call alone, not of an earlier one that it continues."""

    n_users: int
    n_resumed: int  # users whose lists were there already
    seconds: float  # of recommending
    seconds_writing: float


def recommend_all(
    recommender: Recommender,
    output: Path | str,
    k: int = 10,
    *,
    users: Any = None,
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
    """Write the top k next items of every user, as `Recommender.recommend_users` gives them.

    Args:
        recommender: a model with its users' histories.
        output: a file .parquet, .csv or .jsonl: user_id, item_id, score, rank.
        k: how many.
        users: ids of users of the log, in the order of the output; None = all, in ascending order of id.
        allow: only these items; None = all.
        deny: never these items.
        keep_seen: as in `recommend`.
        where: only items whose attributes fulfil this expression.
        diversity: as in `recommend`.
        progress: called after each part.
        part_users: at most so many users at a time; None = PART_USERS.
        part_rows: at most so many rows of the output at a time: long lists make parts of fewer users.
        guard_cells: as in `write_frame`.
        makers: others that compute the parts; None = this process does.

    Raises:
        ConfigError: another ending of the output, another process is writing the same output, a number is out of its
            range, or `where` is no expression over the items' columns.
        DataError: `users`, `allow` or `deny` is not a list of ids.
        UnknownItemError: a user is not in the log; `allow` or `deny` names items, and none of them is known.
        CheckpointError: the model was saved without histories, or the output cannot be written.
    """
    needs_threads_of("Polars")
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
    sequences = recommender.sequences
    rows = None if users is None or sequences is None else rows_of_users(sequences, users)
    longest = min(k, len(recommender.vocabulary))
    most = PART_USERS if part_users is None else check_number("part_users", part_users, "users")
    part_users = max(1, min(most, check_number("part_rows", part_rows, "rows") // longest))
    plan = Plan(
        recommender.model_version,
        recommender.config.data.fingerprint,
        k,
        _digest(items.allowed),
        _digest(items.denied),
        filters["keep_seen"],
        part_users,
        guard_cells,
        _digest(None if items.where is None else np.flatnonzero(items.where).astype(np.int32)),
        filters["diversity"],
        "" if rows is None else _digest_of(rows),
    )
    with _parts_folder(output, plan) as folder:
        work = PartWork(recommender.model_version, k, filters, guard_cells)
        job = _Job(recommender, folder, output, progress or (lambda done, total: None), work, makers)
        return job.run(rows, part_users)


@dataclass(frozen=True)
class PartWork:
    """What is to be computed of each part."""

    model_version: str
    k: int
    filters: dict[str, Any]
    guard_cells: bool

    def frame(self, recommender: Recommender, rows: Rows) -> pl.DataFrame:
        """The lists of some users."""
        if recommender.sequences is not None:
            recommender.sequences.check_maps()
        frame = recommender.recommend_rows(rows, self.k, **self.filters)
        return guarded(frame) if self.guard_cells else frame


class Makers(Protocol):
    """Others that compute parts, side by side."""

    def made(self, work: PartWork, parts: Sequence[tuple[Rows, Path]]) -> Iterator[tuple[int, Path]]:
        """Each part, as soon as it is there: which one of `parts`, and the whole file beside its place that has it."""


@dataclass
class _Job:
    """One call of `recommend_all`."""

    recommender: Recommender
    folder: Path
    output: Path
    progress: OnUsers
    work: PartWork
    makers: Makers | None
    seconds: float = 0.0
    seconds_writing: float = 0.0

    def run(self, users: Int64 | None, part_users: int) -> Summary:
        n_users = self.recommender.n_users if users is None else len(users)
        starts = range(0, max(n_users, 1), part_users)
        spans = [slice(start, min(start + part_users, n_users)) for start in starts]
        parts = [self.folder / f"{start:012}{self.output.suffix}" for start in starts]
        missing = [at for at, part in enumerate(parts) if not part.exists()]
        n_new = sum(spans[at].stop - spans[at].start for at in missing)
        if n_new < n_users:
            told = "going on behind the %s users that %s holds"
            logger.info(told, f"{n_users - n_new:,}", self.folder)
        done = n_users - n_new
        for at in self._written([(spans[at] if users is None else users[spans[at]], parts[at]) for at in missing]):
            span = spans[missing[at]]
            done += span.stop - span.start
            self.progress(done, n_users)
        self._timed_write(lambda: _join(parts, self.output))
        logger.info(
            "%s users in %.2f s: %s users/s; %.2f s more for writing",
            f"{n_new:,}",
            self.seconds,
            f"{n_new / max(self.seconds, 1e-9):,.0f}",
            self.seconds_writing,
        )
        return Summary(n_users, n_users - n_new, self.seconds, self.seconds_writing)

    def _written(self, parts: Sequence[tuple[Rows, Path]]) -> Iterator[int]:
        """Which part is in its place, as soon as it is."""
        if self.makers is None:
            for at, (rows, path) in enumerate(parts):
                self._part(rows, path)
                yield at
            return
        began = time.perf_counter()
        for at, file in self.makers.made(self.work, parts):
            path = parts[at][1]
            note(self.folder, {path.name: digest_of(file)})
            file.replace(path)
            yield at
        self.seconds += time.perf_counter() - began

    def _part(self, rows: Rows, path: Path) -> None:
        began = time.perf_counter()
        frame = self.work.frame(self.recommender, rows)
        self.seconds += time.perf_counter() - began
        self._timed_write(lambda: write_whole(frame, path, noting(self.folder, path.name)))

    def _timed_write(self, write: Callable[[], None]) -> None:
        began = time.perf_counter()
        write()
        self.seconds_writing += time.perf_counter() - began


@contextlib.contextmanager
def _parts_folder(output: Path, plan: Plan) -> Iterator[Path]:
    """The folder of parts of this plan, locked for this process; it is removed when all went well.

    Raises:
        ConfigError: another process has it, or it is a link.
    """
    folder = output.with_name(f".{output.name}.parts")
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a link, and what it leads to may be another's; remove the link")
    with disk_errors(output):
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / LOCK, f"another process is writing {output}; wait for it, or write another file")
    with held:
        for path in output.parent.iterdir():
            if is_temporary(path, output.name):  # of a process that was killed
                path.unlink(missing_ok=True)
        _keep_parts_of(plan, folder)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def _keep_parts_of(plan: Plan, folder: Path) -> None:
    """Remove parts of another plan, files that a kill left half written, and parts that are damaged."""
    file = folder / "plan.json"
    same = _is_of(plan, folder)
    if not same and file.exists():
        logger.warning("%s holds parts of another model or of other settings; starting again", folder)
    for path in folder.iterdir():
        if path.name.endswith(".tmp") or (not same and path.name != LOCK):
            path.unlink()
        elif path.stem.isdigit() and not is_as_written(folder, path.name, whole=True):
            logger.warning("%s is not as it was written; its users are computed again", path)
            path.unlink()
    if not same:
        atomic_write(file, plan.to_json(), noting(folder, file.name))


def _is_of(plan: Plan, folder: Path) -> bool:
    """Whether a folder's parts are those of a plan, and their digests are known."""
    with contextlib.suppress(FileNotFoundError, CheckpointError, UnicodeDecodeError):
        return read_book(folder) is not None and (folder / "plan.json").read_text() == plan.to_json()
    return False


def _join(parts: list[Path], output: Path) -> None:
    """One file of all parts, in their order, in bounded memory."""
    with atomic_file(output) as temporary:
        if output.suffix == ".parquet":
            pl.scan_parquet(parts, glob=False).sink_parquet(temporary, maintain_order=True)
            return
        with temporary.open("wb") as joined:
            for number, part in enumerate(parts):
                with part.open("rb") as file:
                    if number and output.suffix == ".csv":
                        file.readline()  # the header
                    shutil.copyfileobj(file, joined)


def _digest(indices: Int32 | None) -> str:
    """A digest of a set of items; "" where there is no list."""
    return "" if indices is None else _digest_of(np.unique(indices))


def _digest_of(numbers: Int32 | Int64) -> str:
    return hashlib.blake2b(numbers.tobytes(), digest_size=8).hexdigest()

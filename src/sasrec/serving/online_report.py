"""What a feedback file says about two models: hit rates by users, their difference; and how it forgets somebody."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from sasrec.core.arrays import Float64
from sasrec.core.errors import ConfigError, DataError
from sasrec.core.tables import plain_table
from sasrec.evaluation.comparison import holm
from sasrec.evaluation.intervals import FEW_USERS, Estimate
from sasrec.evaluation.user_rates import RateDifference, compare_rates, rate
from sasrec.serving import feedback_file
from sasrec.serving.decoding import ItemId
from sasrec.serving.sqlite_file import BUSY_SECONDS, transaction

ANY = "any"  # feedback of whatever kind
FEW_HITS = 10  # users with hits in an arm; below it the normal distribution is far off
LARGE_SHARE = 0.05  # of an arm's lists by one user
FORGOTTEN_AT_ONCE = 10_000  # lists
CERTAIN = 0.05  # p-values below it are called a difference
ARMS = ("run", "challenger")
LISTS = """
SELECT user, arm, count(*) FROM exposures JOIN groups ON groups.id = grp
WHERE shown_at BETWEEN ? AND ? AND (arm = 'run' OR ? IN ('', version)) GROUP BY user, arm
"""
HITS = """
SELECT user, arm, {kind} AS of_kind, count(DISTINCT exposures.id)
FROM feedback JOIN exposures USING (id) JOIN groups ON groups.id = grp
WHERE shown_at BETWEEN ? AND ? AND (arm = 'run' OR ? IN ('', version)) AND user IS NOT NULL GROUP BY user, arm, of_kind
ORDER BY of_kind
"""
VERSIONS = """
SELECT arm, version, count(*) FROM exposures JOIN groups ON groups.id = grp
WHERE shown_at BETWEEN ? AND ? AND (arm = 'run' OR ? IN ('', version)) GROUP BY arm, version ORDER BY min(shown_at)
"""
SPAN = """
SELECT min(shown_at), max(shown_at) FROM exposures JOIN groups ON groups.id = grp
WHERE arm = ? AND ? IN ('', version)
"""


Hits = dict[str, dict[tuple[bytes, str], int]]  # by kind: of a user in an arm


class Arm(NamedTuple):
    """The lists of one arm."""

    versions: dict[str, int]  # lists of each
    n_users: int  # whose lists are compared
    n_lists: int  # of them
    n_unnamed: int  # lists of nobody that was named, which are left out


@dataclass(frozen=True)
class OnlineReport:
    """The two arms of a feedback file in the time in which both answered.

    `kinds`: by kind of feedback, and "any"; a hit is a list with feedback, `a` is run and `b` the challenger. Without a
    challenger there are only the `rates` of run. `p_holm`: p-values corrected for several kinds; None for a single one.
    """

    start: float  # seconds since 1970
    end: float
    arms: dict[str, Arm]
    n_in_both: int  # users who met both arms and are left out
    rates: dict[str, Estimate]
    kinds: dict[str, RateDifference]
    p_holm: dict[str, float] | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {
            "arms": {name: arm._asdict() for name, arm in self.arms.items()},
            "warnings": list(self.warnings),
        }

    def to_text(self) -> str:
        """For people."""
        start, end = (datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M") for at in (self.start, self.end))
        lines = [f"lists shown to named users from {start} to {end} UTC; a hit is a list with feedback", ""]
        header = ["arm", "users", "lists", "versions"]
        arms = [
            [name, f"{arm.n_users:,}", f"{arm.n_lists:,}", ", ".join(arm.versions)] for name, arm in self.arms.items()
        ]
        lines += [plain_table([header, *arms]), ""]
        if self.kinds:
            lines += [self._differences(), "", *map(self._verdict, self.kinds), ""]
            lines.append("hit rates with 95 % intervals over users (delta method); p: no difference between the arms")
        else:
            rows = [[kind, _with_interval(estimate)] for kind, estimate in self.rates.items()]
            lines.append(plain_table([["kind", "hit rate, 95 % interval over users"], *rows]))
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def _differences(self) -> str:
        rows = [["kind", "run", "challenger", "difference", "relative", "95 % interval", "p"]]
        for kind, d in self.kinds.items():
            relative = "-" if d["relative"] is None else f"{100 * d['relative']:+.1f} %"
            interval = "-" if d["low"] is None else f"{d['low']:+.4f} .. {d['high']:+.4f}"
            p_value = "-" if d["p_value"] is None else f"{d['p_value']:.2g}"
            sides = _with_interval(d["a"]), _with_interval(d["b"])
            rows.append([kind, *sides, f"{d['difference']:+.4f}", relative, interval, p_value])
        if self.p_holm is not None:
            for row, cell in zip(rows, ["p (Holm)", *(f"{p:.2g}" for p in self.p_holm.values())], strict=True):
                row.append(cell)
        return plain_table(rows)

    def _verdict(self, kind: str) -> str:
        """What the figures of a kind say, in a sentence."""
        found = self.kinds[kind]
        p_value = found["p_value"] if self.p_holm is None else self.p_holm[kind]
        if p_value is None or not found["stderr"]:
            return f"{kind}: too little to compare"
        if p_value < CERTAIN:
            return f"{kind}: the challenger has {'more' if found['difference'] > 0 else 'fewer'} hits than run"
        return (
            f"{kind}: no difference found; so many users would probably show one of {found['detectable']:.4f} or more"
        )


def _with_interval(estimate: Estimate) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:.4f}"
    return f"{estimate['value']:.4f} ({estimate['low']:.4f} .. {estimate['high']:.4f})"


def report(path: Path, kind: str | None = None, version: str | None = None) -> OnlineReport:
    """Compare the two arms of a feedback file.

    Lists count that were shown while the challenger answered, to users who were named and met one arm only.

    Args:
        path: of the file; a server may be writing it.
        kind: only feedback of this kind; None = each kind, and any.
        version: of the challenger; None = all of its versions.

    Raises:
        DataError: the file cannot be read, or has no lists.
        ConfigError: it has no feedback of this kind, or no list of this version.
    """
    with opened(path, "ro") as connection, _errors(path):
        connection.execute("BEGIN")  # one state of the file for all that is asked
        start, end = _span(connection, path, version)
        wanted = start, end, version or ""
        lists = {(user, arm): n for user, arm, n in connection.execute(LISTS, wanted)}
        hits: Hits = {ANY: {}}
        for column in ("kind", f"'{ANY}'"):
            for user, arm, of_kind, n in connection.execute(HITS.format(kind=column), wanted):
                hits.setdefault(of_kind, {})[user, arm] = n
        versions: dict[str, dict[str, int]] = {}
        for arm, name, n in connection.execute(VERSIONS, wanted):
            versions.setdefault(arm, {})[name] = n
    return _compared(start, end, lists, _of_kind(hits, kind), versions)


def _span(connection: sqlite3.Connection, path: Path, version: str | None) -> tuple[float, float]:
    """The time in which the challenger answered, or all, if there is none."""
    known = {name for (name,) in connection.execute("SELECT version FROM groups WHERE arm = 'challenger'")}
    if version is not None and version not in known:
        raise ConfigError(f"{path} has no list of the challenger's version {version}; leave --version out for all")
    for arm in reversed(ARMS):
        start, end = connection.execute(SPAN, (arm, version or "" if arm == "challenger" else "")).fetchone()
        if start is not None:
            return start, end
    raise DataError(f"{path} has no lists yet; it fills while sasrec serve --feedback answers")


def _of_kind(
    hits: dict[str, dict[tuple[bytes, str], int]], kind: str | None
) -> dict[str, dict[tuple[bytes, str], int]]:
    if kind is None:
        return hits if len(hits) > 2 else {name: hits[name] for name in list(hits)[-1:]}
    if kind not in hits:
        known = ", ".join(name for name in hits if name != ANY) or "none"
        raise ConfigError(f"there is no feedback of kind '{kind}' by named users; kinds: {known}")
    return {kind: hits[kind]}


def _compared(
    start: float,
    end: float,
    lists: Mapping[tuple[bytes | None, str], int],
    hits: Hits,
    versions: Mapping[str, dict[str, int]],
) -> OnlineReport:
    members = {arm: {user for user, of_arm in lists if of_arm == arm and user is not None} for arm in ARMS}
    both = members["run"] & members["challenger"]
    users = {arm: sorted(found - both) for arm, found in members.items()}
    trials = {arm: np.array([lists[user, arm] for user in users[arm]], float) for arm in ARMS}
    arms = {
        arm: Arm(versions[arm], len(users[arm]), int(trials[arm].sum()), lists.get((None, arm), 0))
        for arm in ARMS
        if arm in versions
    }

    def of(kind: str, arm: str) -> tuple[Float64, Float64]:
        found = hits[kind]
        return np.array([found.get((user, arm), 0) for user in users[arm]], float), trials[arm]

    kinds = {kind: compare_rates(of(kind, "run"), of(kind, "challenger")) for kind in hits} if len(arms) == 2 else {}
    known = [found["p_value"] for found in kinds.values() if found["p_value"] is not None]
    corrected = dict(zip(kinds, holm(known), strict=True)) if len(known) > 1 else None
    fewest = {arm: min((int(np.count_nonzero(of(kind, arm)[0])), kind) for kind in hits) for arm in arms}
    return OnlineReport(
        start,
        end,
        arms,
        len(both),
        {kind: rate(*of(kind, "run")) for kind in hits},
        kinds,
        corrected,
        tuple(_warnings(arms, trials, fewest, len(both))),
    )


def _warnings(
    arms: Mapping[str, Arm], trials: Mapping[str, Float64], fewest: Mapping[str, tuple[int, str]], n_in_both: int
) -> Iterator[str]:
    if "challenger" not in arms:
        yield "no list is of a challenger, so there is nothing to compare; serve with --challenger RUN2:0.1"
    for name, arm in arms.items():
        if arm.n_users < 2:
            yield f"{name} has {arm.n_users} users whose lists can be compared, which is too few for an interval"
        elif arm.n_users < FEW_USERS:
            yield f"{name} has only {arm.n_users} users: intervals and p-values assume {FEW_USERS} or more"
        elif fewest[name][0] < FEW_HITS:
            n, kind = fewest[name]
            yield f"{name} has only {n} users with a hit ({kind}): below {FEW_HITS}, intervals and p-values are rough"
        if arm.n_users >= FEW_USERS and trials[name].max() > LARGE_SHARE * arm.n_lists:
            share = 100 * trials[name].max() / arm.n_lists
            yield f"one user has {share:.0f} % of the lists of {name}; is it a program?"
        if len(arm.versions) > 1:
            yield f"{name} had {len(arm.versions)} versions in this time, which count as one"
        if arm.n_unnamed:
            yield f"{arm.n_unnamed:,} lists of {name} named no user and are left out"
    if n_in_both:
        yield f"{n_in_both:,} users met both arms and are left out; was the share changed?"


def forget(path: Path, user: ItemId) -> tuple[int, int]:
    """Remove what a feedback file has of a user; how many lists, and how much feedback on them.

    What is removed is overwritten in the file.

    Raises:
        DataError: the file cannot be used.
    """
    n_lists = n_feedback = 0
    with opened(path, "rw") as connection, _errors(path):
        connection.execute("PRAGMA secure_delete = ON")
        feedback_file.prepare(connection)
        hashed = feedback_file.pseudonym(feedback_file.salt_of(connection), user)
        find = "SELECT id FROM exposures WHERE user = ? LIMIT ?"
        while found := connection.execute(find, (hashed, FORGOTTEN_AT_ONCE)).fetchall():
            with transaction(connection):
                connection.executemany("INSERT OR IGNORE INTO gone VALUES (?)", found)
                removed = feedback_file.remove(connection)
            n_lists, n_feedback = n_lists + removed[0], n_feedback + removed[1]
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else the log beside the file has it for a while
    return n_lists, n_feedback


@contextlib.contextmanager
def opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A feedback file that is there.

    Raises:
        DataError: there is none, or it is of something else.
    """
    if not path.is_file():
        raise DataError(f"there is no feedback file {path}; sasrec serve --feedback makes one")
    with _errors(path):
        uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    with contextlib.closing(connection):
        with _errors(path):
            feedback_file.check_ours(connection)
            if not feedback_file.is_ours(connection):
                raise sqlite3.DatabaseError("it is empty")
        yield connection


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(f"the feedback file {path} cannot be used: {error}") from error

"""A reading in parts that was killed goes on, to the same bytes; of another log, or in another way, it begins anew."""

from __future__ import annotations

import gzip
import io
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sasrec.core import files
from sasrec.core.errors import CheckpointError
from sasrec.data import bounded, steps
from sasrec.data.bounded import Workplace
from sasrec.data.logs import Log, Reading, load_log
from sasrec.data.prepared import save_sequences, save_vocabulary
from sasrec.reading.chunks import ChunkSizes

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}
FILTERED = {"k_core": 3, "repeats": "first", "event_column": "kind", "weight_column": "w"}


class Killed(BaseException):
    """The process would be gone now."""


class Death:
    """Ends the work at the n-th change of what lies on disk; then nothing is changed any more, not even to clean up."""

    def __init__(self) -> None:
        self.number, self.count, self.is_dead = 0, 0, False
        sys.addaudithook(self.heard)

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.number and (event in CHANGES or (event == "open" and _writes(arguments))):
            self.step()

    def step(self) -> None:
        self.count += 1
        self.is_dead = self.is_dead or self.count == self.number
        if self.is_dead:
            raise Killed

    def at(self, number: int) -> None:
        """Die at this change; 0 = never."""
        self.number, self.count, self.is_dead = number, 0, False

    def pwrite(self, file: int, data: memoryview, at: int) -> int:
        if self.number:
            try:
                self.step()
            except Killed:
                if self.count == self.number:
                    WRITE(file, data[: len(data) // 2], at)  # torn
                raise
        return WRITE(file, data, at)


WRITE = os.pwrite
DEATH = Death()


def _writes(arguments: tuple[Any, ...]) -> bool:
    path, mode, _ = arguments
    return isinstance(mode, str) and any(letter in mode for letter in "wxa+") and not str(path).endswith(".pyc")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever has a bound comes in tiny parts, and each chunk and range is a step."""
    in_parts = bounded.read_in_parts
    monkeypatch.setattr("sasrec.data.logs.fits", lambda *_: False)
    monkeypatch.setattr(
        "sasrec.data.logs.read_in_parts", lambda *given: in_parts(*given, sizes=(SIZES["chunks"], SIZES["events"]))
    )
    monkeypatch.setattr(steps, "SECONDS", -1.0)
    monkeypatch.setattr("os.pwrite", DEATH.pwrite)
    yield
    DEATH.at(0)


SIZES: dict[str, Any] = {"chunks": ChunkSizes(n_rows=9, n_bytes=120), "events": 12}


def made(path: Path, seed: int = 3, n: int = 60) -> Path:
    """A log of few users and items, with users and a type that are rare, as some files."""
    rng = np.random.default_rng(seed)
    users = rng.integers(1, 9, n)
    rare = users == 8
    columns = {
        "user_id": np.where(rare, 100 + np.arange(n), users),
        "item_id": rng.integers(1, 15, n),
        "timestamp": rng.integers(0, 25, n),
        "kind": np.where(rare, "new", rng.choice(["view", "a"], n)),
        "w": rng.integers(1, 5, n) / 2,
    }
    path.mkdir()
    for j in range(3):
        pl.DataFrame(columns)[j * n // 3 : (j + 1) * n // 3].write_parquet(path / f"part-{j}.parquet")
    return path


def read(log: Path, spool: Path, **options: Any) -> Log:
    spool.mkdir(exist_ok=True)
    return load_log(log, Reading(memory="4GB", **options), Workplace(lambda: spool))


def files_of(log: Log, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    save_vocabulary(folder, log.vocabulary)
    save_sequences(folder, log.sequences)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def killed(number: int, log: Path, spool: Path, **options: Any) -> bool:
    """Whether the reading met the n-th change, and died of it."""
    DEATH.at(number)
    try:
        read(log, spool, **options)
    except Killed:
        return True
    finally:
        DEATH.at(0)
    return False


OPTIONS = [{}, FILTERED, {"k_core": 4, "one_pass": True}, {"repeats": "last"}]


def check_kills(tmp_path: Path, options: dict[str, Any], first: int, step: int) -> int:
    """Die at some of the changes, one in each reading, and go on; how many changes there are."""
    log, number = made(tmp_path / "log"), first
    wanted = files_of(read(log, tmp_path / "spool", **options), tmp_path / "wanted")
    while killed(number, log, tmp_path / f"spool-{number}", **options):
        found = files_of(read(log, tmp_path / f"spool-{number}", **options), tmp_path / f"found-{number}")
        assert found == wanted, number
        number += step
    return number


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_reading_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    assert check_kills(tmp_path, options, random.Random(str(options)).randint(1, 16), 17) > 200


@pytest.mark.outside
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_reading_that_was_killed_almost_anywhere_goes_on_to_the_same_bytes(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    assert check_kills(tmp_path, options, first=1, step=3) > 200  # with 1, before each change


@pytest.mark.parametrize("seed", range(5))
def test_a_reading_that_is_killed_again_and_again_comes_to_an_end(tmp_path: Path, seed: int) -> None:
    log, rng, deaths = made(tmp_path / "log"), random.Random(seed), 0
    wanted = files_of(read(log, tmp_path / "spool", **FILTERED), tmp_path / "wanted")
    while killed(rng.randint(30, 120), log, tmp_path / "killed", **FILTERED):
        deaths += 1
        assert deaths < 100
    assert deaths >= 2
    assert files_of(read(log, tmp_path / "killed", **FILTERED), tmp_path / "found") == wanted


def stages(log: Path, spool: Path, **options: Any) -> list[str]:
    """What a reading does, in words."""
    told: list[str] = []
    spool.mkdir(exist_ok=True)
    place = Workplace(lambda: spool, lambda what, done, total: told.append(what.partition(",")[0]))
    load_log(log, Reading(memory="4GB", **options), place)
    return list(dict.fromkeys(told))


ALL = [
    "reading",
    "sorting events into ranges of users",
    "bringing events into order",
    "leaving out rare users and items",
    "closing the files",
]
BEHIND = {  # what is still done behind a kill in a stage, and how that is told
    ALL[1]: (ALL[1:], "the events that are in their ranges of users"),
    ALL[2]: (ALL[2:], "the ranges of users that are in order"),
    ALL[3]: (ALL[3:], "the last count of rare users and items"),
    ALL[4]: (ALL[4:], "the ranges of users that are closed"),
}


def stopped(where: str, log: Path, spool: Path, **options: Any) -> None:
    """A reading that is interrupted in the middle of a stage."""

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith(where) and 2 * done >= total and done > 1:
            raise KeyboardInterrupt

    spool.mkdir(exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        load_log(log, Reading(memory="4GB", **options), Workplace(lambda: spool, stop))


@pytest.mark.parametrize("where", BEHIND)
def test_what_is_done_is_not_done_again_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    log, spool = made(tmp_path / "log"), tmp_path / "spool"
    stopped(where, log, spool, k_core=3)
    left, words = BEHIND[where]
    caplog.clear()
    with caplog.at_level("INFO"):
        assert stages(log, spool, k_core=3) == left
    said = f"going on behind {words}: what an earlier command has done is in {spool}"
    assert [line for line in caplog.messages if "going on" in line] == [said]
    caplog.clear()
    with caplog.at_level("INFO"):
        assert stages(log, spool, k_core=3) == []
    assert f"going on behind the whole reading: what an earlier command has done is in {spool}" in caplog.messages
    assert "events share their timestamp with the event before" in caplog.text  # as all that is odd is said again


def test_half_of_the_chunks_are_read_again_when_half_were(tmp_path: Path) -> None:
    log, spool, told = made(tmp_path / "log"), tmp_path / "spool", []
    stopped(ALL[1], log, spool)
    load_log(log, Reading(memory="4GB"), Workplace(lambda: spool, lambda *given: told.append(given)))
    assert [done for what, done, total in told if what == ALL[1]] == [40, 49, 58, 60]


def test_a_first_look_that_was_not_finished_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log, spool = made(tmp_path / "log"), tmp_path / "spool"
    stopped("reading", log, spool)
    assert stages(log, spool, k_core=3) == ALL
    assert "going on" not in caplog.text


def touch(log: Path) -> None:
    os.utime(log / "part-1.parquet", ns=(1, 1))


def grow(log: Path) -> None:
    pl.read_parquet(log / "part-1.parquet")[:5].write_parquet(log / "part-3.parquet")


def swap(log: Path) -> None:
    stat = (log / "part-0.parquet").stat()
    (log / "new").write_bytes((log / "part-0.parquet").read_bytes())
    os.utime(log / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (log / "new").replace(log / "part-0.parquet")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (touch, "part-1.parquet has changed since"),
        (swap, "part-0.parquet has changed since"),
        (grow, "it is of other files"),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
@pytest.mark.parametrize("where", ALL[1:])
def test_a_log_that_has_changed_is_read_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None], why: str, where: str
) -> None:
    log, spool = made(tmp_path / "log"), tmp_path / "spool"
    stopped(where, log, spool, k_core=3)
    change(log)
    found = files_of(read(log, spool, k_core=3), tmp_path / "found")
    assert re.search(rf"{spool} is not gone on with: .*{why}; reading begins anew", caplog.text)
    assert found == files_of(read(log, tmp_path / "other", k_core=3), tmp_path / "wanted")


def test_a_log_that_is_read_in_another_way_is_read_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, spool = made(tmp_path / "log"), tmp_path / "spool"
    read(log, spool)
    assert stages(log, spool, event_column="kind") == [*ALL[:3], ALL[4]]
    assert "other options say how to read the log; reading begins anew" in caplog.text
    monkeypatch.setattr("sasrec.data.reading_record.__version__", "9.9")
    assert stages(log, spool, event_column="kind") == [*ALL[:3], ALL[4]]
    assert "it is of another version of sasrec or its libraries; reading begins anew" in caplog.text


def test_other_filters_and_less_memory_begin_behind_the_first_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, spool, caplog.handler.level = made(tmp_path / "log"), tmp_path / "spool", 0
    read(log, spool, event_column="kind", weight_column="w")
    found = read(log, spool, **FILTERED)
    assert "events are put together anew: other filters say which events stay" in caplog.text
    assert files_of(found, tmp_path / "found") == files_of(read(log, tmp_path / "o", **FILTERED), tmp_path / "wanted")
    monkeypatch.setitem(SIZES, "events", 15)
    assert stages(log, spool, **FILTERED) == []
    monkeypatch.setitem(SIZES, "events", 6)
    assert stages(log, spool, **FILTERED) == ALL[1:]
    assert "events are put together anew: less memory is free than before" in caplog.text
    monkeypatch.setitem(SIZES, "chunks", ChunkSizes(n_rows=4, n_bytes=120))
    assert stages(log, spool, **FILTERED) == ALL[1:]


def test_after_the_machine_was_started_anew_only_the_first_look_is_trusted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, spool = made(tmp_path / "log"), tmp_path / "spool"
    for boot_id in ("another", None):
        read(log, spool)
        if boot_id:
            (tmp_path / "boot").write_text(boot_id)
        monkeypatch.setattr(files, "BOOT_ID", tmp_path / "boot" if boot_id else tmp_path / "none")
        caplog.clear()
        assert stages(log, spool) == [*ALL[1:3], ALL[4]]
        assert "events are put together anew: the machine is another one, or was started anew" in caplog.text
    assert stages(log, spool) == [*ALL[1:3], ALL[4]]


@pytest.mark.parametrize("name", ["survey.json", "survey-user.parquet", "survey-item.parquet", "digests.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "other bytes"])
def test_a_record_that_is_damaged_is_not_trusted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    log, spool = made(tmp_path / "log"), tmp_path / "spool"
    read(log, spool)
    damage(spool / name, how)
    assert stages(log, spool) == [*ALL[:3], ALL[4]]
    is_told = (name, how) != ("survey.json", "gone")
    assert ("it is damaged" in caplog.text) == is_told


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] + (b"" if how == "cut" else bytes(len(data) - len(data) // 2)))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("items.npy", "cut"),
        ("users.npy", "cut"),
        ("items.npy", "gone"),
        ("fill-*.step", "cut"),
        ("order-*.step", "cut"),
        ("order-*.step", "other bytes"),
    ],
)
def test_events_that_are_damaged_are_an_error_and_not_read(tmp_path: Path, name: str, how: str) -> None:
    log, spool = made(tmp_path / "log"), tmp_path / "spool"
    stopped(ALL[2], log, spool)
    damage(next(spool.glob(name)), how)
    with pytest.raises(CheckpointError, match=name.partition("*")[0]):
        read(log, spool)


def test_packed_texts_are_not_unpacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.read_parquet(made(tmp_path / "log") / "*.parquet").select("user_id", "item_id", "timestamp")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(frame.write_csv().encode("utf-16")))
    wanted = files_of(read(tmp_path / "log.csv.gz", tmp_path / "other"), tmp_path / "wanted")
    stopped(ALL[1], tmp_path / "log.csv.gz", tmp_path / "spool")
    for name in ("sources.parts_of", "chunks._converted"):
        monkeypatch.setattr(f"sasrec.reading.{name}", lambda *_: (pytest.fail("it is there") for _ in "x"))
    assert files_of(read(tmp_path / "log.csv.gz", tmp_path / "spool"), tmp_path / "found") == wanted
    monkeypatch.undo()
    assert len(list((tmp_path / "spool").glob("text-*"))) == 2


def test_what_comes_from_a_pipe_is_read_from_the_beginning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"user,item,ts\n" + b"".join(b"%d,%d,%d\n" % (j % 7, j % 5, j) for j in range(60))
    (tmp_path / "log.csv").write_bytes(text)
    read(tmp_path / "log.csv", tmp_path / "spool")
    for told in (True, False):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        caplog.clear()
        assert stages(Path("-"), tmp_path / "spool") == [*ALL[:3], ALL[4]]
        assert ("standard input and pipes are read from the beginning" in caplog.text) == told
    assert not (tmp_path / "spool" / "survey.json").exists()


@pytest.mark.slow
def test_texts_are_gone_on_with_in_the_middle(tmp_path: Path) -> None:
    frame = pl.read_parquet(made(tmp_path / "log") / "*.parquet")
    logs = tmp_path / "texts"
    logs.mkdir()
    for j in range(3):
        frame[20 * j : 20 * j + 20].write_csv(logs / f"part-{j}.csv")
    wanted = files_of(read(logs, tmp_path / "spool", **FILTERED), tmp_path / "wanted")
    for number in range(20, 90, 6):
        assert killed(number, logs, tmp_path / f"spool-{number}", **FILTERED)
        found = files_of(read(logs, tmp_path / f"spool-{number}", **FILTERED), tmp_path / f"found-{number}")
        assert found == wanted

"""A log that is read in parts is the log that is read in memory: every byte, every message."""

from __future__ import annotations

import errno
import gzip
import io
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from cluster_here import Here
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sasrec.cluster.prepare import ClusterWorkers
from sasrec.core.errors import CheckpointError, ConfigError, DataError, SASRecError
from sasrec.data import bounded
from sasrec.data.bounded import Workplace
from sasrec.data.logs import Log, Reading, load_log
from sasrec.data.partitioned import Workers
from sasrec.data.prepared import save_sequences, save_vocabulary
from sasrec.reading.chunks import ChunkSizes

TINY = (ChunkSizes(n_rows=3, n_bytes=40), 4)


WORKERS: dict[str, Workers | None] = {}  # that read, now


@pytest.fixture(autouse=True, params=[None, Here(3, times=2)], ids=["alone", "workers"])
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has a bound does not fit, and comes in tiny parts: to one process, or to workers."""
    monkeypatch.setitem(WORKERS, "", None if request.param is None else ClusterWorkers(request.param))
    in_parts = bounded.read_in_parts
    monkeypatch.setattr("sasrec.data.logs.fits", lambda *_: False)
    monkeypatch.setattr("sasrec.data.logs.read_in_parts", lambda *given: in_parts(*given, sizes=TINY))


class Heard(logging.Handler):
    """Keeps the package's words."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")


def read(source: Any, folder: Path, *, in_parts: bool, **options: Any) -> tuple[dict[str, bytes], list[str], Log]:
    """The files that a log becomes, what was said on the way, and the log."""
    folder.mkdir(parents=True)
    spool = folder / "spool"
    spool.mkdir()
    heard, logger = Heard(), logging.getLogger("sasrec")
    logger.addHandler(heard)
    level = logger.level
    logger.setLevel(logging.INFO)
    place = Workplace(lambda: spool, workers=WORKERS[""] if in_parts else None)
    try:
        log = load_log(source, Reading(memory="4GB" if in_parts else None, **options), place)
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)
    save_vocabulary(folder, log.vocabulary)
    save_sequences(folder, log.sequences)
    names = ["items.parquet", *sorted(f"sequences/{path.name}" for path in (folder / "sequences").iterdir())]
    return {name: (folder / name).read_bytes() for name in names}, heard.lines, log


def same(source: Any, tmp_path: Path, **options: Any) -> Log:
    """The log, once it has been read in both ways and found the same."""
    whole, told, _ = read(source, tmp_path / "whole", in_parts=False, **options)
    parts, said, log = read(source, tmp_path / "parts", in_parts=True, **options)
    assert isinstance(log.sequences.items, np.memmap)
    assert said == told
    assert parts == whole
    return log


def drawn(seed: int, n: int = 60, **columns: Any) -> pl.DataFrame:
    """Events of a few users and items, with ties in time."""
    rng = np.random.default_rng(seed)
    log = {
        "user_id": rng.integers(1, 12, n),
        "item_id": rng.integers(1, 15, n),
        "timestamp": 1_700_000_000 + rng.integers(0, 25, n) * 1000,
    }
    return pl.DataFrame(log | columns)


def folder_of(frame: pl.DataFrame, path: Path, n_files: int = 4) -> Path:
    """The frame as Parquet files of different lengths."""
    path.mkdir()
    cuts = np.linspace(0, len(frame) ** 0.5, n_files + 1) ** 2
    for j, (begin, end) in enumerate(zip(cuts.astype(int)[:-1], cuts.astype(int)[1:], strict=True)):
        frame[begin:end].write_parquet(path / f"part-{j}.parquet")
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repeats": "first"},
        {"repeats": "last"},
        {"repeats": "consecutive"},
        {"k_core": 3},
        {"k_core": 4, "one_pass": True},
        {"k_core": 3, "repeats": "first"},
        {"k_core": 3, "repeats": "consecutive_again"},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_types", [False, True], ids=["plain", "types"])
def test_parquet_in_parts_is_the_log_in_memory(tmp_path: Path, options: dict[str, Any], with_types: bool) -> None:
    rng = np.random.default_rng(5)
    more = {"kind": rng.choice(["view", "buy", "a"], 60), "w": rng.integers(0, 4, 60) / 2} if with_types else {}
    read_as = {"event_column": "kind", "weight_column": "w"} if with_types else {}
    log = same(folder_of(drawn(3, **more), tmp_path / "log"), tmp_path, **options, **read_as)
    assert len(log.sequences) > 3


def test_types_of_which_no_event_is_left_are_gone(tmp_path: Path) -> None:
    log = drawn(8, kind=["view"] * 58 + ["a", "zoom"]).with_columns(
        user_id=pl.when(pl.col("kind") == "view").then("user_id").otherwise(99)
    )
    found = same(folder_of(log, tmp_path / "log"), tmp_path, k_core=3, event_column="kind")
    assert list(found.sequences.facts.event_types) == ["view"]


@pytest.mark.parametrize("seed", range(4))
def test_users_and_items_far_apart_are_read_as_in_memory(tmp_path: Path, seed: int) -> None:
    frame = drawn(seed).with_columns(pl.col("user_id") * 10**15 - 7 * 10**15, pl.col("item_id") * -(10**12))
    same(folder_of(frame, tmp_path / "log"), tmp_path)


TEXTS = {
    "pairs.txt": "1 10\n1 20\n3 10\n2 20\n\n2 10\n2 30\n3 30\n1 10\n2 10",
    "names.csv": "user,item,ts\nanna,x,3\nbob,y,1\nanna,z,2\nbob,x,1\nzoë,ü,0\nanna,x,9\nbob,q q,4\n",
    "mixed.csv": "user,item,ts\n1,5,3\n2,6,1\n1,x7,2\n3,8,1\n2,5,9\n2,005,9\n",
    "points.csv": "user,item,ts\n1.0,5.0,3\n2.0,6.0,1\n1.0,7.00,2\n3.0,8.0,1\n2.0,5.0,9\n",
    "points_first.csv": "user,item,ts\n1.0,5.0,3\n2.0,6.0,1\n1.0,7,2\n3.0,8.5,1\n2.0,x,9\n2.0,5.0,9\n2.0,5,9\n",
    "decimal_times.csv": "user,item,ts\n1,5,3\n2,6,1\n1,7,2\n3,8,1.5\n2,5,9\n1,6,2\n",
    "dates.csv": "user,item,date\n1,5,2024-01-03\n2,6,2024-01-01\n1,7,2024-01-02 10:00\n3,8,2024-01-02T10:00:00Z\n",
    "missing.csv": "user,item,ts\nNA,5,3\n2,6,1\nNA,x,2\n3,null,1\n2,5,9\nNA,None,1\nnan,nan,4\n",
    "joined.csv": "user,item,ts\n1,5,3\n2,6,1\nuser,item,ts\n1,7,2\n3,8,1\nuser,item,ts\n2,5,9\n",
    "quoted.csv": 'user,item,ts\n1,"5, or 6",3\n2,"say ""x""",1\n1,7,2\n"3",8,1\n2,5,9\n',
    "quoted.tsv": 'user\titem\tts\n1\t"5"\t3\n2\t6\t1\n1\t7\t2\n3\t8\t1\n2\t"5"\t9\n',
    "colons.dat": "1::5::4::978300760\n1::6::3::978302109\n2::5::2::978301968\n2::7::1::978300275\n3::5::5::97882429\n",
    "spaces.txt": "1  10 \n1\t20\n3 10\n 2 20\n2 10\n2  30\n3 30\n1 10\n",
    "windows.csv": "user,item,ts\r\n1,5,3\r\n2,6,1\r\n1,7,2\r\n3,8,1\r\n2,5,9\r\n1,6,2\r\n",
    "two_units.csv": "user,item,ts\n1,5,1700000000\n2,6,1700000000000\n1,7,1700000001\n3,8,1700000001000\n2,5,1\n",
    "odd_times.csv": "user,item,ts\n" + "".join(f"{j % 7},{j % 5},{17 * 10**8 + j}\n" for j in range(30)) + "1,2,5\n",
    "days.csv": "user,item,day\n1,5,20240131\n2,6,20240201\n1,7,20240202\n3,8,20240203\n2,5,20240301\n",
    "by_user.csv": "user,item,ts\n1,5,3\n1,6,4\n1,7,4\n9,8,1\n9,5,9\n4,5,9\n4,6,9\n",
    "newest.csv": "user,item,ts\n1,5,9\n2,6,8\n1,7,8\n3,8,5\n2,5,4\n",
    "marked.csv": "\ufeffuser,item,ts\n1,5,3\n2,6,1\n1,7,2\n3,8,1\n2,5,9\n1,6,2\n",
    "blank.csv": "\n\nuser,item,ts\n1,5,3\n2,6,1\n\n1,7,2\n\n\n\n3,8,1\n2,5,9\n1,6,2\n\n",
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_text_in_blocks_is_the_log_in_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(TEXTS[name].encode())
    same(tmp_path / name, tmp_path)


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in ("marked.csv", "blank.csv", "pairs.txt")])
def test_text_in_several_files_is_the_log_in_memory(tmp_path: Path, name: str) -> None:
    head, *rows = TEXTS[name].splitlines(keepends=True)
    (tmp_path / "log").mkdir()
    head, rows = ("", [head, *rows]) if head[0].isdigit() else (head, rows)
    for n, row in enumerate(rows):
        (tmp_path / "log" / f"{n}-{name}").write_text(head + row)
    same(tmp_path / "log", tmp_path)


def test_sequences_in_blocks_are_the_log_in_memory(tmp_path: Path) -> None:
    rows = [f"u{j} " + " ".join(f"i{(j * 7 + k) % 9}" for k in range(j % 5)) for j in range(20)]
    (tmp_path / "log.txt").write_text("\n".join(rows) + "\n")
    same(tmp_path / "log.txt", tmp_path, format="sequences")


def test_packed_and_foreign_texts_are_unpacked_onto_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TEXTS["names.csv"]
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(gzip.compress(text.encode())))
    same(tmp_path / "log.csv.gz", tmp_path)
    with monkeypatch.context() as patched:
        for in_parts in (False, True):
            patched.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(text.encode()))))
            assert len(read("-", tmp_path / f"piped-{in_parts}", in_parts=in_parts)[2].sequences) == 3
    (tmp_path / "wide.csv").write_bytes(text.encode("utf-16"))
    same(tmp_path / "wide.csv", tmp_path / "2")
    (tmp_path / "latin.csv").write_bytes(text.encode("latin-1"))
    same(tmp_path / "latin.csv", tmp_path / "3", encoding="latin-1")


def test_several_texts_are_one_log_in_their_order(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    (logs / "day=2024-01-02").mkdir(parents=True)
    (logs / "day=2024-01-10").mkdir()
    (logs / "day=2024-01-02" / "a.csv").write_text("user,item\n1,5\n2,6\nx,7\n")
    (logs / "day=2024-01-10" / "b.csv").write_text("user,item\n1,5\n2,8\n3,9\n3,9\n1,5\n")
    log = same(logs, tmp_path, timestamp_column="day")
    assert log.name == "logs"


def test_events_that_lack_something_are_left_out_alike(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,ts\n1,,3\n2,6,1\n,7,2\n3,8,NA\n2,5,9\nNA,6,2\n1,4,2\n")
    log = same(tmp_path / "log.csv", tmp_path, drop_missing=True)
    assert log.sequences.understanding is not None
    assert log.sequences.understanding.n_dropped == 4


def test_arrow_files_and_columns_that_differ_between_files(tmp_path: Path) -> None:
    drawn(1).write_ipc(tmp_path / "log.arrow")
    same(tmp_path / "log.arrow", tmp_path)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    drawn(2, 10).with_columns(pl.col("item_id").cast(pl.Int16)).write_parquet(mixed / "1.parquet")
    drawn(3, 10).with_columns(pl.col("item_id").cast(pl.String) + "x").write_parquet(mixed / "2.parquet")
    drawn(4, 10).with_columns(pl.col("user_id").cast(pl.UInt64)).write_parquet(mixed / "3.parquet")
    drawn(5, 0).write_parquet(mixed / "4.parquet")
    same(mixed, tmp_path / "2")


@pytest.mark.parametrize("kind", [pl.Float64, pl.String, pl.Categorical, pl.Decimal(10, 2), pl.Int32])
def test_ids_of_any_type_are_the_same_ids(tmp_path: Path, kind: Any) -> None:
    frame = drawn(6)
    ids = pl.Series("item_id", frame["item_id"], dtype=pl.Int64)
    halves = ids.cast(pl.Float64) + pl.Series([0.0] * 59 + [0.5])
    odd = halves.cast(kind) if kind in (pl.Float64, pl.Decimal(10, 2)) else ids.cast(pl.String).cast(kind)
    same(folder_of(frame.with_columns(odd), tmp_path / "log"), tmp_path)
    same(folder_of(frame.with_columns(ids.cast(pl.String).cast(kind)), tmp_path / "log2"), tmp_path / "2")


@pytest.mark.parametrize("kind", [pl.Datetime("ms"), pl.Date, pl.Float64, pl.String])
def test_times_of_any_type_are_the_same_times(tmp_path: Path, kind: Any) -> None:
    frame = drawn(7)
    times = (frame["timestamp"] * 1000 + 1).cast(pl.Datetime("ms"))
    given = frame["timestamp"].cast(kind) if kind in (pl.Float64, pl.String) else times.cast(kind)
    same(folder_of(frame.with_columns(given.alias("timestamp")), tmp_path / "log"), tmp_path)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["1", "2", "02", "a", "3.0", "-4"]), st.sampled_from("5678"), st.integers(0, 3)),
        min_size=1,
        max_size=30,
    ),
    options=st.fixed_dictionaries(
        {
            "repeats": st.sampled_from(["keep", "first", "last", "consecutive", "consecutive_again"]),
            "k_core": st.integers(0, 3),
            "one_pass": st.booleans(),
        }
    ),
)
def test_any_log_is_the_same(tmp_path_factory: pytest.TempPathFactory, rows: Any, options: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("drawn")
    text = "user,item,ts\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (folder / "log.csv").write_text(text)
    try:
        read(folder / "log.csv", folder / "tried", in_parts=False, **options)
    except SASRecError as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            read(folder / "log.csv", folder / "parts", in_parts=True, **options)
    else:
        same(folder / "log.csv", folder, **options)


BROKEN = {
    "user,item,ts\n1,5,3\n2,6,1\n1,7,2\n3,8,1\n2,,9\n1,6,2\n": r"line 6 of .*log.csv has nothing in column 'item'",
    "user,item,ts\n1,5,3\n2,6,1\n1,7,2\n3,8,1\n2,6\n1,6,2\n": r"line 6 of .*log.csv has 2 fields in place of 3",
    "user,item,ts\n1,5,3\n2,6,1\n1,7,2\n3,8,1\n2,6,then\n1,6,2\n": r"line 6 of .*log.csv has 'then' in column 'ts'",
    "user,item,ts\n1,5,3\n2,6,1\n1,7,2\n3,8,1\n2,6,\0\n1,6,2\n": r"line 6 of .*log.csv has a NUL byte",
    "user,item,ts\n1,5,3\n2,6,2024-01-01\n1,7,2\n3,8,1\n": r"line 3 of .*log.csv has '2024-01-01' in column 'ts'",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_errors_name_the_line_of_the_whole_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    for in_parts in (False, True):
        with pytest.raises(DataError, match=BROKEN[text]):
            read(tmp_path / "log.csv", tmp_path / str(in_parts), in_parts=in_parts)


def test_errors_name_the_row_of_a_table_and_what_a_whole_column_lacks(tmp_path: Path) -> None:
    rows = pl.DataFrame({"user_id": [1] * 9, "item_id": [1, 2, 3, 4, 5, 6, None, 8, 9], "w": [0.0] * 9})
    rows.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"row 6 of .*log.parquet has nothing in column 'item_id'"):
        read(tmp_path / "log.parquet", tmp_path / "1", in_parts=True)
    rows.drop_nulls().write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"all weights in column 'w' of .*log.parquet are 0"):
        read(tmp_path / "log.parquet", tmp_path / "2", in_parts=True, weight_column="w")
    many = pl.DataFrame({"user_id": [1] * 300, "item_id": [2] * 300, "kind": list(range(300))})
    many.write_parquet(tmp_path / "many.parquet")
    with pytest.raises(DataError, match=r"holds 300 different values, such as '0', and 255"):
        read(tmp_path / "many.parquet", tmp_path / "3", in_parts=True, event_column="kind")
    with pytest.raises(DataError, match=r"no event is left after the 500-core filter of .*many.parquet"):
        read(tmp_path / "many.parquet", tmp_path / "4", in_parts=True, k_core=500)


def test_forms_that_are_read_as_a_whole_say_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"user": 1, "item": 2}\n' * 3)
    (tmp_path / "quoted.csv").write_text('user,item,ts\n1,"5\n6",3\n2,6,1\n')
    (tmp_path / "mac.csv").write_bytes(b"user,item,ts\r1,2,3\r2,3,4\r")
    drawn(1).write_ipc_stream(tmp_path / "log.arrows")
    pl.DataFrame({"user_id": [1, 2], "items": [[1, 2], [3]]}).write_parquet(tmp_path / "lists.parquet")
    reasons = {
        "log.jsonl": "is JSON",
        "quoted.csv": "has quotes around line ends or inside of fields",
        "mac.csv": "has line ends of old Macs",
        "log.arrows": "is an Arrow stream",
        "lists.parquet": "has lists in its columns",
    }
    for name, reason in reasons.items():
        wanted = (
            rf"{name} {reason}.*, so the log is read as a whole, which needs about [\d.]+ [MG]B; give it as --memory"
        )
        with pytest.raises(ConfigError, match=wanted):
            read(tmp_path / name, tmp_path / reason, in_parts=True)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*\.npy: No space left on device"):
        read(folder_of(drawn(1), tmp_path / "log"), tmp_path / "1", in_parts=True)


def test_one_user_with_more_events_than_a_range_is_a_range(tmp_path: Path) -> None:
    log = same(folder_of(drawn(1).with_columns(user_id=pl.lit(7)), tmp_path / "log"), tmp_path, repeats="consecutive")
    assert len(log.sequences) == 1


def test_a_log_that_fits_is_read_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sasrec.data.logs.fits", bounded.fits)
    path = folder_of(drawn(1), tmp_path / "log")
    log = load_log(path, Reading(memory="4GB"), Workplace(lambda: tmp_path))
    assert not isinstance(log.sequences.items, np.memmap)
    assert log.sequences.facts == load_log(path).sequences.facts


@pytest.mark.parametrize("later", ["1,2,3\n4,5,6\n1,3,3\n", "1,2,3\n1,2,3\n4,5,6\n", "x,2,3\n4,5,6\n", "1,2,3\n"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, later: str) -> None:
    (tmp_path / "log.csv").write_text("user,item,ts\n1,2,3\n4,5,6\n")

    def change(what: str, done: int, total: int) -> None:
        if what == "reading" and done == total:
            (tmp_path / "log.csv").write_text("user,item,ts\n" + later)

    with pytest.raises(DataError, match=r"log.csv changed while it was read; run the command again"):
        load_log(tmp_path / "log.csv", Reading(memory="4GB"), Workplace(lambda: tmp_path, change))


def test_progress_is_told_by_what_is_done(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    place = Workplace(lambda: tmp_path, lambda *given: told.append(given))
    load_log(folder_of(drawn(1), tmp_path / "log"), Reading(memory="4GB", k_core=2), place)
    words = list(dict.fromkeys(what.partition(",")[0] for what, _, _ in told))
    assert words == [
        "reading",
        "sorting events into ranges of users",
        "bringing events into order",
        "leaving out rare users and items",
        "closing the files",
    ]
    ends = {what: (done, total) for what, done, total in told}
    assert all(done == total for done, total in ends.values())


def test_a_bound_that_is_too_small_says_what_is_needed(tmp_path: Path) -> None:
    path = folder_of(drawn(1), tmp_path / "log")
    with pytest.raises(ConfigError, match=r"--memory 10 MB is too small: .*, so at least [\d.]+ [MG]B are needed"):
        load_log(path, Reading(memory="10MB"), Workplace(lambda: tmp_path))
    with pytest.raises(ConfigError, match=r"memory='much' is not an amount of memory; write such as 4GB"):
        load_log(path, Reading(memory="much"), Workplace(lambda: tmp_path))
    with pytest.raises(ConfigError, match="memory bounds a command that writes an output; prepare the log"):
        load_log(path, Reading(memory="4GB"))

"""Which files a source stands for, and their bytes."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sasrec.core.errors import DataError
from sasrec.reading.readers import read_interactions
from sasrec.reading.sources import find_files, is_pattern, natural_order

gz = functools.partial(gzip.compress, mtime=0)  # the same bytes whenever tests are collected

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Save = Callable[[str, str | bytes], Path]
FIRST, SECOND = "user,item,time\n1,2,5\n", "user,item,time\n1,3,6\n"
ROWS = [(1, 2, 5), (1, 3, 6)]
PAIRS = b"1 2\n1 3\n"


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name.replace("_", "."), content)
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        facts = tarfile.TarInfo("log.txt")
        facts.size = len(PAIRS)
        packed.addfile(facts, io.BytesIO(PAIRS))
    return buffer.getvalue()


def test_parts_come_in_natural_order(save: Save, tmp_path: Path) -> None:
    save("logs/part-10.csv", SECOND)
    save("logs/part-2.csv", FIRST)
    for source in (tmp_path / "logs", str(tmp_path / "logs" / "*.csv"), str(tmp_path / "lo*")):
        assert read_interactions(source).rows() == ROWS
    both = [tmp_path / "logs" / "part-10.csv", str(tmp_path / "logs" / "part-2.csv")]
    assert read_interactions(both).rows() == ROWS[::-1]  # a list says its order
    assert sorted(["b", "part-10", "part-9", "part-9a"], key=natural_order) == ["b", "part-9", "part-9a", "part-10"]


def test_existing_path_is_no_pattern(save: Save, tmp_path: Path) -> None:
    save("log1.txt", "9 9\n")
    named = save("log[1].txt", PAIRS)
    assert not is_pattern(named)
    assert read_interactions(named).rows() == [(1, 2), (1, 3)]
    save("n1/a.txt", "9 9\n")
    save("n[1]/a.txt", PAIRS)
    assert read_interactions(tmp_path / "n[1]").rows() == [(1, 2), (1, 3)]
    with pytest.raises(DataError, match=r"no file matches the pattern .*\[2\].txt"):
        read_interactions(tmp_path / "log[2].txt")


def test_hidden_empty_and_marker_files_of_a_folder_are_left_out(save: Save, tmp_path: Path) -> None:
    save("logs/part-1.csv.gz", gz(FIRST.encode()))
    save("logs/part-2.csv.gz", gz(b""))
    save("logs/part-3.csv", "\n")
    save("logs/part-4.csv", SECOND)
    for name in ("_SUCCESS", ".part-1.csv.crc", ".hidden/x.csv", "_temporary/0.csv"):
        save(f"logs/{name}", "9,9,9\n")
    assert read_interactions(tmp_path / "logs").rows() == ROWS
    assert read_interactions(str(tmp_path / "logs" / "part-*")).rows() == ROWS


def test_file_of_many_blank_lines_is_not_left_out(save: Save, tmp_path: Path) -> None:
    save("logs/a.csv", FIRST)
    save("logs/b.csv", "\n" * 2000 + SECOND)
    assert read_interactions(tmp_path / "logs").rows() == ROWS


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.csv": FIRST, "b.csv": SECOND, "README.md": "x"},
            r"different kinds, such as a.csv and README.md; .*\*\.csv",
        ),
        ({"x/_SUCCESS": ""}, "is a folder without log files"),
        (
            {"day=1/a.csv": FIRST, "b.csv": SECOND},
            "b.csv stand for no column, and those of .*a.csv for day; give files of one",
        ),
        ({"items.parquet": "x"}, "is a run saved without its users' histories"),
    ],
)
def test_folder_that_is_no_log_is_refused(files: dict[str, str], message: str, save: Save, tmp_path: Path) -> None:
    for name, content in files.items():
        save(f"logs/{name}", content)
    with pytest.raises(DataError, match=message):
        read_interactions(tmp_path / "logs")


def test_file_that_is_given_twice_is_refused(save: Save, tmp_path: Path) -> None:
    file = save("logs/a.csv", FIRST)
    for sources in ([file, str(file)], [file, tmp_path / "logs"], [file, tmp_path / "logs" / ".." / "logs" / "a.csv"]):
        with pytest.raises(DataError, match=r"a.csv is given twice"):
            read_interactions(sources)
    with pytest.raises(DataError, match=r"standard input \(-\) is given twice"):
        read_interactions(["-", "-"])


def test_links_count_once_and_none_is_passed_over(save: Save, tmp_path: Path) -> None:
    file = save("logs/a.csv", FIRST)
    (tmp_path / "logs" / "itself").symlink_to(tmp_path / "logs")
    assert len(find_files(str(tmp_path / "logs" / "**" / "*.csv"))) == 1
    with pytest.raises(DataError, match="itself is a link to a folder"):
        find_files(tmp_path / "logs")
    (tmp_path / "logs" / "itself").unlink()
    (tmp_path / "logs" / "b.csv").symlink_to(tmp_path / "gone.csv")
    for source in (tmp_path / "logs", str(tmp_path / "logs" / "*.csv")):
        with pytest.raises(DataError, match=r"b.csv is a link to nothing"):
            find_files(source)
    (tmp_path / "c.csv").symlink_to(file)
    assert len(find_files(tmp_path / "c.csv")) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "the path of the log is empty"),
        ("x" * 5000, r"cannot read x+ \[\.\.\.\] x+: File name too long"),
        ("*" * 5000, "File name too long"),
        ("a\nb", r"there is no file 'a\\nb'$"),
        ("https://example.com/log.csv", "is an address; download it"),
        ("none.csv", "there is no file none.csv"),
        ([], "no file is given"),
        (["none.csv", 3], "cannot read a log from list"),
    ],
)
def test_source_that_is_no_file_is_refused(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_interactions(source)


def test_path_may_be_anything_that_stands_for_one(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save("log.csv", FIRST)
    monkeypatch.setenv("HOME", str(file.parent))
    entries = list(os.scandir(file.parent))
    for source in (file, str(file), entries[0], "~/log.csv", "~/*.csv", [entries[0]]):
        assert read_interactions(source).rows() == ROWS[:1]


def test_standard_input_and_pipes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(gz(PAIRS),))
    writer.start()
    assert read_interactions(pipe).rows() == [(1, 2), (1, 3)]
    writer.join()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FIRST.encode())))
    assert read_interactions("-").rows() == ROWS[:1]


@pytest.mark.parametrize("name", ["log.txt", "log"])
@pytest.mark.parametrize(
    "content",
    [
        gz(PAIRS),
        gz(PAIRS[:4]) + gz(PAIRS[4:]),
        gz(gz(PAIRS)),
        bz2.compress(PAIRS),
        lzma.compress(PAIRS),
        lzma.compress(PAIRS, format=lzma.FORMAT_ALONE),
        zstd.compress(PAIRS),
        archive(a_txt=PAIRS),
    ],
    ids=["gz", "gz in parts", "gz in gz", "bz2", "xz", "lzma", "zst", "zip"],
)
def test_compression_is_told_by_the_first_bytes(name: str, content: bytes, save: Save) -> None:
    assert read_interactions(save(name, content)).rows() == [(1, 2), (1, 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gz(PAIRS * 99)[:-9], "ended before the end-of-stream marker"),
        (gz(PAIRS) + b"junk", "Not a gzipped file"),
        (bz2.compress(PAIRS * 99)[:-5], "ended before the end-of-stream marker"),
        (lzma.compress(PAIRS * 99)[:-5], "ended before the end-of-stream marker"),
        (zstd.compress(PAIRS * 99)[:-3], "ended before the end-of-stream marker"),
        (archive(a_txt=PAIRS, b_txt=PAIRS), r"archive of 2 files \(a.txt, b.txt\); unpack it"),
        (archive(), "archive of 0 files; unpack it"),
        (gz(b""), "is empty"),
        (gz(tar()), "is a tar archive"),
        (b"SQLite format 3\0", "is an SQLite database"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<p>404</p>\n", "is a web page"),
        (b"\n<HTML>\n<p>404</p>\n", "is a web page"),
        (b"<?xml version='1.0'?>\n<log/>\n", "is an XML document"),
    ],
)
def test_file_of_a_foreign_kind_or_damaged_is_refused(content: bytes, message: str, save: Save) -> None:
    with pytest.raises(DataError, match=message):
        read_interactions(save("log", content))


def test_folders_named_after_a_value_are_columns(save: Save, tmp_path: Path) -> None:
    for day, item in (("2024-01-02", 7), ("2024-01-01", 8)):
        save(f"text/day={day}/part-0.csv", f"user,item\n1,{item}\n")
        frame = pl.DataFrame({"user": [1], "item": [item]})
        (tmp_path / "tables" / f"day={day}").mkdir(parents=True)
        frame.write_parquet(tmp_path / "tables" / f"day={day}" / "part-0.parquet")
    text, tables = read_interactions(tmp_path / "text"), read_interactions(tmp_path / "tables")
    assert text.rows() == tables.rows() == [(1, 8, 1704067200.0), (1, 7, 1704153600.0)]
    for user in (5, 6):
        save(f"users/user={user}/a.csv", "item\n2\n")
    assert read_interactions(tmp_path / "users").rows() == [(5, 2), (6, 2)]

"""Files of ids, whatever program wrote them; what is ambiguous is refused in one sentence."""

from __future__ import annotations

import codecs
import functools
import gzip
import io
import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sasrec.core.errors import DataError
from sasrec.data.id_lists import read_filter, read_ids, read_users

gz = functools.partial(gzip.compress, mtime=0)  # the same bytes whenever tests are collected

IDS = ["118", "tt42", "heat, uncut"]
TEXT = '118\ntt42\n"heat, uncut"\n'


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


SAME: dict[str, str | bytes] = {
    "one a line": TEXT,
    "no end of line": TEXT.rstrip("\n"),
    "byte order mark": codecs.BOM_UTF8 + TEXT.encode(),
    "byte order mark inside": TEXT.encode().replace(b"tt42", codecs.BOM_UTF8 + b"tt42"),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16, big end first": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "gzip": gz(TEXT.encode()),
    "gzip in two parts": gz(b"118\n") + gz(b'tt42\n"heat, uncut"\n'),
    "gzip of UTF-16": gz(TEXT.encode("utf-16")),
    "CRLF": TEXT.replace("\n", "\r\n"),
    "bare CR": TEXT.replace("\n", "\r"),
    "blank lines and spaces": '\n  118 \n\n\ttt42\t\n \n "heat, uncut"  \n\n',
    "all quoted": '"118"\n"tt42"\n"heat, uncut"\n',
    "a comma behind each": '118,\ntt42,\n"heat, uncut",\n',
    "one line": '118,tt42,"heat, uncut"\n',
    "one line with spaces": '118, tt42 , "heat, uncut",',
    "one line of tabs": "118\ttt42\theat, uncut\n",
    "a header": "item_id\n" + TEXT,
    "a quoted header": '"itemId"\n' + TEXT,
    "a header behind a byte order mark": codecs.BOM_UTF8 + b"item_id\n" + TEXT.encode(),
    "RecBole's header": "item_id:token\n" + TEXT,
    "CSV": 'title,movieId,year\nHeat,118,1995\n"two\nlines",tt42,\nUncut,"heat, uncut",2000\n',
    "CSV with CRLF": 'movieId,title\r\n118,Heat\r\n\r\ntt42,"a ""b"""\r\n"heat, uncut",c\r\n',
    "semicolons": "ASIN;title\n118;a, b\ntt42;c\nheat, uncut;d\n",
    "bars": "product|title\n118|a\ntt42|b\nheat, uncut|c\n",
    "TSV": 'user_id\titem_id\n1\t118\n2\ttt42\n2\theat, uncut\n',
    "JSON": json.dumps(IDS),
    "JSON over lines": json.dumps(IDS, indent=1),
    "JSON with numbers": '[118, "tt42", "heat, uncut"]',
    "JSON with a float": '[118.0, "tt42", "heat, uncut"]',
    "JSON objects": json.dumps([{"title": "a", "item": i} for i in IDS]),
    "JSON lines": "\n".join(json.dumps({"item_id": i, "n": 1}) for i in IDS),
    "JSON lines of one field": "\n".join(json.dumps({"tconst": i}) for i in IDS),
    "JSON lines of texts": "\n".join(map(json.dumps, IDS)),
    "a JSON object with a list": json.dumps({"deny": IDS}),
    "JSON behind a byte order mark": codecs.BOM_UTF8 + json.dumps(IDS).encode(),
    "Parquet": parquet(user=[1, 2, 3], item_id=IDS),
    "Parquet with one column": parquet(tconst=IDS),
    "gzipped Parquet": gz(parquet(item_id=IDS)),
}  # fmt: skip


@pytest.fixture(params=SAME)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    content = SAME[request.param]
    path = tmp_path / "ids"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_same_ids_are_read_from_every_form(written: Path) -> None:
    assert read_ids(written, "item") == IDS


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ("118.0\n", ["118.0"]),
        ("118.0\n119.0\n", ["118.0", "119.0"]),
        ("118\n", ["118"]),
        ("0118\n+118\n-8\n", ["0118", "+118", "-8"]),
        ("-8,5\n", ["-8", "5"]),
        ("heat uncut\nseven\n", ["heat uncut", "seven"]),
        ('7" single\n"Heat" (1995)\n', ['7" single', '"Heat" (1995)']),
        ("[1999] Film\n[1] Film\n", ["[1999] Film", "[1] Film"]),
        ("[Film]\n", ["[Film]"]),
        ("{a}\nb\n", ["{a}", "b"]),
        ("a;b\nc|d\n", ["a;b", "c|d"]),
        ("118\n118\n", ["118", "118"]),
        ("a\u2028b\nc\x85d\n", ["a\u2028b", "c\x85d"]),
        ("item,118,119\n", ["item", "118", "119"]),
        ("[2, 1e3, -3.0, 9007199254740993]", ["2", "1000", "-3", "9007199254740993"]),
        ('"118"\n"119"\n', ["118", "119"]),
        (parquet(item_id=[118.0, 119.0]), ["118", "119"]),
        (parquet(item_id=pl.Series(["b", "a"], dtype=pl.Categorical)), ["b", "a"]),
    ],
)
def test_ids_are_as_they_are_written(content: str | bytes, ids: list[str], tmp_path: Path) -> None:
    assert read_ids(write(tmp_path / "ids", content), "item") == ids


@pytest.mark.parametrize(
    "content", ["", "\n \r\n", codecs.BOM_UTF8, "".encode("utf-16"), gz(b""), "item_id\n",
    "item_id,title\n", "[]", '""\n', parquet(item_id=pl.Series([], dtype=pl.String))],
)  # fmt: skip
def test_a_file_without_an_id_is_an_empty_list(content: str | bytes, tmp_path: Path) -> None:
    assert read_ids(write(tmp_path / "ids", content), "item") == []


def test_the_role_decides_which_column_is_read(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "userId,movieId,rating\n1,118,5\n2,119,4\n")
    assert read_ids(log, "user") == ["1", "2"]
    assert read_ids(log, "item") == ["118", "119"]
    assert read_ids(write(tmp_path / "log.parquet", parquet(item=[7], user=[8])), "user") == ["8"]


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "columns without a header": ("1,5\n2,6\n", "has 2 columns, and none is named as an item"),
    "columns of unknown names": ("a,b\n1,2\n", "has 2 columns, and none is named as an item"),
    "tabs without a header": ("1\t5\n2\t6\n", "has 2 columns, and none is named as an item"),
    "a line with a comma": ("118\nheat, uncut\n", "line 2 of {} has 2 fields; give one id a line, and put"),
    "lines of commas": ("1,2,3\n4,5\n", "line 1 of {} has 3 fields"),
    "a column of users": ("user_id\n1\n2\n", "column 'user_id' of {} holds users, not items"),
    "no id in a row": ("item_id,title\n118,a\n,b\n", "line 3 of {} has nothing in column 'item_id'"),
    "a row too long": ("item_id\n118\n\nheat, uncut\n", "line 4 of {} has 2 fields, but its header has 1; put"),
    "a row too short": ("title,item_id\na,118\nb\n", "line 3 of {} has 1 field, but its header has 2"),
    "an open quote": ('item_id,title\n118,"a\n119,b\n', "{} is not valid CSV"),
    "binary": (b"\x00\x01\x02", "{} is a binary file; give one id a line as text, CSV, JSON or Parquet"),
    "not UTF-8": ("h\u00e9at\n".encode("latin-1"), "{} is not UTF-8 text"),
    "half UTF-16": ("118\n".encode("utf-16")[:-1], "{} is not UTF-16 text"),
    "half gzip": (gz(TEXT.encode())[:-9], "cannot read {}: "),
    "half Parquet": (parquet(item_id=IDS)[:40], "cannot read {} as Parquet: "),
    "Parquet without ids": (parquet(a=[1], b=[2]), "has 2 columns, and none is named as an item: a, b"),
    "Parquet with a gap": (parquet(item_id=["a", None]), "an id is missing in row 1 of column 'item_id'"),
    "Parquet of lists": (parquet(item_id=[[1]]), "column 'item_id' holds List"),
    "half JSON": ('["118", "tt42"', "{} looks like JSON, but is not valid: "),
    "half JSON over lines": ("[\n118,\n119\n", "{} looks like JSON, but is not valid: "),
    "half JSON lines": ('{"item_id": 118}\n{"item_id": \n', "line 2 of {} is not valid JSON"),
    "JSON null": ('["118", null]', "element 1 of {} is null, not an id"),
    "JSON truth": ("[118, true]", "element 1 of {} is true, not an id"),
    "JSON NaN": ("[NaN]", "element 0 of {} is null, not an id"),
    "JSON empty": ('["118", ""]', 'element 1 of {} is "", not an id'),
    "JSON lists": ("[[118], [119]]", "element 0 of {} is a list, not an id"),
    "JSON objects and ids": ('[{"item_id": 1}, 2]', "element 1 of {} has no field 'item_id'"),
    "JSON objects with a gap": ('{"item_id": 1}\n{"item": 2}\n', "element 1 of {} has no field 'item_id'"),
    "JSON of unknown fields": ('{"a": 1, "b": 2}\n{"a": 3, "b": 4}', "has 2 columns, and none is named as an item: a,"),
    "a JSON object of ids": ('{"118": 1, "119": 2}', "has 2 columns, and none is named as an item"),
    "a JSON object of one id": ('{"118": 1}', "has 1 column, and it is not named as an item: 118"),
    "deep JSON": ("[" * 100_000 + '"a"' + "]" * 100_000, "{} looks like JSON, but is not valid: "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_mean_something_else_is_refused(case: str, tmp_path: Path) -> None:
    content, words = REFUSED[case]
    path = write(tmp_path / "ids", content)
    with pytest.raises(DataError) as caught:
        read_ids(path, "item")
    assert words.format(path) in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*none\.txt"):
        read_ids(tmp_path / "none.txt", "item")
    with pytest.raises(DataError, match="is a folder; give a file of item ids"):
        read_ids(tmp_path, "item")
    with pytest.raises(DataError, match="there is no file"):
        read_ids(write(tmp_path / "file", "1") / "ids", "item")


def test_an_empty_deny_list_denies_nothing_and_an_empty_list_of_others_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "ids", "\n")
    assert read_filter(path, "deny") == []
    assert f"the deny list {path} holds no id, so nothing is denied" in caplog.text
    with pytest.raises(DataError, match=r"the allow list .* holds no id, so nothing is allowed; leave it out to"):
        read_filter(path, "allow")
    with pytest.raises(DataError, match=r"the list of users .* holds no id; give one user id a line"):
        read_users(path)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("b\n\n a \r\n02\rb", ["b", "a", "02", "b"]),
        ("\ufeffuser_id\nb\na", ["b", "a"]),
        ("User ID\n \n1\n", ["1"]),
        ("c\na;b", ["c", "a;b"]),
        ("a\nb|c\n\u2028d", ["a", "b|c", "\u2028d"]),
    ],
)
def test_users_of_lines_are_read_into_a_series(tmp_path: Path, text: str, ids: list[str]) -> None:
    users = read_users(write(tmp_path / "ids", text))
    assert isinstance(users, pl.Series)
    assert users.to_list() == read_ids(tmp_path / "ids", "user") == ids
    assert list(read_users(write(tmp_path / "ids", text + '\n"more"\n'))) == [*ids, "more"]  # by the other way


@pytest.mark.parametrize("content", [TEXT.encode(), gz(TEXT.encode()), parquet(item_id=IDS)])
def test_a_pipe_is_read_once(content: bytes, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[content])
    writer.start()
    assert read_ids(pipe, "item") == IDS
    writer.join()


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode("utf-16"))))
    assert read_ids(Path("-"), "item") == IDS
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1,2\n3,4\n")))
    with pytest.raises(DataError, match=r"^standard input has 2 columns"):
        read_ids(Path("-"), "item")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (TEXT, "item ids, one a line: 3"),
        ("1,2\n", "item ids in one line: 2"),
        ("title,movieId\na,1\n", "item ids in column 'movieId': 1"),
        ("[1, 2]", "item ids as JSON: 2"),
        ('{"item_id": 1}', "item ids as JSON, in field 'item_id': 1"),
        (parquet(item_id=[1]), "item ids as Parquet, in column 'item_id': 1"),
    ],
)
def test_the_log_says_how_a_file_was_read(
    content: str | bytes, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "ids", content)
    with caplog.at_level(logging.INFO, "sasrec"):
        read_ids(path, "item")
    assert caplog.messages == [f"{path}: {told}"]

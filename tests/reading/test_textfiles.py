"""Encodings, line ends and marks of text files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from sasrec.core.errors import ConfigError, DataError
from sasrec.reading.readers import read_interactions
from sasrec.reading.textfiles import MAX_LINE_BYTES

Save = Callable[[str, str | bytes], Path]
TEXT = "user,item\né1,ü2\né2,ü3\n"
ROWS = [("é1", "ü2"), ("é2", "ü3")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_told_by_marks_and_zeros(encoding: str, save: Save) -> None:
    assert read_interactions(save("log.csv", TEXT.encode(encoding))).rows() == ROWS


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift-jis", "utf-16-le"])
def test_encoding_can_be_named(encoding: str, save: Save) -> None:
    text = "user,item\nユ,2\nア,3\n" if encoding == "shift-jis" else TEXT
    assert len(read_interactions(save("log.csv", text.encode(encoding)), encoding=encoding)) == 2


def test_mark_is_surer_than_the_encoding_asked_for(save: Save) -> None:
    for content in (TEXT.encode("utf-8-sig"), TEXT.encode("utf-16")):
        assert read_interactions(save("log.csv", content), encoding="latin-1").rows() == ROWS


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "hex", ""])
def test_unknown_encoding_is_refused(encoding: str, save: Save) -> None:
    with pytest.raises(ConfigError, match="is not known; use a name such as utf-8"):
        read_interactions(save("log.txt", "1 2\n"), encoding=encoding)


@pytest.mark.parametrize("encoding", ["undefined", "punycode", "a\0b"])
def test_codec_that_is_not_for_files_is_refused(encoding: str, save: Save) -> None:
    with pytest.raises(DataError, match=r"log.txt cannot be read as .*; name its encoding"):
        read_interactions(save("log.txt", "1 2\n"), encoding=encoding)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_any_line_end_will_do(end: str, last: bool, save: Save) -> None:
    text = TEXT.replace("\n", end)
    assert read_interactions(save("log.csv", text if last else text.removesuffix(end))).rows() == ROWS


def test_line_ends_may_be_mixed_but_for_a_bare_return(save: Save) -> None:
    assert read_interactions(save("a.txt", "1 2\r\n3 4\n5 6\r\n")).rows() == [(1, 2), (3, 4), (5, 6)]
    with pytest.raises(DataError, match=r"line 2 of .* has 3 fields in place of 2"):
        read_interactions(save("a.csv", "user,item\n1,2\r3,4\n5,6\n"))


def test_marks_where_files_were_joined_are_no_part_of_an_id(save: Save) -> None:
    assert read_interactions(save("a.txt", "\ufeff1 2\n\ufeff3 4\n")).rows() == [(1, 2), (3, 4)]
    assert read_interactions(save("b.csv", "\ufeffuser,item\n1,2\n\ufeffuser,item\n3,4\n")).rows() == [(1, 2), (3, 4)]


def test_zero_byte_names_its_line(save: Save) -> None:
    for name, content in {
        "early.txt": b"1 2\n3 \0\n",
        "late.txt": b"1 2\n" * 50_000 + b"3 \0\n",
        "late.csv": b"user,item\n" + b"a,2\n" * 50_000 + b"3,\0\n",
        "quoted.csv": b"user,item\n" + b'"a",2\n' * 50_000 + b"3,\0\n",
    }.items():
        line = content.count(b"\n")
        with pytest.raises(DataError, match=f"line {line} of .*{name} has (a NUL byte, so|'.x00' in column)"):
            read_interactions(save(name, content))


def test_letters_that_look_like_digits_and_blanks_stay_apart(save: Save) -> None:
    odd = ["1", "\u0661", "\uff11", "1\u200b", "1\u00a0", "😀", "שלום"]
    log = read_interactions(save("log.txt", "".join(f"{user} x\n" for user in odd)))
    assert log["user_id"].to_list() == odd


LINE = "1" * MAX_LINE_BYTES


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("log.txt", f"1 2\n\n1 3\n1 {LINE}\n", 4),
        ("log.txt", "1 " * MAX_LINE_BYTES, 1),
        ("log.csv", f"user,item\n1,{LINE}", 2),
        ("log.csv", f'user,item\n1,2\n1,"{LINE}"\n1,2\n', 3),
        ("log.tsv", "user\titem" + "\tx" * (MAX_LINE_BYTES // 2) + "\n1\t2\n", 1),
        ("log.jsonl", f'{{"user":1,"item":2}}\n{{"user":1,"item":{LINE}}}\n', 2),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_line_without_an_end_is_refused(name: str, text: str, number: int, packed: bool, save: Save) -> None:
    source = save(name + ".gz", gzip.compress(text.encode())) if packed else save(name, text)
    with pytest.raises(
        DataError, match=rf"line {number} of .* has more than 4,194,304 bytes, which no line of a log has"
    ):
        read_interactions(source)


def test_line_may_be_long(save: Save) -> None:
    items = range(100_000, 400_000)
    text = f"1 {' '.join(map(str, items))}\n2 5 6\n3 7\n"
    assert read_interactions(save("log.txt", text), format="sequences")["item_id"].to_list() == [*items, 5, 6, 7]
    rows = "".join(f'1,{n},"{"long, " * 50_000}"\n' for n in range(3))
    for text in (rows, rows.replace('"', "").replace(", ", " ")):
        assert read_interactions(save("log.csv", "user,item,text\n" + text)).rows() == [(1, 0), (1, 1), (1, 2)]


def test_array_of_json_may_be_one_line_of_any_length(save: Save) -> None:
    events = [{"user": 1, "item": n, "text": "x" * 1000} for n in range(5000)]
    assert len(read_interactions(save("log.json", json.dumps(events)))) == 5000


def test_text_is_no_id(save: Save) -> None:
    long = "x" * 5000
    with pytest.raises(
        DataError, match=r"line 3 of .* has an id of 5,000 bytes in column 'item', and 4,096 are the most"
    ):
        read_interactions(save("log.csv", f"user,item\n1,a\n1,{long}\n"))
    with pytest.raises(DataError, match="row 0 of the frame has an id of 5,000 bytes in column 'user'"):
        read_interactions(pl.DataFrame({"user": [long], "item": [1]}))

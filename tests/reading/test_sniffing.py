"""The form of a text log, told by its first lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sasrec.core.errors import ConfigError, DataError
from sasrec.reading.readers import read_interactions

Save = Callable[[str, str | bytes], Path]


def test_minority_of_lines_is_refused_and_changes_no_form(save: Save) -> None:
    with pytest.raises(DataError, match=r"line 4 of .* has 2 fields in place of 3 \(user_id item_id timestamp\); mend"):
        read_interactions(save("a.txt", "u1\t1\t10\nu1\t2\t20\nu2\t3\t30\nu2\t4\n"))
    for wrong in range(20):
        lines = [f"u{n // 3}\t{n}\t{n}" for n in range(20)]
        lines[wrong] += "\t7\t8"
        with pytest.raises(DataError, match=rf"line {wrong + 1} of .* has 5 fields in place of 3"):
            read_interactions(save("b.txt", "\n".join(lines)))


def test_lines_of_many_lengths_are_one_user_a_line_and_say_so(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    log = read_interactions(save("a.txt", "1 7 8\n2 7\n3 900 7 8 9 6\n4 1 2 3 4\n"))
    assert len(log) == 12
    assert "each is read as a user and their items (user 1: 7, 8; user 2: 7); say --format" in caplog.text


def test_lines_without_a_majority_and_with_users_that_come_back_are_refused(save: Save) -> None:
    for text in ("1 2\n1 2 3\n", "1 2 3 4\n1 5\n1 6 7\n2 8 9 1 2\n"):
        with pytest.raises(DataError, match=r"none is that of most; say --format sequences if each line is a user"):
            read_interactions(save("a.txt", text))


def test_two_events_that_lost_the_line_end_between_them_are_refused(save: Save) -> None:
    with pytest.raises(DataError, match=r"line 3 of .* has 5 fields in place of 3"):
        read_interactions(save("a.txt", "1 2 3\n1 3 4\n2 3 42 4 5\n2 5 6\n"))


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ("1,2014-04-07T10:51:09.277Z,5,0\n2,2014-04-07T10:51:10.277Z,6,0\n", "user,timestamp,item,-",
         [(1, 5, 1396867869.277), (2, 6, 1396867870.277)]),
        ("u\tx\tname\t3\nv\ty\tname\t4\n", "user,item,-,-", [("u", "x"), ("v", "y")]),
        ("B1,A1,5.0,14\nB2,A1,4.0,15\n", "item,user,rating,timestamp", [("A1", "B1", 14), ("A1", "B2", 15)]),
        ("1,7,5\n1,8,4\n", "user,item,rating", [(1, 7), (1, 8)]),
        ("1 2 3 4 5\n6 7 8 9 1\n", "user,item,-,timestamp,-", [(1, 2, 4), (6, 7, 9)]),
        ("1::2::x::4::5::6\n", "-,-,-,timestamp,user,item", [(5, 6, 4)]),
        ("a,b,c\n1,2,3\n", "user,item,timestamp", [(1, 2, 3)]),
        ("1\t2\n3\t4\n", "item,user", [(2, 1), (4, 3)]),
    ],
)  # fmt: skip
def test_columns_can_be_named_by_position(text: str, columns: str, rows: list[object], save: Save) -> None:
    file = save("log.csv" if "," in text else "log.txt", text)
    assert read_interactions(file, columns=columns).rows() == rows
    assert read_interactions(file, columns=columns.split(",")).rows() == rows


@pytest.mark.parametrize(
    ("columns", "told", "message"),
    [
        ("user,item", {}, "has 3 columns, and --columns names 2; name each, '-' for those to skip"),
        ("user,-,-", {}, "names 'item' 0 times"),
        ("user,user,item", {}, "names 'user' 2 times"),
        ("user,film,item", {}, "has 'film'; use user, item, timestamp"),
        ("", {}, "has ''; use user, item"),
        ("user,item,-", {"user_column": "who"}, "leave out --user-column"),
        ("user,item,-", {"format": "sequences"}, "by position, which --format sequences has none of"),
        ("user,item,-", {"format": "jsonl"}, "by position, which --format jsonl has none of"),
    ],
)
def test_wrong_columns_are_refused(columns: str, told: dict[str, Any], message: str, save: Save) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        read_interactions(save("log.csv", "1,2,3\n4,5,6\n"), columns=columns, **told)


def test_line_of_very_many_fields_is_refused_in_a_few_words(save: Save) -> None:
    with pytest.raises(DataError, match=r"has 100000 fields on each line") as caught:
        read_interactions(save("log.txt", " ".join(map(str, range(100_000)))))
    assert len(str(caught.value)) < 600


def test_table_of_thousands_of_columns_is_read_in_seconds(save: Save) -> None:
    names = ["user", "item", *(f"c{n}" for n in range(5000))]
    file = save("log.csv", ",".join(names) + "\n" + ",".join(map(str, range(5002))) + "\n")
    assert read_interactions(file).rows() == [(0, 1)]


def test_first_line_that_only_looks_like_a_header_is_named(save: Save) -> None:
    with pytest.raises(DataError, match=r"line 2 of .* is taken for a header, as it has no numbers: .* u, i, x1; name"):
        read_interactions(save("log.txt", "\nu i x1\nu j 2\nu k 3\nu l 4\n"))


def test_first_line_that_was_cut_does_not_hide_the_separator(save: Save) -> None:
    with pytest.raises(DataError, match=r"line 1 of .* has 1 field in place of 3"):
        read_interactions(save("log.csv", "1\n1,2,3\n1,3,4\n2,3,5\n"))


def test_quoted_field_over_two_lines_is_seen_in_a_small_file(save: Save) -> None:
    assert read_interactions(save("log.csv", '0,"k\nk",5\n'), columns="user,item,-").rows() == [(0, "k\nk")]


def test_ids_in_braces_and_brackets_are_not_json(save: Save) -> None:
    assert read_interactions(save("a.txt", "{3f25} 2\n{4e01} 3\n")).rows() == [("{3f25}", 2), ("{4e01}", 3)]
    assert read_interactions(save("b.txt", "[1] 2\n[1] 3\n")).rows() == [("[1]", 2), ("[1]", 3)]

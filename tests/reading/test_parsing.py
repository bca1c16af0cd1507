"""Text into columns: every line becomes an event, or is refused with its number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sasrec.core.errors import DataError
from sasrec.reading.readers import read_interactions

Save = Callable[[str, str | bytes], Path]


@pytest.mark.parametrize("last", ["02969", "+969", "2969 ", "029690"])
def test_last_line_without_a_newline_merges_no_ids(last: str, save: Save) -> None:
    log = read_interactions(save("log.txt", f"u 2969\nv {last}"))
    assert log["item_id"].cast(str).to_list() == ["2969", last.strip()]
    numbers = read_interactions(save("numbers.txt", "1 2969\n2 02969"))
    assert numbers.rows() == [(1, "2969"), (2, "02969")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", "user,item\n1,2\nuser,item\n3,4\n"),
        ("log.csv", '"user","item"\n"1","2"\n"user","item"\n"3","4"\n'),
        ("log.tsv", "user\titem\n1\t2\nUser\tItem\n3\t4\n"),
        ("log.txt", "user item\n1 2\nuser  item\n3 4\n"),
        ("log.inter", "user_id:token\titem_id:token\n1\t2\nuser_id:token\titem_id:token\n3\t4\n"),
    ],
)
def test_header_in_the_middle_is_left_out(name: str, text: str, save: Save, caplog: pytest.LogCaptureFixture) -> None:
    assert read_interactions(save(name, text)).rows() == [(1, 2), (3, 4)]
    assert "line 3 of" in caplog.text
    assert "repeats the header; it is left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no first header.csv", "1,2\n2,3\nuser,item\n4,5\n"),
        ("other order.csv", "user,item\n1,2\nitem,user\n4,5\n"),
        ("other names.csv", "user,item\n1,2\nuserId,movieId\n4,5\n"),
        ("ruler.csv", "user|item\n1|2\n----|----\n3|4\n"),
        ("bare.txt", "1 2\n2 3\nuser_id item_id\n4 5\n"),
    ],
)
def test_line_that_names_other_columns_is_refused(name: str, text: str, save: Save) -> None:
    with pytest.raises(DataError, match=r"line 3 of .* has .*, which looks like a header, not like an event"):
        read_interactions(save(name, text))


def test_users_with_the_name_of_a_column_are_users(save: Save) -> None:
    log = read_interactions(save("log.csv", "user,item\nuser,2\nitem,3\nname,4\n"))
    assert log["user_id"].to_list() == ["user", "item", "name"]


def test_each_part_may_have_a_header_or_only_the_first(save: Save, tmp_path: Path) -> None:
    save("logs/a.csv", "who,what,t\n1,2,3\n")
    for text in ("4,5,6\n", "who,what,t\n4,5,6\n", "what,t,who\n5,6,4\n", "t;what;who\n6;5;4\n"):
        save("logs/b.csv", text)
        told = {"user_column": "who", "item_column": "what", "timestamp_column": "t"}
        log = read_interactions(tmp_path / "logs", **told)
        assert log.rows() == [(1, 2, 3), (4, 5, 6)]
    save("logs/b.csv", "who,what,t\n4,5,6\n")
    assert read_interactions(tmp_path / "logs", columns="user,item,timestamp").rows() == [(1, 2, 3), (4, 5, 6)]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("user,item,time\n1,2,3\n", "item,user\n1,2\n", "b.csv has no column 'time', which the first file has"),
        ("user,item\n1,2\n", "user,item,time\n1,2,3\n", "b.csv has times in 'time', and .*a.csv has no such column"),
        ("1,2\n3,4\n", "user,item\n1,2\n", "line 1 of .*b.csv has 'user', 'item', which looks like a header"),
        ("1,2\n3,4\n5,6\n", "1,2,3\n4,5,6\n", "line 1 of .*b.csv has 3 fields in place of 2"),
        (
            "user,item\n1,2\n",
            "userId,item\n1,2\n",
            "b.csv has no column 'user' .did you mean 'userId'.*, which the first file has",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(first: str, second: str, message: str, save: Save, tmp_path: Path) -> None:
    save("logs/a.csv", first)
    save("logs/b.csv", second)
    with pytest.raises(DataError, match=message):
        read_interactions(tmp_path / "logs")


def test_parts_may_have_a_header_and_no_rows(save: Save, tmp_path: Path) -> None:
    save("logs/a.csv", "user,item\n")
    save("logs/b.csv", "user,item\n1,2\n")
    save("logs/c.csv", "3,4\n")
    assert read_interactions(tmp_path / "logs").rows() == [(1, 2), (3, 4)]


def test_column_name_that_occurs_twice_matters_only_where_it_is_read(save: Save) -> None:
    assert read_interactions(save("a.txt", "user item x x\n1 2 3 4\n")).rows() == [(1, 2)]
    assert read_interactions(save("b.csv", "user,item,x,x\n1,2,3,4\n")).rows() == [(1, 2)]
    for name, text in (("c.csv", "user,item,item\n1,2,3\n"), ("d.txt", "user item item\n1 2 3\n")):
        with pytest.raises(DataError, match="has two columns of the name 'item'"):
            read_interactions(save(name, text))


def test_sequences_have_no_header_and_no_quotes(save: Save) -> None:
    for header in ("user items", "userId item_id", "session_id item_id_list"):
        with pytest.raises(DataError, match=r"line 1 of .* is a header, which sequences have none of; remove it"):
            read_interactions(save("log.txt", f"{header}\n1 2 3\n2 4\n"), format="sequences")
    log = read_interactions(save("log.txt", '"1" "2" "3"\n"2" "4"\n'), format="sequences")
    assert log.rows() == [(1, 2), (1, 3), (2, 4)]

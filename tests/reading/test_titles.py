"""Titles of items, from any form that a log may have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from sasrec.core.errors import DataError
from sasrec.data.logs import Reading, load_log
from sasrec.reading.titles import read_titles

Save = Callable[[str, str | bytes], Path]
TITLES = [(1, "A"), (2, "B")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "category_id,item_id,title\n9,1,A\n9,2,B\n"),
        ("t.csv", "user_id,item_id,title\n5,1,A\n6,2,B\n"),
        ("t.csv", "id,name\n1,A\n2,B\n"),
        ("t.csv", "item_id,brand,item_name\n1,x,A\n2,y,B\n"),
        ("t.csv", "item_id,title\n1.0,A\n2.0,B\n"),
        ("t.csv", "item_id;title\n1;  A \n2;B\n3;\n;C\n1;D\n"),
        ("t.csv", "item_id,title\n1,A\nitem_id,title\n2,B\n"),
        ("t.csv", "1,A\n2,B\n"),
        ("t.txt", "1\tA\n2\tB\n"),
        ("movies.dat", "1::A::x\n2::B::y\n"),
        ("u.item", "1|A|x|\n2|B|y|\n"),
        ("x.item", "item_id:token\tmovie_title:token_seq\n1\tA\n2\tB\n"),
        ("t.jsonl", '{"item_id":1,"title":"A"}\n{"item_id":2,"title":"B"}\n{"item_id":3,"title":null}\n'),
        ("t.json", '[{"item_id":1,"title":"A"},{"item_id":2,"title":"B"}]'),
        ("t.txt", "\ufeffitem_id\ttitle\r\n1\tA\r\n2\tB\r\n"),
    ],
)
def test_titles_are_read_from_the_forms_of_logs(name: str, text: str, save: Save) -> None:
    assert read_titles(save(name, text)).rows() == TITLES
    assert read_titles(save(name, text.encode("utf-16"))).rows() == TITLES


@pytest.mark.parametrize("first", ["Am\xe9lie", "A"])
def test_old_titles_are_latin_1(first: str, save: Save, caplog: pytest.LogCaptureFixture) -> None:
    late = "".join(f"{n}|A|x\n" for n in range(2, 2000))
    file = save("u.item", f"1|{first}|x\n{late}2000|Caf\xe9|x\n".encode("latin-1"))
    titles = read_titles(file)
    assert (titles["title"][0], titles["title"][-1]) == (first, "Café")
    assert "is not UTF-8; it is read as Latin-1" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "item_id,title\n1,A,b\n2,B\n", "line 2 of .* has 3 fields in place of 2"),
        ("t.csv", "item_id,foo\n1,A\n", "has no title column that is recognised; its columns are: item_id, foo"),
        ("t.txt", "A\nB\n", "no separator that nearly all lines have; titles need an id and a title"),
        ("t.jsonl", '{"item_id":1,"title":["A"]}\n', r"column 'title' of .* holds List\(String\); titles are text"),
        ("t.json", '{"1":"A","2":"B"}\n', "has no item column that is recognised"),
    ],
)
def test_titles_that_are_unclear_are_refused(name: str, text: str, message: str, save: Save) -> None:
    with pytest.raises(DataError, match=message):
        read_titles(save(name, text))


def test_columns_of_titles_can_be_named_and_must_be_two(save: Save) -> None:
    file = save("t.csv", "a,b\n1,A\n2,B\n")
    assert read_titles(file, item_column="a", title_column="b").rows() == TITLES
    with pytest.raises(DataError, match=r"column 'a' of .* cannot be both the ids and the titles"):
        read_titles(file, item_column="a", title_column="a")
    with pytest.raises(DataError, match="cannot read files from DataFrame"):
        read_titles(pl.DataFrame({"item_id": [1], "title": ["A"]}))


def test_titles_that_meet_few_ids_are_warned_of(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    log = save("log.csv", "user,item\n1,118\n1,119\n")
    met = load_log(log, Reading(titles=save("met.csv", "item_id,title\n118.0,A\n119.0,B\n")))
    assert met.vocabulary.titles is not None
    assert met.vocabulary.titles.to_list() == ["A", "B"]
    assert "titles for" not in caplog.text
    load_log(log, Reading(titles=save("few.csv", "item_id,title\nx118,A\nx119,B\n")))
    assert (
        "titles for 0 of 2 items: the log's ids are such as 118, and the titles have 2 ids, such as 'x118'"
        in caplog.text
    )

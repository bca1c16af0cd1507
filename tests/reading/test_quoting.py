"""Quotes: no lone one swallows rows, and fields in quotes are what they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sasrec.core.errors import DataError
from sasrec.reading.readers import read_interactions
from sasrec.reading.titles import read_titles

Save = Callable[[str, str | bytes], Path]
NAMES = 'user_id,item_id,name\n1,2,"abc\n1,3,x\n2,4,{}\n2,5,z\n2,6,z\n'


def test_lone_quotes_in_tab_files_swallow_no_rows(save: Save) -> None:
    text = NAMES.format('"foo').replace(",", "\t")
    assert read_interactions(save("log.tsv", text)).rows() == [(1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    titles = read_titles(save("titles.tsv", 'item_id\tname\n1\t"A\n2\tB\n3\t"C\n4\tD\n'))
    assert titles.rows() == [(1, '"A'), (2, "B"), (3, '"C'), (4, "D")]


@pytest.mark.parametrize("separator", [",", ";", "|"])
@pytest.mark.parametrize(
    ("third", "message"),
    [
        ('"foo', "line 2 of .* has a quote that does not fit and is not closed by line 4"),
        ('foo"', "line 2 of .* opens a quote that closes only in line 4, and what is between looks like rows"),
        ("foo", "line 2 of .* has a quote that does not fit and is not closed by line 6"),
    ],
)
def test_lone_quotes_elsewhere_are_refused_where_they_open(
    separator: str, third: str, message: str, save: Save
) -> None:
    text = NAMES.format(third).replace(",", separator)
    with pytest.raises(DataError, match=message):
        read_interactions(save("log.csv", text))
    with pytest.raises(DataError, match=message):
        read_titles(save("titles.csv", text))


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("log.csv", 'user,item\n"a""b",c\nd,"e,f"\n', [('a"b', "c"), ("d", "e,f")]),
        ("log.csv", 'user,item\na",b\nc,d\n', [('a"', "b"), ("c", "d")]),
        ("log.csv", 'user,item,t\n1,"a\nb",3\n2,c,4\n', [(1, "a\nb"), (2, "c")]),
        ("log.csv", 'user,item\n"a\\"b","c"\n"d",e\n', [('a"b', "c"), ("d", "e")]),
        ("log.csv", '"01","2"\n1,"2"\n', [("01", 2), ("1", 2)]),
        ("log.csv", 'user, item\n1, "a,b"\n', [(1, "a,b")]),
        ("log.txt", 'user|item\n"a|b"|c\nd|e\n', [("a|b", "c"), ("d", "e")]),
        ("log.tsv", '"user"\t"item"\n"a"\t"b"\n"c""d"\t"e"\n', [("a", "b"), ('c"d', "e")]),
        ("log.txt", '"user" "item"\n"a" "1"\n"b" "2"\n', [("a", 1), ("b", 2)]),
        ("log.txt", '"a"  "b"\n"c" "d"\n', [("a", "b"), ("c", "d")]),
        ("log.inter", 'user_id:token\titem_id:token\n"a"\t"b\n', [('"a"', '"b')]),
    ],
)
def test_quoted_fields_are_what_they_hold(name: str, text: str, rows: list[object], save: Save) -> None:
    assert read_interactions(save(name, text)).rows() == rows


def test_quoted_ids_of_a_part_without_a_header_are_what_they_hold(save: Save, tmp_path: Path) -> None:
    save("logs/a.csv", "User ID;Product ID;price\n0;x;0.5\n")
    save("logs/b.csv", '0;"k""k";0.5\n')
    assert read_interactions(tmp_path / "logs").rows() == [(0, "x"), (0, 'k"k')]


def test_empty_field_in_quotes_is_missing(save: Save) -> None:
    with pytest.raises(DataError, match=r"line 3 of .* has nothing in column 'user'"):
        read_interactions(save("log.csv", 'user,item\n"1","2"\n"","2"\n'))

"""What is known of items, from any form that it may have."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import sasrec
from sasrec.core.errors import DataError
from sasrec.reading.items import read_items

Save = Callable[[str, str | bytes], Path]
GENRES = [(1, "Toy Story (1995)", ["Animation", "Comedy"]), (2, "Heat (1995)", None), (3, "Cats", ["Drama"])]
U_ITEM = "{id}|{title}|01-Jan-1995||http://x/{id}|{flags}\n"
MOVIES = [
    ("movies.dat", "1::Toy Story (1995)::Animation|Comedy\n2::Heat (1995)::\n3::Cats::Drama\n"),
    (
        "movies.csv",
        "movieId,title,genres\n1,Toy Story (1995),Animation|Comedy\n2,Heat (1995),(no genres listed)\n3,Cats,Drama\n",
    ),
    (
        "movies.csv",
        'movieId,title,genres\r\n1,"Toy Story (1995)",Animation|Comedy\r\n2,Heat (1995),\r\n3,Cats,Drama\r\n',
    ),
    ("m.tsv", "item_id\ttitle\tgenres\n1\tToy Story (1995)\tAnimation|Comedy\n2\tHeat (1995)\tNA\n3\tCats\tDrama\n"),
    (
        "m.item",
        "item_id:token\ttitle:token_seq\tgenres:token_seq\n"
        "1\tToy Story (1995)\tAnimation Comedy\n2\tHeat (1995)\t\n3\tCats\tDrama\n",
    ),
    (
        "m.jsonl",
        '{"item_id": 1, "title": "Toy Story (1995)", "genres": ["Animation", "Comedy"]}\n'
        '{"item_id": 2, "title": "Heat (1995)"}\n{"item_id": 3, "title": "Cats", "genres": ["Drama"]}\n',
    ),
    (
        "m.json",
        '[{"item_id": 1, "title": "Toy Story (1995)", "genres": ["Animation", "Comedy"]}, '
        '{"item_id": 2, "title": "Heat (1995)"}, {"item_id": "3", "title": "Cats", "genres": ["Drama"]}]',
    ),
    (
        "m.json",
        '{"1": {"title": "Toy Story (1995)", "genres": ["Animation", "Comedy"]}, "2": {"title": "Heat (1995)"},\n'
        '"3": {"title": "Cats", "genres": "Drama"}}',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), MOVIES)
def test_titles_and_lists_are_read_from_every_form(name: str, text: str, save: Save) -> None:
    items = read_items(save(name, text))
    assert items.columns == ["item_id", "title", "genres"]
    assert items.rows() == GENRES


@pytest.mark.parametrize(("name", "text"), MOVIES[:5])
def test_compressed_and_utf_16_texts_are_the_same(name: str, text: str, save: Save) -> None:
    assert read_items(save(f"{name}.gz", gzip.compress(text.encode()))).rows() == GENRES
    assert read_items(save(name, text.encode("utf-16"))).rows() == GENRES


def test_the_flags_of_movielens_100k_are_genres(save: Save) -> None:
    rows = [(1, "Café", {3, 5}), (2, "Heat", {8})]
    text = "".join(
        U_ITEM.format(id=n, title=title, flags="|".join(str(int(j in on)) for j in range(19))) for n, title, on in rows
    )
    items = read_items(save("u.item", text.encode("latin-1")))
    assert items["title"].to_list() == ["Café", "Heat"]
    assert items["genres"].to_list() == [["Animation", "Comedy"], ["Drama"]]
    assert items.columns == ["item_id", "title", "release_date", "url", "genres"]


def test_the_values_of_a_text_column_decide_its_type(save: Save) -> None:
    text = (
        "sku,price,stock,new,zip,tags,note,gone,seen\n"
        "a,1.5,3,true,012,x|y,A | B,,2024-01-31\nb,2,-4,False,345,z,None,NA,2024-02-01\nc,,5,,678,,C,,\n"
    )
    items = read_items(save("i.csv", text))
    assert dict(items.schema) == {
        "item_id": pl.String, "price": pl.Float64, "stock": pl.Int64, "new": pl.Boolean, "zip": pl.String,
        "tags": pl.List(pl.String), "note": pl.String, "gone": pl.String, "seen": pl.String,
    }  # fmt: skip
    assert items.rows()[0] == ("a", 1.5, 3, True, "012", ["x", "y"], "A | B", None, "2024-01-31")
    assert items.rows()[1] == ("b", 2.0, -4, False, "345", ["z"], None, None, "2024-02-01")
    assert items.rows()[2] == ("c", None, 5, None, "678", None, "C", None, None)


def test_recbole_declares_types(save: Save) -> None:
    text = "item_id:token\tyear:token\tprice:float\tv:float_seq\n1\t1995\t2\t0.5  1\n2\t1996\t\t3 4\n"
    items = read_items(save("x.item", text))
    assert items.schema["year"] == pl.String
    assert items.rows() == [(1, "1995", 2.0, [0.5, 1.0]), (2, "1996", None, [3.0, 4.0])]


@pytest.mark.parametrize(
    ("told", "values"),
    [
        ({"4": [1, 2], "83": [4]}, [[1, 2], [4]]),
        ({"4": ["a"], "83": []}, [["a"], []]),
        ({"4": [1, "a"], "83": [True]}, [["1", "a"], ["true"]]),
        ({"4": [0.5, 1], "83": None}, [[0.5, 1.0], None]),
        ({"4": "red", "83": "blue"}, ["red", "blue"]),
        ({"4": 1, "83": 2.5}, [1.0, 2.5]),
    ],
)
def test_a_json_object_has_ids_as_keys(told: dict[str, Any], values: list[Any], save: Save) -> None:
    for indent in (None, 1):
        items = read_items(save("a.json", json.dumps(told, indent=indent)))
        assert items["item_id"].to_list() == [4, 83]
        assert items["attributes"].to_list() == values


def test_a_json_object_of_a_large_catalogue_is_one_long_line(save: Save) -> None:
    text = json.dumps({f"item-{j:09d}": ["colour red", "size large", j] for j in range(80_000)})
    assert len(text) > 2**22
    assert "\n" not in text
    assert len(read_items(save("a.json", text))) == 80_000


def test_json_lines_of_one_item_are_no_object_of_ids(save: Save) -> None:
    assert read_items(save("a.jsonl", '{"item_id": 7, "tags": ["a", "b"]}\n')).rows() == [(7, ["a", "b"])]


def test_frames_keep_their_types(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "asin": ["a", "b"],
            "kind": pl.Series(["x", " "], dtype=pl.String).cast(pl.Categorical),
            "price": [1.5, float("nan")],
            "day": [date(2024, 1, 31), None],
            "vector": pl.Series([[1.0, 2.0], [3.0, 4.0]], dtype=pl.Array(pl.Float32, 2)),
            "n": pl.Series([1, 2], dtype=pl.UInt8),
        }
    )
    frame.write_parquet(tmp_path / "i.parquet")
    frame.write_ipc(tmp_path / "i.arrow")
    for source in (frame, frame.lazy(), tmp_path / "i.parquet", str(tmp_path / "i.arrow")):
        items = read_items(source)
        assert items.drop("vector").rows() == [("a", "x", 1.5, date(2024, 1, 31), 1), ("b", None, None, None, 2)]
        assert items.schema["vector"] == pl.Array(pl.Float32, 2)
        assert items.schema["n"] == pl.Int64


def test_what_is_no_value_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    frame = pl.DataFrame(
        {"item_id": [1], "s": [{"a": 1}], "b": [b"x"], "none": [None], "deep": [[[1]]], "ok": [2]},
        schema_overrides={"none": pl.Null},
    )
    assert read_items(frame).columns == ["item_id", "ok"]
    assert "left alone, as these are neither values nor lists of values: s (Struct" in caplog.text
    assert "and 1 more" in caplog.text


def test_ids_that_are_there_twice_and_rows_without_are_said(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    items = read_items(save("i.csv", "item_id,brand\n1,A\n,B\n2,C\n1,D\n1,E\n"))
    assert items.rows() == [(1, "A"), (2, "C")]
    assert "rows without an item id, which are left out: 1" in caplog.text
    assert "rows that name an item again: 2, such as 1; the first row of each item stays" in caplog.text
    assert read_items(save("i.json", '{"1": ["a"], "1": ["b"]}')).rows() == [(1, ["a"])]


def test_what_was_understood_is_one_line(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = save(*MOVIES[1])
    read_items(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 3 items; item = movieId, title = title; attributes: genres lists of text"
    ]


def test_names_of_the_vocabulary_are_kept_for_it(caplog: pytest.LogCaptureFixture) -> None:
    items = read_items(pl.DataFrame({"sku": [1], "count": [5], "item_id": [3]}), item_column="sku")
    assert items.columns == ["item_id", "count_of_item", "item_id_of_item"]
    assert "column 'count' is called 'count_of_item' here" in caplog.text


def test_named_columns_win(save: Save) -> None:
    path = save("i.csv", "product_id,parent,label,title\n1,9,A,x\n2,9,B,y\n")
    items = read_items(path, item_column="product_id", title_column="label")
    assert items["title"].to_list() == ["A", "B"]
    assert items["item_id"].to_list() == [1, 2]


def test_a_header_of_words_alone_is_a_header(save: Save) -> None:
    assert read_items(save("i.csv", "sku,colour\nx1,red\nx2,blue\n")).rows() == [("x1", "red"), ("x2", "blue")]


def test_vectors_beside_the_table_go_by_its_rows(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item_id": [1, None, 2, 1], "brand": ["A", "B", "C", "D"]})
    vectors = np.arange(8, dtype=np.float64).reshape(4, 2)
    np.save(tmp_path / "v.npy", vectors)
    for given in (vectors, tmp_path / "v.npy", str(tmp_path / "v.npy"), vectors.tolist()):
        items = read_items(frame, vectors=given)
        assert items["item_vector"].to_list() == [[0, 1], [4, 5]]
        assert items["item_id"].to_list() == [1, 2]


BAD = [
    ("i.csv", "item_id,brand\n", "has no items; it needs at least one row"),
    ("i.csv", "colour,size\nred,1\nblue,2\n", "has no item column that is recognised; its columns are: colour, size"),
    ("i.csv", "item_id,brand,brand\n1,a,b\n", "two columns of the name 'brand'"),
    ("i.csv", "item_id,brand\n1,a,b\n", "line 2 of .* has 3 fields in place of 2"),
    ("i.csv", "item_id,brand\n,a\n ,b\n", "has no row with an id in column 'item_id'"),
    ("i.parquet", "item_id,brand\n1,a\n", "it does not begin as parquet files do"),
    ("i.json", "{}", "has no item"),
    ("i.json", '{"1": [[1]], "2": [2]}', "key '1' of .* has lists or objects within its list"),
    ("i.json", '{"1": ["a"], "2": "b"}', "key '2' of .* has a value of another kind than key '1'"),
    ("i.json", '{"1": {"a": {"b": 1}}}', "'a' of an item in .* is an object of its own"),
    ("i.json", '["a", "b"]', "neither|no JSON object|no separator"),
    ("i.jsonl", '{"item_id": 1, "a": 1}\n{"item_id": 2, "a": 1', "is not JSON"),
    ("i.item", "item_id:token\tprice:float\n1\tcheap\n", "declared as float and has 'cheap', which is not a number"),
    ("i.csv", "<html><body>", "is a web page"),
    ("i.csv", "", "is empty"),
    ("i.jsonl", '{"item_id": 1}\n', "has ids in column 'item_id' and nothing else"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_bad_items_are_one_sentence(name: str, text: str, message: str, save: Save) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_items(save(name, text))
    assert "\n" not in str(caught.value)


VECTORS = [
    (np.zeros((3, 2)), "item_vectors has 3 rows, and the frame of items has 2"),
    (np.zeros(2), r"has shape \(2,\)"),
    (np.array([["a"], ["b"]]), "give numbers, a row of them for each item"),
    (np.array([[1.0, np.nan], [0.0, 0.0]]), "row 0 of item_vectors has a value that is not a finite number"),
    (np.array([[1.0], [1e300]]), "row 1 of item_vectors has a value that is not a finite number"),
    ([[1.0], [1.0, 2.0]], "is not an array of numbers"),
    ("nowhere.npy", "there is no file nowhere.npy"),
]


@pytest.mark.parametrize(("vectors", "message"), VECTORS)
def test_bad_vectors_are_one_sentence(vectors: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_items(pl.DataFrame({"item_id": [1, 2], "brand": ["a", "b"]}), vectors=vectors)


def test_a_file_that_holds_no_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.npy").write_bytes(b"no array")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("v.npy", "objects.npy"):
        with pytest.raises(DataError, match=r"is not a \.npy file of numbers"):
            read_items(pl.DataFrame({"item_id": [1], "brand": ["a"]}), vectors=tmp_path / name)


def test_tables_of_too_many_columns_are_refused() -> None:
    wide = pl.DataFrame({"item_id": [1], **{f"v{j}": [0.5] for j in range(1001)}})
    with pytest.raises(DataError, match="1,002 columns, and 1,000 are the most; give vectors as one column"):
        read_items(wide)


def test_data_sets_without_items_say_which_have_them() -> None:
    with pytest.raises(DataError, match="'steam' tells nothing of its items; these do: ml-100k, ml-1m, ml-20m"):
        sasrec.read_items("steam")

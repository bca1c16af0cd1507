"""Lists of ids in every kind of collection; what only looks like a list is refused in one sentence."""

from __future__ import annotations

import io
from collections import UserString
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from any_frame import FRAMES

from sasrec.core.errors import DataError, UnknownItemError
from sasrec.data.histories import list_of_ids, read_histories, rows_of_users
from sasrec.data.sequences import build_sequences

LISTS: dict[str, Callable[[], Any]] = {  # made anew for each use, as a generator is used up
    "list": lambda: [1, 2],
    "tuple": lambda: (1, 2),
    "generator": lambda: (i for i in (1, 2)),
    "range": lambda: range(1, 3),
    "keys": lambda: {1: "a", 2: "b"}.keys(),
    "array": lambda: np.array([1, 2]),
    "array of bytes": lambda: np.array([1, 2], np.uint8),
    "array of floats": lambda: np.array([1.0, 2.0], np.float32),
    "array of objects": lambda: np.array([1, 2], object),
    "masked array": lambda: np.ma.array([1, 2], mask=[False, False]),
    "polars": lambda: pl.Series([1, 2]),
    "pandas": lambda: pd.Series([1, 2], index=[7, 9]),
    "pandas with its own integers": lambda: pd.Series([1, 2], dtype="Int64"),
    "pandas array": lambda: pd.array([1, 2]),
    "index": lambda: pd.Index([1, 2]),
    "PyArrow": lambda: pa.array([1, 2]),
    "PyArrow in pieces": lambda: pa.chunked_array([[1], [2]]),
    "narwhals": lambda: nw.from_native(pl.Series([1, 2]), series_only=True),
    "narwhals over pandas": lambda: nw.from_native(pd.Series([1, 2]), series_only=True),
    **{f"one column of {kind}": partial(made, pl.DataFrame({"a": [1, 2]})) for kind, made in FRAMES.items()},
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_may_be_any_collection_with_one_dimension(kind: str) -> None:
    assert list_of_ids(LISTS[kind](), "allow") == [1, 2]
    assert list_of_ids(LISTS[kind](), "history", ordered=True) == [1, 2]
    assert read_histories([LISTS[kind](), LISTS[kind]()])[0] == [[1, 2], [1, 2]]


def test_values_keep_their_meaning() -> None:
    assert [type(i) for i in list_of_ids(np.array([1, 2]), "allow")] == [int, int]
    assert list_of_ids(np.array(["a", "heat, uncut"]), "allow") == ["a", "heat, uncut"]
    assert list_of_ids(pd.Series(["a", "b"], dtype="category"), "allow") == ["a", "b"]
    assert list_of_ids(pl.Series(["a", "b"], dtype=pl.Categorical), "allow") == ["a", "b"]
    assert str(list_of_ids(np.array([0.1], np.float32), "allow")[0]) == "0.1"
    assert list_of_ids([1, None, "x"], "allow") == [1, None, "x"]
    assert list_of_ids([np.array(5)], "allow") == [5]
    assert list_of_ids([], "allow") == list_of_ids(pl.Series([]), "allow") == []


NO_LISTS: list[tuple[Any, str]] = [
    ("12", "is of type str, not a list of ids; for one id give a list with it"),
    (np.str_("12"), "is of type str_, not a list of ids"),
    (UserString("12"), "is of type UserString, not"),
    (b"12", "is of type bytes, not a list of ids"),
    (bytearray(b"12"), "is of type bytearray, not a list of ids"),
    (12, "is of type int, not a list of ids; for one id give a list with it"),
    (1.5, "is of type float, not"),
    (np.int64(12), "is of type int64, not"),
    (True, "is of type bool, not"),
    (None, "is of type NoneType, not"),
    (list, "is of type type, not"),
    (Path("deny.txt"), "is of type PosixPath, not"),
    (io.StringIO("1\n2\n"), "is of type StringIO, not"),
    ({1: 2}, "is of type dict, not a list of ids; give its keys or its values as a list"),
    (np.array(12), "is of type ndarray, not"),
    (np.array([[1, 2]]), "is of type ndarray, not a list of ids; an array of 2 dimensions has too many"),
    (
        pl.DataFrame({"item_id": [1], "n": 2}),
        "is of type DataFrame, not a list of ids; give one of its columns: item_id, n",
    ),
    (
        pl.LazyFrame({"item_id": [1], "n": 2}),
        "is of type LazyFrame, not a list of ids; give one of its columns: item_id",
    ),
    (
        pd.DataFrame({"item_id": [1], "n": 2}),
        "is of type DataFrame, not a list of ids; give one of its columns: item_id",
    ),
    (pa.table({"item_id": [1], "n": [2]}), "is of type Table, not a list of ids; give one of its columns: item_id, n"),
    (pl.DataFrame(), "is of type DataFrame, not a list of ids; give one of its columns: it has none"),
    (pl.DataFrame({"item_id": [1, None]}), "has no id at position 1; leave out what is missing"),
    (pa.array([1, None]), "has no id at position 1; leave out what is missing"),
    (pa.array([1.0, float("nan")]), "has no id at position 1"),
    (nw.from_native(pl.Series([1, None]), series_only=True), "has no id at position 1"),
    (nw.from_native(pd.Series([1, None]), series_only=True), "has no id at position 1"),
    (pa.array([[1], [2]]), "holds a value of type list at position 0"),
    (pd.MultiIndex.from_tuples([(1, 2)]), "is of type MultiIndex, not a list of ids; give one of its columns"),
    ([1, [2, 3]], "holds a value of type list at position 1, not an id; give one flat list"),
    ([(1, 2)], "holds a value of type tuple at position 0"),
    ([1, {"item_id": 2}], "holds a value of type dict at position 1"),
    ([{1, 2}], "holds a value of type set at position 0"),
    ([np.array([1, 2])], "holds a value of type ndarray at position 0"),
    ([pl.Series([1])], "holds a value of type Series at position 0"),
    (pl.Series([[1, 2]]), "holds a value of type list at position 0"),
    (pl.Series([1, None]), "has no id at position 1; leave out what is missing"),
    (pl.Series([1.0, float("nan")]), "has no id at position 1"),
    (pl.Series([1.0, None]), "has no id at position 1"),
    (np.array([np.nan, 1.0]), "has no id at position 0"),
    (pd.Series([None, "a"]), "has no id at position 0"),
    (pd.Series([1, 2, np.nan]), "has no id at position 2"),
    (pd.Series([1, None], dtype="Int64"), "has no id at position 1"),
    (pd.Index(["a", None]), "has no id at position 1"),
    (np.ma.array([1, 2], mask=[False, True]), "has no id at position 1"),
]


@pytest.mark.parametrize("number", range(len(NO_LISTS)), ids=[words for _, words in NO_LISTS])
def test_what_is_no_list_of_ids_is_refused_by_argument_type_and_fix(number: int) -> None:
    value, words = NO_LISTS[number]
    with pytest.raises(DataError) as caught:
        list_of_ids(value, "deny")
    assert str(caught.value).startswith(f"deny {words}")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^history 1 "):
        read_histories([[1], value])


@pytest.mark.parametrize("value", [{1, 2}, frozenset({1})])
def test_a_set_will_do_where_order_does_not_count(value: Any) -> None:
    assert sorted(list_of_ids(value, "deny")) == sorted(value)
    with pytest.raises(DataError, match=r"history is of type .*set, not a list of item ids; a set has no order"):
        list_of_ids(value, "history", ordered=True)


OUTER: dict[str, Callable[[], Any]] = {
    "list": lambda: [[1, 2], [3, 4]],
    "generator": lambda: ([i, i + 1] for i in (1, 3)),
    "array": lambda: np.array([[1, 2], [3, 4]]),
    "array of lists": lambda: np.array([[1, 2], [3, 4], None], object)[:2],
    "polars": lambda: pl.Series([[1, 2], [3, 4]]),
    "polars array": lambda: pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2)),
    "values": lambda: {"a": [1, 2], "b": (3, 4)}.values(),
    "PyArrow": lambda: pa.array([[1, 2], [3, 4]]),
    "PyArrow in pieces": lambda: pa.chunked_array([[[1, 2]], [[3, 4]]]),
    "narwhals": lambda: nw.from_native(pl.Series([[1, 2], [3, 4]]), series_only=True),
}


@pytest.mark.parametrize("kind", OUTER)
def test_histories_may_be_any_list_of_lists(kind: str) -> None:
    assert read_histories(OUTER[kind]()) == ([[1, 2], [3, 4]], None)


@pytest.mark.parametrize(
    ("index", "users"), [(None, [0, 1]), ([8, 9], [8, 9]), (["x", "y"], ["x", "y"]), ([1, "y"], ["1", "y"])]
)
def test_a_pandas_series_of_lists_has_its_users_in_its_index(index: Any, users: list[Any]) -> None:
    rows, found = read_histories(pd.Series([[1, 2], [3, 4]], index=index))
    assert rows == [[1, 2], [3, 4]]
    assert found is not None
    assert found.to_list() == users


@pytest.mark.parametrize(
    ("histories", "words"),
    [
        ("12", "histories is of type str, not a list of histories; for one user give a list with one history"),
        (["12"], "history 0 is of type str, not a list of item ids; for one user give a list with one history"),
        ([1, 2], "history 0 is of type int, not a list of item ids; for one user give a list with one history"),
        (np.array([1, 2]), "history 0 is of type int64, not"),
        (None, "histories is of type NoneType, not"),
        ({1: [1, 2]}, "histories is of type dict, not a list of histories; give its keys or its values as a list"),
        ({(1, 2), (3, 4)}, "histories is of type set, not a list of histories; a set has no order"),
        (np.array(5), "histories is of type ndarray, not"),
        (
            np.zeros((2, 2, 2)),
            "histories is of type ndarray, not a list of histories; an array of 3 dimensions has too",
        ),
        ([np.zeros((2, 2))], "history 0 is of type ndarray, not a list of item ids; an array of 2 dimensions has too"),
        (pl.Series([[1], None]), "history 1 is of type NoneType, not"),
        (pl.Series([[1, None]]), "history 0 has no id at position 1"),
        (pd.Series([[1], None]), "history 1 is of type NoneType, not"),
        (pd.Index([1, 2]), "history 0 is of type int, not"),
        (Path("log.csv"), "histories is of type PosixPath, not"),
    ],
)
def test_what_is_no_list_of_histories_is_refused(histories: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_histories(histories)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("kind", FRAMES)
def test_histories_may_be_a_frame_of_any_kind(kind: str) -> None:
    frame = pl.DataFrame({"user_id": ["b", "a", "b"], "item_id": [1, 2, 3], "timestamp": [9, 5, 4]})
    rows, users = read_histories(FRAMES[kind](frame))
    assert users is not None
    assert dict(zip(users, rows, strict=True)) == {"b": [3, 1], "a": [2]}


def test_a_row_of_a_frame_may_be_a_whole_history() -> None:
    frame = pl.DataFrame({"user_id": ["b", "a"], "items": [[3, 1], [2]]})
    for source in (frame, frame.to_arrow(), nw.from_native(frame)):
        rows, users = read_histories(source)
        assert (rows, None if users is None else users.to_list()) == ([[3, 1], [2]], ["b", "a"])


LARGEST, SMALLEST = 2**63 - 1, -(2**63)
SPELLINGS = ["5", "-8", "5.0", "05", "+5", "-0", "0", "", " 5", "x", "5x", "é", "1e1"]
SPELLINGS += [str(LARGEST), str(SMALLEST), "9" * 20]


@pytest.mark.parametrize("users", [[-8, 0, 5, LARGEST, SMALLEST], ["", "05", "5", "5.0", "x", "é"], [7]])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_series_of_texts_finds_the_users_that_single_ids_find(users: list[int | str], spelling: str) -> None:
    sequences, _ = build_sequences(pl.DataFrame({"user_id": users, "item_id": [1] * len(users)}))
    asked = [str(users[-1]), spelling, str(users[0])]

    def found(given: Any) -> list[int] | str:
        try:
            return rows_of_users(sequences, given).tolist()
        except UnknownItemError as error:
            return str(error)

    try:
        wanted: list[int] | str = [sequences.row_of_user(user) for user in asked]
    except UnknownItemError as error:
        wanted = str(error)
    assert found(asked) == found(pl.Series(asked)) == wanted
    assert found(pl.Series([], dtype=pl.String)) == []

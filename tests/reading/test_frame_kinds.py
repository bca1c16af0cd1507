"""The same events in a frame of any library are the same log, and answers are frames of the library that asked."""

from __future__ import annotations

import csv
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import narwhals as nw
import narwhals.stable.v1 as nw_v1
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from any_frame import DUCKDB, FRAMES, NARWHALS, OTHERS, PANDAS, POLARS, PYARROW, Foreign, relation_of, table_of
from made import without
from pyarrow import feather

from sasrec.core.errors import DataError
from sasrec.data.logs import load_log
from sasrec.reading.frame_kinds import is_frame, like
from sasrec.reading.items import read_items
from sasrec.reading.readers import read_interactions

START = datetime(2024, 3, 1, 12)
EVENTS = [(f"u{j * 7 % 4}", f"film {j * j % 5}", START + timedelta(minutes=j * 5 % 11)) for j in range(14)]
NUMBERS = [(j * 7 % 4, j * j % 5, START + timedelta(minutes=j * 5 % 11)) for j in range(14)]
Event = tuple[Any, Any, datetime]


def frame_of_events(events: list[Event]) -> pl.DataFrame:
    return pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")


def histories_of(events: list[Event]) -> dict[Any, list[Any]]:
    """Each user's items by time, in plain Python: what a log of these events is."""
    users: dict[Any, list[tuple[datetime, Any]]] = {}
    for user, item, time in events:
        users.setdefault(user, []).append((time, item))
    return {user: [item for _, item in sorted(had, key=lambda one: one[0])] for user, had in sorted(users.items())}


def read_histories_of(source: Any) -> dict[Any, list[Any]]:
    """The same of a log as it was read."""
    log = load_log(source)
    rows = [log.vocabulary.ids_of(log.sequences.items[a:b]).to_list() for a, b in spans(log.sequences.offsets)]
    return dict(zip(log.sequences.user_ids.to_list(), rows, strict=True))


def spans(offsets: Any) -> list[tuple[int, int]]:
    return list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))


def fingerprint(source: Any) -> str:
    return load_log(source).sequences.facts.fingerprint


@pytest.fixture(scope="module", params=["texts", "numbers"])
def events(request: pytest.FixtureRequest) -> list[Event]:
    return EVENTS if request.param == "texts" else NUMBERS


@pytest.fixture(scope="module")
def of_a_text(events: list[Event], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of the same events in a CSV file that Python wrote."""
    path = tmp_path_factory.mktemp("log") / "log.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["user_id", "item_id", "timestamp"], *events])
    return fingerprint(path)


@pytest.mark.parametrize("kind", FRAMES)
def test_the_same_events_have_the_same_fingerprint_in_any_frame(kind: str, events: list[Event], of_a_text: str) -> None:
    assert fingerprint(FRAMES[kind](frame_of_events(events))) == of_a_text
    assert read_histories_of(FRAMES[kind](frame_of_events(events))) == histories_of(events)


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_a_file_of_pyarrow_has_it_too(compression: str, events: list[Event], of_a_text: str, tmp_path: Path) -> None:
    table = table_of(frame_of_events(events))
    feather.write_feather(table, str(tmp_path / "log.feather"), compression=compression)
    with pa.ipc.new_file(tmp_path / "log.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=5)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as file:
        file.write_table(table)
    assert {fingerprint(path) for path in tmp_path.iterdir()} == {of_a_text}


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.large_string())])
def test_texts_of_any_arrow_type_are_ids(kind: pa.DataType) -> None:
    table = table_of(frame_of_events(EVENTS), user_id=kind, item_id=kind)
    assert read_histories_of(table) == histories_of(EVENTS)
    assert read_histories_of(table.to_reader()) == histories_of(EVENTS)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo", "America/New_York"])
def test_times_of_any_unit_and_zone_are_the_same_moments(unit: str, zone: str | None) -> None:
    moments = [(time - datetime(1970, 1, 1)).total_seconds() for _, _, time in EVENTS]
    frame = frame_of_events(EVENTS).with_columns(pl.col("timestamp").dt.replace_time_zone("UTC") if zone else [])
    table = table_of(frame, timestamp=pa.timestamp(unit, zone))
    columns = table.to_pydict()
    numpy = pd.DataFrame(columns)
    numpy["timestamp"] = numpy["timestamp"].astype(f"datetime64[{unit}, {zone}]" if zone else f"datetime64[{unit}]")
    arrow = numpy.astype({"timestamp": pd.ArrowDtype(pa.timestamp(unit, zone))})
    for source in (table, table.to_reader(), numpy, arrow, nw.from_native(arrow)):
        assert read_interactions(source)["timestamp"].to_list() == moments


@pytest.mark.parametrize("words", ["timestamp::TIMESTAMP_S", "timestamp::TIMESTAMP_NS", "timezone('UTC', timestamp)"])
def test_times_of_any_type_of_duckdb_are_the_same_moments(words: str) -> None:
    query = f"select * replace ({words} as timestamp) from events"
    assert fingerprint(relation_of(frame_of_events(EVENTS), query)) == fingerprint(frame_of_events(EVENTS))


def test_enums_and_sums_of_duckdb_are_ids() -> None:
    frame = frame_of_events(NUMBERS)
    words = "user_id::varchar::enum('0', '1', '2', '3') as user_id, item_id::hugeint as item_id"
    assert fingerprint(relation_of(frame, f"select * replace ({words}) from events")) == fingerprint(frame)


@pytest.mark.parametrize("engine", ["auto", "streaming"])
def test_a_lazy_frame_keeps_the_order_of_its_rows(engine: str) -> None:
    n = 20_000
    frame = pl.DataFrame({"user_id": [j * 7919 % 997 for j in range(n)], "item_id": [j % 1009 for j in range(n)]})
    lazy = frame.lazy().group_by("user_id", maintain_order=True).agg("item_id").explode("item_id")
    expected: dict[int, list[int]] = {}
    for user, item in frame.rows():
        expected.setdefault(user, []).append(item)
    rows = [(user, item) for user, items in expected.items() for item in items]
    with pl.Config() as config:
        config.set_engine_affinity(engine)
        assert read_interactions(lazy).rows() == rows
        assert read_interactions(nw.from_native(lazy)).rows() == rows


@pytest.mark.parametrize("kind", FRAMES)
def test_items_come_in_any_frame(kind: str) -> None:
    frame = pl.DataFrame({"item_id": [1, 2, 3], "title": ["Heat", "Ran", "Ali"], "year": [1995, 1985, 2001]})
    assert read_items(FRAMES[kind](frame)).rows() == [(1, "Heat", 1995), (2, "Ran", 1985), (3, "Ali", 2001)]


@pytest.mark.parametrize("kind", FRAMES)
def test_titles_come_in_any_frame(kind: str) -> None:
    titles = pl.DataFrame({"item_id": ["film 0", "film 1", "film 4"], "title": ["a", "b", "c"]})
    log = load_log(frame_of_events(EVENTS)).with_titles(FRAMES[kind](titles))
    assert log.vocabulary.to_frame().select("item_id", "title").sort("item_id").rows() == titles.rows()
    with pytest.raises(DataError, match="the titles have no column 'title'; their columns are: item_id, name"):
        log.with_titles(titles.rename({"title": "name"}))


ANSWER = pl.DataFrame({"user_id": ["b", "a"], "item_id": [3, 4], "score": pl.Series([0.5, 0.25], dtype=pl.Float32)})
LIBRARIES = [(POLARS, pl.DataFrame), (DUCKDB, pl.DataFrame), (OTHERS, pl.DataFrame), (PYARROW, pa.Table)]
LIBRARIES += [(PANDAS, pd.DataFrame)]


@pytest.mark.parametrize(("kind", "library"), [(kind, library) for kinds, library in LIBRARIES for kind in kinds])
def test_an_answer_is_a_frame_of_the_library_that_asked(kind: str, library: type) -> None:
    answer = like(FRAMES[kind](frame_of_events(EVENTS)), ANSWER)
    assert type(answer) is library
    assert pl.DataFrame(answer).rows() == ANSWER.rows()


@pytest.mark.parametrize("kind", NARWHALS)
def test_an_answer_to_narwhals_is_eager_and_of_the_same_library(kind: str) -> None:
    asked = FRAMES[kind](frame_of_events(EVENTS))
    answer = like(asked, ANSWER)
    native = type(asked.to_native())
    usual = pl.DataFrame if native in (pl.LazyFrame, duckdb.DuckDBPyRelation) else native
    assert type(answer) is (nw_v1.DataFrame if "v1" in kind else nw.DataFrame)
    assert type(answer.to_native()) is usual
    assert answer.rows() == ANSWER.rows()


def test_an_answer_in_pyarrow_has_types_that_most_programs_read() -> None:
    kinds = dict(zip(ANSWER.columns, like(table_of(ANSWER), ANSWER).schema.types, strict=True))
    assert kinds == {"user_id": pa.large_string(), "item_id": pa.int64(), "score": pa.float32()}


def test_an_answer_to_a_column_is_a_frame_of_its_library() -> None:
    assert isinstance(like(pd.Series([1]), ANSWER), pd.DataFrame)
    assert isinstance(like(pa.array([1]), ANSWER), pa.Table)
    assert isinstance(like(nw.from_native(pd.Series([1]), series_only=True), ANSWER), nw.DataFrame)
    assert like([1], ANSWER) is like(pl.Series([1]), ANSWER) is like(None, ANSWER) is ANSWER


@pytest.mark.parametrize(
    "value",
    [None, 3, "x", [1], {"a": 1}, pl.Series([1]), pd.Series([1]), pd.Index([1]), pa.array([1]), pa.chunked_array([[1]]),
     nw.from_native(pl.Series([1]), series_only=True), pl.DataFrame, duckdb.connect(), pa.schema([]), pd, Foreign],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_has_no_rows_and_columns_is_no_frame(value: Any) -> None:
    assert not is_frame(value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: duckdb.connect(), "cannot read a log from DuckDBPyConnection; give a path, .* DuckDB, narwhals"),
        (lambda: relation_of(ANSWER, "select 'x' user_id, ('a' || range)::int item_id from range(9)"),
         "cannot read the DuckDBPyRelation: Conversion Error: Could not convert string 'a0' to INT32$"),
        (lambda: relation_of(ANSWER, "select 1 user_id, 2 item_id, 3 item_id"), "two columns of one name"),
        (lambda: pa.table([[1], [2], [3]], names=["user_id", "item_id", "item_id"]), "two columns of one name"),
        (lambda: pl.LazyFrame({"a": [1]}).select("b"), 'cannot read the lazy frame: unable to find column "b"'),
        (lambda: nw.from_native(pl.LazyFrame({"a": ["x"]})).with_columns(nw.col("a").cast(nw.Int8)),
         "cannot read the lazy frame: conversion from `str` to `i8` failed"),
        (lambda: pa.table({"user_id": [[1]], "item_id": [2]}), "column 'user_id' of the frame holds List"),
        (lambda: nw.from_native(pl.Series([1]), series_only=True), "cannot read a log from Series"),
        (lambda: pa.chunked_array([[1]]), "cannot read a log from ChunkedArray"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_interactions(source())
    assert "\n" not in str(caught.value)


PROGRAM = """
import duckdb, narwhals, pandas, polars, sqlite3, sasrec
from sasrec.reading.frame_kinds import like
for name in ("pyarrow", "narwhals.stable.v9"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is installed")
columns = {"user_id": ["b", "a", "b"], "item_id": ["x", "y", "z"], "timestamp": [3, 1, 2]}
frame, own = pandas.DataFrame(columns), polars.DataFrame(columns)
asked = "select * from (values ('b', 'x', 3), ('a', 'y', 1), ('b', 'z', 2)) t(user_id, item_id, timestamp)"
sources = [own, own.lazy(), frame, frame.convert_dtypes(), frame.astype("category").astype({"timestamp": "int64"})]
sources += [narwhals.from_native(own), narwhals.from_native(frame), narwhals.from_native(own.lazy())]
sources += [duckdb.sql(asked), duckdb.connect().execute(asked), sqlite3.connect(":memory:").execute(
    "select 'b' user_id, 'x' item_id, 3 timestamp union all select 'a', 'y', 1 union all select 'b', 'z', 2")]
for source in sources:
    assert sasrec.read_interactions(source).rows() == own.rows(), source
    assert len(like(source, own)) == 3
"""


def test_without_pyarrow_all_is_read_that_does_not_need_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=without(tmp_path, "pyarrow")
    )
    assert done.returncode == 0, done.stderr

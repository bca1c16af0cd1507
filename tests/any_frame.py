"""The same table as a frame of every kind that is read."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import duckdb
import narwhals as nw
import narwhals.stable.v1 as nw_v1
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as arrow_datasets

Made = Callable[[pl.DataFrame], Any]


def table_of(frame: pl.DataFrame, **kinds: pa.DataType) -> pa.Table:
    """A PyArrow table, made of Python's own values; `kinds` says the types of some columns."""
    columns = frame.to_dict(as_series=False)
    return pa.table({name: pa.array(values, kinds.get(name)) for name, values in columns.items()})


def pandas_of(frame: pl.DataFrame) -> pd.DataFrame:
    """A pandas frame with NumPy's types, and pandas' own for texts."""
    return pd.DataFrame(frame.to_dict(as_series=False))


def relation_of(frame: pl.DataFrame, query: str = "select * from events", *, run: bool = False) -> Any:
    """A relation of DuckDB over a table of its own; with `run` the connection that has the query's result."""
    connection = duckdb.connect()
    connection.register("given", table_of(frame))
    connection.execute("create table events as select * from given").fetchall()
    return connection.execute(query) if run else connection.sql(query)


def sqlite_of(frame: pl.DataFrame) -> sqlite3.Cursor:
    """The result of a query in SQLite, which knows no times."""
    connection = sqlite3.connect(":memory:")
    connection.execute(f"create table events ({', '.join(frame.columns)})")
    marks = ", ".join("?" * frame.width)
    rows = [[value if isinstance(value, int | str) else str(value) for value in row] for row in frame.rows()]
    connection.executemany(f"insert into events values ({marks})", rows)
    return connection.execute("select * from events")


def dictionaries(frame: pl.DataFrame) -> pa.Table:
    """A PyArrow table whose columns of ids are dictionaries."""
    table = table_of(frame)
    for j, name in enumerate(table.column_names[:2]):
        table = table.set_column(j, name, table[name].dictionary_encode())
    return table


def categories(frame: pl.DataFrame) -> pd.DataFrame:
    """A pandas frame whose columns of ids are categories."""
    made = pandas_of(frame)
    return made.astype(dict.fromkeys(made.columns[:2], "category"))


class Foreign:
    """A frame of a library that nobody knows: all it has is the Arrow stream."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        return self.frame.__arrow_c_stream__(requested_schema)


POLARS: dict[str, Made] = {
    "Polars": lambda frame: frame,
    "Polars, lazy": lambda frame: frame.lazy(),
    "Polars, categories": lambda frame: frame.cast({pl.String: pl.Categorical}),
}
DUCKDB: dict[str, Made] = {
    "DuckDB relation": relation_of,
    "DuckDB query": lambda frame: relation_of(frame, "select * from events where true"),
    "DuckDB result": lambda frame: relation_of(frame, run=True),
}
OTHERS: dict[str, Made] = {"SQLite result": sqlite_of, "another library": Foreign}
PYARROW: dict[str, Made] = {
    "PyArrow table": table_of,
    "PyArrow table in pieces": lambda frame: pa.concat_tables([table_of(frame[:1]), table_of(frame[1:])]),
    "PyArrow record batch": lambda frame: table_of(frame).to_batches()[0],
    "PyArrow reader": lambda frame: table_of(frame).to_reader(max_chunksize=4),
    "PyArrow data set": lambda frame: arrow_datasets.dataset(table_of(frame)),
    "PyArrow dictionaries": dictionaries,
    "DuckDB's Arrow": lambda frame: relation_of(frame).to_arrow_table(),
}
PANDAS: dict[str, Made] = {
    "pandas, NumPy": lambda frame: pandas_of(frame).astype(dict.fromkeys(frame.columns[:2], object)),
    "pandas": pandas_of,
    "pandas, nullable": lambda frame: pandas_of(frame).convert_dtypes(),
    "pandas, Arrow": lambda frame: pandas_of(frame).convert_dtypes(dtype_backend="pyarrow"),
    "pandas, categories": categories,
}
NARWHALS: dict[str, Made] = {
    "narwhals over pandas": lambda frame: nw.from_native(pandas_of(frame)),
    "narwhals over Polars": nw.from_native,
    "narwhals over PyArrow": lambda frame: nw.from_native(table_of(frame)),
    "narwhals, lazy": lambda frame: nw.from_native(frame.lazy()),
    "narwhals over DuckDB": lambda frame: nw.from_native(relation_of(frame)),
    "narwhals v1": lambda frame: nw_v1.from_native(table_of(frame)),
    "narwhals v1, lazy": lambda frame: nw_v1.from_native(frame.lazy()),
}
FRAMES: dict[str, Made] = {**POLARS, **DUCKDB, **OTHERS, **PYARROW, **PANDAS, **NARWHALS}

"""Read a log of any usual format into one frame: user_id, item_id[, timestamp], in input order.

Ids are Int64 where all of them are integers or canonical integer text ("2969", not "02969"), else String.
Timestamps are numbers in the log's own unit; dates and datetimes become seconds since 1970.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sasrec.core.errors import ConfigError, DataError
from sasrec.data.columns import SourceTable, Wanted, choose_columns, ids_in, log_of, plain_name
from sasrec.data.parsing import read_delimited, read_json_lines, read_text
from sasrec.data.sniffing import QUOTED, TextFile, column_name, split_lines

logger = logging.getLogger(__name__)
FORMATS = ("pairs", "sequences", "triples", "ratings", "csv", "tsv", "inter", "jsonl", "parquet")
FORMAT_OF_SUFFIX = {
    ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".inter": "inter",
    ".csv": "csv",
}  # fmt: skip


def read_interactions(
    source: Any,
    *,
    format: str | None = None,  # noqa: A002 - the word users know
    user_column: str | None = None,
    item_column: str | None = None,
    timestamp_column: str | None = None,
) -> pl.DataFrame:
    """Read a log of events.

    Args:
        source: a path (text, CSV, TSV, RecBole .inter, JSON lines, Parquet; text may be gzipped), a Polars frame or a
            pandas frame.
        format: one of FORMATS; None = told by the name and the first 1,000 lines, and logged.
        user_column: name of the user column; None = the usual names are recognised.
        item_column: name of the item column, likewise.
        timestamp_column: name of the time column; None = recognised, or absent.

    Returns:
        user_id, item_id and, when there is one, timestamp (Int64 or Float64); rows in input order.

    Raises:
        DataError: missing, empty, binary or malformed input; columns not found; an id that is missing; a timestamp
            that is not a number or date. The message names file, line and value.
        ConfigError: an unknown format.
    """
    wanted = {"user": user_column, "item": item_column, "timestamp": timestamp_column}
    if isinstance(source, str | Path):
        table = _read_file(Path(source), format, wanted)
    else:
        table = SourceTable(_to_polars(source), "the frame")
    if not len(table.frame):
        raise DataError(f"{table.where} has no events; it needs at least one row with a user and an item")
    return log_of(table, wanted)


def _to_polars(source: Any) -> pl.DataFrame:
    if isinstance(source, pl.LazyFrame):
        with _reading("the lazy frame"):
            return source.collect()
    if isinstance(source, pl.DataFrame):
        return source
    if type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "columns"):
        names = [str(name) for name in source.columns]
        if len(set(names)) < len(names):
            raise DataError(f"the frame has two columns of one name; its columns are: {', '.join(names)}")
        return pl.DataFrame({name: _from_pandas(source.iloc[:, j]) for j, name in enumerate(names)})
    raise DataError(f"cannot read a log from {type(source).__name__}; give a path, a Polars frame or a pandas frame")


def _from_pandas(column: Any) -> pl.Series:
    """A pandas column as a Series, without needing pyarrow; NaN and NaT become null, zoned times UTC."""
    if column.dtype.kind == "M":
        return pl.Series(column.to_numpy("datetime64[us]"), nan_to_null=True)
    if column.dtype.kind in "iufb" and isinstance(column.to_numpy(), np.ndarray):
        return pl.Series(column.to_numpy(), nan_to_null=True)
    values = [None if value is None or value != value else value for value in column.tolist()]
    try:
        return pl.Series(values)
    except (TypeError, pl.exceptions.PolarsError):  # a column of mixed types
        return pl.Series([None if value is None else str(value) for value in values])


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Failures of the readers below us as one sentence."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error, csv.Error) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot read {what}: {first}") from error


def _read_file(path: Path, form: str | None, wanted: Wanted) -> SourceTable:
    form = "ratings" if form == "movielens" else form
    if form is not None and form not in FORMATS:
        raise ConfigError(f"format {form!r} is not known; use one of {', '.join(FORMATS)}")
    _check_file(path)
    with _reading(f"{path} as {form or 'a log'}"):
        form = form or _format_by_name(path)
        if form == "parquet":
            logger.info("%s: read as parquet", path)
            return SourceTable(pl.read_parquet(path), str(path))
        text = TextFile.open(path)
        if form == "jsonl" or (form is None and text.head[0].lstrip().startswith("{")):
            logger.info("%s: read as jsonl (one object a line)", path)
            return read_json_lines(text)
        return read_text(text, form, wanted)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"there is no file {path}")
    if path.is_dir():
        raise DataError(f"{path} is a folder without prepared sequences; give a log file")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty; it needs at least one line with a user and an item")


def _format_by_name(path: Path) -> str | None:
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    return FORMAT_OF_SUFFIX.get(suffixes[-1]) if suffixes else None


def read_titles(path: Path | str, item_column: str | None = None, title_column: str | None = None) -> pl.DataFrame:
    """Read item titles from a delimited or Parquet file with a header.

    Args:
        path: CSV, TSV, RecBole .item (text may be gzipped) or Parquet.
        item_column: the column of item ids; None = the first whose name ends in "id", else a usual name.
        title_column: the column of titles; None = a usual name.

    Returns:
        item_id, title; the first title of an item, items without one left out.

    Raises:
        DataError: the file or a column cannot be read.
    """
    path = Path(path)
    _check_file(path)
    with _reading(f"titles from {path}"):
        table = _read_title_columns(path, {"item": item_column, "title": title_column})
    item, title = _title_columns(table.frame.columns, table.where, {"item": item_column, "title": title_column})
    frame = pl.DataFrame({"item_id": ids_in(table, item), "title": table.frame[title].cast(pl.String)})
    return frame.drop_nulls("title").unique("item_id", keep="first", maintain_order=True)


def _read_title_columns(path: Path, wanted: Wanted) -> SourceTable:
    if _format_by_name(path) == "parquet":
        return SourceTable(pl.read_parquet(path), str(path))
    text = TextFile.open(path)
    separator = next((s for s in ("\t", *QUOTED) if s in text.head[0]), ",")
    names = [column_name(field) for field in split_lines(text.head[:1], separator)[0]]
    return read_delimited(text, separator, names, list(_title_columns(names, str(path), wanted)), header=True)


def _title_columns(columns: Sequence[str], where: str, wanted: Wanted) -> tuple[str, str]:
    """The columns of item ids and titles."""
    id_like = next((column for column in columns if plain_name(column).endswith("id")), None)
    chosen = choose_columns(columns, where, {"item": wanted["item"] or id_like, "title": wanted["title"]})
    assert chosen["item"] is not None
    assert chosen["title"] is not None
    return chosen["item"], chosen["title"]

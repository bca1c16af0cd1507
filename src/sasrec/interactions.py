"""Any log -> one frame. In: a file or frame in any usual format; out: user_id, item_id[, timestamp], in input order.

Ids come out as Int64 when all of them are integers or their canonical text ("2969", not "02969"), else as String.
Timestamps come out as numbers in the log's own unit; dates and datetimes as seconds since 1970.
"""

from __future__ import annotations

import gzip
import io
import logging
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from sasrec.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Repeats = Literal["keep", "first", "last", "consecutive"]

SNIFFED_LINES = 1000
SNIFFED_BYTES = 1 << 18
FORMATS = ("pairs", "sequences", "triples", "ratings", "csv", "tsv", "inter", "jsonl", "parquet")
TEXT_COLUMNS = {  # of files without a header
    "pairs": ["user_id", "item_id"],
    "triples": ["user_id", "item_id", "timestamp"],
    "ratings": ["user_id", "item_id", "rating", "timestamp"],
}
FORMAT_OF_WIDTH = {len(columns): name for name, columns in TEXT_COLUMNS.items()}
KNOWN_NAMES = {  # as compared: lower case, letters and digits only
    "user": ["userid", "user", "uid", "reviewerid", "customerid", "customer", "visitorid", "sessionid", "session"],
    "item": [
        "itemid", "item", "iid", "movieid", "movie", "asin", "parentasin", "productid", "product", "sku", "articleid",
        "trackid", "songid", "bookid", "gameid", "newsid", "businessid",
    ],
    "timestamp": ["timestamp", "time", "ts", "unixreviewtime", "datetime", "date", "eventtime", "createdat"],
    "title": ["title", "movietitle", "name", "itemname", "productname", "description"],
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
        table = _Table(_to_polars(source), "the frame", 0)
    if not len(table.frame):
        raise DataError(f"{table.where} has no events; it needs at least one row with a user and an item")
    return _to_log(table, wanted)


@dataclass(frozen=True)
class _Table:
    """A frame with the user's own column names, and how to speak of its rows."""

    frame: pl.DataFrame
    where: str  # "the frame" or the file
    first_line: int  # line of row 0 in the file; 0 = speak of 0-based rows

    def row(self, index: int) -> str:
        """How a message names a row."""
        return f"line {index + self.first_line} of {self.where}" if self.first_line else f"row {index} of {self.where}"


def _to_polars(source: Any) -> pl.DataFrame:
    if isinstance(source, pl.LazyFrame):
        return source.collect()
    if isinstance(source, pl.DataFrame):
        return source
    if type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "columns"):
        return pl.DataFrame({str(name): _from_pandas(source[name]) for name in source.columns})
    raise DataError(f"cannot read a log from {type(source).__name__}; give a path, a Polars frame or a pandas frame")


def _from_pandas(column: Any) -> pl.Series:
    """A pandas column as a Series, without needing pyarrow; NaN and NaT become null."""
    if column.dtype.kind in "iufbM" and isinstance(column.to_numpy(), np.ndarray):
        return pl.Series(column.to_numpy(), nan_to_null=True)
    values = [None if value is None or value != value else value for value in column.tolist()]
    try:
        return pl.Series(values)
    except (TypeError, pl.exceptions.PolarsError):  # a column of mixed types
        return pl.Series([None if value is None else str(value) for value in values])


def _read_file(path: Path, form: str | None, wanted: dict[str, str | None]) -> _Table:
    if form == "movielens":
        form = "ratings"
    if form is not None and form not in FORMATS:
        raise ConfigError(f"format {form!r} is not known; use one of {', '.join(FORMATS)}")
    _check_file(path)
    chosen = form or _format_by_name(path)
    try:
        if chosen == "parquet":
            return _Table(pl.read_parquet(path), str(path), 0)
        if chosen == "jsonl":
            return _Table(pl.read_ndjson(io.BytesIO(_bytes_of(path))), str(path), 1)
        return _read_text(path, chosen, wanted)
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"cannot read {path} as {chosen or 'text'}: {first}") from error


def _check_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"there is no file {path}")
    if path.is_dir():
        raise DataError(f"{path} is a folder without prepared sequences; give a log file")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty; it needs at least one line with a user and an item")


def _format_by_name(path: Path) -> str | None:
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    names = {
        ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
        ".inter": "inter",
    }  # fmt: skip
    return names.get(suffixes[-1]) if suffixes else None


def _bytes_of(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _head(path: Path) -> list[str]:
    """The first lines of a text file, plain or gzipped.

    Raises:
        DataError: the file is binary or has no lines.
    """
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else path.open("rb") as file:
        data = file.read(SNIFFED_BYTES)
    cut = data[: data.rfind(b"\n") + 1] if len(data) == SNIFFED_BYTES else data
    try:
        if b"\0" in cut:
            raise DataError(f"{path} is a binary file; give a text, CSV, JSON lines or Parquet log")
        text = cut.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from error
    lines = [line for line in text.splitlines()[:SNIFFED_LINES] if line.strip()]
    if not lines:
        raise DataError(f"{path} has only blank lines; it needs at least one line with a user and an item")
    return lines


def _read_text(path: Path, form: str | None, wanted: dict[str, str | None]) -> _Table:
    lines = _head(path)
    separator = _separator(lines, form)
    rows = [_fields(line, separator) for line in lines]
    if form in ("csv", "tsv", "inter", None) and _has_header(rows, form, wanted):
        logger.info("%s: read with the column names of its first line", path)
        return _read_with_header(path, separator or " ")
    if form in (None, "csv", "tsv"):
        form = _format_by_width(path, rows)
        logger.info("%s: read as %s (%s)", path, form, _words_for(form))
    if form == "sequences":
        return _read_sequences(path, separator)
    return _read_headerless(path, separator, TEXT_COLUMNS[str(form)])


def _words_for(form: str) -> str:
    return "one user a line, then the items in order" if form == "sequences" else " ".join(TEXT_COLUMNS[form])


def _separator(lines: Sequence[str], form: str | None) -> str | None:
    """What stands between fields: "::", tab or comma when every line has it; None = white space."""
    if form in ("tsv", "inter"):
        return "\t"
    candidates = [","] if form == "csv" else ["::", "\t", ","]
    if form == "csv":
        candidates += [";", "\t", "|"]
    return next((s for s in candidates if all(s in line for line in lines)), None)


def _fields(line: str, separator: str | None) -> list[str]:
    return line.strip().split(separator) if separator is None else line.rstrip("\r\n").split(separator)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.partition(":")[0].lower())


def _has_header(rows: Sequence[Sequence[str]], form: str | None, wanted: dict[str, str | None]) -> bool:
    """Whether the first line names columns: by its names, or because it alone has no numbers where others do."""
    first = [field.strip().strip('"') for field in rows[0]]
    if form == "inter" or any(name in first for name in wanted.values() if name):
        return True
    known = {name for names in KNOWN_NAMES.values() for name in names}
    if sum(_plain(field) in known for field in first) >= 2:
        return True
    others = rows[1:]
    if not others or any(len(row) != len(first) for row in others):
        return False
    return any(
        not _is_number(first[j]) and all(_is_number(row[j]) for row in others) for j in range(len(first))
    ) and not any(map(_is_number, first))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _format_by_width(path: Path, rows: Sequence[Sequence[str]]) -> str:
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        return "sequences"
    (width,) = widths
    if width not in FORMAT_OF_WIDTH:
        raise DataError(
            f"{path} has {width} field{'s' * (width != 1)} on each line and no known column names; it needs 2 (user "
            "item), 3 (user item timestamp), 4 (user item rating timestamp) or a header; see --format and --user-column"
        )
    return FORMAT_OF_WIDTH[width]


def _read_with_header(path: Path, separator: str) -> _Table:
    """A delimited file whose first line names the columns; all read as text, RecBole's types cut off the names."""
    if separator == "::":
        raise DataError(f"{path} has a header and '::' between fields; use a tab or comma")
    source = io.BytesIO(_bytes_of(path)) if path.suffix == ".gz" else path
    frame = pl.read_csv(source, separator=separator, infer_schema=False, encoding="utf8")
    names = {name: name.lstrip("\ufeff").partition(":")[0] for name in frame.columns}
    frame = frame.rename({old: new.strip() for old, new in names.items()})
    return _Table(frame, str(path), 2)


def _read_headerless(path: Path, separator: str | None, columns: list[str]) -> _Table:
    """A file of bare values: integers at full speed when it is as regular as that, else line by line."""
    fast = _read_integers(path, separator or " ", columns) if separator != "::" else None
    if fast is not None:
        return _Table(fast, str(path), 1)
    lines = _lines(path)
    fields = lines["line"].str.split("\x1f")
    widths = fields.list.len()
    wrong = (widths != len(columns)).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"line {lines['number'][row]} of {path} has {widths[row]} fields in place of {len(columns)} "
            f"({' '.join(columns)})"
        )
    frame = pl.DataFrame({name: fields.list.get(i) for i, name in enumerate(columns)})
    return _Table(frame, str(path), 1)


def _read_integers(path: Path, separator: str, columns: list[str]) -> pl.DataFrame | None:
    """The columns as Int64, or None when the text is anything but canonical integers with single separators.

    The size of the file tells: integers written canonically, one separator between and one newline after, add up to it;
    a leading zero, a second space or a carriage return does not.
    """
    if path.suffix == ".gz":
        return None
    try:
        frame = pl.read_csv(
            path, has_header=False, separator=separator, new_columns=columns, schema_overrides=[pl.Int64] * len(columns)
        )
    except pl.exceptions.PolarsError:
        return None
    if frame.width != len(columns) or sum(frame.null_count().row(0)):
        return None
    written = len(frame) * len(columns) + sum(_written_length(frame[name].to_numpy()) for name in columns)
    return frame if path.stat().st_size in (written, written - 1) else None


def _written_length(values: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    """Characters that these integers take when written canonically."""
    if not len(values):
        return 0
    low, high = int(values.min()), int(values.max())
    magnitude = np.abs(values) if low < 0 else values
    digits = len(values) + int((values < 0).sum()) if low < 0 else len(values)
    power = 10
    while power <= max(high, -low):
        digits += int(np.count_nonzero(magnitude >= power))
        power *= 10
    return digits


def _lines(path: Path) -> pl.DataFrame:
    """Lines that are not blank as `line`, fields separated by 0x1F, and their `number` in the file, from 1."""
    separator = _separator(_head(path), None)
    try:
        text = _bytes_of(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from error
    lines = pl.DataFrame({"line": text.replace("\r\n", "\n").split("\n")}).with_row_index("number", offset=1)
    stripped = pl.col("line").str.strip_chars(" \r" if separator == "\t" else None)
    lines = lines.with_columns(stripped).filter(pl.col("line") != "")
    if separator is None:
        return lines.with_columns(pl.col("line").str.replace_all(r"\s+", "\x1f"))
    return lines.with_columns(pl.col("line").str.replace_all(separator, "\x1f", literal=True))


def _read_sequences(path: Path, separator: str | None) -> _Table:
    """One user a line, then the items in order."""
    lines = _lines(path)
    fields = lines["line"].str.split("\x1f").list.eval(pl.element().filter(pl.element() != ""))
    frame = pl.DataFrame({"user_id": fields.list.get(0), "item_id": fields.list.slice(1)})
    frame = frame.filter(pl.col("item_id").list.len() > 0).explode("item_id")
    return _Table(frame, str(path), 0)


def _to_log(table: _Table, wanted: dict[str, str | None]) -> pl.DataFrame:
    """Pick, check and convert the columns."""
    user = _find_column(table, "user", wanted["user"])
    item = _find_column(table, "item", wanted["item"])
    time = _find_column(table, "timestamp", wanted["timestamp"])
    assert user is not None
    assert item is not None
    columns = {"user_id": _ids(table, user), "item_id": _ids(table, item)}
    if time is not None:
        columns["timestamp"] = _timestamps(table, time)
    return pl.DataFrame(columns)


def _find_column(table: _Table, role: str, name: str | None) -> str | None:
    """The column for a role: the one asked for, else the first that has a usual name; only time may be absent."""
    columns = table.frame.columns
    found = ", ".join(columns)
    if name is not None:
        if name not in columns:
            raise DataError(f"{table.where} has no column {name!r}; its columns are: {found}")
        return name
    plain = {_plain(column): column for column in reversed(columns)}
    for known in KNOWN_NAMES[role]:
        if known in plain:
            return plain[known]
    if role == "timestamp":
        return None
    raise DataError(f"{table.where} has no {role} column that is recognised (name it); its columns are: {found}")


def _ids(table: _Table, column: str) -> pl.Series:
    values = table.frame[column]
    missing = values.is_null()
    if values.dtype == pl.String:
        missing = missing | (values == "")
    if missing.any():
        row = int(missing.arg_true()[0])
        raise DataError(f"{table.row(row)} has nothing in column {column!r}; every event needs a user and an item")
    return canonical_ids(values)


def canonical_ids(ids: pl.Series) -> pl.Series:
    """Ids in their one type: Int64 when all are integers or canonical integer text, else String.

    Args:
        ids: any dtype, no nulls. "2969" is an integer, and so is the float 2969.0; "02969", "+1", "1.0" are texts.

    Raises:
        DataError: an id is missing.
    """
    if ids.null_count():
        raise DataError(f"an id is missing in row {int(ids.is_null().arg_true()[0])} of column {ids.name!r}")
    if ids.dtype == pl.Int64:
        return ids
    if ids.dtype.is_integer():
        fitting = ids.cast(pl.Int64, strict=False)
        return ids.cast(pl.String) if fitting.null_count() else fitting
    if ids.dtype.is_float():
        whole = (ids.is_finite() & (ids == ids.round()) & (ids.abs() < 2**53)).all()
        return ids.cast(pl.Int64) if whole else ids.cast(pl.String)
    if ids.dtype == pl.Object:
        ids = pl.Series(ids.name, [str(value) for value in ids])
    texts = ids.cast(pl.String)
    numbers = texts.cast(pl.Int64, strict=False)
    if numbers.null_count() or not (numbers.cast(pl.String) == texts).all():
        return texts
    return numbers


def _timestamps(table: _Table, column: str) -> pl.Series:
    """Numbers as they are; dates and datetimes as seconds since 1970."""
    values = table.frame[column]
    if values.dtype == pl.String:
        values = _parse_times(values)
    if values.dtype in (pl.Date, pl.Datetime) or isinstance(values.dtype, pl.Datetime):
        values = values.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    if not values.dtype.is_numeric():
        raise DataError(f"column {column!r} of {table.where} holds {values.dtype}, not numbers or dates")
    bad = values.is_null() if values.dtype.is_integer() else ~values.is_finite().fill_null(False)
    if bad.any():
        row = int(bad.arg_true()[0])
        given = table.frame[column][row]
        raise DataError(f"{table.row(row)} has {given!r} in column {column!r}, which is not a number or a date")
    return values.cast(pl.Int64 if values.dtype.is_integer() else pl.Float64)


def _parse_times(texts: pl.Series) -> pl.Series:
    """Text as integers, else as decimals, else as ISO dates; null where it is not what most of it is."""
    texts = texts.str.strip_chars()
    integers = texts.cast(pl.Int64, strict=False)
    if not integers.null_count():
        return integers
    decimals = texts.cast(pl.Float64, strict=False)
    if 2 * decimals.null_count() <= len(texts):
        return decimals
    for form in ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.fZ", "%Y-%m-%d"):
        dates = texts.str.to_datetime(form, strict=False, time_unit="us")
        if 2 * dates.null_count() <= len(texts):
            return dates
    return decimals


def filter_repeats(log: pl.DataFrame, repeats: Repeats) -> pl.DataFrame:
    """Keep or drop repeated events of one user and item; rows stay in input order.

    Args:
        log: as `read_interactions` returns it.
        repeats: keep = all; first, last = one event per user and item, the earliest or latest (of equal times the first
            or last in the input); consecutive = drop an event of the same item as the user's event before it.

    Raises:
        ConfigError: another word.
    """
    if repeats == "keep":
        return log
    if repeats not in ("first", "last", "consecutive"):
        raise ConfigError(f"repeats={repeats!r} is not one of keep, first, last, consecutive")
    by_time = log.with_row_index("row")
    if "timestamp" in log.columns:
        by_time = by_time.sort("timestamp", maintain_order=True)
    if repeats == "consecutive":
        before = pl.col("item_id").shift().over("user_id")
        kept = by_time.filter((pl.col("item_id") != before).fill_null(True))
    else:
        kept = by_time.unique(["user_id", "item_id"], keep=repeats, maintain_order=True)
    return kept.sort("row").drop("row")


def filter_k_core(
    log: pl.DataFrame, min_user_events: int = 5, min_item_events: int = 5, iterated: bool = True
) -> pl.DataFrame:
    """Drop users and items with few events; rows stay in input order.

    Args:
        log: as `read_interactions` returns it.
        min_user_events: events a user needs.
        min_item_events: events an item needs.
        iterated: repeat until nothing more falls out; False = count users and items once, on the whole log, as the
            preprocessing of kang205/SASRec does.
    """
    enough = (pl.len().over("user_id") >= min_user_events) & (pl.len().over("item_id") >= min_item_events)
    while len(log):
        kept = log.filter(enough)
        if not iterated or len(kept) == len(log):
            return kept
        log = kept
    return log


def read_titles(path: Path | str, item_column: str | None = None, title_column: str | None = None) -> pl.DataFrame:
    """Read item titles from a delimited or Parquet file with a header.

    Args:
        path: CSV, TSV, RecBole .item or Parquet.
        item_column: the column of item ids; None = a usual name, else the first whose name ends in "id".
        title_column: the column of titles; None = a usual name.

    Returns:
        item_id, title.

    Raises:
        DataError: the file or a column cannot be read.
    """
    path = Path(path)
    _check_file(path)
    try:
        if path.suffix == ".parquet":
            table = _Table(pl.read_parquet(path), str(path), 0)
        else:
            table = _read_with_header(path, _separator(_head(path), None) or ",")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"cannot read titles from {path}: {str(error).splitlines()[0]}") from error
    id_like = [column for column in table.frame.columns if _plain(column).endswith("id")]
    title = _find_column(table, "title", title_column)
    item = item_column or (id_like[0] if id_like else None)
    item = _find_column(table, "item", item)
    assert item is not None
    assert title is not None
    frame = pl.DataFrame({"item_id": _ids(table, item), "title": table.frame[title].cast(pl.String)})
    return frame.drop_nulls("title").unique("item_id", keep="first", maintain_order=True)

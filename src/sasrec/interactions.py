"""Any log -> one frame. In: a file or frame in any usual format; out: user_id, item_id[, timestamp], in input order.

Ids come out as Int64 when all of them are integers or their canonical text ("2969", not "02969"), else as String.
Timestamps come out as numbers in the log's own unit; dates and datetimes as seconds since 1970.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import logging
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from sasrec.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Repeats = Literal["keep", "first", "last", "consecutive"]
Wanted = Mapping[str, str | None]  # role -> the column's name as the caller gave it

SNIFFED_LINES = 1000
SNIFFED_BYTES = 1 << 16
FORMATS = ("pairs", "sequences", "triples", "ratings", "csv", "tsv", "inter", "jsonl", "parquet")
TEXT_COLUMNS = {  # of files without a header
    "pairs": ["user_id", "item_id"],
    "triples": ["user_id", "item_id", "timestamp"],
    "ratings": ["user_id", "item_id", "rating", "timestamp"],
}
FORMAT_OF_WIDTH = {len(columns): name for name, columns in TEXT_COLUMNS.items()}
FORMAT_OF_SUFFIX = {
    ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".inter": "inter",
    ".csv": "csv",
}  # fmt: skip
QUOTED = (",", ";", "|")  # separators of files in which a quoted field may hold the separator
KNOWN_NAMES = {  # as compared: lower case, letters and digits only
    "user": ["userid", "user", "uid", "reviewerid", "customerid", "customer", "visitorid", "sessionid", "session"],
    "item": [
        "itemid", "item", "iid", "movieid", "movie", "asin", "parentasin", "productid", "product", "sku", "articleid",
        "trackid", "songid", "bookid", "gameid", "newsid", "businessid",
    ],
    "timestamp": ["timestamp", "time", "ts", "unixreviewtime", "datetime", "date", "eventtime", "createdat"],
    "title": ["title", "movietitle", "name", "itemname", "productname", "description"],
}  # fmt: skip
ISO_TIME = (  # date, then optionally hour:minute[:second[.fraction]] and Z or an offset from UTC
    r"^(\d{4}-\d{2}-\d{2})(?:[T ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?)?"
    r" ?(?:Z|UTC|([+-])(\d{2}):?(\d{2}))?$"
)


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
        table = _Table(_to_polars(source), "the frame")
    if not len(table.frame):
        raise DataError(f"{table.where} has no events; it needs at least one row with a user and an item")
    return _to_log(table, wanted)


@dataclass(frozen=True)
class _Table:
    """A frame with the user's own column names, and how to speak of its rows."""

    frame: pl.DataFrame
    where: str  # "the frame" or the file
    lines: pl.Series | int | None = None  # line of each row in the file, or of row 0; None = speak of 0-based rows
    is_text: bool = False  # spaces around values are padding

    def row(self, index: int) -> str:
        """How a message names a row."""
        if self.lines is None:
            return f"row {index} of {self.where}"
        line = self.lines + index if isinstance(self.lines, int) else self.lines[index]
        return f"line {line} of {self.where}"


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


def _read_file(path: Path, form: str | None, wanted: Wanted) -> _Table:
    form = "ratings" if form == "movielens" else form
    if form is not None and form not in FORMATS:
        raise ConfigError(f"format {form!r} is not known; use one of {', '.join(FORMATS)}")
    _check_file(path)
    with _reading(f"{path} as {form or 'a log'}"):
        form = form or _format_by_name(path)
        if form == "parquet":
            logger.info("%s: read as parquet", path)
            return _Table(pl.read_parquet(path), str(path))
        text = _Text.open(path)
        if form == "jsonl" or (form is None and text.head[0].lstrip().startswith("{")):
            logger.info("%s: read as jsonl (one object a line)", path)
            return _read_json_lines(text)
        return _read_text(text, form, wanted)


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


@dataclass(frozen=True)
class _Text:
    """A text file, plain or gzipped: its first lines, and what Polars is to read."""

    path: Path
    content: bytes | None  # of a gzipped file, unpacked
    head: list[str]  # the first lines that are not blank
    first_line: int  # the number of head[0] in the file

    @classmethod
    def open(cls, path: Path) -> _Text:
        """Unpack if need be, and look at the first lines.

        Raises:
            DataError: the file is binary, is not UTF-8 or has no lines.
        """
        with path.open("rb") as file:
            content = gzip.decompress(path.read_bytes()) if file.read(2) == b"\x1f\x8b" else None
        with path.open("rb") if content is None else io.BytesIO(content) as stream:
            if b"\0" in stream.read(SNIFFED_BYTES):
                raise DataError(f"{path} is a binary file; give a text, CSV, JSON lines or Parquet log")
            stream.seek(0)
            filled = ((number, line) for number, line in enumerate(stream, 1) if line.strip(b" \t\r\n\xef\xbb\xbf"))
            head = list(itertools.islice(filled, SNIFFED_LINES))
        if not head:
            raise DataError(f"{path} has only blank lines; it needs at least one line with a user and an item")
        lines = [_decoded(line, path, number) for number, line in head]
        if "\r" in lines[0]:
            raise DataError(f"{path} ends its lines with a bare carriage return; convert the file to newlines")
        return cls(path, content, lines, head[0][0])

    @property
    def source(self) -> Path | bytes:
        """What Polars reads from."""
        return self.path if self.content is None else self.content

    @property
    def size(self) -> int:
        """Bytes of text."""
        return self.path.stat().st_size if self.content is None else len(self.content)


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"line {number} of {path} is not UTF-8 text; convert the file to UTF-8") from error


def _read_json_lines(text: _Text) -> _Table:
    """One object a line; all lines are looked at for their keys and types, as a late one may bring a new key."""
    example = 'give one object a line, such as {"user_id": 1, "item_id": 2}'
    if not text.head[0].lstrip().startswith("{"):
        raise DataError(f"line {text.first_line} of {text.path} is not a JSON object; {example}")
    content = text.path.read_bytes() if text.content is None else text.content
    try:
        frame = pl.read_ndjson(content.removeprefix(b"\xef\xbb\xbf"), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{text.path} is not JSON lines ({str(error).splitlines()[0]}); {example}") from error
    return _Table(frame, str(text.path), text.first_line)


def _read_text(text: _Text, form: str | None, wanted: Wanted) -> _Table:
    header = _header(text, form, wanted)
    if header is not None:
        separator, names = header
        logger.info("%s: read with the column names of its first line: %s", text.path, ", ".join(names))
        needed = [name for name in _choose_columns(names, str(text.path), wanted).values() if name is not None]
        return _read_named(text, separator, names, needed)
    separator = _separator(text.head, form)
    if form in (None, "csv", "tsv"):
        form = _format_by_width(text.path, _rows(text.head, separator))
    columns = TEXT_COLUMNS.get(str(form))
    logger.info(
        "%s: read as %s (%s)", text.path, form, " ".join(columns or ["one user a line, then the items in order"])
    )
    if columns is None:
        return _read_sequences(text, separator)
    return _read_headerless(text, separator, columns)


def _header(text: _Text, form: str | None, wanted: Wanted) -> tuple[str | None, list[str]] | None:
    """The separator and the column names of the first line; None when it is a line of values.

    It names columns when it holds a name that was asked for, one that only a column has ("userId"), two usual names
    ("user item"), or when it alone has no numbers where all other lines have them. Where the form asked for has
    no header, it must name both the user and the item.
    """
    if form == "sequences":
        return None
    asked = {name for name in wanted.values() if name}
    usual = {name for names in KNOWN_NAMES.values() for name in names}
    candidates = ["\t"] if form == "tsv" else ["\t", *QUOTED, "::", None]
    for separator in (s for s in candidates if s is None or s in text.head[0]):
        names = [_column_name(field) for field in _rows(text.head[:1], separator)[0]]
        known = [plain for plain in map(_plain, names) if plain in usual]
        if form in TEXT_COLUMNS:
            if all(set(known) & set(KNOWN_NAMES[role]) for role in ("user", "item")):
                return separator, names
            continue
        if asked & set(names) or len(known) >= 2 or any(len(k) > 3 and k.endswith("id") for k in known):
            return separator, names
        if form == "inter" and len(names) > 1:
            return separator, names
    if form in TEXT_COLUMNS:
        return None
    separator = _separator(text.head, form)
    rows = _rows(text.head, separator)
    return (separator, [_column_name(field) for field in rows[0]]) if _starts_with_names(rows) else None


def _starts_with_names(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row has no number, and some column has nothing else below it."""
    first, others = rows[0], rows[1:]
    if not others or any(map(_is_number, first)) or any(len(row) != len(first) for row in others):
        return False
    return any(all(_is_number(row[j]) for row in others) for j in range(len(first)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _column_name(field: str) -> str:
    """A name of a header without quotes and RecBole's type."""
    return re.sub(r":(token|token_seq|float|float_seq)$", "", field.strip(' "'))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _separator(head: Sequence[str], form: str | None) -> str | None:
    """What stands between fields: the first candidate that every line has; None = white space.

    A form with a known number of fields takes the first candidate that gives that many.
    Semicolons and bars count only where there is no white space, as they are also found inside ids. Tabs count as white
    space when they are doubled or irregular, or when they only set off the user of a sequence.
    """
    if form in ("tsv", "inter"):
        return "\t"
    width = len(TEXT_COLUMNS.get(str(form), []))
    for known in ("::", "\t", *QUOTED, None) if width else ():
        if all(known is None or known in line for line in head) and {len(row) for row in _rows(head, known)} == {width}:
            return known
    candidates = (*QUOTED, "\t") if form == "csv" else ("::", "\t", *QUOTED)
    lines = head[:1] if form == "csv" else head  # a quoted line break may leave a line without separators
    for separator in candidates:
        if not all(separator in line for line in lines):
            continue
        if separator in (";", "|") and form != "csv" and re.search(r"[ \t]", head[0]):
            continue
        return None if separator == "\t" and _tabs_are_space(head, form) else separator
    return None


def _tabs_are_space(head: Sequence[str], form: str | None) -> bool:
    rows = _rows(head, "\t")
    widths = {len(row) for row in rows}
    if form == "sequences":
        return widths == {2}
    regular = len(widths) == 1 and all(any(row[j] for row in rows) for j in range(len(rows[0])))
    return not regular and len({len(row) for row in _rows(head, None)}) == 1


def _rows(lines: Sequence[str], separator: str | None) -> list[list[str]]:
    """The fields of lines, stripped."""
    if separator is None:
        return [re.split(r"[ \t]+", line.strip(" \t")) for line in lines]
    if separator in QUOTED:
        rows = [row for row in csv.reader(lines, delimiter=separator, skipinitialspace=True) if row]
        rows = rows[:-1] if len(lines) == SNIFFED_LINES else rows  # a quoted field may go on beyond the last line
    else:
        rows = [line.split(separator) for line in lines]
    return [[field.strip() for field in row] for row in rows]


def _format_by_width(path: Path, rows: Sequence[Sequence[str]]) -> str:
    widths = {len(row) for row in rows}
    if widths == {1, 2}:
        return "pairs"  # in which some lines lack the item: an error with its line, rather than sequences of one
    if len(widths) > 1:
        return "sequences"
    (width,) = widths
    if width not in FORMAT_OF_WIDTH:
        raise DataError(
            f"{path} has {width} field{'s' * (width != 1)} on each line and no known column names; it needs 2 (user "
            "item), 3 (user item timestamp), 4 (user item rating timestamp) or a header; see --format and --user-column"
        )
    return FORMAT_OF_WIDTH[width]


def _read_named(text: _Text, separator: str | None, names: list[str], needed: list[str]) -> _Table:
    """A file whose first line names its columns, read as text; of a delimited one only the columns that are needed."""
    if separator is None or separator == "::":
        return _read_lines(text, separator, names, header=True)
    return _read_delimited(text, separator, names, needed, header=True)


def _read_headerless(text: _Text, separator: str | None, columns: list[str]) -> _Table:
    """A file of bare values: integers at full speed when it is as regular as that, else as text."""
    integers = _read_integers(text, separator, columns)
    if integers is not None:
        return _Table(integers, str(text.path), 1, is_text=True)
    if separator in QUOTED:
        return _read_delimited(text, separator, columns, columns, header=False)
    return _read_lines(text, separator, columns, header=False)


def _read_integers(text: _Text, separator: str | None, columns: list[str]) -> pl.DataFrame | None:
    """The columns as Int64, or None when the text is anything but canonical integers with single separators.

    The size of the file tells: integers written canonically, one separator between and one newline after, add up to it;
    a leading zero, a second space or a carriage return does not. ("::" is read as ":" with empty columns between; a
    rating may be a decimal.)
    """
    width = len(separator or " ")
    names = list(itertools.chain.from_iterable([name, *(f"_{name}" for _ in range(width - 1))] for name in columns))
    names = names[: len(names) - (width - 1)]
    types = [pl.Int64 if name in columns and name != "rating" else pl.String for name in names]
    try:
        frame = pl.read_csv(
            text.source, has_header=False, separator=(separator or " ")[0], quote_char=None, new_columns=names,
            schema_overrides=types,
        )  # fmt: skip
    except pl.exceptions.PolarsError:
        return None
    if frame.width != len(names) or sum(frame.select(columns).null_count().row(0)):
        return None
    written = len(frame) * (1 + width * (len(columns) - 1)) + sum(_written_length(frame[name]) for name in columns)
    return frame.select(columns) if text.size in (written, written - 1) else None


def _written_length(values: pl.Series) -> int:
    """Bytes that all values take together: texts as they are, integers when written canonically."""
    if not len(values):
        return 0
    if values.dtype == pl.String:
        return int(values.str.len_bytes().cast(pl.Int64).sum())
    numbers = values.to_numpy()
    low, high = int(numbers.min()), int(numbers.max())
    magnitude = np.abs(numbers).view(np.uint64) if low < 0 else numbers  # unsigned, for the magnitude of -2**63
    length = len(numbers) + (int((numbers < 0).sum()) if low < 0 else 0)
    power = 10
    while power <= max(high, -low):
        length += int(np.count_nonzero(magnitude >= magnitude.dtype.type(power)))
        power *= 10
    return length


def _read_lines(text: _Text, separator: str | None, columns: list[str], header: bool) -> _Table:
    """A file without quotes, as text: blank lines, and for white space also uneven or trailing space, do not matter."""
    regular = _read_regular(text, separator, columns) if separator != "::" else None
    if regular is not None:
        return _Table(regular[header:], str(text.path), 1 + header, is_text=True)
    lines = _lines(text, separator)[header:]
    line, split = pl.col("line"), separator or " "
    widths = lines.select(line.str.count_matches(split, literal=True))["line"] + 1
    wrong = (widths != len(columns)).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise _irregular(text.path, lines["number"][row], widths[row], columns)
    parts = lines.select(line.str.split_exact(split, len(columns) - 1).struct.rename_fields(columns)).unnest("line")
    return _Table(parts, str(text.path), lines["number"], is_text=True)


def _irregular(path: Path, line: int, width: int, columns: Sequence[str]) -> DataError:
    return DataError(
        f"line {line} of {path} has {width} field{'s' * (width != 1)} in place of {len(columns)} ({' '.join(columns)})"
    )


def _read_regular(text: _Text, separator: str | None, columns: list[str]) -> pl.DataFrame | None:
    """The columns as text; None when spacing is uneven, a field is missing or there are blank lines."""
    try:
        frame = pl.read_csv(
            text.source, has_header=False, separator=separator or " ", quote_char=None, infer_schema=False
        )
    except pl.exceptions.PolarsError:
        return None
    if frame.width != len(columns) or sum(frame.null_count().row(0)):
        return None
    if separator is None and any(column.str.contains("\t", literal=True).any() for column in frame):
        return None
    frame.columns = columns
    return frame


def _lines(text: _Text, separator: str | None) -> pl.DataFrame:
    """`line`s that are not blank, white space in them made one space, and their `number` in the file, from 1."""
    try:
        lines = pl.read_csv(  # NUL separates fields that do not exist in text
            text.source, has_header=False, separator="\0", quote_char=None, infer_schema=False, new_columns=["line"]
        )
    except pl.exceptions.PolarsError as error:
        content = text.path.read_bytes() if text.content is None else text.content
        for number, line in enumerate(content.split(b"\n"), 1):
            _decoded(line, text.path, number)
        raise DataError(f"{text.path} is a binary file, or damaged: it has NUL bytes; give a text log") from error
    stripped = pl.col("line").str.strip_chars(" \r" if separator == "\t" else " \t\r")
    lines = lines.with_row_index("number", offset=1).with_columns(stripped).filter(pl.col("line") != "")
    return lines if separator else lines.with_columns(pl.col("line").str.replace_all("[ \t]+", " "))


def _read_sequences(text: _Text, separator: str | None) -> _Table:
    """One user a line, then the items in order."""
    lines = _lines(text, separator)
    fields = lines["line"].str.split(separator or " ").list.eval(pl.element().filter(pl.element() != ""))
    frame = pl.DataFrame({"user_id": fields.list.get(0), "item_id": fields.list.slice(1), "number": lines["number"]})
    events = frame.filter(pl.col("item_id").list.len() > 0).explode("item_id")
    without = len(frame) - events["number"].n_unique()
    if without:
        logger.warning("%s: %d of %d lines have a user and no items; they are left out", text.path, without, len(frame))
    return _Table(events.drop("number"), str(text.path), events["number"], is_text=True)


def _read_delimited(text: _Text, separator: str, columns: list[str], needed: list[str], header: bool) -> _Table:
    """A file that may quote fields, as text; its last column is always read, so that too long a line is noticed."""
    keep = sorted({columns.index(name) for name in needed} | {len(columns) - 1})
    frame = _read_csv(text, separator, columns, keep, header)
    lines = pl.int_range(text.first_line + header, text.first_line + header + len(frame), eager=True)
    blank = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
    if blank.any():
        every = _read_csv(text, separator, columns, list(range(len(columns))), header)
        blank = every.select(pl.all_horizontal(pl.all().is_null())).to_series()
        frame, lines = frame.filter(~blank), lines.filter(~blank)
    return _Table(frame, str(text.path), lines, is_text=True)


def _read_csv(text: _Text, separator: str, columns: list[str], keep: list[int], header: bool) -> pl.DataFrame:
    """Some of the columns, named as given."""
    quotes: list[str | None] = ['"'] if separator in QUOTED else ['"', None]  # a lone quote is usual in tab files
    if re.search(r":(token|float)", text.head[0]):
        quotes = [None]  # RecBole's files do not quote
    for quote in quotes:
        try:
            frame = pl.read_csv(
                text.source, separator=separator, has_header=header, columns=keep, infer_schema=False, quote_char=quote
            )
        except pl.exceptions.PolarsError as error:
            failure = error
            continue
        frame.columns = [columns[j] for j in keep]
        return frame
    raise _csv_error(text, separator, columns, failure) from failure


def _csv_error(text: _Text, separator: str, columns: list[str], error: Exception) -> DataError:
    """Which line of a delimited file is the trouble."""
    content = text.path.read_bytes() if text.content is None else text.content
    lines = [_decoded(line, text.path, number) for number, line in enumerate(content.split(b"\n"), 1)]
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if separator in QUOTED else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=separator, quoting=quoting)
    for row in reader:
        if len(row) > len(columns):
            return _irregular(text.path, reader.line_num, len(row), columns)
    return DataError(f"cannot read {text.path} ({str(error).splitlines()[0]}); check the quotes around its fields")


def _choose_columns(columns: Sequence[str], where: str, wanted: Wanted) -> dict[str, str | None]:
    """The column for each role: the one asked for, else the first that has a usual name; only time may be absent."""
    return {role: _find_column(columns, where, role, name) for role, name in wanted.items()}


def _find_column(columns: Sequence[str], where: str, role: str, name: str | None) -> str | None:
    found = ", ".join(columns)
    if name is not None:
        if name not in columns:
            raise DataError(f"{where} has no column {name!r}; its columns are: {found}")
        return name
    plain = {_plain(column): column for column in reversed(columns)}
    for known in KNOWN_NAMES[role]:
        if known in plain:
            return plain[known]
    if role == "timestamp":
        return None
    raise DataError(f"{where} has no {role} column that is recognised (name it); its columns are: {found}")


def _to_log(table: _Table, wanted: Wanted) -> pl.DataFrame:
    """Pick, check and convert the columns."""
    chosen = _choose_columns(table.frame.columns, table.where, wanted)
    user, item, time = chosen["user"], chosen["item"], chosen["timestamp"]
    assert user is not None
    assert item is not None
    if user == item:
        raise DataError(f"column {user!r} of {table.where} cannot be both the user and the item; name two columns")
    columns = {"user_id": _ids(table, user), "item_id": _ids(table, item)}
    if time is not None:
        columns["timestamp"] = _timestamps(table, time)
    return pl.DataFrame(columns)


def _ids(table: _Table, column: str) -> pl.Series:
    values = table.frame[column]
    if table.is_text and values.dtype == pl.String and values.cast(pl.Int64, strict=False).null_count():
        values = values.str.strip_chars(" \t\r")
    missing = values.is_null()
    if values.dtype == pl.String:
        missing = missing | (values == "")
    elif values.dtype.is_float():
        missing = missing | values.is_nan()
    if missing.any():
        row = int(missing.arg_true()[0])
        raise DataError(f"{table.row(row)} has nothing in column {column!r}; every event needs a user and an item")
    return canonical_ids(values)


def canonical_ids(ids: pl.Series) -> pl.Series:
    """Ids in their one type: Int64 when all are integers or canonical integer text, else String.

    Args:
        ids: any dtype, no nulls. "2969" is an integer, and so is the float 2969.0; "02969", "+1", "1.0" are texts.

    Raises:
        DataError: an id is missing, or the column holds lists, structs or bytes.
    """
    if ids.null_count():
        raise DataError(f"an id is missing in row {int(ids.is_null().arg_true()[0])} of column {ids.name!r}")
    if ids.dtype == pl.Int64:
        return ids
    if ids.dtype.is_nested() or ids.dtype == pl.Binary:
        raise DataError(f"column {ids.name!r} holds {ids.dtype}; ids are integers or text")
    if ids.dtype.is_float():
        ids = _float_texts(ids)
    if ids.dtype == pl.Object:
        ids = pl.Series(ids.name, [str(value) for value in ids])
    if ids.dtype.is_integer():
        fitting = ids.cast(pl.Int64, strict=False)
        return ids.cast(pl.String) if fitting.null_count() else fitting
    texts = ids.cast(pl.String)
    numbers = texts.cast(pl.Int64, strict=False)
    # Integers in another spelling ("02969", "+1") are longer than their canonical text, so equal sums mean none is.
    if numbers.null_count() or _written_length(numbers) != _written_length(texts):
        return texts
    return numbers


def _float_texts(ids: pl.Series) -> pl.Series:
    """Floats as ids: whole ones as the integers they stand for."""
    if ids.is_nan().any():
        raise DataError(f"an id is missing (NaN) in row {int(ids.is_nan().arg_true()[0])} of column {ids.name!r}")
    whole = (ids == ids.round()) & (ids.abs() < 2**53)
    numbers = ids.cast(pl.Int64, strict=False)
    return numbers if whole.all() else numbers.cast(pl.String).zip_with(whole, ids.cast(pl.String))


def _timestamps(table: _Table, column: str) -> pl.Series:
    """Numbers as they are; dates and datetimes as seconds since 1970."""
    given = table.frame[column]
    values = _parse_times(given) if given.dtype == pl.String else given
    if values.dtype == pl.Date or isinstance(values.dtype, pl.Datetime):
        values = values.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    if values.dtype == pl.Null or values.dtype.is_decimal():
        values = values.cast(pl.Float64)
    if not values.dtype.is_numeric():
        raise DataError(f"column {column!r} of {table.where} holds {values.dtype}, not numbers or dates")
    values = values.cast(pl.Int64 if values.dtype.is_integer() else pl.Float64, strict=False)
    bad = values.is_null() if values.dtype.is_integer() else ~values.is_finite().fill_null(False)
    if bad.any():
        row = int(bad.arg_true()[0])
        if given[row] is None:
            raise DataError(f"{table.row(row)} has nothing in column {column!r}; every event needs a timestamp or none")
        raise DataError(f"{table.row(row)} has {given[row]!r} in column {column!r}, which is not a number or a date")
    return values


def _parse_times(texts: pl.Series) -> pl.Series:
    """Text as integers, else as decimals or ISO dates, whichever more of it is; null where it is not."""
    integers = texts.cast(pl.Int64, strict=False)
    if not integers.null_count():
        return integers
    texts = texts.str.strip_chars(" \t\r")
    integers, decimals = texts.cast(pl.Int64, strict=False), texts.cast(pl.Float64, strict=False)
    if not integers.null_count():
        return integers
    if decimals.null_count() <= len(texts) // 2:
        return decimals
    seconds = _iso_seconds(texts)
    return decimals if decimals.null_count() <= seconds.null_count() else seconds


def _iso_seconds(texts: pl.Series) -> pl.Series:
    """Seconds since 1970 of ISO dates and datetimes; without an offset they are in UTC; null where it is neither."""
    names = ["date", "hour", "minute", "second", "sign", "offset_hour", "offset_minute"]
    groups = texts.str.extract_groups(ISO_TIME).struct.rename_fields(names).struct.unnest()
    number = {name: pl.col(name).cast(pl.Float64).fill_null(0) for name in names if name not in ("date", "sign")}
    offset = number["offset_hour"] * 3600 + number["offset_minute"] * 60
    days = pl.col("date").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32)
    seconds = (
        days * 86400.0 + number["hour"] * 3600 + number["minute"] * 60 + number["second"]
        - pl.when(pl.col("sign") == "-").then(-offset).otherwise(offset)
    )  # fmt: skip
    return groups.select(seconds.alias("timestamp"))["timestamp"]


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
    frame = pl.DataFrame({"item_id": _ids(table, item), "title": table.frame[title].cast(pl.String)})
    return frame.drop_nulls("title").unique("item_id", keep="first", maintain_order=True)


def _read_title_columns(path: Path, wanted: Wanted) -> _Table:
    if _format_by_name(path) == "parquet":
        return _Table(pl.read_parquet(path), str(path))
    text = _Text.open(path)
    separator = next((s for s in ("\t", *QUOTED) if s in text.head[0]), ",")
    names = [_column_name(field) for field in _rows(text.head[:1], separator)[0]]
    return _read_delimited(text, separator, names, list(_title_columns(names, str(path), wanted)), header=True)


def _title_columns(columns: Sequence[str], where: str, wanted: Wanted) -> tuple[str, str]:
    """The columns of item ids and titles."""
    id_like = next((column for column in columns if _plain(column).endswith("id")), None)
    chosen = _choose_columns(columns, where, {"item": wanted["item"] or id_like, "title": wanted["title"]})
    assert chosen["item"] is not None
    assert chosen["title"] is not None
    return chosen["item"], chosen["title"]

"""Read lists of ids: files as other programs write them (lines, a table, JSON, Parquet), and texts that people type."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from sasrec.core.errors import ConfigError, DataError
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.columns import KNOWN_NAMES, plain_name
from sasrec.reading.ids import canonical_id, canonical_ids
from sasrec.reading.sources import SourceFile, reading, unpacked
from sasrec.reading.textfiles import MARKS

logger = logging.getLogger(__name__)
Role = Literal["user", "item"]
Found = tuple[list[str] | pl.Series, str]  # the ids, and how they were found
SEPARATORS = (",", "\t", ";", "|")
SPACE = " \t\n\ufeff"
LONGEST_SERIES = 2**30  # characters of a text that Polars takes apart
JSON_BEGINS = re.compile(r'\[\s*["{\[]|\[[ \t]*\n|\{\s*"')


def read_ids(path: Path, role: Role) -> list[str]:
    """The ids of a file, in their order, as texts.

    Args:
        path: text (UTF-8, or UTF-16 and UTF-32 with their mark) or Parquet, also gzipped; a pipe; "-" = standard input.
            One id a line, one line of ids with commas or tabs, a table with a header, a JSON list, JSON lines. In a
            table, the ids are in the column with a usual name.
        role: whose ids they are, which decides the column.

    Returns:
        The ids; none where the file holds none.

    Raises:
        DataError: the file cannot be read, or could mean something else, such as several columns without names.
    """
    return list(_read(path, role))


def read_filter(path: Path, name: Literal["allow", "deny"]) -> list[str]:
    """The item ids of a file for `allow` or `deny`.

    Raises:
        DataError: as in `read_ids`; or the file holds no id, and nothing else would be allowed.
    """
    ids = read_ids(path, "item")
    if not ids and name == "allow":
        raise DataError(f"the allow list {path} holds no id, so nothing is allowed; leave it out to allow all items")
    if not ids:
        logger.warning("the deny list %s holds no id, so nothing is denied", path)
    return ids


def read_users(path: Path) -> list[str] | pl.Series:
    """The user ids of a file, in their order, as texts: those of many lines in a Series, which is smaller than a list.

    Raises:
        DataError: as in `read_ids`; or the file holds no id.
    """
    ids = _read(path, "user")
    if not len(ids):
        raise DataError(f"the list of users {path} holds no id; give one user id a line")
    return ids


def ids_of_text(text: str, vocabulary: Vocabulary) -> list[str]:
    """The item ids of a text that somebody typed: ids with commas between them, as a line of CSV.

    A text that is itself a known id is that id, whatever commas it has.

    Raises:
        ConfigError: a quote is not closed.
    """
    if vocabulary.index_of(text.strip()):
        return [text.strip()]
    try:
        rows = list(csv.reader(text.splitlines(), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ConfigError(
            "a list of ids has a quote that is not closed, or text behind one; write an id that has a quote as "
            '"the ""id"""'
        ) from error
    return [field.strip() for row in rows for field in row if field.strip()]


def _read(path: Path, role: Role) -> list[str] | pl.Series:
    if path.is_dir():
        raise DataError(f"{path} is a folder; give a file of {role} ids")
    file = unpacked(path, {})
    where = file.name
    if file.table == "parquet":
        ids, how = _of_parquet(file, role)
    else:
        text = _decoded(file.read(), where).replace("\r\n", "\n").replace("\r", "\n")
        ids, how = _of_json(text, where, role) or _of_lines(text, where, role) or _of_text(text, where, role)
    logger.info("%s: %s ids%s: %d", where, role, how, len(ids))
    return ids


def _decoded(content: bytes, where: str) -> str:
    encoding = next((name.upper() for mark, name in MARKS.items() if content.startswith(mark)), "UTF-8")
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not {encoding} text; convert it to UTF-8") from error
    if "\0" in text:
        raise DataError(f"{where} is a binary file; give one id a line as text, CSV, JSON or Parquet")
    return text


def _named(names: Sequence[str], role: Role) -> int | None:
    """Which of these columns has the most usual name for ids of a role."""
    plain = [plain_name(name.removesuffix(":token")) for name in names]
    return next((plain.index(known) for known in KNOWN_NAMES[role] if known in plain), None)


def _unnamed(names: Sequence[str], where: str, role: Role) -> DataError:
    """The error of a table whose ids could be in any column."""
    several = f"{len(names)} columns, and none is" if len(names) > 1 else "1 column, and it is not"
    as_role = "an item" if role == "item" else "a user"
    return DataError(
        f"{where} has {several} named as {as_role}: {', '.join(names)}; name one {role}_id, or give one id a line"
    )


def _of_parquet(file: SourceFile, role: Role) -> Found:
    where = file.name
    with reading(f"{where} as Parquet"):
        frame = pl.read_parquet(file.readable, glob=False)
    place = 0 if frame.width == 1 else _named(frame.columns, role)
    if place is None:
        raise _unnamed(frame.columns, where, role)
    name = frame.columns[place]
    try:
        ids = canonical_ids(frame[name]).cast(pl.String)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return ids, f" as Parquet, in column {name!r}"


def _of_json(text: str, where: str, role: Role) -> Found | None:
    """The ids of a JSON list, an object or JSON lines; None for other text, which may begin with a bracket, too."""
    stripped = text.strip(SPACE)
    begins = JSON_BEGINS.match(stripped)
    if not begins and not (stripped.startswith("[") and stripped.endswith("]")):
        return None
    try:
        values = _json(stripped)
    except (ValueError, RecursionError) as error:
        if not begins:
            return None
        if not stripped.startswith("{"):
            raise DataError(f"{where} looks like JSON, but is not valid: {error}") from error
        values = _json_lines(text, where)
    key = _json_key(values, where, role)
    if isinstance(values, dict):
        values = values[key] if isinstance(values[key], list) else [values[key]]
    elif key is not None:
        values = [_field(value, key, place, where) for place, value in enumerate(values)]
    ids = [_json_id(value, place, where) for place, value in enumerate(values)]
    return ids, " as JSON" if key is None else f" as JSON, in field {key!r}"


def _json(text: str) -> Any:
    """A JSON value in which an integer is its text, and a float that of the number."""
    return json.loads(
        text,
        parse_int=str,
        parse_float=lambda number: canonical_id(float(number), integers=False),
        parse_constant=lambda name: None,
    )


def _json_lines(text: str, where: str) -> list[Any]:
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            values += [_json(line.strip(SPACE))] if line.strip(SPACE) else []
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} of {where} is not valid JSON: {error}") from error
    return values


def _json_key(values: Any, where: str, role: Role) -> str | None:
    """The field that holds the id of each object, or the list of one object; None where there are no objects."""
    first = values if isinstance(values, dict) else next(iter(values), None)
    if not isinstance(first, dict):
        return None
    names: list[str] = list(first)
    place = _named(names, role)
    if place is None and len(names) == 1 and (first is not values or isinstance(first[names[0]], list)):
        place = 0
    if place is None:
        raise _unnamed(names, where, role)
    return names[place]


def _field(value: Any, key: str, place: int, where: str) -> Any:
    if not isinstance(value, dict) or key not in value:
        raise DataError(f"element {place} of {where} has no field {key!r}; every element needs it")
    return value[key]


def _json_id(value: Any, place: int, where: str) -> str:
    if isinstance(value, str) and value:
        return value
    told = "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else json.dumps(value)
    raise DataError(f"element {place} of {where} is {told}, not an id; give one flat list of integers and texts")


def _of_lines(text: str, where: str, role: Role) -> Found | None:
    """The ids of lines that are one field each, taken apart without an object for each; None for other text."""
    if len(text) > LONGEST_SERIES or re.search(r'[,"\t]', text):
        return None
    ids = pl.Series([text]).str.split("\n").explode().str.strip_chars(SPACE)
    ids = ids.filter(ids != "")
    if not len(ids) or re.search(r"[;|]", ids[0]):
        return None
    if _named([ids[0]], role) is not None:
        return ids.slice(1), f" in column {ids[0]!r}"
    _check_role([ids[0]], where, role)
    return ids, ", one a line"


def _of_text(text: str, where: str, role: Role) -> Found:
    lines = [(number, line.strip(SPACE)) for number, line in enumerate(text.split("\n"), 1) if line.strip(SPACE)]
    if not lines:
        return [], ""
    number, first = lines[0]
    for separator in SEPARATORS:
        names = _fields(first, separator)
        place = _named(names, role)
        if place is not None and (len(lines) > 1 or not any(name.isdecimal() for name in names)):
            body = "\n".join(text.split("\n")[number - 1 :])
            return _column(body, number, separator, names, place, where), f" in column {names[place]!r}"
    rows = {number: _ids_of_line(line) for number, line in lines}
    _check_role(rows[number], where, role)
    if len(rows) == 1:
        ids = [field for field in rows[number] if field]
        return ids, " in one line" if len(ids) > 1 else ", one a line"
    _check_single(rows, where, role)
    return [row[0] for row in rows.values() if row], ", one a line"


def _fields(line: str, separator: str) -> list[str]:
    """The fields of a line; a line with a lone quote, which CSV cannot have, is one field. Tabs know no quotes."""
    if separator == "\t":
        fields = line.split("\t")
    else:
        try:
            fields = next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))
        except csv.Error:
            fields = [line]
    return [field.strip(SPACE) for field in fields]


def _ids_of_line(line: str) -> list[str]:
    """The fields of a line without a header, but for empty ones at its end."""
    fields = _fields(line, "\t" if "\t" in line else ",") if re.search(r'[,"\t]', line) else [line]
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _check_role(first: list[str], where: str, role: Role) -> None:
    """Refuse a column whose header names it as that of the other role."""
    other: Role = "user" if role == "item" else "item"
    if len(first) == 1 and _named(first, other) is not None and plain_name(first[0]).endswith("id"):
        raise DataError(f"column {first[0]!r} of {where} holds {other}s, not {role}s; give a file of {role} ids")


def _check_single(rows: dict[int, list[str]], where: str, role: Role) -> None:
    """Refuse lines with several fields."""
    first, widths = next(iter(rows.values())), {len(row) for row in rows.values()}
    if len(widths) == 1 and max(widths) > 1:
        raise _unnamed(first, where, role)
    for number, row in rows.items():
        if len(row) > 1:
            raise DataError(
                f"line {number} of {where} has {len(row)} fields; give one id a line, and put an id with a comma in "
                "double quotes"
            )


def _column(body: str, line: int, separator: str, names: list[str], place: int, where: str) -> list[str]:
    """A column of a table whose header is the first line of the body, and this line of the file."""
    quoting: Any = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    lines = io.StringIO(body)
    reader: Any = csv.reader(lines, delimiter=separator, quoting=quoting, skipinitialspace=True, strict=True)
    ids = []
    for row in _rows(reader, where):
        number = line + reader.line_num - 1
        if len(row) != len(names):
            raise DataError(
                f"line {number} of {where} has {len(row)} field{'s' * (len(row) != 1)}, but its header has "
                f"{len(names)}; put an id with a comma in double quotes"
            )
        ids.append(row[place].strip(SPACE))
        if not ids[-1]:
            raise DataError(f"line {number} of {where} has nothing in column {names[place]!r}")
    return ids


def _rows(reader: Any, where: str) -> Iterator[list[str]]:
    """The rows behind the header that are not blank."""
    try:
        next(reader)
        yield from (row for row in reader if any(field.strip(SPACE) for field in row))
    except csv.Error as error:
        raise DataError(f"{where} is not valid CSV ({error}); look for a quote that is not closed") from error

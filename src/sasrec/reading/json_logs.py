"""Read JSON: an object a line, or one array of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import polars as pl

from sasrec.core.errors import DataError
from sasrec.reading.source_table import SourceTable
from sasrec.reading.textfiles import BOM, TextFile

MAX_KEYS = 1000  # of all objects and those within; Polars needs some 200 KB for each
MAX_DEPTH = 32
FIRST_LINES = 4 * MAX_KEYS  # where keys are ids, there are too many after a few lines
EXAMPLE = 'give one object a line, such as {"user_id": 1, "item_id": 2}'


def is_json(head: Sequence[str]) -> bool:
    """Whether these lines begin as JSON does."""
    return re.match(r"""\s*(\{\s*(u?["'}]|$)|\[\s*([\[{\]]|$))""", head[0]) is not None


def read_json(text: TextFile) -> SourceTable:
    """The objects of a file as rows; all are looked at for their keys and types, as a late one may bring a new key.

    Raises:
        DataError: a line is not a JSON object.
    """
    start = text.head[0].lstrip()
    if re.match(r"\{\s*u?'", start):
        raise DataError(
            f"{text.name} holds Python dictionaries, not JSON (single quotes); convert each line with "
            "json.dumps(ast.literal_eval(line))"
        )
    if start.startswith("["):
        return _read_array(text)
    content = text.content.removeprefix(BOM)
    try:
        frame = _frame_of(content, text.name)
    except pl.exceptions.PolarsError as error:
        _check_lines(text)
        raise DataError(f"{text.name} is not JSON lines ({str(error).splitlines()[0]}); {EXAMPLE}") from error
    numbers = (text.lines().str.strip_chars(" \t\r") != "").fill_null(False).arg_true() + 1
    if len(numbers) != len(frame):
        _check_lines(text)
        raise DataError(f"{text.name} has {len(numbers)} lines and {len(frame)} objects; {EXAMPLE}")
    return SourceTable(frame, text.name, SourceTable.of_lines(frame, text.name, numbers.cast(pl.Int64)).place)


def _frame_of(lines: bytes, name: str) -> pl.DataFrame:
    """Objects as rows, whose keys and types were found first.

    Raises:
        DataError: there are more keys than columns can be, or they lie deeper than any event's.
    """
    for n_lines in (FIRST_LINES, None):
        schema = pl.scan_ndjson(lines, infer_schema_length=n_lines).collect_schema()
        n_keys, depth = _extent(pl.Struct(schema))
        if n_keys > MAX_KEYS:
            raise DataError(
                f"the objects of {name} have {n_keys:,} keys, and {MAX_KEYS:,} is the most; is each id a key, "
                f"such as {list(schema)[-1]!r}? {EXAMPLE}"
            )
        if depth > MAX_DEPTH:
            raise DataError(f"the objects of {name} are nested {depth} deep, and {MAX_DEPTH} is the most; {EXAMPLE}")
    return pl.read_ndjson(lines, schema=schema)


def _extent(kind: pl.DataType) -> tuple[int, int]:
    """How many keys a type has in all, and how many lists and objects lie in each other."""
    n_keys, depth = 0, 0
    level: list[Any] = [kind]
    while level := [one for one in level if isinstance(one, pl.List | pl.Struct)]:
        fields = [field.dtype for one in level if isinstance(one, pl.Struct) for field in one.fields]
        level = fields + [one.inner for one in level if isinstance(one, pl.List)]
        n_keys, depth = n_keys + len(fields), depth + 1
    return n_keys, depth


def _check_lines(text: TextFile) -> None:
    """Refuse the first line that is no JSON object."""
    for number, line in enumerate(text.content.removeprefix(BOM).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            whole = isinstance(msgspec.json.decode(line), dict)
            reason = "" if whole else "a JSON value, but no object"
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = f"not JSON: {error}"
        if reason:
            raise DataError(f"line {number} of {text.name} is {reason}; {EXAMPLE}")


def _read_array(text: TextFile) -> SourceTable:
    """The objects of one array."""
    try:
        objects = json.loads(text.content.removeprefix(BOM))  # integers of any size
    except (ValueError, RecursionError) as error:
        raise DataError(f"{text.name} is neither JSON lines nor one JSON array ({error}); {EXAMPLE}") from error
    for position, one in enumerate(objects):
        if not isinstance(one, dict):
            raise DataError(f"element {position} of the array in {text.name} is no JSON object; {EXAMPLE}")
    lines = "\n".join(map(json.dumps, objects)).encode()
    try:
        frame = _frame_of(lines, text.name) if objects else pl.DataFrame()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{text.name}: its objects do not fit together ({str(error).splitlines()[0]})") from error
    return SourceTable(frame, text.name, lambda row: f"element {row} of {text.name}")

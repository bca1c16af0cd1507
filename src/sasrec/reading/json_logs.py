"""Read JSON: an object a line, or one array of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import msgspec
import polars as pl

from sasrec.core.errors import DataError
from sasrec.reading.source_table import SourceTable
from sasrec.reading.textfiles import BOM, TextFile

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
        frame = pl.read_ndjson(content, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        _check_lines(text)
        raise DataError(f"{text.name} is not JSON lines ({str(error).splitlines()[0]}); {EXAMPLE}") from error
    numbers = (text.lines().str.strip_chars(" \t\r") != "").fill_null(False).arg_true() + 1
    if len(numbers) != len(frame):
        _check_lines(text)
        raise DataError(f"{text.name} has {len(numbers)} lines and {len(frame)} objects; {EXAMPLE}")
    return SourceTable(frame, text.name, SourceTable.of_lines(frame, text.name, numbers.cast(pl.Int64)).place)


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
        frame = pl.read_ndjson(lines, infer_schema_length=None) if objects else pl.DataFrame()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{text.name}: its objects do not fit together ({str(error).splitlines()[0]})") from error
    return SourceTable(frame, text.name, lambda row: f"element {row} of {text.name}")

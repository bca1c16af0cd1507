"""The same events in every form, encoding, compression and split give the same log; damage is never taken for a log."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasrec.core.errors import DataError
from sasrec.data.sequences import build_sequences
from sasrec.reading.readers import read_interactions

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Event = tuple[str, str, int]


@dataclass(frozen=True)
class Delimited:
    """A text form: its file name, separator and header."""

    name: str
    separator: str
    header: Sequence[str] = ()  # names of the user, item, time and another column; none = no header
    quotes: bool = True
    form: str | None = None


DELIMITED = [
    Delimited("log.csv", ",", ("userId", "item_id", "Time", "price")),
    Delimited("log.tsv", "\t", ("user", "asin", "unixReviewTime", "price")),
    Delimited("log.csv", ";", ("User ID", "Product ID", "Date", "price")),
    Delimited("log.txt", "|", ("user_id", "item_id", "timestamp", "price")),
    Delimited("log.inter", "\t", ("user_id:token", "item_id:token", "timestamp:float", "price:float"), quotes=False),
    Delimited("log.txt", " ", ("user_id", "item_id", "timestamp", "price")),
    Delimited("log.txt", " "),
    Delimited("log.txt", "\t"),
    Delimited("log.csv", ","),
    Delimited("log.csv", ";", form="csv"),
    Delimited("log.csv", "|", form="csv"),
    Delimited("log.dat", "::", quotes=False),
]


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside.txt", content)
    return buffer.getvalue()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress, ".zip": zipped,
}  # fmt: skip
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"]
QUOTINGS = {"none": csv.QUOTE_NONE, "minimal": csv.QUOTE_MINIMAL, "always": csv.QUOTE_ALL}

NUMBERS = st.integers(-5, 10**6).map(str)
CODES = st.integers(0, 99).map("{:03}".format)  # leading zeros
WORDS = st.text("abXY09-_.#é", max_size=5).map("k".__add__)
PHRASES = st.text("ab09 ,;|'\"é", max_size=6).map(lambda text: f"k{text}k")
LINES = st.text("ab09 é\n", max_size=6).map(lambda text: f"k{text}k")
KINDS = {"numbers": NUMBERS, "codes": CODES, "words": WORDS, "phrases": PHRASES, "lines": LINES}


@st.composite
def events(draw: st.DrawFn, *kinds: str, min_size: int = 1) -> list[Event]:
    users, items = (KINDS[draw(st.sampled_from(kinds))] for _ in range(2))
    times = st.integers(1, 10**6)
    return draw(st.lists(st.tuples(users, items, times), min_size=min_size, max_size=12))


def fingerprint(source: Any, **told: Any) -> str:
    return build_sequences(read_interactions(source, **told))[0].facts.fingerprint


def expected(log: Sequence[Event], timed: bool) -> str:
    columns = ["user_id", "item_id", "timestamp"][: 2 + timed]
    return fingerprint(pl.DataFrame([row[: 2 + timed] for row in log], columns, orient="row"))


def parts_of(draw: Callable[..., Any], log: Sequence[Any]) -> list[Sequence[Any]]:
    cuts = draw(st.sets(st.integers(1, len(log) - 1), max_size=3), label="cuts") if len(log) > 1 else set()
    places = [0, *sorted(cuts), len(log)]
    return [log[a:b] for a, b in itertools.pairwise(places)]


def save(draw: Callable[..., Any], folder: Path, name: str, parts: Sequence[bytes]) -> Any:
    """Write the parts, and say how they are given to the reader: a file, a list, a folder or a pattern."""
    suffix = draw(st.sampled_from(list(COMPRESSIONS)), label="compression")
    stem, _, kind = name.partition(".")
    paths = [folder / f"{stem}-{8 + number}.{kind}{suffix}" for number in range(len(parts))]  # 8, 9, 10, 11
    for path, content in zip(paths, parts, strict=True):
        path.write_bytes(COMPRESSIONS[suffix](content))
    sources: list[Any] = [paths, folder, str(folder / f"{stem}-*")]
    return draw(st.sampled_from([*sources, paths[0]] if len(paths) == 1 else sources), label="source")


def lines_of(rows: Sequence[Sequence[str]], form: Delimited, quoting: int, end: str) -> str:
    if not form.quotes or form.separator == "::":
        return "".join(form.separator.join(row) + end for row in rows)
    stream = io.StringIO()
    csv.writer(stream, delimiter=form.separator, quoting=quoting, lineterminator=end, quotechar='"').writerows(rows)
    return stream.getvalue()


def draw_delimited(draw: Callable[..., Any], folder: Path) -> tuple[Any, dict[str, Any], list[Event], bool]:
    """A delimited log on disk: what to read, what the reader is told, its events and whether it has times."""
    form = draw(st.sampled_from(DELIMITED), label="form")
    quotings = list(QUOTINGS) if form.quotes else ["none"]
    quoting = draw(st.sampled_from(quotings), label="quoting")
    # without a header a comma in an unquoted field could be the separator as well
    safe = quoting == "always" or (quoting == "minimal" and bool(form.header))
    can_hold_all = safe and form.separator in ",;|"
    log = draw(events("numbers", "codes", "words", *["phrases", "lines"] * can_hold_all), label="events")
    in_lines = any("\n" in field for event in log for field in event[:2])
    end = draw(st.sampled_from(["\n"] if in_lines else ["\n", "\r\n", "\r"]), label="line end")
    encoding = draw(st.sampled_from(ENCODINGS), label="encoding")
    if encoding in ("utf-16-le", "utf-16-be"):  # without a mark it is told by ASCII
        log = [(user.replace("é", "e"), item.replace("é", "e"), time) for user, item, time in log]
    timed = draw(st.booleans(), label="timed")
    order = draw(st.permutations(range(3 + timed)), label="order")
    told: dict[str, Any] = {"encoding": encoding} if encoding == "latin-1" else {}
    if not form.header:
        if draw(st.booleans(), label="in the usual order") and quoting != "always":
            order = list(range(2 + timed))
            told["format"] = "triples" if timed else "pairs"
        else:
            names = ["user", "item", "timestamp", "-"] if timed else ["user", "item", "-"]
            told["columns"] = ",".join(names[place] for place in order)
    rows = [[(*event[: 2 + timed], "0.5")[place] for place in order] for event in log]
    names = [name for j, name in enumerate(form.header) if timed or j != 2]
    parts, everywhere = parts_of(draw, rows), draw(st.booleans(), label="header in each part")
    texts = []
    for number, part in enumerate(parts):
        head = [[names[place] for place in order]] if names and (everywhere or number == 0) else []
        texts.append(lines_of([*head, *(list(map(str, row)) for row in part)], form, QUOTINGS[quoting], end))
    if draw(st.booleans(), label="last newline missing"):
        texts = [text.removesuffix(end) for text in texts]
    source = save(draw, folder, form.name, [text.encode(encoding) for text in texts])
    return source, told, log, timed


def check_delimited(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, told, log, timed = draw_delimited(data.draw, Path(folder))
        assert fingerprint(source, **told) == expected(log, timed)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_events_are_the_same_in_any_delimited_text(data: st.DataObject) -> None:
    check_delimited(data)


@pytest.mark.slow
@settings(deadline=None, max_examples=1000)
@given(st.data())
def test_events_are_the_same_in_very_many_delimited_texts(data: st.DataObject) -> None:
    check_delimited(data)


def records(log: Sequence[Event], timed: bool, ids_are_numbers: bool) -> list[dict[str, Any]]:
    """Events as objects; ids that are integers as such, where the form has types."""
    ids = [[int(i) if ids_are_numbers and re.fullmatch(r"-?[1-9]\d*|0", i) else i for i in row[:2]] for row in log]
    times = [{"ts": row[2]} if timed else {} for row in log]
    return [{"user": user, "item": item, **time} for (user, item), time in zip(ids, times, strict=True)]


def json_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def json_array(rows: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


def nested_json(rows: Sequence[dict[str, Any]]) -> bytes:
    inner = [{name: value for name, value in row.items() if name != "user"} for row in rows]
    return json_lines([{"session": row["user"], "events": [event]} for row, event in zip(rows, inner, strict=True)])


def lists_in_json(rows: Sequence[dict[str, Any]]) -> bytes:
    times = [{"timestamps": [row["ts"]]} if "ts" in row else {} for row in rows]
    return json_lines([{"user": row["user"], "items": [row["item"]], **t} for row, t in zip(rows, times, strict=True)])


def bytes_of(write: Callable[[pl.DataFrame, io.BytesIO], Any]) -> Callable[[Sequence[dict[str, Any]]], bytes]:
    def content(rows: Sequence[dict[str, Any]]) -> bytes:
        buffer = io.BytesIO()
        write(pl.DataFrame(rows), buffer)
        return buffer.getvalue()

    return content


TABLES: dict[str, Callable[[Sequence[dict[str, Any]]], bytes]] = {
    "log.jsonl": json_lines,
    "lines.json": json_lines,
    "lines.txt": json_lines,
    "array.json": json_array,
    "nested.jsonl": nested_json,
    "lists.jsonl": lists_in_json,
    "log.parquet": bytes_of(pl.DataFrame.write_parquet),
    "parquet.bin": bytes_of(pl.DataFrame.write_parquet),
    "log.arrow": bytes_of(pl.DataFrame.write_ipc),
    "log.feather": bytes_of(pl.DataFrame.write_ipc),
    "stream.arrow": bytes_of(pl.DataFrame.write_ipc_stream),
}
FRAMES: dict[str, Callable[[pl.DataFrame], Any]] = {
    "polars": lambda frame: frame,
    "lazy": lambda frame: frame.lazy(),
    "pandas": lambda frame: pd.DataFrame(frame.to_dict(as_series=False)),
    "pandas with nullable types": lambda frame: pd.DataFrame(frame.to_dict(as_series=False)).convert_dtypes(),
    "pandas with an index": lambda frame: pd.DataFrame(frame.to_dict(as_series=False)).set_index("user"),
    "categories": lambda frame: frame.cast({pl.String: pl.Categorical}),
}


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(list(TABLES)), st.booleans(), st.booleans())
def test_events_are_the_same_in_json_and_tables(
    data: st.DataObject, name: str, timed: bool, ids_are_numbers: bool
) -> None:
    log = data.draw(events(*KINDS), label="events")
    parts = [TABLES[name](part) for part in parts_of(data.draw, records(log, timed, ids_are_numbers))]
    with tempfile.TemporaryDirectory() as folder:
        assert fingerprint(save(data.draw, Path(folder), name, parts)) == expected(log, timed)


@settings(deadline=None, max_examples=40)
@given(events(*KINDS), st.sampled_from(list(FRAMES)), st.booleans(), st.booleans())
def test_events_are_the_same_in_any_frame(log: list[Event], kind: str, timed: bool, ids_are_numbers: bool) -> None:
    frame = pl.DataFrame(records(log, timed, ids_are_numbers))
    assert fingerprint(FRAMES[kind](frame)) == expected(log, timed)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from([" ", "\t", "  "]), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_are_the_same_one_user_a_line(data: st.DataObject, separator: str, end: str) -> None:
    log = data.draw(events("numbers", "codes", "words"), label="events")
    users = list(dict.fromkeys(user for user, _, _ in log))
    lines = [separator.join([u, *(item for user, item, _ in log if user == u)]) + end for u in users]
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), label="encoding")
    parts = ["".join(part).encode(encoding) for part in parts_of(data.draw, lines)]
    with tempfile.TemporaryDirectory() as folder:
        source = save(data.draw, Path(folder), "log.txt", parts)
        assert fingerprint(source, format="sequences") == expected(log, timed=False)


@dataclass(frozen=True)
class Damaged:
    """A log of which one line is broken."""

    content: bytes
    line: int  # its number in the file
    row: int  # its number among the events


def draw_damaged(draw: Callable[..., Any], form: Delimited, log: Sequence[Event]) -> Damaged:
    """One line of a log broken: how, and where, is drawn."""
    header = [form.separator.join(form.header[:3])] if form.header else []
    rows = [[user, item, str(time)] for user, item, time in log]
    row = draw(st.integers(0, len(rows) - 1), label="row")
    lines, number = [form.separator.join(fields) for fields in rows], row + len(header)
    damage = draw(st.sampled_from(list(DAMAGES)), label="damage")
    if damage == "joined":
        row = min(row, len(rows) - 2)
        lines[row : row + 2] = ["".join(lines[row : row + 2])]
        number = row + len(header)
    else:
        lines[row] = DAMAGES[damage](draw, rows[row], form.separator)
    content = "\n".join([*header, *lines]).encode() + b"\n" * draw(st.booleans(), label="last newline")
    if damage == "garbage":
        content = content.replace("\N{REPLACEMENT CHARACTER}".encode(), b"\xe9\xff")
    return Damaged(content, number + 1, row)


def changed(text: str, place: int, inserted: str) -> str:
    return text[:place] + inserted + text[place:]


def at(draw: Callable[..., Any], text: str) -> int:
    return int(draw(st.integers(0, len(text)), label="place"))


def inserted(text: str) -> Callable[[Callable[..., Any], list[str], str], str]:
    def damage(draw: Callable[..., Any], fields: list[str], separator: str) -> str:
        line = separator.join(fields)
        return changed(line, at(draw, line), text)

    return damage


def cut(draw: Callable[..., Any], fields: list[str], separator: str) -> str:
    line = separator.join(fields)
    return line[: draw(st.integers(1, len(line) - 1), label="place")]


def one_field(change: Callable[[Callable[..., Any], list[str], int], list[str]]) -> Callable[..., str]:
    def damage(draw: Callable[..., Any], fields: list[str], separator: str) -> str:
        return separator.join(change(draw, fields, draw(st.integers(0, 2), label="field")))

    return damage


DAMAGES: dict[str, Callable[[Callable[..., Any], list[str], str], str]] = {
    "dropped field": one_field(lambda draw, fields, j: fields[:j] + fields[j + 1 :]),
    "added field": one_field(lambda draw, fields, j: [*fields[:j], "7", *fields[j:]]),
    "empty field": one_field(lambda draw, fields, j: [*fields[:j], "", *fields[j + 1 :]]),
    "swapped fields": one_field(lambda draw, fields, j: [*fields[:j], *reversed(fields[j : j + 2]), *fields[j + 2 :]]),
    "letter in a time": lambda draw, fields, s: s.join([*fields[:2], changed(fields[2], at(draw, fields[2]), "x")]),
    "cut": cut,
    "quote": inserted('"'),
    "garbage": inserted("\N{REPLACEMENT CHARACTER}"),
    "joined": lambda draw, fields, separator: "",
}


def check_damaged(damaged: Damaged, name: str, log: Sequence[Event]) -> None:
    """The line is named, or all other events are read as they were."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(damaged.content)
        found, message = pl.DataFrame(), ""
        try:
            found = read_interactions(path)
        except DataError as error:
            message = str(error)
    if message:
        assert f"line {damaged.line} of " in message
        return
    assert len(found) == len(log)
    for row, (event, read) in enumerate(zip(log, found.rows(), strict=True)):
        assert row == damaged.row or event == (str(read[0]), str(read[1]), read[2])


def check_damaged_text(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(DELIMITED), label="form")
    log = data.draw(events("numbers", "codes", "words", min_size=4), label="events")
    check_damaged(draw_damaged(data.draw, form, log), form.name, log)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_damaged_line_is_named_or_changes_only_its_own_event(data: st.DataObject) -> None:
    check_damaged_text(data)


@pytest.mark.slow
@settings(deadline=None, max_examples=2000)
@given(st.data())
def test_very_many_damaged_lines_are_named_or_change_only_their_own_event(data: st.DataObject) -> None:
    check_damaged_text(data)


@settings(deadline=None, max_examples=60)
@given(st.data(), events("numbers", "words", min_size=4))
def test_damaged_object_is_named_or_changes_only_its_own_event(data: st.DataObject, log: list[Event]) -> None:
    lines = json_lines(records(log, timed=True, ids_are_numbers=False)).split(b"\n")[:-1]
    row = data.draw(st.integers(0, len(lines) - 2), label="row")
    damage = data.draw(st.sampled_from(["cut", "joined", "key lost", *b'\x00\xff"{},:']), label="damage")
    place = data.draw(st.integers(1, len(lines[row]) - 1), label="place")
    if damage == "joined":
        lines[row : row + 2] = [lines[row] + lines[row + 1]]
    elif damage == "key lost":
        lines[row] = lines[row].replace(data.draw(st.sampled_from([b"user", b"item", b"ts"])), b"x")
    else:
        lines[row] = lines[row][:place] + (b"" if damage == "cut" else bytes([damage]) + lines[row][place:])
    check_damaged(Damaged(b"\n".join(lines), row + 1, row), "log.jsonl", log)

"""Read a log of any usual form into one frame: user_id, item_id[, timestamp], in input order.

The one place where a source is understood: which files, which form, which columns, which times. What was understood
comes with the frame (`read_log`). Ids are Int64 where all of them are integers or canonical integer text ("2969", not
"02969"), else String. Timestamps are numbers in the log's own unit; dates and datetimes become seconds since 1970.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from sasrec.core.errors import ConfigError, DataError
from sasrec.core.forks import needs_threads_of
from sasrec.core.suggestions import suggestion
from sasrec.reading.checks import MissingWords, check_guess, missing_words, note_odd_values
from sasrec.reading.columnar import (
    FORMAT_OF_SUFFIX,
    kind_of,
    read_tables,
    with_partition,
)
from sasrec.reading.columns import (
    KNOWN_NAMES,
    Choice,
    Wanted,
    choice_of,
    choose_columns,
    find_column,
    plain_name,
)
from sasrec.reading.conversion import ids_in, timestamps_in, types_in, weights_in
from sasrec.reading.frames import frame_of
from sasrec.reading.json_logs import is_json, read_json
from sasrec.reading.nested import unnested
from sasrec.reading.notes import Notes
from sasrec.reading.parsing import read_text
from sasrec.reading.sniffing import (
    NAMES_OF_SEPARATORS,
    TEXT_COLUMNS,
    Form,
    Head,
    are_names,
    find_form,
    find_header,
)
from sasrec.reading.source_table import SourceTable, joined, joined_frames
from sasrec.reading.sources import SourceFile, common_name, data_suffix, find_files, reading
from sasrec.reading.textfiles import SNIFFED_LINES, TextFile
from sasrec.reading.times import TimesSeen, holds_dates
from sasrec.reading.understanding import Understanding, understand

FORMATS = ("pairs", "sequences", "triples", "ratings", "csv", "tsv", "inter", "jsonl", "parquet", "arrow")
OTHER_NAMES = {"movielens": "ratings", "json": "jsonl", "feather": "arrow"}
SAMPLED_ROWS = 1000


def read_interactions(
    source: Any,
    *,
    format: str | None = None,  # noqa: A002 - the word users know
    user_column: str | None = None,
    item_column: str | None = None,
    timestamp_column: str | None = None,
    columns: str | Sequence[str] | None = None,
    encoding: str | None = None,
    drop_missing: bool = False,
    event_column: str | None = None,
    weight_column: str | None = None,
) -> pl.DataFrame:
    """Read a log of events.

    Args:
        source: a path, a folder, a pattern such as `logs/*.csv`, "-" (standard input) or a list of these; a frame of
            Polars, pandas, PyArrow, DuckDB or narwhals, a cursor, or anything with `__arrow_c_stream__`. Files: text,
            CSV, TSV, RecBole .inter, JSON lines, Parquet, Arrow; text may be compressed with gzip, bzip2, xz, zstd or
            zip.
        format: one of FORMATS; None = told by the name and the first 1,000 lines.
        user_column: name of the user column; None = the usual names are recognised.
        item_column: name of the item column, likewise.
        timestamp_column: name of the time column; None = recognised, or absent.
        columns: what the columns are, from left to right: user, item, timestamp, event, weight, rating, or - for those
            to skip, as a list or separated by commas; None = told by names or by their number.
        encoding: of text; None = UTF-8, or UTF-16 by its mark.
        drop_missing: leave out events whose user, item or time is missing: empty, NA, NULL, None, nan and the like.
        event_column: name of the column of types, such as view and purchase; None = they are not read.
        weight_column: name of the column that says how much each event counts in training; None = they are not read.

    Returns:
        user_id, item_id and, when there is one, timestamp (Int64 or Float64); rows in input order. Then event (String)
        and weight (Float32), if they are read.

    Raises:
        DataError: missing, empty, binary or malformed input; columns not found; an id that is missing; a timestamp
            that is not a number or date; columns that contradict the guess. The message names file, line and value.
        ConfigError: an unknown format, encoding or word of `columns`.
    """
    wanted = wanted_columns(format, user_column, item_column, timestamp_column, columns, encoding, drop_missing)
    return read_log(source, replace(wanted, event=event_column, weight=weight_column))[0]


def wanted_columns(
    form: str | None,
    user: str | None,
    item: str | None,
    timestamp: str | None,
    columns: str | Sequence[str] | None,
    encoding: str | None,
    drop_missing: bool,
) -> Wanted:
    """What a caller says of a log, checked.

    Raises:
        ConfigError: an unknown format, or words of `columns` that contradict the others.
    """
    words = tuple(word.strip() for word in columns.split(",")) if isinstance(columns, str) else tuple(columns or ())
    return Wanted(_known_format(form), user, item, timestamp, words, encoding, drop_missing)


def read_log(source: Any, wanted: Wanted) -> tuple[pl.DataFrame, Understanding]:
    """As `read_interactions`, with what was understood of the source."""
    needs_threads_of("Polars")
    if are_files(source):
        return read_files(find_files(source), wanted)
    notes = Notes()
    return _understood(*_of_frame(_frame(source), wanted, notes), 1, wanted, notes)


def read_files(files: Sequence[SourceFile], wanted: Wanted) -> tuple[pl.DataFrame, Understanding]:
    """As `read_log`, of files that were found."""
    notes = Notes()
    with reading(common_name(files)):
        table, choice, form = _read_files(files, wanted, notes)
    return _understood(table, choice, form, len(files), wanted, notes)


def _understood(
    table: SourceTable, choice: Choice, form: str, n_files: int, wanted: Wanted, notes: Notes
) -> tuple[pl.DataFrame, Understanding]:
    log, n_dropped, dates = _events(table, choice, wanted, notes)
    return log, understand(
        log,
        table.where,
        form,
        columns=choice.roles,
        left_alone=choice.left_alone,
        n_files=n_files,
        n_dropped=n_dropped,
        dates=dates,
        notes=notes.notes,
    )


def _known_format(name: str | None) -> str | None:
    form = OTHER_NAMES.get(str(name), name)
    if form is not None and form not in FORMATS:
        raise ConfigError(f"format {form!r} is not known{suggestion(form, FORMATS)}; use one of {', '.join(FORMATS)}")
    return form


def are_files(source: Any) -> bool:
    """Whether a source is one of files, not a frame."""
    return isinstance(source, str | os.PathLike) or (
        isinstance(source, list | tuple) and all(isinstance(one, str | os.PathLike) for one in source)
    )


def _frame(source: Any) -> SourceTable:
    with reading("the frame"):
        return SourceTable.of_rows(frame_of(source), "the frame")


def _of_frame(table: SourceTable, wanted: Wanted, notes: Notes) -> tuple[SourceTable, Choice, str]:
    """A table that has names and types, and the columns of it that are read."""
    table = unnested(_named_by_position(table, wanted), wanted, notes)
    columns = table.frame.columns
    choice = choose_columns(columns, table.frame.head(SAMPLED_ROWS), table.where, wanted, notes)
    return table.with_frame(table.frame.select(choice.needed)), choice, "a frame"


def _of_tables(files: Sequence[SourceFile], kind: str, wanted: Wanted, notes: Notes) -> tuple[SourceTable, Choice]:
    """Of Parquet and Arrow only the columns that are needed are read, unless events lie in lists."""
    sample = read_tables(files, kind, n_rows=SAMPLED_ROWS)
    if any(column.is_nested() for column in sample.frame.schema.values()):
        return _of_frame(read_tables(files, kind), wanted, notes)[:2]
    choice, names = choice_of_tables(sample, common_name(files), wanted, notes)
    table = read_tables(files, kind, list(names.values()))
    return table.with_frame(table.frame.select(pl.col(name).alias(column) for column, name in names.items())), choice


def choice_of_tables(sample: SourceTable, where: str, wanted: Wanted, notes: Notes) -> tuple[Choice, dict[str, str]]:
    """The columns that are read, and what each is called in the files."""
    named = _named_by_position(sample, wanted)
    choice = choose_columns(named.frame.columns, named.frame, where, wanted, notes)
    names = dict(zip(named.frame.columns, sample.frame.columns, strict=True))
    return choice, {column: names[column] for column in choice.needed}


def _named_by_position(table: SourceTable, wanted: Wanted) -> SourceTable:
    columns = table.frame.columns
    return table.with_frame(table.frame.rename(dict(zip(columns, wanted.named(columns, table.where), strict=True))))


def _read_files(files: Sequence[SourceFile], wanted: Wanted, notes: Notes) -> tuple[SourceTable, Choice, str]:
    """All files as one table, the columns that are read, and the form in words."""
    kind = kind_of_all(files, wanted.format)
    if kind in ("parquet", "arrow", "arrow stream"):
        return *_of_tables(files, kind, wanted, notes), kind
    texts = [TextFile.open(file, wanted.encoding) for file in files]
    if kind == "jsonl" or (wanted.format is None and is_json(texts[0].head)):
        if wanted.positions:
            raise ConfigError("--columns names columns by position, and JSON has names; say --user-column and the like")
        parts = [with_partition(read_json(text), file) for text, file in zip(texts, files, strict=True)]
        table, choice, _ = _of_frame(joined_frames(parts, common_name(files)), wanted, notes)
        return table, choice, "JSON"
    return _read_texts(files, texts, wanted, notes)


def kind_of_all(files: Sequence[SourceFile], form: str | None) -> str | None:
    """The kind of the files, as `kind_of` tells it.

    Raises:
        DataError: they are of several.
    """
    kinds = {kind: file.name for file in files for kind in [kind_of(file, form)]}
    if len(kinds) > 1:
        raise DataError(f"the files are of different kinds, such as {' and '.join(kinds.values())}; give those of one")
    return next(iter(kinds))


def _read_texts(
    files: Sequence[SourceFile], texts: Sequence[TextFile], wanted: Wanted, notes: Notes
) -> tuple[SourceTable, Choice, str]:
    plan = plan_texts(files, texts, wanted, notes)
    name, needed = common_name(files), plan.choice.needed
    parts = [
        with_partition(read_text(text, form, plan.needed, notes), file)
        for file, text, form in zip(files, texts, plan.forms, strict=True)
    ]
    return joined([part.with_frame(part.frame.select(needed)) for part in parts], name), plan.choice, plan.words


@dataclass(frozen=True)
class TextPlan:
    """How texts are read."""

    choice: Choice
    forms: list[Form]  # of each
    partition: set[str]  # columns that folders stand for

    @property
    def words(self) -> str:
        """The form, for people."""
        return _in_words(self.forms[0])

    @property
    def needed(self) -> list[str]:
        """The columns that are read from each."""
        return [column for column in self.choice.needed if column not in self.partition]


def plan_texts(files: Sequence[SourceFile], texts: Sequence[TextFile], wanted: Wanted, notes: Notes) -> TextPlan:
    """The form and the columns of texts, by their first lines.

    Raises:
        DataError: they are of no form, or not of one log.
    """
    name = common_name(files)
    told = replace(wanted, format=wanted.format or _format_of(files[0]))
    head = Head([line for text in texts for line in text.head][:SNIFFED_LINES])
    form = find_form(name, head, told, notes)
    rows = head.rows(form.separator)[form.has_header :]
    if form.name in TEXT_COLUMNS and wanted.format is None:
        check_guess(name, form, rows)
    choice = _choice_of_text(form, rows, name, wanted, files[0], texts[0].first_line, notes)
    parts = [_form_of_part(text, texts[0], form, choice, told) for text in texts[1:]]
    return TextPlan(choice, [form, *parts], set(files[0].partition) & set(choice.needed))


def _format_of(file: SourceFile) -> str | None:
    form = FORMAT_OF_SUFFIX.get(data_suffix(file.place))
    return form if form in ("csv", "inter") else None


def _choice_of_text(
    form: Form,
    rows: Sequence[Sequence[str]],
    name: str,
    wanted: Wanted,
    file: SourceFile,
    first_line: int,
    notes: Notes,
) -> Choice:
    of_events = wanted.of_events
    if form.name == "sequences":
        if of_events:
            raise DataError(f"{name} has a user a line and no columns, so {' and '.join(of_events)} cannot be read")
        return choice_of([], "user_id", "item_id", None)
    time = "timestamp" if "timestamp" in form.columns else None
    if not form.has_header:
        for role, column in of_events.items():
            find_column(form.columns, name, role, column)
        return choice_of(form.columns, "user_id", "item_id", time, of_events)
    if wanted.positions:
        wanted = replace(wanted, positions=(), user="user_id", item="item_id", timestamp=time)
        wanted = replace(wanted, event=of_events.get("event"), weight=of_events.get("weight"))
    columns = [*form.columns, *(column for column in file.partition if column not in form.columns)]
    usual = [row for row in rows if len(row) == len(form.columns)]
    unique = {column: [row[j] for row in usual] for j, column in enumerate(form.columns)}
    fixed = {column: [value] * len(usual) for column, value in file.partition.items()}
    sample = pl.DataFrame(fixed | unique, schema_overrides=dict.fromkeys(columns, pl.String))
    try:
        return choose_columns(columns, sample, name, wanted, notes)
    except DataError as error:
        if are_names(form.columns) or wanted.user or wanted.item:
            raise
        raise DataError(
            f"line {first_line} of {file.name} is taken for a header, as it has no numbers: {error}; or say --format "
            "if it is a line of events"
        ) from error


def _form_of_part(text: TextFile, first: TextFile, form: Form, choice: Choice, wanted: Wanted) -> Form:
    """The form of a further file of the same log: with a header of its own, or going on without one.

    Raises:
        DataError: its header lacks a column, or brings times that the first file does not have.
    """
    if not form.has_header or text.head[0] == first.head[0]:
        return form
    needed = [column for column in choice.needed if column in form.columns]  # others are names of folders
    line = Head(text.head[:1])
    header = find_header(line, wanted, wanted.asked)
    if header is None or not (set(needed) <= set(header[1]) or are_names(line.rows(form.separator)[0])):
        return Form(form.name, form.separator, form.columns, False)
    separator, names = header
    names = wanted.named(names, text.name)
    missing = [column for column in needed if column not in names]
    if missing:
        lacks = f"{text.name} has no column {missing[0]!r}{suggestion(missing[0], names)}"
        raise DataError(f"{lacks}, which the first file has: {', '.join(names)}")
    times = [name for name in names if name not in form.columns and plain_name(name) in KNOWN_NAMES["timestamp"]]
    if times and choice.timestamp is None:
        raise DataError(f"{text.name} has times in {times[0]!r}, and {first.name} has no such column; write them alike")
    return Form(form.name, separator, names, True)


def _in_words(form: Form) -> str:
    if form.name == "sequences":
        return "sequences, one user a line"
    kind = "a table with a header" if form.has_header else "a table without a header"
    if form.name in TEXT_COLUMNS:
        kind = f"{form.name} without a header"
    return f"{kind}, separated by {NAMES_OF_SEPARATORS.get(form.separator, form.separator)}"


def _events(table: SourceTable, choice: Choice, wanted: Wanted, notes: Notes) -> tuple[pl.DataFrame, int, bool]:
    """The frame, how many events were dropped because something was missing, and whether times were dates."""
    n = len(table.frame)
    table = complete(table, choice, wanted)
    check_any(table.where, n, len(table.frame))
    columns = {"user_id": ids_in(table, choice.roles["user"]), "item_id": ids_in(table, choice.roles["item"])}
    times = None if choice.timestamp is None else timestamps_in(table, choice.timestamp)
    dates = choice.timestamp is not None and holds_dates(table.frame[choice.timestamp])
    texts = [role for role in ("user", "item") if columns[f"{role}_id"].dtype == pl.String]
    words = {role: MissingWords().add(table, choice.roles[role]) for role in texts}
    note_odd_values(table.where, words, None if times is None else TimesSeen().add(times), notes)
    dropped = n - len(table.frame)
    note_dropped(table.where, dropped, n, wanted, notes)
    return pl.DataFrame(columns | _beside_ids(table, choice, times)), dropped, dates


def complete(table: SourceTable, choice: Choice, wanted: Wanted) -> SourceTable:
    """The events that lack nothing, where others are to be left out; categories are texts."""
    words = [name for name, kind in table.frame.schema.items() if kind in (pl.Categorical, pl.Enum)]
    table = table.with_frame(table.frame.with_columns(pl.col(words).cast(pl.String)))
    return table.filter(~_missing(table, choice.needed)) if wanted.drop_missing else table


def check_any(where: str, n: int, n_complete: int) -> None:
    """Raise DataError unless there are events, and some that lack nothing."""
    if not n:
        raise DataError(f"{where} has no events; it needs at least one row with a user and an item")
    if not n_complete:
        raise DataError(f"{where} has no event with a user, an item and what else is read; see --drop-missing")


def note_dropped(where: str, dropped: int, n: int, wanted: Wanted, notes: Notes) -> None:
    """Warn of events that were left out."""
    if dropped:
        lacking = "a user, an item, a type or a weight" if wanted.of_events else "a user, an item or a time"
        notes.warn(f"{where}: {dropped:,} of {n:,} events lack {lacking} and are left out")


def _beside_ids(table: SourceTable, choice: Choice, times: pl.Series | None) -> dict[str, pl.Series]:
    """The further columns of the frame: times, types and weights, as far as there are any."""
    columns = {} if times is None else {"timestamp": times}
    if "event" in choice.roles:
        columns["event"] = types_in(table, choice.roles["event"])
    if "weight" in choice.roles:
        columns["weight"] = weights_in(table, choice.roles["weight"])
    return columns


def _missing(table: SourceTable, columns: Sequence[str]) -> pl.Series:
    """(n,) whether a column has nothing, or a word for it."""
    missing = pl.repeat(False, len(table.frame), dtype=pl.Boolean, eager=True)
    for name in columns:
        values = table.frame[name]
        missing = missing | values.is_null() | missing_words(table, name)
        if values.dtype == pl.String:
            missing = missing | (values.str.strip_chars() == "").fill_null(False)
        elif values.dtype.is_float():
            missing = missing | values.is_nan().fill_null(False)
    return missing

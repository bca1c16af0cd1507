"""A log in chunks, for logs that do not fit in memory: together the same rows as the table of all of it has.

Parquet and Arrow come by rows, text by blocks of whole lines, file by file. What can only be read as a whole is
refused.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import polars as pl

from sasrec.core.errors import ConfigError, DataError
from sasrec.reading.columnar import read_tables, scan_table, with_partition
from sasrec.reading.columns import Choice, Wanted
from sasrec.reading.json_logs import is_json
from sasrec.reading.notes import NeedsMemoryError, Notes
from sasrec.reading.parsing import LeftOut, read_block
from sasrec.reading.readers import SAMPLED_ROWS, TextPlan, choice_of_tables, kind_of_all, plan_texts
from sasrec.reading.source_table import SourceTable, as_text
from sasrec.reading.sources import SourceFile, Store, common_name, reading
from sasrec.reading.textfiles import CHUNK_BYTES, TextFile, encoding_of, is_sound


@dataclass(frozen=True)
class ChunkSizes:
    """How much is read at once."""

    n_rows: int = 2**20
    n_bytes: int = 2**24  # of text


class Chunks(Protocol):
    """A log whose form is known, to be read any number of times."""

    @property
    def where(self) -> str:
        """How messages speak of it."""

    @property
    def choice(self) -> Choice:
        """The columns that are read."""

    @property
    def form(self) -> str:
        """In words."""

    @property
    def size(self) -> int:
        """Of all chunks together, in rows or bytes."""

    def tables(self, notes: Notes | None, skip: int = 0) -> Iterator[tuple[SourceTable, int]]:
        """The chunks in order, each with the columns that are read and what part of `size` it is.

        Args:
            notes: takes what the user should know of each file; None = that is known already.
            skip: so many chunks are left out; rows of texts are counted from there.

        Raises:
            DataError: a file is damaged or malformed.
            NeedsMemoryError: a text turns out to be of a form that is read as a whole.
        """

    def shares(self, n: int) -> list[Chunks]:
        """At most n parts of about the same size, in order: together the same chunks. Text files are not divided."""

    def beginning_at(self, row: int) -> Chunks:
        """The same chunks, of which messages say that so many rows come before them."""


def open_chunks(files: Sequence[SourceFile], wanted: Wanted, notes: Notes, sizes: ChunkSizes, store: Store) -> Chunks:
    """Find the form and the columns of a log.

    Args:
        files: in order, with nothing of them in memory.
        wanted: what was asked for.
        notes: takes what the user should know.
        sizes: how much is read at once.
        store: takes texts that are converted to UTF-8.

    Raises:
        DataError: the log cannot be read.
        NeedsMemoryError: it is of a form that is read as a whole.
    """
    with reading(common_name(files)):
        kind = kind_of_all(files, wanted.format)
        if kind in ("parquet", "arrow"):
            return _TableChunks.open(files, kind, wanted, notes, sizes)
        if kind == "arrow stream":
            raise NeedsMemoryError(f"{files[0].name} is an Arrow stream")
        files = [_in_utf8(file, wanted.encoding, store) for file in files]
        texts = [TextFile.open(file) for file in files]
        if kind == "jsonl" or (wanted.format is None and is_json(texts[0].head)):
            raise NeedsMemoryError(f"{files[0].name} is JSON")
        plan = plan_texts(files, texts, wanted, notes)
        return _TextChunks(list(files), texts, plan, common_name(files), sizes.n_bytes)


@dataclass(frozen=True)
class _TableChunks:
    files: list[SourceFile]  # those with rows
    rows: list[int]  # of each
    kind: str
    where: str
    choice: Choice
    names: dict[str, str]  # column -> its name in the files
    types: dict[str, pl.DataType | None]  # what columns become; None = text
    n_rows: int
    span: tuple[int, int | None] = (0, None)  # of the chunks of all files, those that are read

    @property
    def form(self) -> str:
        return self.kind

    @property
    def size(self) -> int:
        return sum(n for _, _, n, _ in self._places)

    @property
    def _places(self) -> list[tuple[SourceFile, int, int, int]]:
        """Each chunk: its file, its first row there, how many it has, and its first row in all."""
        firsts = np.cumsum([0, *self.rows])
        places = [
            (file, start, min(self.n_rows, n - start), int(first) + start)
            for file, n, first in zip(self.files, self.rows, firsts[:-1], strict=True)
            for start in range(0, n, self.n_rows)
        ]
        return places[slice(*self.span)]

    def shares(self, n: int) -> list[Chunks]:
        ends = np.unique(np.linspace(0, len(self._places), n + 1).round().astype(int)).tolist()
        return [replace(self, span=(begin, end)) for begin, end in pairwise(ends)] or [self]

    def beginning_at(self, row: int) -> Chunks:
        del row  # it is known
        return self

    @classmethod
    def open(
        cls, files: Sequence[SourceFile], kind: str, wanted: Wanted, notes: Notes, sizes: ChunkSizes
    ) -> _TableChunks:
        sample = read_tables(files, kind, n_rows=SAMPLED_ROWS)
        if any(column.is_nested() for column in sample.frame.schema.values()):
            raise NeedsMemoryError(f"{sample.where} has lists in its columns")
        choice, names = choice_of_tables(sample, common_name(files), wanted, notes)
        rows = [_n_rows(file, kind) for file in files]
        filled = [file for file, n in zip(files, rows, strict=True) if n] or [files[0]]
        types = _common_types(filled, kind, names)
        where = common_name(files) if len(filled) > 1 else filled[0].name
        return cls(filled, [n for n in rows if n] or [0], kind, where, choice, names, types, sizes.n_rows)

    def tables(self, notes: Notes | None, skip: int = 0) -> Iterator[tuple[SourceTable, int]]:
        del notes  # there is nothing to tell of a file
        for file, start, _, first in self._places[skip:]:
            with reading(f"{file.name} as {self.kind}"):
                table = self._read(file, start)
            yield replace(table, where=self.where, first_row=first), len(table.frame)

    def _read(self, file: SourceFile, start: int) -> SourceTable:
        own = [name for name in self.names.values() if name not in file.partition]
        frame = scan_table(file, self.kind).slice(start, self.n_rows).select(own).collect()
        whole = with_partition(SourceTable.of_rows(frame, file.name), file).frame
        columns = [_as(whole[name], self.types[column]).alias(column) for column, name in self.names.items()]
        return SourceTable(pl.DataFrame(columns), file.name, lambda row: f"row {start + row} of {file.name}")


def _n_rows(file: SourceFile, kind: str) -> int:
    with reading(f"{file.name} as {kind}"):
        return int(scan_table(file, kind).select(pl.len()).collect().item())


def _as(values: pl.Series, kind: pl.DataType | None) -> pl.Series:
    return as_text(values) if kind is None else values.cast(kind)


def _common_types(files: Sequence[SourceFile], kind: str, names: dict[str, str]) -> dict[str, pl.DataType | None]:
    """What the columns of all files become, as where their tables are joined; None = text.

    Raises:
        NeedsMemoryError: that takes all values of a file.
    """
    schemas = []
    for file in files:
        with reading(f"{file.name} as {kind}"):
            schemas.append(scan_table(file, kind).collect_schema() | dict.fromkeys(file.partition, pl.String()))
    types: dict[str, pl.DataType | None] = {}
    for column, name in names.items():
        found = list(dict.fromkeys(schema[name] for schema in schemas if name in schema)) or [pl.Null()]
        found = [one for one in found if one != pl.Null()] or found
        if len(found) > 1 and not all(one.is_integer() or one in (pl.String, pl.Boolean) for one in found):
            raise NeedsMemoryError(f"column {name!r} is of type {found[0]} in one file and of {found[1]} in another")
        types[column] = found[0] if len(found) == 1 else None
    return types


@dataclass(frozen=True)
class _TextChunks:
    files: list[SourceFile]
    texts: list[TextFile]
    plan: TextPlan
    where: str
    n_bytes: int
    first_row: int = 0

    @property
    def choice(self) -> Choice:
        return self.plan.choice

    @property
    def form(self) -> str:
        return self.plan.words

    @property
    def size(self) -> int:
        return sum(text.size for text in self.texts)

    def shares(self, n: int) -> list[Chunks]:
        middles = np.cumsum([text.size for text in self.texts]) - [text.size / 2 for text in self.texts]
        share_of = (middles * n / max(self.size, 1)).astype(int)
        return [self._part(np.flatnonzero(share_of == share).tolist()) for share in np.unique(share_of)]

    def _part(self, files: list[int]) -> Chunks:
        plan = replace(self.plan, forms=[self.plan.forms[i] for i in files])
        return replace(self, files=[self.files[i] for i in files], texts=[self.texts[i] for i in files], plan=plan)

    def beginning_at(self, row: int) -> Chunks:
        return replace(self, first_row=row)

    def tables(self, notes: Notes | None, skip: int = 0) -> Iterator[tuple[SourceTable, int]]:
        first, columns = self.first_row, self.plan.choice.needed
        for file, text, form in zip(self.files, self.texts, self.plan.forms, strict=True):
            left = LeftOut()
            for block in text.blocks(self.n_bytes, text.header_line() if form.has_header else b""):
                if skip:
                    skip -= 1
                    continue
                with reading(self.where):
                    table = with_partition(read_block(block, form, self.plan.needed, left), file)
                    table = table.with_frame(table.frame.select(columns))
                yield replace(table, where=self.where, first_row=first), block.size
                first += len(table.frame)
            if notes is not None:
                left.tell(text.name, notes)


def _in_utf8(file: SourceFile, encoding: str | None, store: Store) -> SourceFile:
    """The file itself where it is UTF-8, else its text converted.

    Raises:
        DataError: it is not text of its encoding.
        ConfigError: no such encoding.
    """
    found = encoding_of(file, encoding)
    if found != "utf-8":
        stored = store.place(file.at, found)
        store.write(stored, _converted(file, found))
        file = replace(file, stored=stored)
    if not is_sound(file.at):
        raise NeedsMemoryError(f"{file.name} has line ends of old Macs, or byte order marks where files were joined")
    return file


def _converted(file: SourceFile, encoding: str) -> Iterator[bytes]:
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError as error:
        raise ConfigError(f"encoding {encoding!r} is not known; use a name such as utf-8, latin-1 or cp1252") from error
    n_lines = 0
    with file.at.open("rb") as stream:
        chunk = b"-"
        while chunk:
            chunk = stream.read(CHUNK_BYTES)
            try:
                part = decoder.decode(chunk, final=not chunk).removeprefix("\ufeff").encode()
            except UnicodeDecodeError as error:
                line = n_lines + chunk.count(b"\n", 0, error.start) + 1
                told = f"line {line} of {file.name} is not {encoding} text; name its encoding (--encoding)"
                raise DataError(told) from error
            except ValueError as error:  # half a surrogate pair, or a codec that is not for files
                raise DataError(f"{file.name} cannot be read as {encoding!r}: {error}; name its encoding") from error
            n_lines += part.count(b"\n")
            yield part

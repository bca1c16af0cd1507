"""Read files that have names and types for their columns: Parquet and Arrow; and which files are of which kind."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from sasrec.core.errors import DataError
from sasrec.reading.source_table import SourceTable, joined_frames
from sasrec.reading.sources import SourceFile, common_name, data_suffix, reading

FORMAT_OF_SUFFIX = {
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".inter": "inter", ".csv": "csv",
}  # fmt: skip


def kind_of(file: SourceFile, form: str | None) -> str | None:
    """parquet, arrow, arrow stream or jsonl; None = text, or to be told by its lines."""
    kind = file.table
    told = form or FORMAT_OF_SUFFIX.get(data_suffix(file.place))
    if kind is None and told in ("parquet", "arrow"):
        raise DataError(f"cannot read {file.name} as {told}: it does not begin as {told} files do; it may be damaged")
    return kind or (told if told == "jsonl" else None)


def read_tables(
    files: Sequence[SourceFile], kind: str, columns: Sequence[str] | None = None, n_rows: int | None = None
) -> SourceTable:
    """Parquet or Arrow files as one table.

    Args:
        files: in order.
        kind: parquet, arrow or arrow stream.
        columns: those to read; None = all.
        n_rows: of each file; None = all. Of files after the first one row is enough to know their columns.

    Raises:
        DataError: a file is damaged, lacks a column, or its columns do not fit those of the others.
    """
    parts: list[SourceTable] = []
    for file in files:
        with reading(f"{file.name} as {kind}"):
            wanted = None if columns is None else [name for name in columns if name not in file.partition]
            n = n_rows if n_rows is None or not parts else 1
            table = SourceTable.of_rows(_read_table(file, kind, wanted, n), file.name)
            parts.append(with_partition(table, file))
    return joined_frames(parts, common_name(files))


def _read_table(file: SourceFile, kind: str, columns: list[str] | None, n_rows: int | None) -> pl.DataFrame:
    if kind == "parquet":
        return pl.read_parquet(file.readable, columns=columns, n_rows=n_rows, glob=False, hive_partitioning=False)
    with contextlib.ExitStack() as stack:
        stream = file.readable
        opened = stack.enter_context(stream.open("rb")) if isinstance(stream, Path) else stream
        read = pl.read_ipc if kind == "arrow" else pl.read_ipc_stream
        return read(opened, columns=columns, n_rows=n_rows)


def scan_table(file: SourceFile, kind: str) -> pl.LazyFrame:
    """A Parquet or Arrow file on disk, of which any rows can be read."""
    if kind == "parquet":
        return pl.scan_parquet(file.at, glob=False, hive_partitioning=False)
    return pl.scan_ipc(file.at, glob=False, hive_partitioning=False)


def with_partition(table: SourceTable, file: SourceFile) -> SourceTable:
    """The table with the columns that its folders stand for, such as day=2024-01-01."""
    columns = [pl.lit(value).alias(name) for name, value in file.partition.items() if name not in table.frame.columns]
    return table.with_frame(table.frame.with_columns(columns))

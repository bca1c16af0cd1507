"""How much memory it takes to read a log as a whole, told by its sizes before it is read."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from sasrec.core.errors import DataError
from sasrec.reading.columnar import scan_table
from sasrec.reading.columns import Wanted
from sasrec.reading.readers import kind_of_all
from sasrec.reading.sources import SourceFile, reading
from sasrec.reading.textfiles import SNIFFED_BYTES

AN_EVENT = 80  # bytes of each event while the log is read and brought into order
A_TEXT = 40  # more of each event for each column of texts that is read
A_BYTE_OF_TEXT = 3  # of a text file, which is read and taken apart
A_BYTE_OF_JSON = 10
A_BYTE_OF_TABLE = 4  # of Parquet files with texts or lists, which are packed


def bytes_in_memory(files: Sequence[SourceFile], wanted: Wanted) -> int:
    """About how many bytes reading takes at its peak; rather too many."""
    kind = kind_of_all(files, wanted.format)
    size = sum(file.size for file in files)
    if kind in ("parquet", "arrow"):
        return _bytes_of_tables(files, kind, size)
    if kind == "arrow stream":
        return A_BYTE_OF_TABLE * size
    is_json = kind == "jsonl" or files[0].head(SNIFFED_BYTES).lstrip()[:1] in (b"{", b"[")
    return size * A_BYTE_OF_JSON if is_json else size * A_BYTE_OF_TEXT + _n_lines(files, size) * (AN_EVENT + 2 * A_TEXT)


def _bytes_of_tables(files: Sequence[SourceFile], kind: str, size: int) -> int:
    n_rows, packed = 0, 0
    for file in files:
        with reading(f"{file.name} as {kind}"):
            scanned = scan_table(file, kind)
            n_rows += int(scanned.select(pl.len()).collect().item())
            types = scanned.collect_schema().dtypes()
        if any(one.is_nested() or one in (pl.String, pl.Categorical, pl.Enum) for one in types):
            packed += file.size
    return n_rows * (AN_EVENT + (A_TEXT * 2 if packed else 0)) + A_BYTE_OF_TABLE * packed


def _n_lines(files: Sequence[SourceFile], size: int) -> int:
    """About how many events there are, by the length of the first lines and of their fields."""
    head = files[0].head(SNIFFED_BYTES)
    if not head:
        raise DataError(f"{files[0].name} is empty; it needs at least one line with a user and an item")
    n_lines = max(head.count(b"\n"), 1)
    n_fields = len(head.split()) if n_lines * 8 < len(head.split()) else 0  # of sequences, a user a line
    return size * max(n_lines, n_fields) // len(head) + 1

"""How much memory it takes to read a log as a whole, told by its sizes before it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from sasrec.core.errors import DataError
from sasrec.reading.columnar import scan_table
from sasrec.reading.columns import Wanted
from sasrec.reading.readers import kind_of_all
from sasrec.reading.sources import SourceFile, reading
from sasrec.reading.textfiles import SNIFFED_BYTES

AN_EVENT = 80  # bytes of each event while the log is read and brought into order
A_TEXT, A_BYTE = 48, 3  # more for each text of an event, and for each of its bytes
A_BYTE_OF_TEXT = 4  # of a text file, which is read and taken apart
A_BYTE_OF_OTHERS = 10  # of JSON and of lists, which are packed
SAMPLED_ROWS = 1000
INTEGERS = re.compile(rb"[0-9\s,;|:]+")  # a text of these has no dates


def bytes_in_memory(files: Sequence[SourceFile], wanted: Wanted) -> int:
    """About how many bytes reading takes at its peak; rather too many."""
    kind = kind_of_all(files, wanted.format)
    size = sum(file.size for file in files)
    if kind in ("parquet", "arrow"):
        return _bytes_of_tables(files, kind, size)
    is_json = kind == "jsonl" or files[0].head(SNIFFED_BYTES).lstrip()[:1] in (b"{", b"[")
    if is_json or kind == "arrow stream":
        return size * A_BYTE_OF_OTHERS
    if INTEGERS.fullmatch(files[0].head(SNIFFED_BYTES).partition(b"\n")[2]):
        return size + _n_lines(files, size) * (AN_EVENT + A_TEXT // 2)
    return size * A_BYTE_OF_TEXT + _n_lines(files, size) * (AN_EVENT + 2 * A_TEXT)


def _bytes_of_tables(files: Sequence[SourceFile], kind: str, size: int) -> int:
    n_rows = 0
    for file in files:
        with reading(f"{file.name} as {kind}"):
            n_rows += int(scan_table(file, kind).select(pl.len()).collect().item())
    with reading(f"{files[0].name} as {kind}"):
        sample = scan_table(files[0], kind).head(SAMPLED_ROWS).collect()
    if any(one.is_nested() for one in sample.dtypes):
        return max(size * A_BYTE_OF_OTHERS, n_rows * AN_EVENT)
    texts = [column.cast(pl.String) for column in sample if column.dtype in (pl.String, pl.Categorical, pl.Enum)]
    lengths = [float(column.str.len_bytes().mean() or 0) for column in texts]  # type: ignore[arg-type]
    return int(n_rows * (AN_EVENT + sum(A_TEXT + A_BYTE * length for length in lengths)))


def _n_lines(files: Sequence[SourceFile], size: int) -> int:
    """About how many events there are, by the length of the first lines and of their fields."""
    head = files[0].head(SNIFFED_BYTES)
    if not head:
        raise DataError(f"{files[0].name} is empty; it needs at least one line with a user and an item")
    n_lines = max(head.count(b"\n"), 1)
    n_fields = len(head.split()) if n_lines * 8 < len(head.split()) else 0  # of sequences, a user a line
    return size * max(n_lines, n_fields) // len(head) + 1

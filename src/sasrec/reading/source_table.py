"""A table as it was read, with the user's own column names and how messages name its rows; and several as one."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import polars as pl

from sasrec.core.errors import DataError


@dataclass(frozen=True)
class SourceTable:
    """A frame with the user's own column names, and how to speak of its rows."""

    frame: pl.DataFrame
    where: str  # "the frame" or the file
    place: Callable[[int], str]  # how a message names a row
    is_text: bool = False  # spaces around values are padding
    first_row: int = 0  # rows of the log before these

    @classmethod
    def of_rows(cls, frame: pl.DataFrame, where: str) -> SourceTable:
        """A table whose rows are counted from 0."""
        return cls(frame, where, lambda row: f"row {row} of {where}")

    @classmethod
    def of_lines(cls, frame: pl.DataFrame, where: str, lines: pl.Series | int) -> SourceTable:
        """A table read from text.

        Args:
            frame: the table.
            where: the file.
            lines: the line of each row, or that of row 0.
        """

        def place(row: int) -> str:
            return f"line {lines + row if isinstance(lines, int) else lines[row]} of {where}"

        return cls(frame, where, place, is_text=True)

    def filter(self, keep: pl.Series) -> SourceTable:
        """The rows that are kept, which messages still name as they were."""
        rows = keep.arg_true()
        return replace(self, frame=self.frame.filter(keep), place=lambda row: self.place(int(rows[row])))

    def with_frame(self, frame: pl.DataFrame) -> SourceTable:
        """The same rows with other columns."""
        return replace(self, frame=frame)


def joined_frames(parts: Sequence[SourceTable], where: str) -> SourceTable:
    """Tables as one, with the columns of all; a table that lacks one has nothing there."""
    parts = [part for part in parts if len(part.frame)] or parts[:1]
    names = list(dict.fromkeys(name for part in parts for name in part.frame.columns))
    shared = [name for name in names if all(name in part.frame.columns for part in parts)]
    if names and not shared:
        raise DataError(f"{parts[1].where} has other columns than {parts[0].where}; give files of one log")
    tables = [p.with_frame(_with_all(p.frame, names)) for p in parts]
    return joined(tables, where)


def _with_all(frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    return frame.select(pl.col(n) if n in frame.columns else pl.lit(None).alias(n) for n in names)


def joined(tables: Sequence[SourceTable], where: str) -> SourceTable:
    """Tables one after the other, as one; columns of different types become one type.

    Raises:
        DataError: one has times as dates where another has numbers.
    """
    if len(tables) == 1:
        return tables[0]
    names = tables[0].frame.columns
    columns = {name: _joined_column([table.frame[name] for table in tables], name, where) for name in names}
    starts = [0]
    for table in tables:
        starts.append(starts[-1] + len(table.frame))

    def place(row: int) -> str:
        part = bisect.bisect_right(starts, row) - 1
        return tables[part].place(row - starts[part])

    return SourceTable(pl.DataFrame(columns), where, place, any(table.is_text for table in tables))


def _joined_column(pieces: list[pl.Series], name: str, where: str) -> pl.Series:
    pieces = [piece for piece in pieces if len(piece)] or pieces[:1]
    types = {piece.dtype for piece in pieces} - {pl.Null()}
    if len(types) == 1:
        pieces = [piece.cast(next(iter(types))) for piece in pieces]
    if len(types) > 1:
        if any(kind.is_temporal() for kind in types) and any(kind.is_numeric() for kind in types):
            raise DataError(
                f"column {name!r} of {where} has dates in one file and numbers in another; write them alike"
            )
        if any(kind.is_nested() for kind in types):
            return _joined_nested(pieces, name, where)
        pieces = [as_text(piece) for piece in pieces]
    return pl.concat([piece.alias(name) for piece in pieces])


def _joined_nested(pieces: list[pl.Series], name: str, where: str) -> pl.Series:
    """Lists and structs as one type, where it is only fields that some lack."""
    try:
        return pl.concat([piece.to_frame(name) for piece in pieces], how="vertical_relaxed")[name]
    except pl.exceptions.PolarsError as error:
        kinds = " and ".join(str(piece.dtype) for piece in pieces[:2])
        raise DataError(
            f"column {name!r} of {where} differs between files ({kinds}); write it alike, or leave it out"
        ) from error


def as_text(values: pl.Series) -> pl.Series:
    """Values of one type as text, whole floats as the integers they stand for, times as ISO texts in UTC."""
    if values.dtype.is_temporal():
        return values.cast(pl.Datetime("us")).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
    whole = values.dtype.is_float() and bool((values == values.round()).all())
    return (values.cast(pl.Int64, strict=False) if whole else values).cast(pl.String)

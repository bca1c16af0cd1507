"""Parquet and Arrow files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from polars.exceptions import PanicException

from sasrec.core.errors import DataError
from sasrec.reading.readers import read_interactions

Save = Callable[[str, str | bytes], Path]
FRAME = pl.DataFrame({"user": [1, 1], "item": [2, 3], "time": [6, 5]})


def written(write: str) -> bytes:
    buffer = io.BytesIO()
    getattr(FRAME, write)(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["log", "log.csv", "log.parquet", "log.feather"])
@pytest.mark.parametrize("write", ["write_parquet", "write_ipc", "write_ipc_stream"])
def test_tables_are_told_by_their_first_bytes(name: str, write: str, save: Save) -> None:
    assert read_interactions(save(name, written(write))).rows() == [(1, 2, 6), (1, 3, 5)]


def test_damaged_table_is_refused(save: Save) -> None:
    with pytest.raises(DataError, match=r"cannot read .*log.parquet as parquet: "):
        read_interactions(save("log.parquet", written("write_parquet")[:-20]))
    with pytest.raises(DataError, match=r"cannot read .*log.arrow as arrow: "):
        read_interactions(save("log.arrow", written("write_ipc")[:-40]))
    for told, name in ((None, "csv.parquet"), ("parquet", "log.csv")):
        with pytest.raises(DataError, match=r"as parquet: it does not begin as parquet files do"):
            read_interactions(save(name, "user,item\n1,2\n"), format=told)


def test_panic_of_the_reader_below_is_one_sentence(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    def panics(*_: object, **__: object) -> pl.DataFrame:
        raise PanicException("range end index 9 out of range")

    monkeypatch.setattr(pl, "read_parquet", panics)
    with pytest.raises(DataError, match=r"cannot read .*log.parquet as parquet: range end index"):
        read_interactions(save("log.parquet", written("write_parquet")))


def test_times_that_only_some_files_have_are_not_lost(tmp_path: Path) -> None:
    FRAME.drop("time").write_parquet(tmp_path / "a.parquet")
    FRAME.write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"a.parquet as parquet: unable to find column .time.; .*\"user\", \"item\""):
        read_interactions(tmp_path)
    assert read_interactions(tmp_path / "a.parquet").width == 2


def test_types_of_several_files_become_one(tmp_path: Path) -> None:
    FRAME.write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user": ["x"], "item": [2.0], "time": [3.5]}).write_parquet(tmp_path / "b.parquet")
    FRAME.head(0).cast(pl.String).write_parquet(tmp_path / "c.parquet")
    assert read_interactions(tmp_path).rows() == [("1", 2, 6.0), ("1", 3, 5.0), ("x", 2, 3.5)]
    FRAME.with_columns(pl.lit(None).alias("time")).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"row 0 of .*b.parquet has nothing in column 'time'"):
        read_interactions(tmp_path)


def test_columns_of_tables_can_be_named_by_position(tmp_path: Path) -> None:
    FRAME.write_parquet(tmp_path / "a.parquet")
    assert read_interactions(tmp_path / "a.parquet", columns="item,timestamp,user").rows() == [(6, 1, 2), (5, 1, 3)]
    with pytest.raises(DataError, match="has 3 columns, and --columns names 2"):
        read_interactions(tmp_path / "a.parquet", columns="item,user")

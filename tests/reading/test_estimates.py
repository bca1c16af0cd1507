"""How much memory a log takes is said before it is read, and is rather too much."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from sasrec.reading.columns import Wanted
from sasrec.reading.estimates import bytes_in_memory
from sasrec.reading.sources import find_files

N = 5000


def estimate(path: Path) -> float:
    """Bytes an event."""
    return bytes_in_memory(find_files(path), Wanted()) / N


def test_numbers_take_less_than_texts_and_lists_most(tmp_path: Path) -> None:
    numbers = pl.DataFrame({"user_id": range(N), "item_id": range(N), "timestamp": range(N)})
    texts = numbers.with_columns(pl.format("user-{}", "user_id").alias("user_id"))
    numbers.write_parquet(tmp_path / "numbers.parquet")
    texts.write_ipc(tmp_path / "texts.arrow")
    numbers.write_csv(tmp_path / "numbers.csv")
    texts.write_csv(tmp_path / "texts.csv")
    texts.write_ndjson(tmp_path / "texts.jsonl")
    (tmp_path / "sequences.txt").write_text("1 " + " ".join(map(str, range(N))) + "\n")
    assert estimate(tmp_path / "numbers.parquet") == 80
    assert 130 < estimate(tmp_path / "texts.arrow") < 200
    assert 100 < estimate(tmp_path / "numbers.csv") < 140
    assert 200 < estimate(tmp_path / "texts.csv") < 300
    assert 400 < estimate(tmp_path / "texts.jsonl") < 700
    assert 100 < estimate(tmp_path / "sequences.txt") < 250

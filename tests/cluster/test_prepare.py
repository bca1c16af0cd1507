"""A log that workers read side by side; that it is the log of one process is tested beside logs read in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from cluster_here import Here

from sasrec.cluster.prepare import ClusterWorkers
from sasrec.core.errors import DataError
from sasrec.data.bounded import Workplace
from sasrec.data.logs import Log, Reading, load_log
from sasrec.reading.chunks import ChunkSizes, open_chunks
from sasrec.reading.columns import Wanted
from sasrec.reading.notes import Notes
from sasrec.reading.sources import Store, find_files
from sasrec.reading.survey import Surveyed


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rng, folder = np.random.default_rng(4), tmp_path / "log"
    folder.mkdir()
    for n in range(5):
        events = {"user_id": rng.integers(0, 9, 40), "item_id": rng.integers(0, 7, 40), "timestamp": rng.random(40)}
        pl.DataFrame(events).write_parquet(folder / f"{n}.parquet")
    return folder


def read_by(workers: ClusterWorkers | None, log: Path, spool: Path, stop_at: str = "") -> Log:
    def progress(what: str, done: int, total: int) -> None:
        if stop_at and what.startswith(stop_at) and done == total:
            raise KeyboardInterrupt

    spool.mkdir(exist_ok=True)
    return load_log(log, Reading(repeats="last", memory="4GB"), Workplace(lambda: spool, progress, workers))


@pytest.mark.parametrize("stop_at", ["reading", "sorting", "bringing", "closing"])
@pytest.mark.parametrize("by_workers", [True, False], ids=["by workers", "alone"])
def test_after_an_interrupt_workers_and_one_process_go_on(
    log: Path, tmp_path: Path, stop_at: str, by_workers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sasrec.data.logs.fits", lambda *_: False)
    workers = ClusterWorkers(Here(3))
    whole = read_by(None, log, tmp_path / "whole").sequences
    with pytest.raises(KeyboardInterrupt):
        read_by(workers, log, tmp_path / "spool", stop_at)
    found = read_by(workers if by_workers else None, log, tmp_path / "spool").sequences
    assert found.facts == whole.facts
    np.testing.assert_array_equal(found.items, whole.items)
    np.testing.assert_array_equal(found.timestamps, whole.timestamps)


@pytest.mark.parametrize(("n", "n_shares"), [(1, 1), (2, 2), (7, 7), (99, 15)])
def test_shares_are_the_chunks_in_their_order(log: Path, tmp_path: Path, n: int, n_shares: int) -> None:
    files = find_files(log, Store(tmp_path))
    chunks = open_chunks(files, Wanted(), Notes(), ChunkSizes(15, 100), Store(tmp_path))
    shares = chunks.shares(n)
    assert len(shares) == n_shares
    assert sum(share.size for share in shares) == chunks.size == 200
    joined = [table.frame for share in shares for table, _ in share.tables(None)]
    assert pl.concat(joined).equals(pl.concat(table.frame for table, _ in chunks.tables(None)))
    rows = [table.first_row for share in shares for table, _ in share.tables(None)]
    assert rows == [table.first_row for table, _ in chunks.tables(None)]


def test_files_that_change_meanwhile_are_refused(log: Path, tmp_path: Path) -> None:
    class Changing(ClusterWorkers):
        def survey(self, *given: Any) -> Surveyed:
            found = super().survey(*given)
            pl.read_parquet(log / "3.parquet").reverse().write_parquet(log / "3.parquet")
            return found

    with pytest.raises(DataError, match="changed while it was read; run the command again"):
        read_by(Changing(Here(2)), log, tmp_path / "spool")

"""A made log of any size, in files by time: what reading and training of large logs is measured on.

Users have lengths as in logs of shops and games (log-normal, many short ones), items are as popular as Zipf's law has
it, ids are scattered numbers or texts, and each file is a stretch of time in which all kinds of users have events. Only
one file is in memory at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

SPREAD = 1.1  # of the logarithm of users' lengths
EXPONENT = 1.0  # of Zipf's law
SECONDS_A_FILE = 86_400
BEGIN = 1_600_000_000  # seconds since 1970
SCATTER = 2_654_435_761  # odd, so that ids stay different


@dataclass(frozen=True)
class Made:
    """What a made log is to be."""

    n_events: int
    n_users: int
    n_items: int
    n_files: int = 1
    texts: bool = False  # whether ids are texts
    seed: int = 0

    def files(self) -> Iterator[pl.DataFrame]:
        """user_id, item_id, timestamp of each file, in time order."""
        rng = np.random.default_rng(self.seed)
        activity = np.cumsum(rng.lognormal(sigma=SPREAD, size=self.n_users))
        popularity = np.cumsum(np.arange(1, self.n_items + 1, dtype=np.float64) ** -EXPONENT)
        ends = np.linspace(0, self.n_events, self.n_files + 1).astype(np.int64)
        for file, n in enumerate(np.diff(ends).tolist()):
            users = np.searchsorted(activity, rng.random(n) * activity[-1])
            items = np.searchsorted(popularity, rng.random(n) * popularity[-1])
            times = np.sort(rng.integers(0, SECONDS_A_FILE, n)) + BEGIN + file * SECONDS_A_FILE
            yield pl.DataFrame({"user_id": self._ids(users, "u"), "item_id": self._ids(items, "i"), "timestamp": times})

    def _ids(self, numbers: np.ndarray, prefix: str) -> pl.Series:
        scattered = pl.Series(numbers.astype(np.int64) * SCATTER % 2**40)
        return scattered.cast(pl.String).str.pad_start(13, "0").str.replace("^", prefix) if self.texts else scattered


def write(made: Made, folder: Path, form: str) -> None:
    """Write the log's files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(made.files()):
        path = folder / f"part-{number:04d}.{form}"
        frame.write_parquet(path) if form == "parquet" else frame.write_csv(path)


def main(argv: list[str] | None = None) -> None:
    """Write a made log."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    flags.add_argument("folder", type=Path, help="the folder to write")
    flags.add_argument("--events", type=float, default=1e6)
    flags.add_argument("--users", type=float, default=1e5)
    flags.add_argument("--items", type=float, default=1e4)
    flags.add_argument("--files", type=int, default=1)
    flags.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    flags.add_argument("--texts", action="store_true", help="ids are texts")
    flags.add_argument("--seed", type=int, default=0)
    given = flags.parse_args(argv)
    sizes = int(given.events), int(given.users), int(given.items)
    write(Made(*sizes, given.files, given.texts, given.seed), given.folder, given.format)


if __name__ == "__main__":
    main()

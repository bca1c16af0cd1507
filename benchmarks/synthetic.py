"""A made log like Steam's, as text lines "user item". In: sizes and a seed; out: a file.

Steam.txt of the paper has 334,730 users, 13,047 items, 3.7 M events. Lengths are 5 and a log-normal tail; popularity
falls as 1 / (rank + 10); a user has an item once, as far as a few rounds of drawing again allow; every item occurs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

N_ROWS, N_USERS, N_ITEMS = 3_700_000, 334_730, 13_047
MIN_LENGTH = 5
LENGTH_SIGMA = 1.2  # of the log-normal weights that share out the events beyond MIN_LENGTH
HEAD = 10  # flattens the most popular items
ROUNDS = 12  # of drawing repeated items again


def make_log(n_rows: int, n_users: int, n_items: int, seed: int) -> pl.DataFrame:
    """user_id from 1 in order, item_id from 1: (n_rows, 2).

    Raises:
        ValueError: fewer than MIN_LENGTH rows a user, or fewer rows than items.
    """
    if n_rows < max(MIN_LENGTH * n_users, n_items):
        raise ValueError(f"{n_rows} rows are too few for {n_users} users and {n_items} items")
    rng = np.random.default_rng(seed)
    weights = rng.lognormal(sigma=LENGTH_SIGMA, size=n_users)
    lengths = MIN_LENGTH + rng.multinomial(n_rows - MIN_LENGTH * n_users, weights / weights.sum())
    users = np.repeat(np.arange(1, n_users + 1), lengths)
    by_rank = np.cumsum(1 / (np.arange(n_items) + 1 + HEAD))
    names = rng.permutation(n_items) + 1  # so that an id says nothing about popularity
    items = names[_draw(rng, by_rank, n_rows)]
    for _ in range(ROUNDS):
        again = _repeated(users, items, n_items)
        items[again] = names[_draw(rng, by_rank, len(again))]
    _plant_missing(rng, items, names)
    return pl.DataFrame({"user_id": users, "item_id": items})


def _draw(rng: np.random.Generator, cumulated: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Ranks from 0, by their cumulated weights."""
    ranks: NDArray[np.int64] = np.searchsorted(cumulated, rng.random(n) * cumulated[-1], side="right")
    return ranks


def _repeated(users: NDArray[np.int64], items: NDArray[np.int64], n_items: int) -> NDArray[np.int64]:
    """Rows whose item an earlier row of the same user has."""
    keys = users * (n_items + 1) + items
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    again: NDArray[np.int64] = order[1:][same]
    return again


def _plant_missing(rng: np.random.Generator, items: NDArray[np.int64], names: NDArray[np.int64]) -> None:
    """Put items that were never drawn in the place of the most popular ones."""
    counts = np.bincount(items, minlength=len(names) + 1)
    missing = np.flatnonzero(counts[1:] == 0) + 1
    spare = np.flatnonzero(np.isin(items, names[: 1 + len(names) // 10]) & (counts[items] > 1 + len(missing)))
    if len(spare) < len(missing):
        raise ValueError(f"{len(items)} rows are too few for {len(names)} items to occur")
    items[rng.choice(spare, len(missing), replace=False)] = missing


def main(argv: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    flags.add_argument("output", type=Path, help="the file to write")
    flags.add_argument("--rows", type=int, default=N_ROWS)
    flags.add_argument("--users", type=int, default=N_USERS)
    flags.add_argument("--items", type=int, default=N_ITEMS)
    flags.add_argument("--seed", type=int, default=0)
    arguments = flags.parse_args(argv)
    log = make_log(arguments.rows, arguments.users, arguments.items, arguments.seed)
    log.write_csv(arguments.output, separator=" ", include_header=False)


if __name__ == "__main__":
    main()

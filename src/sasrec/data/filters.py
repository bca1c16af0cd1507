"""Drop repeated events, or rare users and items, from a log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import polars as pl

from sasrec.core.errors import ConfigError, DataError
from sasrec.core.forks import needs_threads_of
from sasrec.core.suggestions import suggestion

Repeats = Literal["keep", "first", "last", "consecutive", "consecutive_again"]


@dataclass(frozen=True)
class Filters:
    """Which events stay."""

    repeats: Repeats = "keep"
    core: int = 0
    iterated: bool = True


def nothing_left(core: int, source: Any) -> DataError:
    """The error for a log of which a k-core filter leaves nothing."""
    return DataError(f"no event is left after the {core}-core filter of {source}; use a smaller --k-core")


def filter_repeats(log: pl.DataFrame, repeats: Repeats) -> pl.DataFrame:
    """Keep or drop repeated events of one user and item; rows stay in input order.

    Args:
        log: as `read_interactions` returns it.
        repeats: keep = all; first, last = one event per user and item, the earliest or latest (of equal times the first
            or last in the input); consecutive = drop an event of the same item as the user's event before it;
            consecutive_again = the same, for which `filter_events` comes back after the k-core filter. Where events
            have types, an item's events of different types do not repeat each other.

    Raises:
        ConfigError: another word.
    """
    if repeats == "keep":
        return log
    words = get_args(Repeats)
    if repeats not in words:
        raise ConfigError(f"repeats={repeats!r} is not one of {', '.join(words)}{suggestion(repeats, words)}")
    needs_threads_of("Polars")
    by_time = log.with_row_index("row")
    if "timestamp" in log.columns:
        by_time = by_time.sort("timestamp", maintain_order=True)
    what = [name for name in ("item_id", "event") if name in log.columns]
    if repeats.startswith("consecutive"):
        differs = [pl.col(name) != pl.col(name).shift().over("user_id") for name in what]
        kept = by_time.filter(pl.any_horizontal(differs).fill_null(True))
    else:
        kept = by_time.unique(["user_id", *what], keep="first" if repeats == "first" else "last", maintain_order=True)
    return kept.sort("row").drop("row")


def filter_k_core(
    log: pl.DataFrame, min_user_events: int = 5, min_item_events: int = 5, iterated: bool = True
) -> pl.DataFrame:
    """Drop users and items with few events; rows stay in input order.

    Args:
        log: as `read_interactions` returns it.
        min_user_events: events a user needs.
        min_item_events: events an item needs.
        iterated: repeat until nothing more falls out; False = count users and items once, on the whole log, as the
            preprocessing of kang205/SASRec does.
    """
    needs_threads_of("Polars")
    enough = (pl.len().over("user_id") >= min_user_events) & (pl.len().over("item_id") >= min_item_events)
    while len(log):
        kept = log.filter(enough)
        if not iterated or len(kept) == len(log):
            return kept
        log = kept
    return log


def filter_events(log: pl.DataFrame, repeats: Repeats, core: int, iterated: bool = True) -> pl.DataFrame:
    """Drop repeats, then users and items with few events; rows stay in input order.

    With consecutive_again, events that stand next to their like once others have gone are dropped, too, and rare users
    and items again, until nothing more falls out.

    Args:
        log: as `read_interactions` returns it.
        repeats: which repeats stay; see `filter_repeats`.
        core: events that users and items need; 0 = any number.
        iterated: see `filter_k_core`; False = repeats are dropped once more behind it.

    Source of consecutive_again: core_filter in src/preprocess/filters.py of monkey0head/time-to-split 5a33f9f.

    Raises:
        ConfigError: another word for repeats.
    """
    log = filter_repeats(log, repeats)
    while core:
        cored = filter_k_core(log, core, core, iterated)
        if repeats != "consecutive_again":
            return cored
        again = filter_repeats(cored, repeats)
        if not iterated or len(again) == len(log):
            return again
        log = again
    return log

"""Load a log from any source: a file, a frame, a data set's name or a prepared folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from sasrec.core.errors import ConfigError, DataError
from sasrec.data.datasets import DATASETS, load_dataset
from sasrec.data.filters import Repeats, filter_k_core, filter_repeats
from sasrec.data.prepared import is_prepared, load_sequences, load_vocabulary
from sasrec.data.readers import read_interactions, read_titles
from sasrec.data.sequences import Sequences, build_sequences
from sasrec.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Log:
    """A log that has been read: what is trained on and measured."""

    sequences: Sequences
    vocabulary: Vocabulary
    name: str

    def with_titles(self, titles: pl.DataFrame | None) -> Log:
        """The same log with the titles of a frame item_id, title; None = as it is."""
        return self if titles is None else replace(self, vocabulary=self.vocabulary.with_titles(titles))


def _option(default: Any, text: str) -> Any:
    """A field with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Reading:
    """How a log is read; the command line's flags are made from these fields."""

    format: str | None = _option(
        None, "pairs, triples, ratings, sequences, csv, tsv, inter, jsonl or parquet; default: recognised"
    )
    user_column: str | None = _option(None, "name of the user column; default: usual names are recognised")
    item_column: str | None = _option(None, "name of the item column; default: usual names are recognised")
    timestamp_column: str | None = _option(None, "name of the time column; default: usual names are recognised")
    repeats: Repeats = _option(
        "keep",
        "which events of the same user and item stay: all, the first, the last, or all but immediate repeats",
    )
    k_core: int = _option(0, "drop users and items with fewer events than this, again and again until none is left")
    one_pass: bool = _option(False, "with --k-core: count and drop only once, as the paper did")
    titles: Path | None = _option(None, "file with item ids and titles: CSV, TSV, .item or Parquet")

    @property
    def columns(self) -> dict[str, str]:
        """What `read_interactions` is told."""
        names = ("format", "user_column", "item_column", "timestamp_column")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def filters(self) -> bool:
        """Whether events are left out."""
        return self.repeats != "keep" or self.k_core > 0


AS_IT_IS = Reading()


def load_log(source: Any, reading: Reading = AS_IT_IS) -> Log:
    """Read a log.

    Args:
        source: whatever `read_interactions` takes; a name of `DATASETS`; or a folder that `prepare` or `train` wrote.
        reading: format, columns, filters, titles.

    Raises:
        DataError: it cannot be read, or nothing is left of it.
        ConfigError: a prepared folder is to be filtered.
    """
    if isinstance(source, str | Path) and is_prepared(Path(source)):
        log = _load_prepared(Path(source), reading)
    else:
        log = _read(source, reading)
    return log if reading.titles is None else log.with_titles(read_titles(reading.titles))


def _load_prepared(folder: Path, reading: Reading) -> Log:
    if reading.filters:
        raise ConfigError(f"--repeats and --k-core filter a log file, and {folder} is a prepared folder")
    sequences = load_sequences(folder)
    assert sequences is not None
    return Log(sequences, load_vocabulary(folder), folder.name)


def _read(source: Any, reading: Reading) -> Log:
    if isinstance(source, str) and source in DATASETS and not Path(source).exists():
        (events, titles), name = load_dataset(source), source
    else:
        events, titles = read_interactions(source, **reading.columns), None
        name = Path(source).name.split(".")[0] if isinstance(source, str | Path) else "log"
    return Log(*build_sequences(_filtered(events, reading, source)), name).with_titles(titles)


def _filtered(events: pl.DataFrame, reading: Reading, source: Any) -> pl.DataFrame:
    events, core = filter_repeats(events, reading.repeats), reading.k_core
    if not core:
        return events
    events = filter_k_core(events, core, core, iterated=not reading.one_pass)
    if not len(events):
        raise DataError(f"no event is left after the {core}-core filter of {source}; use a smaller --k-core")
    return events

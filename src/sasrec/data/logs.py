"""Load a log from any source: files, a frame, a data set's name or a prepared folder; say what was understood of it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from sasrec.core.amounts import bytes_in
from sasrec.core.errors import ConfigError, DataError
from sasrec.core.suggestions import suggestion
from sasrec.data.bounded import Workplace, budget_of, find_within, fits, read_in_parts, too_little
from sasrec.data.event_types import types_in_words
from sasrec.data.filters import Filters, Repeats, filter_events, nothing_left
from sasrec.data.items import describe
from sasrec.data.partitioned import Alone
from sasrec.data.prepared import is_prepared, load_sequences, load_vocabulary
from sasrec.data.sequences import Sequences, build_sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.columns import Wanted
from sasrec.reading.datasets import DATASETS, load_dataset_log
from sasrec.reading.frames import frame_of
from sasrec.reading.notes import NeedsMemoryError
from sasrec.reading.readers import are_files, read_files, read_log, wanted_columns
from sasrec.reading.titles import read_titles

logger = logging.getLogger(__name__)
MEMORY = "4GB"  # that reading may take in each of several workers, where nothing is said
NAME = re.compile(r"[\w-]{2,}")  # a word, not a path
FEW_TITLES = 0.5  # of the items: with fewer, ids may not be those of the log


@dataclass(frozen=True)
class Log:
    """A log that has been read: what is trained on and measured."""

    sequences: Sequences
    vocabulary: Vocabulary
    name: str

    def with_titles(self, titles: Any) -> Log:
        """The same log with the titles of a frame item_id, title of any library; None = as it is.

        Raises:
            DataError: it is no frame, or lacks one of these columns.
        """
        if titles is None:
            return self
        titles = frame_of(titles)
        for name in ("item_id", "title"):
            if name not in titles.columns:
                raise DataError(f"the titles have no column {name!r}; their columns are: {', '.join(titles.columns)}")
        vocabulary = self.vocabulary.with_titles(titles)
        _say_titles(self.vocabulary, vocabulary, titles)
        return replace(self, vocabulary=vocabulary)

    def with_items(
        self, items: Any = None, features: Any = (), vectors: Any = None, item_column: str | None = None
    ) -> Log:
        """The same log with what is known of its items; see `items.describe`."""
        vocabulary = describe(self.vocabulary, items, features, vectors, item_column)
        return Log(self.sequences.with_catalogue(len(vocabulary)), vocabulary, self.name)

    @property
    def lines(self) -> list[str]:
        """What the log is, in three lines, and one more where events have types."""
        facts = self.sequences.facts
        understanding = self.sequences.understanding
        types = [f"types of events: {types_in_words(facts.event_types)}"] if facts.event_types else []
        if understanding is None:
            told = [f"{self.name}: {facts.n_events:,} events of {facts.n_users:,} users and {facts.n_items:,} items"]
            return told + types
        return understanding.lines(facts.n_events, facts.n_users, facts.n_items) + types


def _say_titles(log: Vocabulary, titled: Vocabulary, titles: pl.DataFrame) -> None:
    """How many items of the log have a title."""
    told = f"titles for {titled.n_titled:,} of {len(log):,} items"
    if titled.n_titled >= FEW_TITLES * len(log):
        logger.info("%s", told)
        return
    example = f", such as {titles['item_id'][0]!r}" if len(titles) else ""
    logger.warning(
        "%s: the log's ids are such as %r, and the titles have %d ids%s; --title-item-column names their column",
        told, log.ids[0], len(titles), example,
    )  # fmt: skip


def _option(default: Any, text: str) -> Any:
    """A field with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Reading:
    """How a log is read; the command line's flags are made from these fields."""

    format: str | None = _option(
        None, "pairs, triples, ratings, sequences, csv, tsv, inter, jsonl, parquet or arrow; default: recognised"
    )
    columns: str | None = _option(
        None,
        "what the columns are, from left to right, such as user,timestamp,item,-; words: user, item, timestamp, event, "
        "weight, rating, and - for a column to skip",
    )
    user_column: str | None = _option(None, "name of the user column; default: usual names are recognised")
    item_column: str | None = _option(None, "name of the item column; default: usual names are recognised")
    timestamp_column: str | None = _option(None, "name of the time column; default: usual names are recognised")
    event_column: str | None = _option(
        None, "name of the column of types of events, such as view and purchase; default: types are not read"
    )
    weight_column: str | None = _option(
        None, "name of the column that says how much each event counts in training; default: all count the same"
    )
    encoding: str | None = _option(
        None, "encoding of a text log, such as latin-1; default: UTF-8, or UTF-16 by its mark"
    )
    drop_missing: bool = _option(
        False, "leave out events whose user, item or time is missing: empty, NA, NULL, None, nan and the like"
    )
    memory: str | None = _option(
        None,
        "the most memory that reading may take, such as 4GB; a log that does not fit is put together on disk, beside "
        "--output; default: the log is read in memory",
    )
    repeats: Repeats = _option(
        "keep",
        "which events of the same user and item stay: all, the first, the last, or all but immediate repeats; "
        "consecutive_again = also those are dropped that --k-core makes immediate",
    )
    k_core: int = _option(0, "drop users and items with fewer events than this, again and again until none is left")
    one_pass: bool = _option(False, "with --k-core: count and drop only once, as the paper did")
    titles: Path | None = _option(None, "file with item ids and titles, in any form that a log may have")
    title_item_column: str | None = _option(
        None, "name of the column of item ids in --titles; default: a usual name, else the first that ends in id"
    )
    title_column: str | None = _option(None, "name of the column of titles in --titles; default: a usual name")
    item_file: str | None = _option(
        None, "file with item ids and what is known of them, in any form that a log may have, or the name of a data set"
    )
    item_file_id: str | None = _option(
        None, "name of the column of item ids in --item-file; default: a usual name, else the first that ends in id"
    )
    item_features: str | None = _option(
        None,
        "columns of --item-file that the model learns from, separated by commas; col:category, col:number: as such",
    )
    item_vectors: str | None = _option(
        None,
        "column of --item-file that holds a vector of each item, or a .npy file whose rows are those of --item-file",
    )

    @property
    def wanted(self) -> Wanted:
        """What the reader is told."""
        wanted = wanted_columns(
            self.format,
            self.user_column,
            self.item_column,
            self.timestamp_column,
            self.columns,
            self.encoding,
            self.drop_missing,
        )
        return replace(wanted, event=self.event_column, weight=self.weight_column)

    @property
    def flags(self) -> list[str]:
        """The flags of a command that reads a log in this way."""
        words: list[str] = []
        for one in fields(self):
            value, flag = getattr(self, one.name), "--" + one.name.replace("_", "-")
            if value != one.default:
                words += [flag] if value is True else [flag, str(value)]
        return words

    @property
    def filters(self) -> bool:
        """Whether events are left out."""
        return self.repeats != "keep" or self.k_core > 0


AS_IT_IS = Reading()


def load_log(source: Any, reading: Reading = AS_IT_IS, workplace: Workplace | None = None) -> Log:
    """Read a log, and say in three lines what it is.

    Args:
        source: whatever `read_interactions` takes; a name of `DATASETS`; or a folder that `prepare` or `train` wrote.
        reading: format, columns, filters, titles.
        workplace: where files are put together that do not fit in `reading.memory`; the log is mapped from there.

    Raises:
        DataError: it cannot be read, or nothing is left of it.
        ConfigError: a prepared folder is to be filtered, or is one of several logs; or the memory is too little.
        CheckpointError: the disk is full.
    """
    source = _only(source)
    _check_name(source)
    if isinstance(source, str | Path) and is_prepared(Path(source)):
        log = _load_prepared(Path(source), reading)
    else:
        log = _read(source, reading, workplace)
    for line in log.lines:
        logger.info("%s", line)
    if reading.titles is not None:
        log = log.with_titles(read_titles(reading.titles, reading.title_item_column, reading.title_column))
    if reading.item_file is None and not reading.item_features and not reading.item_vectors:
        return log
    return log.with_items(reading.item_file, reading.item_features or (), reading.item_vectors, reading.item_file_id)


def _only(source: Any) -> Any:
    """The source itself where it is a list of one; several are files, folders of files and patterns.

    Raises:
        ConfigError: one of several is no file.
    """
    if not isinstance(source, list | tuple):
        return source
    if len(source) == 1:
        return source[0]
    for one in source:
        if _is_dataset(one):
            raise ConfigError(
                f"{one} is the name of a data set, which is a log of its own; give it alone, or only files"
            )
        if isinstance(one, str | Path) and is_prepared(Path(one)):
            raise ConfigError(f"{one} is a prepared folder, which is a log of its own; give it alone, or only files")
    return source


def _is_dataset(source: Any) -> bool:
    return isinstance(source, str) and source in DATASETS and not Path(source).exists()


def _check_name(source: Any) -> None:
    """Refuse what is no file and looks like the name of a data set, misspelt."""
    if isinstance(source, str) and source not in DATASETS and NAME.fullmatch(source) and not Path(source).exists():
        meant = suggestion(source, DATASETS)
        if meant:
            raise DataError(f"there is no file {source}, and no data set of this name{meant}")


def _load_prepared(folder: Path, reading: Reading) -> Log:
    if reading.filters:
        raise ConfigError(f"--repeats and --k-core filter a log file, and {folder} is a prepared folder")
    if reading.wanted != Wanted():
        raise ConfigError(f"--format, --columns and the like read a log file, and {folder} is a prepared folder")
    sequences = load_sequences(folder)
    assert sequences is not None
    vocabulary = load_vocabulary(folder)
    if vocabulary.encoder is not None:
        logger.info("features of items: %s, as in %s", ", ".join(vocabulary.encoder.columns), folder)
    sequences = replace(sequences, seen=None)  # seen by that run's model alone
    return Log(sequences.with_catalogue(len(vocabulary)), vocabulary, folder.name)


def _read(source: Any, reading: Reading, workplace: Workplace | None) -> Log:
    workers = None if workplace is None else workplace.workers
    if (reading.memory is not None or workers is not None) and are_files(source) and not _is_dataset(source):
        return _read_within(bytes_in(reading.memory or MEMORY), source, reading, workplace)
    if _is_dataset(source):
        if reading.wanted.of_events:
            raise ConfigError(
                f"{source} has neither types nor weights of events; leave out --event-column and the like"
            )
        (events, titles, understanding), name = load_dataset_log(source), source
    else:
        events, understanding = read_log(source, reading.wanted)
        titles, name = None, name_of(source)
    sequences, vocabulary = build_sequences(_filtered(events, reading, source))
    return Log(replace(sequences, understanding=understanding), vocabulary, name).with_titles(titles)


def _read_within(bound: int, source: Any, reading: Reading, workplace: Workplace | None) -> Log:
    """A log of files that takes no more memory than the bound, to which what the process has already counts."""
    if workplace is None:
        raise ConfigError("memory bounds a command that writes an output; prepare the log, and give the folder instead")
    budget = budget_of(bound)
    files, store = find_within(source, workplace)
    is_small, workers = fits(files, reading.wanted, budget), workplace.workers or Alone()
    if workplace.workers is not None or not is_small:
        filters = Filters(reading.repeats, reading.k_core, not reading.one_pass)
        place = (store, workplace.progress)
        try:
            return Log(*read_in_parts(files, reading.wanted, filters, budget, place, source, workers), name_of(source))
        except NeedsMemoryError as error:
            if not is_small:
                raise too_little(error, files, reading.wanted, budget) from error
    events, understanding = read_files(files, reading.wanted)
    sequences, vocabulary = build_sequences(_filtered(events, reading, source))
    return Log(replace(sequences, understanding=understanding), vocabulary, name_of(source))


def name_of(source: Any) -> str:
    """What a log is called in results: its file or folder without suffixes; of several files what they have in common.

    Such as `part` of part-1.csv and part-2.csv; the first one's name where they have nothing in common.
    """
    sources = source if isinstance(source, list | tuple) else [source]
    names = [Path(one).name.split(".")[0] for one in sources if isinstance(one, str | Path)] or [""]
    name, last = min(names), max(names)
    if name != last:
        n = next((j for j, pair in enumerate(zip(name, last, strict=False)) if pair[0] != pair[1]), len(name))
        name = name[:n].rstrip("0123456789").rstrip("-_ ") or names[0]
    return re.sub(r"[-_ ]*[*?\[\]]+[-_ ]*", "-", name).strip("-") or "log"  # of a pattern


def _filtered(events: pl.DataFrame, reading: Reading, source: Any) -> pl.DataFrame:
    kept = filter_events(events, reading.repeats, reading.k_core, iterated=not reading.one_pass)
    if len(events) and not len(kept):
        raise nothing_left(reading.k_core, source)
    return kept

"""Save a log as a prepared folder, and load it again without parsing.

items.parquet    item_index, item_id, count, title if known
sequences/       users and their histories, memory-mapped

A run folder holds the same two.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import polars as pl

from sasrec.core.errors import CheckpointError, DataError
from sasrec.core.files import atomic_file, disk_errors
from sasrec.core.forks import needs_threads_of
from sasrec.data.sequences import Sequences
from sasrec.data.vocabulary import Vocabulary

ITEMS, SEQUENCES = "items.parquet", "sequences"


def is_prepared(path: Path) -> bool:
    """Whether a path is a folder that holds a log's sequences."""
    return os.path.isdir(path / SEQUENCES)  # noqa: PTH112 - False also for a name that is too long


def save_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Write items.parquet into an existing folder.

    Raises:
        CheckpointError: it cannot be written.
    """
    needs_threads_of("Polars")
    with atomic_file(path / ITEMS) as temporary:
        vocabulary.to_frame().write_parquet(temporary)


def save_sequences(path: Path, sequences: Sequences) -> None:
    """Write sequences/ into an existing folder; what was there before is replaced when all is written.

    Raises:
        CheckpointError: it cannot be written.
    """
    needs_threads_of("Polars")
    temporary, target = Path(tempfile.mkdtemp(prefix=".sequences-", dir=path)), path / SEQUENCES
    try:
        with disk_errors(target):
            sequences.save(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.chmod(0o755)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_vocabulary(path: Path) -> Vocabulary:
    """Read items.parquet.

    Raises:
        CheckpointError: missing or damaged.
    """
    needs_threads_of("Polars")
    file = path / ITEMS
    try:
        return Vocabulary.from_frame(pl.read_parquet(file, glob=False))
    except (OSError, pl.exceptions.PolarsError, DataError) as error:
        raise CheckpointError(f"{file} is missing or damaged") from error


def load_sequences(path: Path) -> Sequences | None:
    """Map sequences/; None when there is none.

    Raises:
        CheckpointError: damaged.
    """
    if not is_prepared(path):
        return None
    needs_threads_of("Polars")
    folder = path / SEQUENCES
    try:
        return Sequences.load(folder)
    except (OSError, EOFError, ValueError, TypeError, KeyError, pl.exceptions.PolarsError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error

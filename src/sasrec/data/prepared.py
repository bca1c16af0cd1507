"""Save a log as a prepared folder, and load it again without parsing.

items.parquet    item_index, item_id, count, title if known
sequences/       users and their histories, memory-mapped

A run folder holds the same two.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import polars as pl

from sasrec.core.files import atomic_file, disk_errors, read_errors
from sasrec.data.sequences import Sequences
from sasrec.data.vocabulary import Vocabulary

ITEMS, SEQUENCES = "items.parquet", "sequences"


def is_prepared(path: Path) -> bool:
    """Whether a path is a folder that holds a log's sequences."""
    return (path / SEQUENCES).is_dir()


def save_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Write items.parquet into an existing folder.

    Raises:
        CheckpointError: it cannot be written.
    """
    with atomic_file(path / ITEMS) as temporary:
        vocabulary.to_frame().write_parquet(temporary)


def save_sequences(path: Path, sequences: Sequences) -> None:
    """Write sequences/ into an existing folder; what was there before is replaced when all is written.

    Raises:
        CheckpointError: it cannot be written.
    """
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
    file = path / ITEMS
    with read_errors(f"{file} is missing or damaged"):
        return Vocabulary.from_frame(pl.read_parquet(file, glob=False))


def load_sequences(path: Path) -> Sequences | None:
    """Map sequences/; None when there is none.

    Raises:
        CheckpointError: damaged.
    """
    if not is_prepared(path):
        return None
    folder = path / SEQUENCES
    with read_errors(f"{folder} is damaged"):
        return Sequences.load(folder)

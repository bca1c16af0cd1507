"""Save a log as a prepared folder, and load it again without parsing.

items.parquet       item_index, item_id, count, title and attributes if known
item_features.json  how attributes become features (absent where the model knows items by id alone)
sequences/          users and their histories, memory-mapped
digests.json        the digest of each file: readers refuse what is not as it was written

A run folder holds the same.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import polars as pl

from sasrec.core.digests import WHOLE_BYTES, digest_of, is_as_written, note, noting, read_book
from sasrec.core.errors import CheckpointError
from sasrec.core.files import atomic_file, atomic_write, disk_errors, flush, flush_names, read_errors
from sasrec.core.forks import needs_threads_of
from sasrec.data.feature_encoder import FeatureEncoder
from sasrec.data.sequences import FILES, Sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.understanding import Understanding, load_understanding

ITEMS, ITEM_FEATURES, SEQUENCES = "items.parquet", "item_features.json", "sequences"
DATA_FILES = (ITEMS, ITEM_FEATURES, *(f"{SEQUENCES}/{name}" for name in FILES))


def is_prepared(path: Path) -> bool:
    """Whether a path is a folder that holds a log's sequences."""
    return os.path.isdir(path / SEQUENCES)  # noqa: PTH112 - False also for a name that is too long


def save_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Write items.parquet, and item_features.json where items have features, into an existing folder.

    Raises:
        CheckpointError: it cannot be written.
    """
    needs_threads_of("Polars")
    if vocabulary.encoder is not None:
        text = json.dumps(vocabulary.encoder.to_dict(), indent=1)
        atomic_write(path / ITEM_FEATURES, text, noting(path, ITEM_FEATURES))
    with atomic_file(path / ITEMS, noting(path, ITEMS)) as temporary:
        vocabulary.to_frame().write_parquet(temporary)


def save_sequences(path: Path, sequences: Sequences) -> None:
    """Write sequences/ into an existing folder; what was there before is replaced when all is written.

    Raises:
        CheckpointError: it cannot be written.
    """
    needs_threads_of("Polars")
    temporary, target = Path(tempfile.mkdtemp(prefix=".sequences-", dir=path)), path / SEQUENCES
    former = temporary.with_name(f"{temporary.name}-former")
    try:
        with disk_errors(target):
            sequences.save(temporary)
            flush(temporary)
            note(path, {f"{SEQUENCES}/{file.name}": digest_of(file) for file in sorted(temporary.iterdir())})
            temporary.chmod(0o755)
            if target.exists():
                target.rename(former)
            temporary.rename(target)
            flush_names(path)
    finally:
        for left in (temporary, former):
            shutil.rmtree(left, ignore_errors=True)


def load_vocabulary(path: Path) -> Vocabulary:
    """Read items.parquet, and item_features.json where items have features.

    Raises:
        CheckpointError: missing or damaged.
    """
    needs_threads_of("Polars")
    file = path / ITEMS
    if not is_as_written(path, ITEMS):
        raise CheckpointError(f"{file} is missing or damaged: it is not as it was written")
    with read_errors(f"{file} is missing or damaged"):
        vocabulary = Vocabulary.from_frame(pl.read_parquet(file, glob=False))
    return vocabulary.with_encoder(_load_encoder(path))


def _load_encoder(path: Path) -> FeatureEncoder | None:
    """Read item_features.json; None where there is none, and none was."""
    file = path / ITEM_FEATURES
    if not file.exists() and ITEM_FEATURES not in (read_book(path) or {}):
        return None
    if not file.exists() or not is_as_written(path, ITEM_FEATURES):
        raise CheckpointError(f"{file} is missing or damaged: it is not as it was written")
    with read_errors(f"{file} is missing or damaged"):
        return FeatureEncoder.from_dict(json.loads(file.read_bytes()))


def load_sequences(path: Path) -> Sequences | None:
    """Map sequences/; None when there is none.

    Raises:
        CheckpointError: damaged.
    """
    if not is_prepared(path):
        return None
    needs_threads_of("Polars")
    folder = path / SEQUENCES
    for name in FILES:
        if not is_as_written(path, f"{SEQUENCES}/{name}"):
            raise CheckpointError(f"{folder} is damaged: {name} is not as it was written")
    with read_errors(f"{folder} is damaged"):
        sequences = Sequences.load(folder)
    if read_book(path) is None and (path / ITEMS).exists() and sequences.nbytes < WHOLE_BYTES:
        check_fingerprint(path, sequences, load_vocabulary(path))
    return sequences


def check_fingerprint(path: Path, sequences: Sequences, vocabulary: Vocabulary) -> None:
    """Refuse events, users and items that are not those of the log's fingerprint; it tells nothing of titles.

    Raises:
        CheckpointError: they are not.
    """
    if not sequences.has_fingerprint_of(vocabulary):
        raise CheckpointError(f"{path / SEQUENCES} is damaged: events and {ITEMS} do not have the log's fingerprint")


def understanding_of(path: Path) -> Understanding | None:
    """How the log was read; None when histories were not saved, or by an earlier version.

    Raises:
        CheckpointError: damaged.
    """
    with read_errors(f"{path / SEQUENCES} is damaged"):
        return load_understanding(path / SEQUENCES)

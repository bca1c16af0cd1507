"""Files written whole or not at all: flushed to disk under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import polars as pl

from sasrec.core.errors import CheckpointError


@contextlib.contextmanager
def atomic_file(path: Path) -> Any:
    """Yield a temporary path beside `path`; what is written there is flushed to disk and takes its place.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what was at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what was at `path` is untouched.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def disk_errors(path: Path) -> Any:
    """Say in one sentence that a path cannot be written.

    Raises:
        CheckpointError: the body met a full disk or a folder that cannot be written.
    """
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:  # Polars reports a full disk as one of its own
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {path}: {reason}; what was saved before is kept") from error

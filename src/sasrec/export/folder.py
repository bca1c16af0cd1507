"""The folder of an export: it is built beside its place, and put there only when it is complete."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sasrec import __version__
from sasrec.core.errors import ConfigError, DataError
from sasrec.core.files import disk_errors, flush, flush_names, is_temporary
from sasrec.core.forks import needs_threads_of
from sasrec.model.weights import check_finite
from sasrec.recommender import Recommender
from sasrec.runs.lock import lock

FORMAT = 1


def export_facts(recommender: Recommender, kind: str) -> dict[str, Any]:
    """What every export.json has: which model it is, and its shape.

    Raises:
        DataError: a weight is not finite.
    """
    model = recommender.config.model
    check_finite(recommender.engine.state()[0], DataError)
    return {
        "format": FORMAT,
        "kind": kind,
        "model_version": recommender.model_version,
        "sasrec": __version__,
        "data": recommender.config.data_name,
        "block": model.block,
        "n_items": len(recommender.vocabulary),
        "embedding_dim": model.embedding_dim,
        "max_seq_len": model.max_seq_len,
        "hide_seen": recommender.hides_seen,
    }


def write_vocabulary(recommender: Recommender, folder: Path) -> None:
    """Write items.jsonl, one line an item in order of index: item_index, item_id and, when known, title."""
    recommender.vocabulary.to_frame().drop("count").write_ndjson(folder / "items.jsonl")


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write export.json."""
    (folder / "export.json").write_text(json.dumps(facts, indent=1) + "\n")


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes that place when nothing went wrong.

    Raises:
        ConfigError: there is something at `path`, and it is no export or overwrite is not set.
        CheckpointError: the disk is full or the folder cannot be written; what was at `path` is untouched.
        SASRecError: this process was forked after Polars was used.
    """
    needs_threads_of("Polars")
    with _alone(path):
        _check_replaceable(path, overwrite)
        temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
        try:
            with disk_errors(path):
                temporary.mkdir(parents=True)
                yield temporary
                flush(temporary)
                if path.exists():
                    path.rename(old)
                temporary.rename(path)
                flush_names(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(path: Path, overwrite: bool) -> None:
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        if not overwrite:
            raise ConfigError(f"output {path} exists and is not empty; use --overwrite or another folder")
        if not (path / "export.json").is_file():
            raise ConfigError(f"output {path} is not an export, so --overwrite does not delete it")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process writes this export meanwhile; what a killed one left is swept, and what it had replaced is back.

    Raises:
        ConfigError: another process writes it.
    """
    file = path.with_name(f".{path.name}.lock")
    with disk_errors(path):
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        held = lock(file, f"another process is writing {path}; wait for it, or use another folder")
    with held:
        for left in list(path.parent.iterdir()):
            if is_temporary(left, path.name, "old") and not path.exists():
                left.rename(path)
            elif is_temporary(left, path.name, "(old|tmp)"):
                shutil.rmtree(left, ignore_errors=True)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)

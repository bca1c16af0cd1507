"""A published checkpoint as a Recommender: `convert` puts it together with the log that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sasrec import __version__
from sasrec.core.config import EvalConfig, TrainConfig
from sasrec.core.errors import DataError
from sasrec.core.threads import set_threads
from sasrec.data.sequences import Sequences, build_sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.engine.protocol import create_engine
from sasrec.model.published import read_published
from sasrec.model.weights import check_finite
from sasrec.reading.readers import read_interactions
from sasrec.recommender import Recommender
from sasrec.runs.folder import RunConfig


def convert(checkpoint: Path, layout: str | None, log: Any, *, n_heads: int | None = None) -> Recommender:
    """A published checkpoint with the log it was trained on; row i of its table is the item with id i.

    Raises:
        CheckpointError: the checkpoint does not fit the layout or is not finite, or the log has items it does not know.
        ConfigError: the layout is not given.
    """
    published = read_published(checkpoint, layout, n_heads=n_heads)
    check_finite(published.weights)
    vocabulary = Vocabulary(pl.Series("item_id", np.arange(1, published.n_items + 1)))
    sequences, vocabulary = _sequences_of(log, vocabulary)
    train_config = TrainConfig(engine="torch", valid_protocol="sampled")
    engine = create_engine(published.config, published.n_items, train_config, published.weights)
    set_threads(engine.threads)
    config = RunConfig(
        published.config, train_config, EvalConfig(), "paper", checkpoint.name, sequences.facts, __version__, layout
    )
    return Recommender(engine, vocabulary, config, sequences)


def _sequences_of(log: Any, vocabulary: Vocabulary) -> tuple[Sequences, Vocabulary]:
    frame = read_interactions(log)
    if frame["item_id"].dtype != pl.Int64:
        raise DataError("a published checkpoint knows items by number, and this log's item ids are not integers")
    sequences, _ = build_sequences(frame, vocabulary)
    counts = np.bincount(sequences.items, minlength=len(vocabulary) + 1)[1:].astype(np.int64)
    return sequences, Vocabulary(vocabulary.item_ids, counts)

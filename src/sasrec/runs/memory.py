"""What the model of a run was trained on, and which events of another log it therefore knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from sasrec.core.arrays import Int64
from sasrec.data.logs import Log
from sasrec.data.seen import seen_events
from sasrec.data.sequences import Sequences
from sasrec.data.splits import split_sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.runs.folder import RunConfig, RunFolder


class Trained(Protocol):
    """A model and what it was trained on."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Of its log."""

    @property
    def config(self) -> RunConfig:
        """How it came about."""

    @property
    def sequences(self) -> Sequences | None:
        """Its log; None = it was saved without histories."""


@dataclass(frozen=True)
class Memory:
    """What a run folder tells of what its model was trained on."""

    config: RunConfig
    vocabulary: Vocabulary
    sequences: Sequences | None

    @classmethod
    def of(cls, run: Path) -> Memory:
        """Read it from a run folder.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        folder = RunFolder.open(run)
        return cls(folder.load_config(), folder.load_vocabulary(), folder.load_sequences())


def is_unchecked(model: Trained) -> bool:
    """Whether it cannot be told which events a model was trained on: it, or one it began from, has no histories."""
    init = model.config.init
    return model.sequences is None or (init is not None and init.unchecked)


def seen_by(model: Trained, log: Log) -> Int64:
    """Events of a log, ascending, that a model was trained on; none where that is unknown."""
    if model.sequences is None:
        return np.zeros(0, np.int64)
    split = split_sequences(model.sequences, model.config.eval)
    return seen_events(split, model.config.refit_epochs > 0, model.vocabulary, log.sequences, log.vocabulary)


def unseen_by(log: Log, models: Iterable[Trained]) -> Log:
    """A log, with a note of the events that models were trained on: they are no targets.

    Results of several models on it have the same targets, so they can be compared.
    """
    found = [np.zeros(0, np.int64) if log.sequences.seen is None else log.sequences.seen]
    found += [seen_by(model, log) for model in models]
    return replace(log, sequences=replace(log.sequences, seen=np.unique(np.concatenate(found))))

"""The pages of a model: of one that was just trained, and of a run folder, whose model is not loaded for it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from sasrec.core.arrays import Float32, Int32
from sasrec.data.ragged import Ragged
from sasrec.data.splits import Split
from sasrec.engine.protocol import environment
from sasrec.evaluation.results import Result
from sasrec.report.examples import build_examples
from sasrec.report.pages import write_report
from sasrec.report.run_facts import RunFacts
from sasrec.runs.folder import RunFolder
from sasrec.runs.memory import Trained
from sasrec.training.result import TrainResult


class Model(Trained, Protocol):
    """What the pages tell of: a Recommender that was trained here."""

    train_result: TrainResult | None
    results: list[Result]

    def split(self) -> Split:
        """The train / valid / test split of its log."""

    def top_indices(self, histories: Ragged, k: int = 10) -> tuple[Int32, Float32]:
        """The best k items after each history, and their scores."""


def write_pages(model: Model, folder: Path, *, with_users: bool) -> None:
    """Write report.html, curve.png and the model card of a model that was just trained into its run folder."""
    result, sequences = model.train_result, model.sequences
    assert result is not None
    assert sequences is not None
    # After a refit the model has seen what comes next.
    shows = with_users and not model.config.refit_epochs
    facts = RunFacts(
        config=model.config,
        lengths=np.diff(sequences.offsets),
        item_counts=model.vocabulary.counts,
        history=result.history,
        results=model.results,
        examples=build_examples(model.split(), model.vocabulary, model.top_indices) if shows else [],
        environment=environment(),
        best_epoch=result.best_epoch,
        seconds=result.seconds,
        stopped=result.stopped,
        understanding=sequences.understanding,
        vocabulary=model.vocabulary,
    )
    write_report(folder, facts if with_users else facts.without_users)


def facts_of_run(run: RunFolder) -> RunFacts:
    """What a run folder tells of its model, without users: no examples, no first events.

    Raises:
        CheckpointError: it is damaged.
    """
    config, vocabulary, sequences, training = (
        run.load_config(), run.load_vocabulary(), run.load_sequences(), run.load_training(),
    )  # fmt: skip
    told: dict[str, str | int] = {}
    if training is not None:
        told = {**training.versions, "machine": training.machine, "engine": f"{training.engine} {training.isa}".strip()}
    return RunFacts(
        config=config,
        lengths=np.zeros(0, np.int64) if sequences is None else np.diff(sequences.offsets),
        item_counts=vocabulary.counts,
        history=run.read_history() if training is not None else [],
        results=run.load_metrics(),
        examples=[],
        environment=told,
        best_epoch=0 if training is None else training.best_epoch,
        seconds=0.0 if training is None else training.seconds,
        stopped="" if training is None else training.stopped,
        understanding=None if sequences is None else sequences.understanding,
        vocabulary=vocabulary,
    ).without_users

"""How a training ended, and what of it is recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sasrec.core.displays import html_of
from sasrec.core.provenance import commit, isa_of, machine, versions
from sasrec.engine.protocol import Engine
from sasrec.model.weights import Weights
from sasrec.runs.record import Course, EpochLine, TrainingFacts
from sasrec.training.progress import Progress

INTERRUPTED = ("interrupted", "measuring")  # how Ctrl-C ends a run: in training, while it is measured


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    weights: Weights  # of the best epoch by the valid metric; a recommender leaves them to its engine
    best_epoch: int  # from 1; 0 = nothing was trained
    valid: dict[str, float]  # metrics of the best epoch; empty without valid targets
    epochs: int
    seconds: float
    stopped: str  # "max_epochs", "max_steps", "patience", "max_minutes", "callback", "interrupted", "measuring"
    history: list[EpochLine]

    @property
    def is_whole(self) -> bool:
        """Whether no Ctrl-C ended it: else it is half of a model, or has no figures."""
        return self.stopped not in INTERRUPTED

    @property
    def course(self) -> Course:
        """How it went, epoch by epoch."""
        return Course(self.history, self.best_epoch, self.stopped)

    def _repr_html_(self) -> str:
        return html_of(self.course)

    def measuring(self, what: str, done: int, total: int) -> Progress:
        """How it stands while the trained model is measured."""
        return Progress(
            epoch=self.epochs,
            max_epochs=self.epochs,
            step=1,
            steps_per_epoch=1,
            train_loss=self.history[-1].train_loss if self.history else math.nan,
            users_per_second=0.0,
            seconds=self.seconds,
            seconds_left=None,
            best_epoch=self.best_epoch,
            valid=None,
            measured=(what, done, total),
        )


def training_facts(result: TrainResult, engine: Engine) -> TrainingFacts:
    """How training went and on what."""
    return TrainingFacts(
        best_epoch=result.best_epoch,
        epochs=result.epochs,
        seconds=result.seconds,
        stopped=result.stopped,
        engine=engine.name,
        isa=isa_of(engine),
        threads=engine.threads,
        machine=machine(),
        versions=versions(),
        commit=commit(),
    )

"""What a run records of its training: a line an epoch, the state to resume from, and the facts at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from sasrec.evaluation.results import Result
from sasrec.model.weights import LateArrays


@dataclass(frozen=True, kw_only=True)
class EpochLine:
    """A line of history.jsonl."""

    epoch: int  # from 1
    step: int  # steps of the whole training so far
    train_loss: float
    valid: dict[str, float] | None = None  # None where the epoch was not validated
    test: dict[str, float] | None = None  # None unless log_test; never used to choose
    seconds: float  # of training, without validation
    users_per_second: float
    learning_rate: float  # of the last step
    total_seconds: float  # since the start, validation included

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; what was not measured is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class State:
    """Where a training run is."""

    epoch: int = 0  # epochs completed
    step: int = 0  # steps completed in the epoch under way
    best_epoch: int = 0
    best_value: float = -1.0
    best_metrics: dict[str, float] = field(default_factory=dict)
    loss_sum: float = 0.0  # of the epoch under way
    n_positions: float = 0  # the sum of their weights, which are 1 unless events have weights
    epoch_seconds: float = 0.0  # of the epoch under way
    seconds: float = 0.0  # trained so far, validation included
    valid_seconds: float = 0.0  # of that, validation
    n_validations: int = 0

    @property
    def mean_loss(self) -> float:
        """Of the epoch under way; 0 before its first step."""
        return self.loss_sum / self.n_positions if self.n_positions else 0.0


@dataclass(frozen=True)
class InitFacts:
    """The model that a training began from, and what of its items the new log has."""

    model_version: str
    data_name: str  # of its log
    kept: int  # items that both logs have
    new: int  # items that only the new log has
    gone: int  # items that only its log has
    unchecked: bool = False  # it has no histories, so it may have been trained on targets


class Course(NamedTuple):
    """How a training went, epoch by epoch, for those who draw it."""

    history: Sequence[EpochLine]
    best_epoch: int  # from 1; 0 = nothing was trained
    stopped: str  # as TrainResult's


@dataclass(frozen=True)
class TrainingFacts:
    """How training went and on what."""

    best_epoch: int  # from 1; 0 = nothing was trained
    epochs: int
    seconds: float
    stopped: str  # as TrainResult's
    engine: str
    isa: str
    threads: int
    machine: str
    versions: dict[str, str]
    commit: str


class SavedState(NamedTuple):
    """What training/ holds, all of one moment. Arrays are read when they are asked for."""

    weights: LateArrays
    optimizer: LateArrays
    state: State
    best: LateArrays  # of the best epoch; none before there is one, and in folders of earlier versions


@dataclass(frozen=True)
class RunMetrics:
    """What metrics.json holds."""

    results: list[Result]
    training: TrainingFacts | None = None

"""How a training stands, for those who show it, and how long it will take."""

from __future__ import annotations

from dataclasses import dataclass

from sasrec.core.config import TrainConfig
from sasrec.runs.record import State

ESTIMATE_SECONDS = 2.0  # how long to train before the time that is left is estimated


@dataclass(frozen=True)
class Progress:
    """How a run stands, for those who show it."""

    epoch: int  # from 1
    max_epochs: int
    step: int  # of this epoch
    steps_per_epoch: int
    train_loss: float
    users_per_second: float
    seconds: float
    seconds_left: float | None  # until max_epochs or max_minutes; None while too little is known
    best_epoch: int
    valid: dict[str, float] | None  # at the end of an epoch that was validated
    validated: tuple[int, int] | None = None  # while an epoch is validated: targets done, targets in all
    measured: tuple[str, int, int] | None = None  # after training: what, rankings done, rankings in all


def seconds_left(
    state: State, config: TrainConfig, steps_per_epoch: int, validates: bool, before: float = 0.0
) -> float | None:
    """Until max_epochs or max_minutes, at the pace so far; None before the first validation, which may take long.

    Args:
        state: where the training stands.
        config: where it ends.
        steps_per_epoch: of the training.
        validates: whether the split has valid targets.
        before: seconds of max_minutes that had passed when training began.
    """
    share = state.step / steps_per_epoch
    spent = state.seconds + (state.epoch_seconds if share else 0.0)
    if (spent < ESTIMATE_SECONDS and not state.epoch) or (validates and not state.n_validations):
        return None
    done = state.epoch + share
    left = (spent - state.valid_seconds) / done * (config.max_epochs - done)
    if validates:
        n_left = -(-config.max_epochs // config.valid_every) - state.epoch // config.valid_every
        left += state.valid_seconds / state.n_validations * n_left
    return min(left, 60 * config.max_minutes - before - spent) if config.max_minutes else left

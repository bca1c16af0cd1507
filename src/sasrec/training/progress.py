"""How a training stands, for those who show it, and how long it will take."""

from __future__ import annotations

from dataclasses import dataclass

from sasrec.core.config import TrainConfig
from sasrec.runs.record import State

ESTIMATE_SECONDS = 2.0  # how long to train before the time that is left is estimated
PLAIN_SECONDS = 10.0  # how often a plain line is written inside long epochs, where lines stay


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


def duration(seconds: float) -> str:
    """Seconds as people say them: "45 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def in_words(p: Progress) -> str:
    """Where a training stands, in one line."""
    parts = [f"epoch {p.epoch}/{p.max_epochs}"]
    if p.validated is not None:
        done, total = p.validated
        parts.append(f"validating {done:,} of {total:,} targets")
    elif p.step < p.steps_per_epoch:
        parts.append(f"step {p.step}/{p.steps_per_epoch}")
    parts.append(f"loss {p.train_loss:.4f}")
    parts.append(f"{p.users_per_second:,.0f} users/s")
    if p.valid:
        parts += [f"valid {name} {value:.4f}" for name, value in p.valid.items() if name.startswith(("ndcg", "hr"))]
    if p.best_epoch:
        parts.append(f"best epoch {p.best_epoch}")
    parts.append(f"{duration(p.seconds)} spent")
    if p.seconds_left is not None:
        parts.append(f"at most {duration(max(p.seconds_left, 0))} left")
    return "  ".join(parts)


def stands(p: Progress) -> tuple[int, int, str]:
    """What is done, of how much, and in words: epochs and steps, or rankings once the trained model is measured."""
    if p.measured is not None:
        what, done, total = p.measured
        return done, total, f"measuring {what}: {done:,} of {total:,} rankings"
    return (p.epoch - 1) * p.steps_per_epoch + p.step, p.max_epochs * p.steps_per_epoch, in_words(p)


def is_due(p: Progress, since: float) -> bool:
    """Whether a plain line is due: for the first epoch, every tenth and the last, or so many seconds since one."""
    has_ended = p.step == p.steps_per_epoch and p.validated is None and p.measured is None
    return since > PLAIN_SECONDS or (has_ended and (p.epoch in (1, p.max_epochs) or p.epoch % 10 == 0))

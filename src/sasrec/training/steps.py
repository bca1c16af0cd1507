"""A step of training: gradients, Adam, and the average of the weights."""

from __future__ import annotations

from sasrec.core.config import TrainConfig
from sasrec.data.batches import Batch
from sasrec.engine.protocol import Engine
from sasrec.engine.shared_steps import SharedSteps


def take_step(
    engine: Engine, batch: Batch, train: TrainConfig, steps_per_epoch: int, shared: Engine | SharedSteps | None = None
) -> None:
    """Train one step.

    Args:
        engine: whose weights move.
        batch: what is learnt from; without any weight, nothing changes: neither weights nor moments, step count nor
            average.
        train: the learning rate and the average.
        steps_per_epoch: what schedules go by.
        shared: what computes the gradients, of several processes together; None = the engine.
    """
    if not batch.total_weight:
        return
    (shared or engine).forward_backward(batch)
    engine.optimizer_step(train.learning_rate_at(batch.step, steps_per_epoch))
    if train.ema_decay:
        engine.update_average(train.ema_decay_at(batch.step))

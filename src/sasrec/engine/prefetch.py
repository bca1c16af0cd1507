"""Batches made ahead: while a device works on a step, a thread makes and copies what the next ones read."""

from __future__ import annotations

from collections.abc import Iterator

from sasrec.core.ahead import made_ahead
from sasrec.data.batches import Batch
from sasrec.engine.torch_engine import TorchEngine


def batches_for(engine: object, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches in the same order; where the engine works ahead, with their tensors on its device.

    Closing the iterator, or forgetting it, ends the thread.
    """
    if not isinstance(engine, TorchEngine) or not engine.way.ahead:
        return batches
    return _handed_over(engine, batches)


def _handed_over(engine: TorchEngine, batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch, tensors in made_ahead(batches, engine.tensors_of, engine.way.ahead):
        engine.take(batch, tensors)
        yield batch

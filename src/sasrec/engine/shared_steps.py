"""Training steps of which each process computes a share: their gradients are summed, once a step.

Then every process takes the same step of the optimizer with the same gradients, and all have the same weights.
Shape legend: R touched rows of a table, W their padded width, V n_items + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sasrec.core.arrays import Float32, Int64
from sasrec.core.world import Pulse, World
from sasrec.data.batches import Batch
from sasrec.data.shares import share_of
from sasrec.engine.native import NativeEngine
from sasrec.engine.protocol import Engine
from sasrec.engine.torch_engine import TorchEngine

if TYPE_CHECKING:
    import torch


class _Gradients(Protocol):
    """The gradients of an engine's last step."""

    def clear(self) -> None:
        """Make them those of no rows."""

    def sizes(self) -> list[int]:
        """What the other processes have to know before they are summed."""

    def add_up(self, sizes: Int64) -> None:
        """Put the sum over processes in their place; `sizes` are those of all processes, (size, n)."""


class SharedSteps:
    """What trains, as an engine does, and of which each process of a world computes a share.

    Args:
        engine: this process's own, with the same weights as the others'.
        world: the processes.
        pulse: goes along with each step.
    """

    def __init__(self, engine: Engine, world: World, pulse: Pulse) -> None:
        assert isinstance(engine, NativeEngine | TorchEngine)
        self.engine, self.world, self.pulse = engine, world, pulse
        self._gradients: _Gradients = (
            NativeGradients(engine, world) if isinstance(engine, NativeEngine) else TorchGradients(engine, world)
        )
        self._weight = 0.0  # of the positions of this process since the loss was asked for

    def forward_backward(self, batch: Batch) -> None:
        """Compute the gradients of a batch that all processes have; see `Engine`."""
        share = share_of(batch, self.world.rank, self.world.size)
        if share is None:
            self._gradients.clear()
        else:
            self.engine.forward_backward(share)
            self._weight += share.total_weight
        told = self.world.gather(np.array([*self.pulse.own(), *self._gradients.sizes()], np.float64))
        self.pulse.hear(told[:, :2])
        self._gradients.add_up(told[:, 2:].astype(np.int64))

    def pop_loss(self) -> float:
        """The mean loss of all processes since the last call; see `Engine`."""
        mine = np.array([self.engine.pop_loss() * self._weight, self._weight])
        self._weight = 0.0
        loss, weight = self.world.gather(mine).sum(axis=0)
        return float(loss / weight) if weight else 0.0


class NativeGradients:
    """Those of the compiled core, where they lie: a flat array, and the rows of tables that the step has touched.

    Rows are gathered and added up in the order of the processes. Where they are more than the table has, the table is
    summed instead.

    Args:
        engine: whose they are.
        world: the processes.
    """

    def __init__(self, engine: NativeEngine, world: World) -> None:
        self.core, self.world, self.n_items = engine.core, world, engine.n_items
        self._tables: list[tuple[Any, Any]] = []  # (R,) rows and (R, W) values of each table
        self._dense = np.zeros((0, 0), np.float32)

    def clear(self) -> None:
        self.core.clear_gradients()

    def sizes(self) -> list[int]:
        self._tables = self.core.table_gradients()
        return [len(rows) for rows, _ in self._tables]

    def add_up(self, sizes: Int64) -> None:
        self.world.add(self.core.gradient())
        for table, (rows, values) in enumerate(self._tables):
            counts = sizes[:, table].tolist()
            all_rows = self.world.gather_rows(rows, counts)
            if sum(counts) <= self.n_items:
                parts = list(zip(all_rows, self.world.gather_rows(values, counts), strict=True))
            else:
                parts = [self._added_densely(rows, values, np.concatenate(all_rows))]
            self.core.sum_gradients(table, parts)
        self._tables = []

    def _added_densely(self, rows: Any, values: Any, all_rows: Any) -> tuple[Any, Float32]:
        shape = (self.n_items + 1, values.shape[1])
        if self._dense.shape != shape:
            self._dense = np.empty(shape, np.float32)
        self._dense[:] = 0
        self._dense[rows] = values
        self.world.add(self._dense)
        touched = np.zeros(len(self._dense), bool)
        touched[all_rows] = True
        union = np.flatnonzero(touched).astype(np.int32)
        return union, self._dense[union]


class TorchGradients:
    """Those of the torch engine, tables whole, laid end to end.

    Args:
        engine: whose they are.
        world: the processes.
    """

    def __init__(self, engine: TorchEngine, world: World) -> None:
        self.parameters: list[torch.nn.Parameter] = list(engine.model.parameters())
        self.world = world

    def clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def sizes(self) -> list[int]:
        return []

    def add_up(self, sizes: Int64) -> None:
        import torch

        own = [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in self.parameters]
        flat = torch.cat([gradient.detach() for gradient in own])
        self.world.add(flat)
        totals = torch.split(flat, [p.numel() for p in self.parameters])
        for parameter, total in zip(self.parameters, totals, strict=True):
            parameter.grad = total.view_as(parameter)

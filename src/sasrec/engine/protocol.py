"""The protocol of an engine (train a step, encode histories), and the choice between native and torch.

`create_engine` chooses once. The rest of the package uses the protocol `Engine` and never imports torch.
Shape legend: B rows, T tokens, L seq_len, D embedding_dim, V n_items + 1.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from typing import Protocol

from sasrec.core.arrays import Bool, Float32
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.extras import require
from sasrec.core.isa import Native, load_native
from sasrec.core.provenance import versions
from sasrec.core.threads import usable_cpus
from sasrec.data.batches import Batch
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged
from sasrec.engine.device import AUTO, has_driver
from sasrec.engine.native import NativeEngine, unsupported
from sasrec.engine.torch_engine import TorchEngine
from sasrec.model.folding import check_features
from sasrec.model.weights import LateArrays, Weights

logger = logging.getLogger(__name__)
CUDA_HINT = "; NVIDIA's driver is here, and device=cuda computes there"
HOW_TO_BUILD = "install a C++ compiler (g++ 12, clang 15 or later) and then sasrec again, which builds the core"


class Engine(Protocol):
    """Trains a model and encodes histories. All arrays are NumPy's."""

    name: str
    threads: int
    train_config: TrainConfig
    features: ItemFeatures | None  # of all items, where the model has any
    index_device: str  # that ranks items, as torch calls it; "" = the compiled core does, or NumPy

    def forward_backward(self, batch: Batch) -> None:
        """Compute the gradients of the batch's loss, and add the loss to the running mean.

        Raises:
            ValueError: the batch's weights sum to 0: such a step is left out, with all that belongs to it.
        """

    def optimizer_step(self, learning_rate: float) -> None:
        """Apply the gradients."""

    @property
    def has_average(self) -> bool:
        """Whether there is an average of the weights."""

    def update_average(self, decay: float) -> None:
        """Move the average of all weights towards them, keeping `decay` of itself; the first call copies them."""

    def swap_average(self) -> None:
        """Swap the weights with their average."""

    def pop_loss(self) -> float:
        """Mean loss per position, weighted as positions are, since the last call; 0 without any."""

    def encode(self, histories: Ragged) -> Float32:
        """(n, D) features after the last item of each history; rows must not be empty, only their end is used."""

    def item_table(self) -> Float32:
        """(V, D) table that features are scored with, items' features folded in; row 0 is padding."""

    def weights(self) -> Weights:
        """A copy of all weights by name."""

    def load_weights(self, weights: Mapping[str, Float32]) -> None:
        """Replace all weights."""

    def optimizer_state(self) -> Weights:
        """Adam's moments by name and its step count, and the average of the weights if there is one."""

    def state(self) -> tuple[LateArrays, LateArrays]:
        """What `weights` and `optimizer_state` would tell, each array read when it is asked for."""

    def load_optimizer_state(self, state: Mapping[str, Float32]) -> None:
        """Replace Adam's moments and the average of the weights."""


def create_engine(
    model: ModelConfig,
    n_items: int,
    train: TrainConfig,
    weights: Mapping[str, Float32] | None = None,
    *,
    features: ItemFeatures | None = None,
    trained: Bool | None = None,
    native: Native | None = None,
) -> Engine:
    """The engine that a configuration asks for; `auto` takes the fastest that supports it, and logs which and why.

    Args:
        model: the shape.
        n_items: items are 1..n_items.
        train: engine, loss, optimizer, seed, device, threads.
        weights: to start from; None = initial ones.
        features: of all items, where the model has any.
        trained: (V,) which items there is anything to learn of: where the model has features, the own embeddings of all
            others start at 0. None = all, or there are weights to start from.
        native: the compiled variant; None = that of this process.

    Raises:
        ConfigError: the engine or device is not to be had, torch is not installed and needed, or the features are not
            those that the model is of.
    """
    check_features(model, n_items, features)
    engine: Engine
    reason = _why_not_native(model, train, native) if train.engine != "torch" else "asked for"
    if not reason:
        engine = NativeEngine(model, n_items, train, weights, native, features=features, trained=trained)
        hint = CUDA_HINT if (train.engine, train.device) == ("auto", AUTO) and has_driver() else ""
        logger.info("engine: native (%s), %d threads%s", engine.isa, engine.threads, hint)
        return engine
    if train.engine == "native":
        raise ConfigError(f"engine=native: {reason}; use engine=torch or auto")
    if train.lazy_adam:
        raise ConfigError(f"lazy_adam=true needs the native engine ({reason}); use lazy_adam=false")
    _require_torch(model, train)
    engine = TorchEngine(model, n_items, train, features=features, trained=trained)
    if weights is not None:
        engine.load_weights(weights)
    logger.info("engine: torch on %s (%s), %d threads", engine.device, reason, engine.threads)
    return engine


def _why_not_native(model: ModelConfig, train: TrainConfig, native: Native | None) -> str:
    missing = unsupported(model, train)
    if missing:
        return f"the compiled core does not do {missing}"
    native = native or load_native()
    return "" if native.module else native.why


def _require_torch(model: ModelConfig, train: TrainConfig) -> None:
    what = unsupported(model, train) or ("engine=torch" if train.engine == "torch" else "")
    if what:
        require("torch", what, extra="torch")
    else:
        require("torch", "an installation without the compiled core", extra="torch", instead=HOW_TO_BUILD)


def environment() -> dict[str, str | int]:
    """Versions, machine and the engine in use, for reports and `sasrec info`."""
    native, installed = load_native(), versions()
    engine = f"native ({native.isa}: {native.why})"
    if not native.module:
        engine = f"{'torch' if 'torch' in installed else 'none'} ({native.why})"
    return {**installed, "machine": platform.machine(), "cpus": usable_cpus(), "engine": engine}

"""The engine on the compiled core: hands arrays over, and says which configurations the core supports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Bool, Float32
from sasrec.core.config import ModelConfig, TrainConfig, to_dict
from sasrec.core.isa import Native, load_native
from sasrec.core.threads import threads_of
from sasrec.data.batches import Batch, checked_weight
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged
from sasrec.data.sampling import WEIGHTS, generator
from sasrec.engine.id_dropout import step_key
from sasrec.model.folding import check_features
from sasrec.model.weights import (
    ITEM_TABLE,
    OUTPUT_TABLE,
    LateArrays,
    Weights,
    check_weights,
    initial_weights,
    weight_shapes,
)

# What the compiled core can do: the values it knows of the device, the loss and each setting of the model; None = any.
# What is not here, a value or a whole setting, goes to torch.
SUPPORTED: dict[str, set[Any] | None] = {
    "device": {"auto", "cpu"},
    "loss": {"bce", "gbce", "sampled_softmax", "cross_entropy"},
    "block": {"sasrec", "post_norm", "pre_norm", "ligr"},
    "embedding_dim": None,
    "n_blocks": None,
    "n_heads": None,
    "ffn_dim": None,
    "max_seq_len": None,
    "dropout": None,
    "activation": {"relu", "identity"},
    "norm_eps": None,
    "attention_output": {True},
    "tied": None,
    "padding": {"none"},
    "n_features": None,
    "vector_dim": None,
    "cold_scale": None,
}
NO_ROWS = Ragged(np.zeros(0, np.int32), np.zeros(0, np.int64))  # tells the core that seen items are not left out
NO_WEIGHTS = np.zeros(0, np.float32)  # tells it that every position counts 1
MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's, by torch's names
AVERAGE = "average"  # of the weights over the steps


def unsupported(model: ModelConfig, train: TrainConfig) -> str:
    """The first setting that the compiled core cannot do, as name=value; empty when it can do all."""
    for name, value in {"device": train.device, "loss": train.loss, **to_dict(model)}.items():
        known = SUPPORTED.get(name, set())
        if known is not None and value not in known:
            return f"{name}={str(value).lower() if isinstance(value, bool) else value}"
    return ""


def _arrays(features: ItemFeatures | None) -> dict[str, NDArray[Any]]:
    """Features as the core reads them, for as long as it lives."""
    if features is None:
        return {}
    values = features.values
    arrays: dict[str, NDArray[Any]] = {
        "feature_offsets": np.ascontiguousarray(values.offsets, np.int64),
        "feature_values": np.ascontiguousarray(values.values, np.int32),
    }
    if features.vectors is not None:
        arrays["vectors"] = np.ascontiguousarray(features.vectors, np.float32)
    return arrays


class NativeEngine:
    """The compiled core: a whole training step, or encoding, in one call.

    Args:
        model: the shape; see `unsupported`.
        n_items: items are 1..n_items.
        train: loss, optimizer, seed, threads.
        weights: to start from; None = initial ones.
        native: the variant; None = the one in use.
        features: of all items, where the model has any.
        trained: (V,) which items there is anything to learn of; None = all (see `initial_weights`).

    Raises:
        ConfigError: the features are not those that the model is of.
    """

    name = "native"
    index_device = ""

    def __init__(
        self,
        model: ModelConfig,
        n_items: int,
        train: TrainConfig,
        weights: Mapping[str, Float32] | None = None,
        native: Native | None = None,
        *,
        features: ItemFeatures | None = None,
        trained: Bool | None = None,
    ) -> None:
        check_features(model, n_items, features)
        self.features = features
        self.config, self.train_config, self.n_items = model, train, n_items
        self.threads = threads_of(train.threads)
        native = native or load_native()
        self.isa = native.isa
        self.shapes = weight_shapes(model, n_items)
        self.core = native.module.Engine(
            block=model.block,
            n_items=n_items,
            embedding_dim=model.embedding_dim,
            n_blocks=model.n_blocks,
            n_heads=model.n_heads,
            ffn_dim=model.ffn_dim or model.embedding_dim,
            max_seq_len=model.max_seq_len,
            dropout=model.dropout,
            norm_eps=model.norm_eps,
            relu=model.activation == "relu",
            tied=model.tied,
            weights=list(self.shapes.items()),
            threads=self.threads,
            lazy_adam=train.lazy_adam,
            orthogonal_steps=train.orthogonal_steps,
            n_features=model.n_features,
            vector_dim=model.vector_dim,
            cold_scale=model.cold_scale,
            **_arrays(features),
        )
        self._loss_sum, self._total_weight = 0.0, 0.0
        if weights is None:  # not otherwise: drawing them takes longer than loading a small run
            weights = initial_weights(model, n_items, generator(train.seed, WEIGHTS), trained)
        self.load_weights(weights)

    def forward_backward(self, batch: Batch) -> None:
        total_weight = checked_weight(batch)
        earlier = NO_ROWS if batch.earlier is None else batch.earlier
        self._loss_sum += self.core.forward_backward(
            items=batch.inputs.values,
            offsets=batch.inputs.offsets,
            sequence_keys=batch.users.astype(np.uint64),
            step_key=step_key(self.train_config.seed, batch.step),
            targets=batch.targets,
            negatives=batch.negatives if batch.negatives.size or batch.candidates is None else batch.candidates,
            earlier=earlier.values,
            earlier_offsets=earlier.offsets,
            loss=self.train_config.loss,
            positive_weight=self.train_config.positive_weight(batch.n_candidates(self.n_items)),
            corrections=batch.corrections,
            l2_embedding=self.train_config.l2_embedding if batch.counts_penalty else 0.0,
            feature_dropout=0.0 if self.features is None else self.train_config.feature_dropout,
            weights=NO_WEIGHTS if batch.weights is None else batch.weights,
            seen=NO_ROWS.values if batch.seen is None else batch.seen,
            whole_weight=0.0 if batch.share is None else batch.share.weight,
        )
        self._total_weight += total_weight

    def optimizer_step(self, learning_rate: float) -> None:
        config = self.train_config
        self.core.optimizer_step(
            learning_rate=learning_rate,
            beta1=config.adam_beta1,
            beta2=config.adam_beta2,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )

    @property
    def has_average(self) -> bool:
        return bool(self.core.has_average)

    def update_average(self, decay: float) -> None:
        self.core.update_average(decay)

    def swap_average(self) -> None:
        self.core.swap_average()

    def pop_loss(self) -> float:
        loss = self._loss_sum / self._total_weight if self._total_weight else 0.0
        self._loss_sum, self._total_weight = 0.0, 0.0
        return loss

    def encode(self, histories: Ragged) -> Float32:
        features = np.empty((len(histories), self.config.embedding_dim), np.float32)
        self.core.encode(np.ascontiguousarray(histories.values), histories.offsets, features)  # reads only the ends
        return features

    def item_table(self) -> Float32:
        return self._read(ITEM_TABLE if self.config.tied else OUTPUT_TABLE, "folded")

    def weights(self) -> Weights:
        return {name: self._read(name, "weight") for name in self.shapes}

    def load_weights(self, weights: Mapping[str, Float32]) -> None:
        check_weights(weights, self.shapes)
        for name in self.shapes:
            self.core.write(name, "weight", np.ascontiguousarray(weights[name], np.float32))

    def gradients(self) -> Weights:
        """The gradients of the last `forward_backward`, before clipping."""
        return {name: self._read(name, "gradient") for name in self.shapes}

    def optimizer_state(self) -> Weights:
        return dict(self.state()[1])

    def state(self) -> tuple[LateArrays, LateArrays]:
        shapes: dict[str, tuple[int, ...]] = {}
        if self.core.step_count:
            for name, shape in self.shapes.items():
                shapes |= {f"step/{name}": (), **{f"{moment}/{name}": shape for moment in MOMENTS}}
        if self.core.has_average:
            shapes |= {f"{AVERAGE}/{name}": shape for name, shape in self.shapes.items()}
        return LateArrays(self.shapes, lambda name: self._read(name, "weight")), LateArrays(shapes, self._read_state)

    def _read_state(self, key: str) -> Float32:
        kind, _, name = key.partition("/")
        return np.array(self.core.step_count, np.float32) if kind == "step" else self._read(name, kind)

    def load_optimizer_state(self, state: Mapping[str, Float32]) -> None:
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "step":
                self.core.step_count = float(value)
            elif kind in (*MOMENTS, AVERAGE):
                check_weights({name: value}, {name: self.shapes[name]} if name in self.shapes else {})
                self.core.write(name, kind, np.ascontiguousarray(value, np.float32))

    def _read(self, name: str, kind: str) -> Float32:
        out = np.empty(self.shapes[name], np.float32)
        self.core.read(name, kind, out)
        return out

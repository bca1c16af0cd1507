"""The compiled core, and the engine on it. In: the CPU's features, batches; out: loss, features, weights as arrays.

Each variant is a module of its own, `native_<name>.so` beside this file, compiled from the same sources (native/) for
one instruction set. Only the one that is chosen is loaded, so that a CPU never meets an instruction it lacks.
`SASREC_ISA=<name>` forces one; an installation without a compiler has none, and torch does the work.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sasrec.batches import DROPOUT, WEIGHTS, Batch, generator
from sasrec.config import ModelConfig, TrainConfig
from sasrec.errors import ConfigError
from sasrec.sequences import Float32, Ragged
from sasrec.threads import set_threads
from sasrec.weights import Weights, check_weights, initial_weights, weight_shapes

AVX512 = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})
NEEDS: dict[str, frozenset[str]] = {  # the fastest first
    "amx": AVX512 | {"avx512_bf16", "amx_tile", "amx_bf16"},
    "avx512": AVX512,
    "avx512_bf16": AVX512 | {"avx512_bf16"},
    "avx2": frozenset({"avx2", "fma", "f16c", "bmi2", "movbe"}),
    "portable": frozenset(),
}
SETTING = "SASREC_ISA"
LOSSES = {"bce", "gbce", "sampled_softmax", "cross_entropy"}  # that the compiled core has
NO_ROWS = Ragged(np.zeros(0, np.int32), np.zeros(0, np.int64))  # tells the core that seen items are not left out
MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's, by torch's names
AVERAGE = "average"  # of the weights over the steps


@dataclass(frozen=True)
class Native:
    """The variant in use. `module` is None where there is none, and `why` says why in either case."""

    isa: str
    module: Any
    why: str


@functools.cache
def load_native() -> Native:
    """Load the fastest variant that was built and that this CPU runs, or the one SASREC_ISA names.

    Raises:
        ConfigError: SASREC_ISA names an unknown variant, one that was not built, or one that this CPU cannot run.
    """
    wanted = os.environ.get(SETTING, "")
    if wanted:
        return _forced(wanted)
    for isa in NEEDS:
        if _is_built(isa) and not _missing(isa):
            module = _import(isa)
            if module.available():
                return Native(isa, module, "the fastest that this CPU has")
    return Native("", None, "the compiled core is not part of this installation: building it needs a C++20 compiler")


def load_float32() -> Native:
    """The variant in use, or the fastest that multiplies floats where that one multiplies bf16."""
    native = load_native()
    if native.module is None or not native.module.bf16:
        return native
    found = (isa for isa in NEEDS if _is_built(isa) and not _missing(isa) and not _import(isa).bf16)
    isa = next(found, native.isa)
    return Native(isa, _import(isa), "the fastest that multiplies floats")


def _forced(isa: str) -> Native:
    if isa not in NEEDS:
        raise ConfigError(f"{SETTING}={isa!r} is not one of {', '.join(NEEDS)}")
    if not _is_built(isa):
        raise ConfigError(f"{SETTING}={isa}: that variant is not part of this installation")
    missing = _missing(isa)
    if missing:
        raise ConfigError(f"{SETTING}={isa}: this CPU has no {', '.join(missing)}")
    module = _import(isa)
    if not module.available():
        raise ConfigError(f"{SETTING}={isa}: the operating system does not let this process use it")
    return Native(isa, module, f"{SETTING} asks for it")


def _import(isa: str) -> Any:
    return importlib.import_module(f"sasrec.native_{isa}")


def _is_built(isa: str) -> bool:
    return importlib.util.find_spec(f"sasrec.native_{isa}") is not None


def _missing(isa: str) -> list[str]:
    return sorted(NEEDS[isa] - cpu_features())


@functools.cache
def cpu_features() -> frozenset[str]:
    """Feature flags of an x86-64 CPU as Linux names them; empty elsewhere, where the portable variant serves."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def unsupported(model: ModelConfig, train: TrainConfig) -> str:
    """What of a configuration the compiled core cannot do; empty when it can do all."""
    if train.device != "cpu":
        return f"device={train.device}"
    if model.padding != "none":
        return f"padding={model.padding}"
    if not model.attention_output:
        return "attention_output=false"
    if train.loss not in LOSSES:
        return f"loss={train.loss}"
    return ""


class NativeEngine:
    """The compiled core: a whole training step, or encoding, in one call.

    Args:
        model: the shape; see `unsupported`.
        n_items: items are 1..n_items.
        train: loss, optimizer, seed, threads.
        weights: to start from; None = initial ones.
        native: the variant; None = the one in use.
    """

    name = "native"

    def __init__(
        self,
        model: ModelConfig,
        n_items: int,
        train: TrainConfig,
        weights: Mapping[str, Float32] | None = None,
        native: Native | None = None,
    ) -> None:
        self.config, self.train_config, self.n_items = model, train, n_items
        self.threads = set_threads(train.threads)
        native = native or load_native()
        self.isa = native.isa
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
            threads=self.threads,
            lazy_adam=train.lazy_adam,
        )
        self.shapes = weight_shapes(model, n_items)
        self._loss_sum, self._n_positions = 0.0, 0
        if weights is None:  # drawing them takes longer than loading a small run
            weights = initial_weights(model, n_items, generator(train.seed, WEIGHTS))
        self.load_weights(weights)

    def forward_backward(self, batch: Batch) -> None:
        step_key = int(generator(self.train_config.seed, DROPOUT, batch.step).integers(2**64, dtype=np.uint64))
        earlier = NO_ROWS if batch.earlier is None else batch.earlier
        self._loss_sum += self.core.forward_backward(
            items=batch.inputs.values,
            offsets=batch.inputs.offsets,
            sequence_keys=batch.users.astype(np.uint64),
            step_key=step_key,
            targets=batch.targets,
            negatives=batch.negatives,
            earlier=earlier.values,
            earlier_offsets=earlier.offsets,
            loss=self.train_config.loss,
            positive_weight=self.train_config.positive_weight(self.n_items),
            corrections=batch.corrections,
            l2_embedding=self.train_config.l2_embedding,
        )
        self._n_positions += len(batch.targets)

    def optimizer_step(self, learning_rate: float) -> None:
        config = self.train_config
        self.core.optimizer_step(
            learning_rate=learning_rate,
            beta1=config.adam_beta1,
            beta2=config.adam_beta2,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )

    def update_average(self, decay: float) -> None:
        self.core.update_average(decay)

    def swap_average(self) -> None:
        self.core.swap_average()

    def pop_loss(self) -> float:
        loss = self._loss_sum / max(self._n_positions, 1)
        self._loss_sum, self._n_positions = 0.0, 0
        return loss

    def encode(self, histories: Ragged) -> Float32:
        features = np.empty((len(histories), self.config.embedding_dim), np.float32)
        self.core.encode(np.ascontiguousarray(histories.values), histories.offsets, features)  # reads the ends only
        return features

    def item_table(self) -> Float32:
        return self._read("item_embedding.weight" if self.config.tied else "output_embedding.weight", "weight")

    def weights(self) -> Weights:
        return {name: self._read(name, "weight") for name in self.shapes}

    def load_weights(self, weights: Mapping[str, Float32]) -> None:
        check_weights(weights, self.shapes)
        for name in self.shapes:
            self.core.write(name, "weight", np.ascontiguousarray(weights[name], np.float32))

    def gradients(self) -> Weights:
        """Of the last `forward_backward`, before clipping."""
        return {name: self._read(name, "gradient") for name in self.shapes}

    def optimizer_state(self) -> Weights:
        state: Weights = {}
        if self.core.step_count:
            for name in self.shapes:
                state[f"step/{name}"] = np.array(self.core.step_count, np.float32)
                state |= {f"{moment}/{name}": self._read(name, moment) for moment in MOMENTS}
        if self.core.has_average:
            state |= {f"{AVERAGE}/{name}": self._read(name, AVERAGE) for name in self.shapes}
        return state

    def load_optimizer_state(self, state: Mapping[str, Float32]) -> None:
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "step":
                self.core.step_count = int(value)
            elif kind in (*MOMENTS, AVERAGE):
                self.core.write(name, kind, np.ascontiguousarray(value, np.float32))

    def _read(self, name: str, kind: str) -> Float32:
        out = np.empty(self.shapes[name], np.float32)
        self.core.read(name, kind, out)
        return out

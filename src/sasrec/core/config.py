"""Settings as frozen dataclasses: of the model, of training and of an evaluation; server_config.py has the server's.

A config checks its values when it is made. Each field carries its help text and its range; the command line's flags and
docs/config.md are made from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sasrec.core.errors import ConfigError
from sasrec.core.event_types import types_in, types_text, weights_in, weights_text
from sasrec.core.server_config import ServerConfig
from sasrec.core.settings import MAX_INT, setting, validate
from sasrec.core.suggestions import suggestion

Block = Literal["sasrec", "post_norm", "pre_norm", "ligr"]
Padding = Literal["none", "attended", "zeroed"]
Activation = Literal["relu", "identity"]
Loss = Literal["bce", "gbce", "sampled_softmax", "cross_entropy"]
Protocol = Literal["full", "sampled"]
Ties = Literal["expected", "strict", "pessimistic"]
Exclude = Literal["train", "all"]
Sampling = Literal["uniform", "popularity"]
Schedule = Literal["constant", "cosine"]
SplitMethod = Literal["leave_one_out", "temporal", "temporal_by_user"]
TemporalTargets = Literal["first", "last", "all"]
FilterSeen = Literal["auto", "yes", "no"]
EngineName = Literal["auto", "torch", "native"]
METRICS = ("ndcg", "hr", "mrr")
Config = TypeVar("Config", "ModelConfig", "TrainConfig", "EvalConfig", ServerConfig)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model: everything that decides which weights there are and what they compute."""

    block: Block = setting(
        "sasrec", "how a block is wired: sasrec (as published), post_norm, pre_norm, or ligr (pre_norm with gates)"
    )
    embedding_dim: int = setting(50, "width D of the item and position embeddings", low=1, high=4096)
    n_blocks: int = setting(2, "number of blocks", low=0, high=64)
    n_heads: int = setting(1, "number of attention heads; it must divide embedding_dim", low=1, high=256)
    ffn_dim: int = setting(0, "hidden width of the feed-forward; 0 = embedding_dim, as published", low=0, high=16384)
    max_seq_len: int = setting(200, "how many of a user's last items the model sees", low=1, high=65536)
    dropout: float = setting(
        0.2, "share of values set to 0 in training, in embeddings, attention and feed-forward", low=0.0, high=0.99
    )
    activation: Activation = setting("relu", "activation of the feed-forward; identity is for pmixer-2020 checkpoints")
    norm_eps: float = setting(1e-8, "epsilon of LayerNorm", low=0.0, high=1.0)
    attention_output: bool = setting(True, "a linear layer after attention; the TensorFlow original has none")
    tied: bool = setting(True, "scores use the item embeddings; false = a separate output table")
    padding: Padding = setting(
        "none",
        "none = the model never sees padding; attended, zeroed = as the published checkpoints (torch engine only)",
    )
    n_features: int = setting(0, "features of items; --item-features decides it; 0 = none", low=0, high=MAX_INT)
    vector_dim: int = setting(0, "width of items' vectors; --item-vectors decides it; 0 = none", low=0, high=65536)
    cold_scale: float = setting(
        0.0,
        "how long rows of items without train events are in answers, beside what features tell of other items; each "
        "gets a guess at what events would teach, from similar items, and goes half of the way to one length; 0 = they "
        "stay as features make them; only where items have features, and there 1.13 if not given",
        low=0.0,
        high=100.0,
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.embedding_dim % self.n_heads:
            raise ConfigError(
                f"n_heads={self.n_heads} does not divide embedding_dim={self.embedding_dim}; choose a divisor"
            )

    @property
    def n_positions(self) -> int:
        """Rows of the position table: one more (row 0, padding) when padding is attended to."""
        return self.max_seq_len + (self.padding == "attended")

    @property
    def has_features(self) -> bool:
        """Whether items are more than their ids: there are features, vectors or both."""
        return self.n_features + self.vector_dim > 0


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Nothing here changes which weights exist."""

    loss: Loss = setting(
        "bce",
        "bce = binary cross-entropy with sampled negatives, as published; gbce = calibrated bce; sampled_softmax = "
        "softmax over the target and its negatives; cross_entropy = softmax over all items",
    )
    n_negatives: int = setting(
        1,
        "sampled negatives per position, or per batch with shared_negatives; cross_entropy draws none",
        low=1,
        high=100_000,
    )
    shared_negatives: bool = setting(
        False, "all positions of a batch share one set of negatives, which may include items that the user had"
    )
    negative_sampling: Sampling = setting(
        "uniform", "uniform = every item is equally likely; popularity = in proportion to its train events"
    )
    mask_seen: bool = setting(
        False,
        "items that the user had before a position do not compete with its target (cross_entropy and shared "
        "negatives); for logs whose seen items are not recommended",
    )
    gbce_t: float = setting(
        0.75,
        "gbce: how much of the overconfidence of sampling is corrected; 0 = none (bce), 1 = all",
        low=0.0,
        high=1.0,
    )
    random_windows: float = setting(
        0.0,
        "how often a user with more events than max_seq_len trains on a window that ends at a random event instead "
        "of the last one; 0 = never, as published",
        low=0.0,
        high=1.0,
    )
    order_noise: float = setting(
        0.0,
        "in half of each batch, events swap places with neighbours up to this many positions away; up to 1 = the "
        "log's order, as published",
        low=0.0,
        high=1000.0,
    )
    feature_dropout: float = setting(
        0.0,
        "how often an item's own embedding is left out in training, so that its features learn to stand alone; only "
        "where items have features, and there 0.2 if not given",
        low=0.0,
        high=1.0,
    )
    init_scale: float = setting(
        1.0,
        "what items' own embeddings are multiplied by when a training begins from an earlier run (--init); on sparse "
        "logs less than 1, such as 0.2, lets it learn sooner what is new",
        low=0.0,
        high=1.0,
    )
    init_smoothing: float = setting(
        0.0,
        "how much of each item's own embedding gives way to the mean of those that stand near its train events, when "
        "a training begins from an earlier run (--init)",
        low=0.0,
        high=1.0,
    )
    init_moments: bool = setting(
        True, "Adam's moments of an earlier run come along when a training begins from it (--init); else they are 0"
    )
    event_weights: str = setting(
        "",
        "how much events of each type count in training, such as view=0.2,purchase=1; types that are not named keep "
        "1, or with target_events 0 unless they are targets",
    )
    batch_size: int = setting(128, "users per training step", low=1, high=1_000_000)
    learning_rate: float = setting(1e-3, "Adam's learning rate", low=0.0, high=10.0)
    schedule: Schedule = setting(
        "constant",
        "constant = the same learning rate throughout; cosine = falls to 0 at max_epochs along half a cosine",
    )
    warmup_steps: int = setting(0, "the learning rate rises linearly over this many first steps", low=0, high=MAX_INT)
    weight_decay: float = setting(
        0.0,
        "AdamW's weight decay on the matrices of the blocks; embeddings, norms and biases have none",
        low=0.0,
        high=100.0,
    )
    ema_decay: float = setting(
        0.0,
        "decay per step of a moving average of the weights, which is validated and saved in their place; 0 = off",
        low=0.0,
        high=0.999999,
    )
    adam_beta1: float = setting(0.9, "decay of Adam's first moment", low=0.0, high=0.999999)
    adam_beta2: float = setting(0.98, "decay of Adam's second moment", low=0.0, high=0.999999)
    l2_embedding: float = setting(
        0.0, "adds this times the sum of squared item embeddings to the loss, as published", low=0.0, high=1e6
    )
    lazy_adam: bool = setting(
        False,
        "rows of item tables that a step does not use are updated later, in closed form: faster for large "
        "catalogues, but approximate (native engine only)",
    )
    orthogonal_steps: bool = setting(
        False,
        "each of Adam's steps of an item table is made equally long in all directions: on sparse logs a training that "
        "begins from an earlier run (--init) finds more in few epochs so, and one from nothing less",
    )
    clip_norm: float = setting(0.0, "largest global norm of the gradient; 0 = no clipping", low=0.0, high=1e6)
    max_epochs: int = setting(200, "stop after this many epochs", low=1, high=1_000_000)
    max_minutes: float = setting(
        0.0, "end after this many minutes of reading, training and measuring; 0 = no limit", low=0.0, high=1e6
    )
    max_steps: int = setting(0, "stop after this many steps; 0 = no limit", low=0, high=2**53)
    patience: int = setting(
        20, "stop when the valid metric has not improved for this many epochs; 0 = never", low=0, high=1_000_000
    )
    valid_every: int = setting(1, "validate every this many epochs", low=1, high=1_000_000)
    valid_metric: str = setting("ndcg@10", "valid metric that chooses the best epoch: ndcg@K, hr@K or mrr@K")
    valid_protocol: Protocol = setting("full", "protocol of the valid metric: full or sampled")
    log_test: bool = setting(False, "also write test metrics to history.jsonl; they never choose the epoch")
    save_every_minutes: float = setting(
        2.0, "minutes between saved states to resume from, inside an epoch; 0 = only between epochs", low=0.0, high=1e6
    )
    seed: int = setting(0, "seed of initial weights, shuffling, negatives and dropout", low=0, high=MAX_INT)
    engine: EngineName = setting(
        "auto", "auto = the compiled core where it supports the settings, else torch; native = the compiled core"
    )
    device: str = setting(
        "auto", "where torch computes: auto (CUDA where there is any, else the CPU), cpu, cuda, cuda:1, ..."
    )
    threads: int = setting(0, "CPU threads; 0 = all that this process may use", low=0, high=4096)

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_weights", weights_text(self.event_weights))
        validate(self)
        weights_in(self.event_weights)
        parse_metric(self.valid_metric)
        if self.ema_decay and self.lazy_adam:
            raise ConfigError("ema_decay averages rows that lazy_adam leaves behind; use one of the two")
        if self.orthogonal_steps and self.lazy_adam:
            raise ConfigError("orthogonal_steps moves every row, and lazy_adam leaves rows behind; use one of the two")

    @property
    def negatives_drawn(self) -> int:
        """Negatives of a position that a batch has to bring: none for cross_entropy, which scores all items."""
        return 0 if self.loss == "cross_entropy" else self.n_negatives

    def positive_weight(self, n_items: int) -> float:
        """What the target's term of bce is multiplied by: 1; beta of gbce, which is 1 - t (1 - alpha).

        alpha is the share of the other items that a position gets as negatives. Source: Petrov & Macdonald 2023
        (gSASRec), equations 11 and 12: beta = alpha (t (1 - 1 / alpha) + 1 / alpha).
        """
        if self.loss != "gbce":
            return 1.0
        alpha = min(1.0, self.n_negatives / max(1, n_items - 1))
        return 1.0 - self.gbce_t * (1.0 - alpha)

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step (from 0): linear warm-up, and half a cosine if the schedule says so.

        Source: Loshchilov & Hutter 2017 (SGDR), equation 5, without restarts and down to zero.
        """
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "cosine":
            rate *= 0.5 + 0.5 * math.cos(math.pi * step / (steps_per_epoch * self.max_epochs))
        return rate

    def ema_decay_at(self, step: int) -> float:
        """The share that the average of the weights keeps of itself at a step (from 0).

        Less at first, so that initial weights are forgotten.

        Source: tf.train.ExponentialMovingAverage of TensorFlow, with num_updates.
        """
        return min(self.ema_decay, (1 + step) / (10 + step))


@dataclass(frozen=True)
class EvalConfig:
    """What an evaluation measures; written into every result."""

    protocol: Protocol = setting(
        "full", "full = rank the target among all items; sampled = among n_candidates drawn negatives"
    )
    k: tuple[int, ...] = setting((10,), "cut-offs of the metrics", low=1, high=MAX_INT)
    ties: Ties = setting(
        "expected",
        "where a target stands among equal scores: expected = in the middle, strict = first, pessimistic = last",
    )
    n_candidates: int = setting(100, "sampled protocol: negatives drawn per target", low=1, high=1_000_000)
    exclude: Exclude = setting(
        "train",
        "sampled protocol: never draw the user's train items (as published), or never draw any item of the user",
    )
    filter_seen: FilterSeen = setting(
        "auto", "hide items that the user had before; auto = yes, unless over 5 % of events repeat an item of the user"
    )
    split_method: SplitMethod = setting(
        "leave_one_out",
        "leave_one_out = a user's last event is test, the one before it valid; temporal = two cuts in time for all; "
        "temporal_by_user = one cut in time, before which some users validate and the others train",
    )
    min_items: int = setting(3, "users with fewer events only train; 4 = as pmixer/SASRec.pytorch", low=3, high=MAX_INT)
    valid_fraction: float = setting(
        0.1, "temporal split: share of events between the valid cut and the test cut", low=0.0, high=0.9
    )
    test_fraction: float = setting(0.1, "temporal splits: share of events after the test cut", low=0.0, high=0.9)
    valid_cut: float = setting(0.0, "temporal split: time at which valid begins, in the log's unit; 0 = by fraction")
    test_cut: float = setting(0.0, "temporal splits: time at which test begins, in the log's unit; 0 = by fraction")
    temporal_targets: TemporalTargets = setting(
        "first", "temporal splits: which of a user's events after a cut are targets"
    )
    n_validating_users: int = setting(
        1024,
        "temporal_by_user: users that validate, drawn with eval_seed from those with two events before the cut; none "
        "of their events trains",
        low=1,
        high=MAX_INT,
    )
    target_events: str = setting(
        "",
        "types of events to predict, separated by commas, such as purchase: valid and test hold out these, only these "
        "train (unless event_weights says more) and count as seen; all events are history; empty = all types",
    )
    eval_seed: int = setting(
        42,
        "seed of the sampled protocol's drawn negatives, of samples of users and of validating users",
        low=0,
        high=MAX_INT,
    )
    valid_users: int = setting(
        0,
        "users that valid is measured on, a sample with eval_seed; 0 = all; where not given, as many as keep targets x "
        "items within 1e10",
        low=0,
        high=MAX_INT,
    )
    eval_users: int = setting(0, "the same for test", low=0, high=MAX_INT)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_events", types_text(self.target_events))
        validate(self)
        if self.target_events and not self.target_types:
            raise ConfigError(f"target_events={self.target_events!r} names no type; write such as purchase,cart")
        if not self.k:
            raise ConfigError("k is empty; give at least one cut-off, such as 10")
        if self.split_method == "temporal" and self.valid_fraction + self.test_fraction >= 1:
            raise ConfigError("valid_fraction + test_fraction must leave some of the log to train on")

    @property
    def target_types(self) -> tuple[str, ...]:
        """The types of events to predict; () = all."""
        return types_in(self.target_events)

    def users_of(self, part: str) -> int:
        """How many users "valid" or "test" is measured on; 0 = all."""
        return self.valid_users if part == "valid" else self.eval_users


def parse_metric(name: str) -> tuple[str, int]:
    """Split "ndcg@10" into ("ndcg", 10).

    Raises:
        ConfigError: not one of ndcg, hr, mrr with a cut-off of at least 1.
    """
    metric, _, k = name.partition("@")
    if metric not in METRICS or not k.isdecimal() or int(k) < 1:
        meant = suggestion(name, [f"{one}@{k if k.isdecimal() and int(k) else 10}" for one in METRICS])
        raise ConfigError(f"'{name}' is not a metric{meant}; use ndcg@K, hr@K or mrr@K, for example ndcg@10")
    return metric, int(k)


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config from a mapping (JSON or YAML).

    Raises:
        ConfigError: an unknown key, or a value out of range.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(values) - set(names), key=str)
    if unknown:
        meant = suggestion(unknown[0], names)
        raise ConfigError(f"unknown setting {unknown[0]!r}{meant}; {cls.__name__} has: {', '.join(names)}")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return cls(**given)


def to_dict(config: ModelConfig | TrainConfig | EvalConfig | ServerConfig) -> dict[str, Any]:
    """A JSON-ready dict that `from_dict` reads back; settings that came LATER are told where they are used."""
    values = [(f, getattr(config, f.name)) for f in dataclasses.fields(config)]
    told = {f.name: value for f, value in values if f.name not in LATER or value != f.default}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}


def split_settings(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort flat settings into {"model": ..., "train": ..., "eval": ...} by the field's owner.

    Raises:
        ConfigError: a key that no config has; the message lists those there are.
    """
    owners = {f.name: part for part, cls in CONFIGS.items() for f in dataclasses.fields(cls)}
    parts: dict[str, dict[str, Any]] = {part: {} for part in CONFIGS}
    for key, value in values.items():
        if key not in owners:
            meant = suggestion(key, owners)
            raise ConfigError(f"unknown setting {key!r}{meant}; known settings: {', '.join(sorted(owners))}")
        parts[owners[key]][key] = value
    return parts


LATER = {  # runs without are as before
    "n_features", "vector_dim", "feature_dropout", "event_weights", "target_events", "max_steps", "valid_users",
    "eval_users", "n_validating_users", "cold_scale", "init_scale", "init_smoothing", "init_moments",
    "orthogonal_steps",
}  # fmt: skip
DERIVED = ("n_features", "vector_dim")  # settings of the model that its items decide
OF_ANSWERS = ("cold_scale",)  # settings of the model that no training step sees
OF_INIT = ("init_scale", "init_smoothing", "init_moments")  # of a training that begins from another run, and no other
CONFIGS: dict[str, type[Any]] = {"model": ModelConfig, "train": TrainConfig, "eval": EvalConfig}

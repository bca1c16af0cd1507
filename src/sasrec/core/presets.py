"""Presets: good settings for a log, chosen by its sizes.

A preset sees only sizes of the train part (`LogStatistics`), never valid or test targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig, from_dict, split_settings
from sasrec.core.errors import ConfigError
from sasrec.core.settings import MAX_INT
from sasrec.core.suggestions import suggestion

MANY_USERS = 10_000  # from here on an epoch has steps enough to count in epochs
LONG_TRAIN_LEN = 50  # from this mean on, presets take histories for long
FEATURE_DROPOUT = 0.2  # where items have features: docs/experiments.md
COLD_SCALE = 1.13  # the same
OF_FEATURES = ("feature_dropout", "cold_scale")  # settings that do nothing elsewhere
ENOUGH_ITEMS = 10  # for each drawn candidate: then one draw in twenty repeats another


@dataclass(frozen=True)
class LogStatistics:
    """What a preset may look at: sizes of the training part of a log, never its valid or test targets."""

    n_users: int
    n_items: int
    n_events: int
    mean_train_len: float
    hides_seen: bool = True  # whether seen items are kept out of recommendations: they may not repeat


def paper(statistics: LogStatistics) -> dict[str, Any]:
    """The published settings: BCE with one negative, width 50, two blocks. For comparison with the paper.

    Long histories (on average 50 train events per user or more) get max_seq_len 200 and dropout 0.2, as the paper has
    for ml-1m. Shorter ones get 50 and 0.5. The epoch is chosen by NDCG@10 of the sampled protocol. Where the mean user
    has fewer than 1,000 items left to draw from, the draws would repeat, and the full protocol chooses. Patience is 20
    epochs, and at least 900 steps, because the metric hardly moves during the first few hundred.

    Source: Kang & McAuley 2018, section IV.C; defaults of pmixer/SASRec.pytorch fde8a9c.
    """
    long = statistics.mean_train_len >= LONG_TRAIN_LEN
    return {
        "block": "sasrec",
        "embedding_dim": 50,
        "n_blocks": 2,
        "n_heads": 1,
        "max_seq_len": 200 if long else 50,
        "dropout": 0.2 if long else 0.5,
        "loss": "bce",
        "n_negatives": 1,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "patience": _epochs(statistics, 128, 900, least=20),
        "valid_protocol": _published_protocol(statistics),
    }


def best(statistics: LogStatistics) -> dict[str, Any]:
    """The most accurate settings known, for any log. docs/experiments.md says what each part brings.

    The model has LiGR blocks of width 128. The loss is a softmax over all items that the user has not had; large logs
    sample the items. A moving average of the weights is validated and saved. Dropout is 0.5 where an item has 20 train
    events or fewer on average, and falls to 0.2 at 200.

    Long histories (on average 50 train events per user or more) get a third block, batches of 32 users and a learning
    rate that falls along a cosine. Half of the histories that are longer than max_seq_len train on a random window, so
    that older events are used too. Short histories overfit quickly, so half of each batch is slightly shuffled and
    training stops early. Few users make few steps per epoch, so small logs get more epochs and more patience.
    """
    settings = {
        "block": "ligr",
        "embedding_dim": 128,
        "n_heads": 1,
        "dropout": _dropout(statistics),
        **_softmax(statistics, 1e10),
        "mask_seen": statistics.hides_seen,
        "warmup_steps": 100,
        "valid_protocol": "full",
    }
    if statistics.mean_train_len >= LONG_TRAIN_LEN:
        return settings | {
            "n_blocks": 3,
            "max_seq_len": 200,
            "random_windows": 0.5,
            "batch_size": 32,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "ema_decay": 0.999,
            "max_epochs": _epochs(statistics, 32, 1200, least=40, most=300),
            "patience": _epochs(statistics, 32, 300, least=10, most=100),
        }
    batch_size = 128 if statistics.n_users >= MANY_USERS else 64
    return settings | {
        "n_blocks": 2,
        "max_seq_len": min(200, max(50, math.ceil(4 * statistics.mean_train_len))),
        "order_noise": 2.5,
        "batch_size": batch_size,
        "learning_rate": 1e-3,
        "ema_decay": 0.998,
        "max_epochs": _epochs(statistics, batch_size, 3500, least=60, most=300),
        "patience": _epochs(statistics, batch_size, 400, least=5, most=50),
    }


def fast(statistics: LogStatistics) -> dict[str, Any]:
    """`best` with fewer epochs: about 90 seconds on two cores for a log like ml-1m.

    The learning rate stays constant, because the moving average of the weights does the work of a falling one. Long
    histories get two blocks instead of three, and half the dropout: in a few epochs the model does not overfit. Large
    logs sample fewer negatives.
    """
    settings = best(statistics) | {"schedule": "constant"}
    if statistics.mean_train_len < LONG_TRAIN_LEN:
        max_epochs = _epochs(statistics, settings["batch_size"], 1200, least=20, most=100)
        return settings | _softmax(statistics, 5e8) | {"max_epochs": max_epochs}
    affordable = min(30, max(4, round(5e6 / max(statistics.n_events, 1))))  # 5 on ml-1m
    return settings | {
        **_softmax(statistics, 4e9),
        "n_blocks": 2,
        "dropout": round(settings["dropout"] / 2, 2),
        "max_epochs": _epochs(statistics, settings["batch_size"], 900, least=affordable, most=150),
        "valid_every": 2,
    }


def _published_protocol(statistics: LogStatistics) -> str:
    """Sampled, but full where the same few items would be drawn again and again."""
    left = statistics.n_items - statistics.mean_train_len
    return "sampled" if left >= ENOUGH_ITEMS * EvalConfig().n_candidates else "full"


def _softmax(statistics: LogStatistics, most_scores: float) -> dict[str, Any]:
    """Softmax over all items if an epoch then has no more scores than that, else over what a batch shares."""
    n_negatives = max(512, int(most_scores / max(statistics.n_events, 1)))
    if n_negatives >= statistics.n_items:
        return {"loss": "cross_entropy"}
    return {"loss": "sampled_softmax", "shared_negatives": True, "n_negatives": n_negatives}


def _epochs(statistics: LogStatistics, batch_size: int, steps: int, least: int, most: int = MAX_INT) -> int:
    """Epochs that have so many steps, within bounds."""
    steps_per_epoch = math.ceil(max(statistics.n_users, 1) / batch_size)
    return min(most, max(least, math.ceil(steps / steps_per_epoch)))


def _dropout(statistics: LogStatistics) -> float:
    """0.5 with 20 train events an item and fewer, 0.2 with 200 and more, between them along the logarithm."""
    events_per_item = statistics.n_events / max(statistics.n_items, 1)
    share = math.log10(max(events_per_item, 1e-9) / 20)
    return round(0.5 - 0.3 * min(1.0, max(0.0, share)), 2)


PRESETS: dict[str, Callable[[LogStatistics], dict[str, Any]]] = {"paper": paper, "fast": fast, "best": best}
DEFAULT_PRESET = "best"


def resolve(
    preset: str, statistics: LogStatistics, overrides: Mapping[str, Any]
) -> tuple[ModelConfig, TrainConfig, EvalConfig]:
    """Preset values for this log, then the user's own settings on top.

    Raises:
        ConfigError: unknown preset or setting, or a value out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(
            f"preset {preset!r} is not known{suggestion(preset, PRESETS)}; there are: {', '.join(PRESETS)}"
        )
    parts = split_settings({**PRESETS[preset](statistics), **overrides})
    return (
        from_dict(ModelConfig, parts["model"]),
        from_dict(TrainConfig, parts["train"]),
        from_dict(EvalConfig, parts["eval"]),
    )


def with_feature_settings(
    model: ModelConfig, train: TrainConfig, given: Mapping[str, Any]
) -> tuple[ModelConfig, TrainConfig]:
    """The settings with those that items with features have where they are not given.

    Args:
        model: with the sizes that items decide.
        train: beside it.
        given: the user's own settings, and what is to stay as it is in these.

    Raises:
        ConfigError: items have no features, and one is given that would do nothing.
    """
    if model.has_features:
        train = train if "feature_dropout" in given else replace(train, feature_dropout=FEATURE_DROPOUT)
        return model if "cold_scale" in given else replace(model, cold_scale=COLD_SCALE), train
    for name in OF_FEATURES:
        if given.get(name):
            raise ConfigError(
                f"{name}={given[name]} is for items with features, and these have none; give item_features or "
                f"item_vectors, or leave {name} out"
            )
    return model, train

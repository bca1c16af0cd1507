"""What trackers are given of a training: settings, figures and texts, without ids or histories of users."""

from __future__ import annotations

from collections.abc import Sequence

from sasrec.core.config import to_dict
from sasrec.core.scalars import plain
from sasrec.evaluation.results import Result
from sasrec.report.text import protocol_in_words
from sasrec.runs.folder import RunConfig
from sasrec.runs.record import EpochLine
from sasrec.training.result import TrainResult

Setting = str | int | float | bool


def settings_of(config: RunConfig) -> dict[str, Setting]:
    """All settings by name, and what the log is like; lists are texts."""
    settings = {
        name: value for part in (config.model, config.train, config.eval) for name, value in to_dict(part).items()
    }
    data = config.data
    told = {
        "preset": config.preset,
        "data": config.data_name,
        "fingerprint": data.fingerprint,
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_events": data.n_events,
        "sasrec_version": config.package_version,
    }
    return {name: _setting(value) for name, value in {**settings, **told}.items()}


def _setting(value: object) -> Setting:
    value = plain(value)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return value if isinstance(value, str | int | float | bool) else str(value)


def figures_of_epoch(line: EpochLine) -> dict[str, float]:
    """A point of each curve: loss, speed, and the metrics that were taken, such as valid/ndcg@10."""
    figures: dict[str, float] = {
        "train_loss": line.train_loss,
        "learning_rate": line.learning_rate,
        "users_per_second": line.users_per_second,
        "seconds": line.total_seconds,
    }
    for split, metrics in (("valid", line.valid), ("test", line.test)):
        figures |= {f"{split}/{name}": value for name, value in (metrics or {}).items()}
    return figures


def figures_of_result(training: TrainResult, results: Sequence[Result]) -> dict[str, float]:
    """How it ended: test_full/ndcg@10 and the like, with /low and /high of its interval, and /popularity beside it."""
    figures: dict[str, float] = {"best_epoch": training.best_epoch, "epochs": training.epochs}
    for result in results:
        for name, estimate in result.metrics.items():
            where = f"{result.split}_{result.protocol}/{name}"
            figures[where] = estimate["value"]
            bounds = (("low", estimate["low"]), ("high", estimate["high"]))
            figures |= {f"{where}/{bound}": value for bound, value in bounds if value is not None}
            beside = {f"{where}/{scorer}": metrics[name]["value"] for scorer, metrics in result.baselines.items()
                      if name in metrics}  # fmt: skip
            figures |= beside
    return figures


def texts_of_result(training: TrainResult, results: Sequence[Result], model_version: str) -> dict[str, str]:
    """What ended the training, the model's version, and how each result was measured."""
    protocols = {f"{result.split}_{result.protocol}": protocol_in_words(result) for result in results}
    return {"stopped": training.stopped, "model_version": model_version, **protocols}

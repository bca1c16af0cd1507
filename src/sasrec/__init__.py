"""sasrec: self-attentive sequential recommendation, from a log of events to recommendations."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from sasrec.converting import convert
    from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
    from sasrec.core.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        SASRecError,
        TrainingError,
        UnknownItemError,
    )
    from sasrec.data.filters import filter_k_core, filter_repeats
    from sasrec.evaluation.comparison import compare
    from sasrec.evaluation.results import Result
    from sasrec.experiments.search import tune
    from sasrec.fitting import fit
    from sasrec.ranking.lists import Recommendations
    from sasrec.reading.datasets import load_dataset
    from sasrec.reading.items import read_items
    from sasrec.reading.readers import read_interactions
    from sasrec.reading.titles import read_titles
    from sasrec.recommender import Recommender, load
    from sasrec.tracking.tracker import Tracker

_HOMES = {
    "evaluation.comparison": ["compare"],
    "core.config": ["EvalConfig", "ModelConfig", "TrainConfig"],
    "reading.datasets": ["load_dataset"],
    "core.errors": ["CheckpointError", "ConfigError", "DataError", "SASRecError", "TrainingError", "UnknownItemError"],
    "evaluation.results": ["Result"],
    "data.filters": ["filter_k_core", "filter_repeats"],
    "reading.items": ["read_items"],
    "reading.readers": ["read_interactions"],
    "reading.titles": ["read_titles"],
    "experiments.search": ["tune"],
    "fitting": ["fit"],
    "converting": ["convert"],
    "ranking.lists": ["Recommendations"],
    "recommender": ["Recommender", "load"],
    "tracking.tracker": ["Tracker"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EvalConfig",
    "ModelConfig",
    "Recommendations",
    "Recommender",
    "Result",
    "SASRecError",
    "Tracker",
    "TrainConfig",
    "TrainingError",
    "UnknownItemError",
    "__version__",
    "compare",
    "convert",
    "filter_k_core",
    "filter_repeats",
    "fit",
    "load",
    "load_dataset",
    "read_interactions",
    "read_items",
    "read_titles",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used: `import sasrec` itself loads nothing heavy."""
    if name in _HOME_OF:
        return getattr(import_module(f"sasrec.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'sasrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _before_fork() -> None:
    """Told from here: the caller may use Polars and fork before any of our modules is loaded."""
    import_module("sasrec.core.forks").before_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)

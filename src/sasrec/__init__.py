"""sasrec: self-attentive sequential recommendation, from a log of events to recommendations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sasrec.comparison import compare
    from sasrec.config import EvalConfig, ModelConfig, TrainConfig
    from sasrec.datasets import load_dataset
    from sasrec.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        SASRecError,
        TrainingError,
        UnknownItemError,
    )
    from sasrec.evaluation import Result
    from sasrec.interactions import filter_k_core, filter_repeats, read_interactions, read_titles
    from sasrec.recommender import Recommendations, Recommender, convert, fit, load

_HOMES = {
    "comparison": ["compare"],
    "config": ["EvalConfig", "ModelConfig", "TrainConfig"],
    "datasets": ["load_dataset"],
    "errors": ["CheckpointError", "ConfigError", "DataError", "SASRecError", "TrainingError", "UnknownItemError"],
    "evaluation": ["Result"],
    "interactions": ["filter_k_core", "filter_repeats", "read_interactions", "read_titles"],
    "recommender": ["Recommendations", "Recommender", "convert", "fit", "load"],
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
    "read_titles",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used: `import sasrec` itself loads nothing heavy."""
    if name in _HOME_OF:
        return getattr(import_module(f"sasrec.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'sasrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

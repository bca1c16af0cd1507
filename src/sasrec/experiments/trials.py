"""Optuna's side of a search: distributions, states and importance in Optuna's terms and in ours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from sasrec.experiments.search_pages import Trial
from sasrec.experiments.search_space import Choice, Range

PRESET = "preset"  # of the trial that is the untouched preset
ERROR = "error"  # of a trial that failed by itself; one that failed without was cut short, and is tried again


def quiet_optuna() -> Any:
    """The package, whose log says warnings only."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def distribution_of(optuna: Any, values: Range | Sequence[Choice]) -> Any:
    """What a setting is drawn from."""
    distributions = optuna.distributions
    if not isinstance(values, Range):
        return distributions.CategoricalDistribution(list(values))
    if values.is_int:
        return distributions.IntDistribution(int(values.low), int(values.high), log=values.is_log)
    return distributions.FloatDistribution(values.low, values.high, log=values.is_log)


def has_ended(trial: Any) -> bool:
    """Whether it counts: complete, pruned or failed by itself, not cut short."""
    return bool(trial.state.is_finished() and (trial.state.name != "FAIL" or ERROR in trial.user_attrs))


def trial_of(trial: Any, number: int) -> Trial:
    """A trial without Optuna."""
    state = {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed")
    told = trial.user_attrs
    value = trial.value if state == "complete" else None
    return Trial(number, dict(trial.params), state, value, told.get("epochs", 0), told.get("seconds", 0.0))


def importance_of(study: Any) -> dict[str, float]:
    """How much each setting decides of the metric, in shares of 1; empty while too little is known.

    Source: Watanabe et al. 2023, "PED-ANOVA", as Optuna computes it.
    """
    optuna = quiet_optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that few trials tell little; the page says how many there are
        try:
            return {name: float(share) for name, share in optuna.importance.get_param_importances(study).items()}
        except (ValueError, RuntimeError):  # one trial, or all alike
            return {}

"""The texts of event_weights and target_events, which name types of events: "view=0.2,purchase=1", "purchase,cart"."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

from sasrec.core.errors import ConfigError

LEAST_WEIGHT, MOST_WEIGHT = 1e-9, 1e9  # of what counts at all: sums of weights stay numbers
EXAMPLE = "write event_weights such as view=0.2,purchase=1"


def types_in(text: str) -> tuple[str, ...]:
    """The types that a text names, each once; a name with a comma stands in double quotes.

    Raises:
        ConfigError: it is no such list.
    """
    try:
        parts = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise ConfigError(f"{text!r} is not a list of event types: {error}; write such as purchase,cart") from error
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def weights_in(text: str) -> dict[str, float]:
    """The weight of each type that a text names.

    Raises:
        ConfigError: a part is not TYPE=WEIGHT, names a type twice, or has a weight that is not a number from 0.
    """
    weights: dict[str, float] = {}
    for part in types_in(text):
        name, equals, number = (word.strip() for word in part.rpartition("="))
        if not equals or not name:
            raise ConfigError(f"event_weights has {part!r}, which is not TYPE=WEIGHT; {EXAMPLE}")
        if name in weights:
            raise ConfigError(f"event_weights names {name!r} twice; give it one weight")
        weights[name] = _weight(name, number)
    return weights


def _weight(name: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if weight != 0 and not LEAST_WEIGHT <= weight <= MOST_WEIGHT:  # also what is not a number
        raise ConfigError(
            f"event_weights gives {name!r} the weight {number!r}; use 0 or a number from {LEAST_WEIGHT:g} to "
            f"{MOST_WEIGHT:g}, such as 0.2"
        )
    return weight


def types_text(types: Any) -> Any:
    """Names as one text; what is no list of names comes back as it is, for the config to check."""
    if isinstance(types, list | tuple) and all(isinstance(name, str) for name in types):
        return _joined(types)
    return types


def weights_text(weights: Any) -> Any:
    """Weights by type as one text; what is no mapping or list of texts comes back as it is."""
    if isinstance(weights, Mapping):
        return _joined(f"{name}={weight}" for name, weight in weights.items())
    return types_text(weights)


def _joined(names: Iterable[str]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="").writerow(names)
    return file.getvalue()

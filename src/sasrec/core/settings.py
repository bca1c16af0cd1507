"""Fields of settings: their help text and range, and the check of a value against them."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import field
from typing import Any, get_args, get_type_hints

import numpy as np

from sasrec.core.errors import ConfigError
from sasrec.core.scalars import is_integer, plain
from sasrec.core.suggestions import suggestion

MAX_INT = 2**31 - 1  # of settings that the compiled core takes as an int


def setting(default: Any, text: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field with its help text and, for numbers, its inclusive range."""
    return field(default=default, metadata={"help": text, "low": low, "high": high})


def validate(config: Any) -> None:
    """Check each field's type, choice and range against its annotation and metadata."""
    hints = get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        object.__setattr__(config, f.name, _checked(f.name, value, hints[f.name], f.metadata))


def _checked(name: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> Any:
    """The value in its annotated type, without NumPy's, or a ConfigError that names the field."""
    value, choices = plain(value), get_args(kind)
    if choices == (int, ...):
        value = value.tolist() if isinstance(value, np.ndarray) else value
        values = value if isinstance(value, tuple | list | range) else (value,)
        return tuple(_checked(name, v, int, metadata) for v in values)
    if choices:
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(
                f"{name}={value!r} is not one of {', '.join(map(str, choices))}{suggestion(value, choices)}"
            )
        return value
    if kind is float and is_integer(value):
        value = float(value) if abs(value) <= sys.float_info.max else math.inf
    if not isinstance(value, kind) or (kind is int and not is_integer(value)):
        advice = "; use true or false" if kind is bool else ""
        raise ConfigError(f"{name}={value!r} is not of type {kind.__name__}{advice}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{name}={value} is not a finite number")
    low, high = metadata.get("low"), metadata.get("high")
    if low is not None and not low <= value:
        raise ConfigError(f"{name}={value} is too small; the least is {low:g}")
    if high is not None and not value <= high:
        raise ConfigError(f"{name}={value} is too large; the most is {high:g}")
    return value

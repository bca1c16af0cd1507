"""Single values that callers hand in: NumPy's scalars as Python's own, and what is an integer or a truth value."""

from __future__ import annotations

from typing import Any

import numpy as np

from sasrec.core.errors import ConfigError


def plain(value: Any) -> Any:
    """NumPy's integers, floats, truth values and texts as Python's own; anything else as it is."""
    return value.item() if isinstance(value, np.integer | np.floating | np.bool_ | np.str_) else value


def is_integer(value: Any) -> bool:
    """Whether a plain value is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_number(name: str, value: Any, what: str) -> int:
    """A number of things: 1 or more, as a plain integer.

    Args:
        name: of the argument.
        value: what the caller gave.
        what: the things, as a message says it.

    Raises:
        ConfigError: it is less, or not an integer.
    """
    number = plain(value)
    if not is_integer(number):
        raise ConfigError(f"{name}={number!r} is not a number of {what}; use 1 or more, as an integer")
    if number < 1:
        raise ConfigError(f"{name}={number} is not a number of {what}; use 1 or more")
    return int(number)


def check_truth(name: str, value: Any) -> bool | None:
    """True, False or None, as plain values.

    Raises:
        ConfigError: anything else, such as "no", which Python takes for true.
    """
    truth = plain(value)
    if truth is None or isinstance(truth, bool):
        return truth
    raise ConfigError(f"{name}={truth!r} is of type {type(truth).__name__}; use True, False or None")

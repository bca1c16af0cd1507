"""What a search tries: for each setting a range or a list of choices.

A range is a text: `0.1..0.6`, `1e-4..1e-2 log` for one that is even by its logarithm, `1..4` of whole numbers. A list
has choices, and a single value is fixed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from sasrec.core.config import DERIVED, OF_INIT, ModelConfig, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.scalars import plain
from sasrec.core.suggestions import suggestion

Choice = str | int | float | bool
NOT_SEARCHED = {  # they say how long, where and how is measured, not what is learned; and no trial begins from a run
    "seed", "engine", "device", "threads", "max_minutes", "max_steps", "valid_every", "valid_metric", "valid_protocol",
    "log_test", "save_every_minutes", *OF_INIT, *DERIVED,
}  # fmt: skip
KINDS = {
    field.name: get_type_hints(cls)[field.name]
    for cls in (ModelConfig, TrainConfig) for field in fields(cls) if field.name not in NOT_SEARCHED
}  # fmt: skip
RANGE = re.compile(r"\s*(?P<low>[^\s.][^\s]*?)\s*\.\.\s*(?P<high>[^\s]+)(?P<log>\s+log)?\s*")
FORM = "write a range such as 1e-4..1e-2 log, or a list of choices"
LEAST_LEN, FAR = 10, 8  # max_seq_len in the default space: at least this, and at most so many times the mean


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    is_log: bool = False
    is_int: bool = False


Space = dict[str, Range | list[Choice]]


def read_space(given: Mapping[str, Any]) -> tuple[Space, dict[str, Choice]]:
    """The settings that are searched, and those that have one value.

    Args:
        given: a range, a list of choices or a value by the name of a setting.

    Raises:
        ConfigError: a setting that is not known or not searched; a range that is none; nothing to search.
    """
    space: Space = {}
    fixed: dict[str, Choice] = {}
    for name, value in given.items():
        if name not in KINDS:
            what = "is not searched: it does not say what is learned" if name in NOT_SEARCHED else "is not known"
            meant = "" if name in NOT_SEARCHED else suggestion(name, KINDS)
            raise ConfigError(f"setting {name!r} of the space {what}{meant}; there are: {', '.join(sorted(KINDS))}")
        read = _values(name, value)
        if isinstance(read, list | Range):
            space[name] = read
        else:
            fixed[name] = read
    if not space:
        raise ConfigError(f"the space has nothing to search; {FORM}")
    return space, fixed


def _values(name: str, value: Any) -> Range | list[Choice] | Choice:
    if isinstance(value, list | tuple):
        choices: list[Choice] = [plain(one) for one in value]
        if not choices or len(set(map(repr, choices))) < len(choices):
            raise ConfigError(f"{name}={value!r} of the space is no list of different values; {FORM}")
        return choices if len(choices) > 1 else choices[0]
    if isinstance(value, str) and ".." in value:
        return _range(name, value)
    single: Choice = plain(value)
    return single


def _range(name: str, text: str) -> Range:
    found, is_int = RANGE.fullmatch(text), KINDS[name] is int
    if KINDS[name] not in (int, float):
        raise ConfigError(f"{name}={text!r} of the space is a range, and the setting is no number; give choices")
    try:
        assert found is not None
        low, high = (float(found[end]) for end in ("low", "high"))
        if is_int and not (low.is_integer() and high.is_integer()):
            raise ConfigError(f"{name}={text!r} of the space has an end that is no whole number; {FORM}")
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"{name}={text!r} of the space is no range; {FORM}") from error
    if not low < high or (found["log"] and low <= 0):
        why = "an end of a range by logarithm is above 0" if low < high else "it ends below where it begins"
        raise ConfigError(f"{name}={text!r} of the space is no range: {why}")
    return Range(low, high, bool(found["log"]), is_int)


def default_space(preset: Mapping[str, Any], mean_len: float) -> Space:
    """What is tried where nothing is said: around the preset's values, which follow the log's sizes.

    Args:
        preset: all settings of the untouched preset by name.
        mean_len: train events of the mean user; a max_seq_len far above it sees little more.
    """
    rate, dropout = preset["learning_rate"], preset["dropout"]
    usual = preset["max_seq_len"]
    useful = {n for n in (usual // 2, usual, 2 * usual) if n == usual or LEAST_LEN <= n <= FAR * mean_len}
    space: Space = {
        "learning_rate": Range(rate / 4, rate * 4, is_log=True),
        "dropout": Range(max(0.0, round(dropout - 0.25, 2)), min(0.8, round(dropout + 0.25, 2))),
        "embedding_dim": _around(preset["embedding_dim"], preset["n_heads"]),
        "n_blocks": Range(1, preset["n_blocks"] + 1, is_int=True),
        "batch_size": _around(preset["batch_size"], 1),
    }
    return space | ({"max_seq_len": sorted(useful)} if len(useful) > 1 else {})


def _around(value: int, unit: int) -> list[Choice]:
    """Half of a value, itself and twice as much; a multiple of a unit."""
    half = value // 2 // unit * unit
    return [n for n in (half, value, 2 * value) if n]


def holds(space: Space, name: str, value: object) -> bool:
    """Whether a setting's value is one of those that are tried."""
    values = space[name]
    if isinstance(values, Range):
        return isinstance(value, int | float) and values.low <= value <= values.high
    return value in values


def told(space: Space) -> dict[str, str | list[Choice]]:
    """The space as it can be given again."""
    return {
        name: f"{v.low:g}..{v.high:g}{' log' * v.is_log}" if isinstance(v, Range) else list(v)
        for name, v in space.items()
    }

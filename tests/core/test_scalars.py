"""NumPy's scalars are Python's own; what only looks like a number or a truth value is refused."""

from typing import Any

import numpy as np
import pytest

from sasrec.core.errors import ConfigError
from sasrec.core.scalars import check_number, check_truth, plain


@pytest.mark.parametrize(
    ("value", "kind"), [(np.int8(3), int), (np.float32(0.5), float), (np.True_, bool), (np.str_("a"), str)]
)
def test_plain_values_are_of_pythons_own_types(value: Any, kind: type) -> None:
    assert plain(value) == value
    assert type(plain(value)) is kind
    same = object()
    assert plain(same) is same


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_a_number_of_things_is_a_plain_integer(value: Any) -> None:
    assert check_number("k", value, "items") == 3
    assert type(check_number("k", value, "items")) is int


@pytest.mark.parametrize("value", [0, -1, np.int64(0), 5.0, np.float64(5), True, np.True_, "5", None, np.array(5)])
def test_anything_else_is_no_number_of_things(value: Any) -> None:
    with pytest.raises(ConfigError, match="is not a number of items; use 1 or more"):
        check_number("k", value, "items")


def test_truth_is_true_false_or_nothing() -> None:
    given = [check_truth("keep_seen", value) for value in (True, np.True_, np.False_, None)]
    assert given == [True, True, False, None]
    for value in ("no", 1, 0, np.int64(1), 0.0, []):
        with pytest.raises(ConfigError, match=r"keep_seen=.* is of type .*; use True, False or None"):
            check_truth("keep_seen", value)

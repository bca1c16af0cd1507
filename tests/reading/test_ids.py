"""Which single ids are the same: of integers, floats, texts, NumPy's scalars; what is no id at all."""

from __future__ import annotations

import enum
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.ids import canonical_id

INTEGERS = Vocabulary(pl.Series([-8, 0, 1, 118, 2**53 + 2]))
TEXTS = Vocabulary(pl.Series(["-8", "0118", "1.5", "118", "118.0", "1e-7", "heat, uncut", "nan", "None"]))


class Film(enum.StrEnum):
    HEAT = "118"


class Number(enum.IntEnum):
    HEAT = 118


@pytest.mark.parametrize(
    "same",
    [
        118, "118", 118.0, "118.0", "118.000", np.int64(118), np.int8(118), np.uint64(118), np.float64(118),
        np.float32(118), np.str_("118"), np.str_("118.0"), Decimal(118), Decimal("118.0"), Decimal("1.18E2"), Film.HEAT,
        Number.HEAT, np.array(118),
    ],
)  # fmt: skip
def test_every_spelling_of_a_whole_number_is_one_integer_id(same: Any) -> None:
    assert INTEGERS.index_of(same) == 4
    assert INTEGERS.indices_of([same]).tolist() == [4]
    assert type(canonical_id(same, integers=True)) is int


@pytest.mark.parametrize(
    "other",
    [
        "0118", "+118", " 118", "118 ", "118.", "118.5", "118,0", "1.18e2", "1_1", "\u0661\u0661\u0668", "118\n", ".0",
        118.5, np.float64(118.5), Decimal("118.5"), b"118", [118], "00", "0118.0", "+118.0", "x118.0",
    ],
)  # fmt: skip
def test_other_spellings_are_other_ids_of_integers(other: Any) -> None:
    assert INTEGERS.index_of(other) == 0


def test_an_id_of_thousands_of_digits_is_unknown() -> None:
    for ids in ([10**5000], ["9" * 5000], ["1" + "0" * 5000 + ".0"]):
        assert INTEGERS.indices_of(ids).tolist() == TEXTS.indices_of(ids).tolist() == [0]


def test_negative_integers_and_zero_have_the_same_spellings() -> None:
    assert [INTEGERS.index_of(i) for i in (-8, "-8", "-8.0", -8.0, np.int64(-8))] == [1] * 5
    assert [INTEGERS.index_of(i) for i in (0, "0", "0.0", 0.0, -0.0)] == [2] * 5
    assert [INTEGERS.index_of(i) for i in ("-0", "--8", "- 8", "-08")] == [0] * 4


@pytest.mark.parametrize("nothing", [None, "", float("nan"), np.float32("nan"), Decimal("nan"), pd.NA, pd.NaT, b"118"])
@pytest.mark.parametrize("vocabulary", [INTEGERS, TEXTS])
def test_what_is_missing_is_no_id(vocabulary: Vocabulary, nothing: Any) -> None:
    assert vocabulary.index_of(nothing) == 0


def test_a_truth_value_is_its_text_and_never_the_item_1() -> None:
    booleans = Vocabulary(pl.Series([True, False]))
    for true in (True, np.True_):
        assert INTEGERS.index_of(true) == 0
        assert booleans.item_ids[booleans.index_of(true) - 1] == "true"


def test_a_float_that_several_integers_share_is_none_of_them() -> None:
    assert INTEGERS.index_of(2**53 + 2) == INTEGERS.index_of(str(2**53 + 2)) == 5
    assert INTEGERS.index_of(float(2**53 + 2)) == 0
    assert INTEGERS.index_of(Decimal(2**53 + 2)) == 5


def test_texts_are_as_they_are_and_numbers_are_their_text() -> None:
    def ids_of(*given: Any) -> list[str | None]:
        return [None if index == 0 else str(TEXTS.item_ids[index - 1]) for index in TEXTS.indices_of(given).tolist()]

    assert ids_of("118.0", "118", 118, 118.0, np.float32(118), Decimal("118.0")) == ["118.0"] + ["118"] * 5
    assert ids_of("0118", "heat, uncut", np.str_("heat, uncut"), -8) == ["0118", "heat, uncut", "heat, uncut", "-8"]
    assert ids_of(1.5, np.float32(1.5), Decimal("1.5"), 1e-7) == ["1.5", "1.5", "1.5", "1e-7"]
    assert ids_of(" 118", 1.25) == [None] * 2

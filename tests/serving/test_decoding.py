"""Whole numbers in JSON that are written as fractions."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasrec.core.isa import load_native
from sasrec.serving.decoding import EXACT, plain_whole_numbers, whole_numbers

core = load_native().module
BOTH = [plain_whole_numbers] if core is None else [plain_whole_numbers, core.whole_numbers]
NUMBERS = {
    b"3.0": b"3", b"2e1": b"20", b"-3E+0": b"-3", b"1.50e1": b"15", b"-0.0": b"0", b"0e999999999999999999999": b"0",
    b"100.00e-2": b"1", b"9007199254740991.0": b"9007199254740991", b"9.007199254740991e15": b"9007199254740991",
    b"12300000000000000000.0e-5": b"123000000000000",
}  # fmt: skip
AS_THEY_ARE = [
    b"3", b"12345678901234567890", b"1.5", b"1e-3", b"9007199254740992.0", b"1e300", b"1e99999999999999999999",
    b"1e-99999999999999999999", b"1." + b"0" * 40 + b"1", b"01.0", b"1.", b".5", b"1.0.0", b"1e", b"1e+",
    b"--1.0", b"1.0-1", b"NaN", b"", b'"', b'"1.0', b'"1.0\\', b'"1.0\\"', b'"1.0\\\\\\" 2e1"', b'{"1.0": "2e1"}',
]  # fmt: skip


@pytest.mark.parametrize("function", BOTH)
def test_whole_numbers_below_2_53_lose_point_and_exponent_and_nothing_else_changes(function) -> None:
    for number, whole in NUMBERS.items():
        assert function(number) == whole
        assert function(b'["1.0", %s,%s]' % (number, number)) == b'["1.0", %s,%s]' % (whole, whole)
    for text in AS_THEY_ARE:
        assert function(text) == text


floats = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(lambda d: f"{d:e}"),
    st.tuples(st.integers(-EXACT, EXACT), st.integers(-20, 20)).map(lambda p: f"{p[0]}.0e{p[1]}"),
)
values = st.recursive(
    st.one_of(floats, st.integers().map(str), st.text().map(json.dumps), st.sampled_from(["true", "null", '"\\"1.0"'])),
    lambda inner: st.lists(inner, max_size=4).map(lambda parts: "[" + " , ".join(parts) + "]"),
    max_leaves=12,
)


def exactly(text: str) -> Decimal:
    return Decimal(text)


@given(values)
def test_json_says_the_same_after_as_before(text: str) -> None:
    for function in BOTH:
        after = function(text.encode()).decode()
        assert json.loads(after, parse_float=exactly, parse_int=exactly) == json.loads(
            text, parse_float=exactly, parse_int=exactly
        )
        for number in floats_of(after):
            assert number != number.to_integral_value() or abs(number) >= EXACT


def floats_of(text: str) -> list[Decimal]:
    found: list[Decimal] = []
    json.loads(text, parse_float=lambda number: found.append(Decimal(number)))
    return found


@given(st.text(alphabet='0123456789.eE+-", []\\x', max_size=30))
def test_what_is_no_json_stays_so_and_both_ways_agree(text: str) -> None:
    def reads(json_text: bytes) -> bool:
        try:
            json.loads(json_text)
        except ValueError:
            return False
        return True

    results = {function(text.encode()) for function in BOTH}
    assert len(results) == 1
    assert reads(results.pop()) == reads(text.encode())
    assert whole_numbers(text.encode()) == plain_whole_numbers(text.encode())

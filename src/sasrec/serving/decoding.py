"""Decodes JSON bodies into their classes, in a time that the bytes of a body bound whatever they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from sasrec.core.isa import load_native

ItemId = int | str
Body = TypeVar("Body")
EXACT = 2**53  # doubles tell whole numbers below it apart
NO_INTEGER = "got `float`"  # in what msgspec says of 3.0 where an integer belongs
TEXT_OR_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*"?|[-0-9][-+.0-9eE]*', re.DOTALL)
FLOAT = re.compile(rb"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")


def whole_numbers(json: bytes) -> bytes:
    """JSON in which 3.0 is 3: numbers with a point or an exponent that are whole and below 2^53 become integers.

    All else stays as it is, so that what was no JSON is none afterwards. The core does it in a thousandth of the time,
    while other threads run.
    """
    core = load_native().module
    return core.whole_numbers(json) if core is not None else plain_whole_numbers(json)


def plain_whole_numbers(json: bytes) -> bytes:
    """The same in Python."""
    return TEXT_OR_NUMBER.sub(lambda found: _as_whole(found[0]), json)


def _as_whole(text: bytes) -> bytes:
    found = FLOAT.fullmatch(text)
    if found is None or found[3] is found[4] is None:
        return text
    fraction = (found[3] or b"").rstrip(b"0")
    digits = (found[2] + fraction).lstrip(b"0")
    power = int((found[4] or b"0")[:18]) - len(fraction)
    shown = digits.rstrip(b"0")
    power += len(digits) - len(shown)
    if shown and (power < 0 or len(shown) + power > 16 or int(shown) * 10**power >= EXACT):
        return text
    return b"%s%d" % (found[1] if shown else b"", int(shown or b"0") * 10 ** (power if shown else 0))


class Form(Generic[Body]):
    """One kind of body, and how it is decoded in a time that its bytes bound.

    A number like 3.0 is the integer 3, as in JSON's schemas, where doubles can tell whole numbers apart. Msgspec takes
    3.0 for no integer, and 20 us to find out what 1e300 is: the core writes such numbers as integers before it looks
    again, and lets other threads run meanwhile.

    Args:
        kind: of the body.
        check: raises RequestError where it is beyond a limit.
    """

    def __init__(self, kind: type[Body], check: Callable[[Body], None]) -> None:
        self.kind, self._check = kind, check
        self._decoder = msgspec.json.Decoder(kind)

    def decode(self, body: bytes) -> Body:
        """The body, within all limits.

        Raises:
            MsgspecError: it does not fit.
            UnicodeDecodeError: it is not UTF-8.
            RequestError: 422, it is beyond a limit.
        """
        try:
            found = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            if NO_INTEGER not in str(error):
                raise
            found = self._decode_floats(body)
        self._check(found)
        return found

    def _decode_floats(self, body: bytes) -> Body:
        try:
            return self._decoder.decode(whole_numbers(body))
        except msgspec.ValidationError as error:
            what, at, where = str(error).partition(" - at ")
            if NO_INTEGER not in what:
                raise
            raise msgspec.ValidationError(f"Expected a whole number below {EXACT} or a text{at}{where}") from None

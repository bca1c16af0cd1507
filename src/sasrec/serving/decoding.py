"""Decodes JSON bodies into their classes, in a time that the bytes of a body bound whatever they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Raw, Struct
from msgspec.structs import fields as struct_fields

ItemId = int | str
Body = TypeVar("Body")
EXACT = 2**53  # doubles tell whole numbers below it apart


def _anything(body: Any) -> None:
    """Nothing is checked."""


class Form(Generic[Body]):
    """One kind of body, and how it is decoded in a time that its bytes bound.

    A number like 3.0 is the integer 3, as in JSON's schemas, where doubles can tell whole numbers apart. A body with
    such numbers is decoded once more with its numbers as texts: they cost nothing before all lengths are known.

    Args:
        kind: of the body.
        fit: raises RequestError where a list is too long; what numbers there are it may not ask.
        check: raises RequestError for anything else.
    """

    def __init__(
        self, kind: type[Body], fit: Callable[[Any], None] = _anything, check: Callable[[Any], None] = _anything
    ) -> None:
        self.kind, self._fit, self._check = kind, fit, check
        self._decoder = msgspec.json.Decoder(kind)
        self._kinds: dict[type, type[Struct]] = {}  # of those with texts
        self._texts = msgspec.json.Decoder(self._in_texts(kind))

    def _in_texts(self, kind: Any) -> Any:
        """The same kind with texts for numbers and ids."""
        if kind in (int, ItemId):
            return Raw
        if isinstance(kind, type) and issubclass(kind, Struct):
            made = msgspec.defstruct(
                kind.__name__,
                [
                    (field.name, self._in_texts(field.type), *([] if field.default is NODEFAULT else [field.default]))
                    for field in struct_fields(kind)
                ],
                forbid_unknown_fields=True,
            )
            self._kinds[made] = kind
            return made
        parts = tuple(map(self._in_texts, get_args(kind)))
        if not parts:
            return kind
        return list[parts[0]] if get_origin(kind) is list else Union[parts]  # type: ignore[valid-type] # noqa: UP007

    def decode(self, body: bytes) -> Body:
        """The body, within all limits.

        Raises:
            MsgspecError: it does not fit.
            UnicodeDecodeError: it is not UTF-8.
            RequestError: 422, it is too long somewhere.
        """
        try:
            found = self._decoder.decode(body)
            self._fit(found)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
            found = self._decode_texts(body, error)
        self._check(found)
        return found

    def _decode_texts(self, body: bytes, error: msgspec.ValidationError) -> Any:
        try:
            in_texts = self._texts.decode(body)
        except RecursionError:
            raise error from None
        self._fit(in_texts)
        try:
            return self._read(in_texts)
        except _MisfitError as misfit:
            raise msgspec.ValidationError(f"{misfit.what} - at `${misfit.where}`") from None

    def _read(self, value: Any) -> Any:
        if isinstance(value, Raw):
            return _number_or_text(bytes(value))
        if isinstance(value, list):
            try:
                return [self._read(part) for part in value]
            except _MisfitError as misfit:
                raise misfit.within(f"[{self._first_misfit(value)}]") from None
        return self._read_struct(value) if isinstance(value, Struct) else value

    def _first_misfit(self, values: list[Any]) -> int:
        for i, value in enumerate(values):
            try:
                self._read(value)
            except _MisfitError:
                return i
        return len(values)

    def _read_struct(self, value: Struct) -> Struct:
        kind, parts = self._kinds[type(value)], {}
        for field in struct_fields(kind):
            try:
                part = parts[field.name] = self._read(getattr(value, field.name))
                if field.type is int and isinstance(part, str):
                    raise _MisfitError("Expected `int`, got `str`")
            except _MisfitError as misfit:
                raise misfit.within(f".{field.name}") from None
        return kind(**parts)


class _MisfitError(Exception):
    """What does not fit, and where within what is read."""

    def __init__(self, what: str, where: str = "") -> None:
        self.what, self.where = what, where

    def within(self, place: str) -> _MisfitError:
        return _MisfitError(self.what, place + self.where)


def _number_or_text(text: bytes) -> ItemId:
    """What a piece of JSON says, if it is a whole number or a text."""
    if text[:1] == b'"' or not (b"." in text or b"e" in text or b"E" in text):
        try:
            return int(text) if text.isdigit() else msgspec.json.decode(text, type=ItemId)
        except (msgspec.ValidationError, ValueError) as error:
            raise _MisfitError(str(error)) from None
    try:
        number = float(text)
    except ValueError:  # a list or an object
        number = 0.5
    if number.is_integer() and abs(number) < EXACT:
        return int(number)
    raise _MisfitError(f"Expected a whole number below {EXACT} or a text")

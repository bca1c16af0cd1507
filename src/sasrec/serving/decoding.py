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
        return self._read(in_texts, "$")

    def _read(self, value: Any, where: str) -> Any:
        if isinstance(value, Raw):
            return _number_or_text(bytes(value), where)
        if isinstance(value, list):
            return [self._read(part, f"{where}[{i}]") for i, part in enumerate(value)]
        if isinstance(value, Struct):
            kind = self._kinds[type(value)]
            parts = {name: self._read(getattr(value, name), f"{where}.{name}") for name in value.__struct_fields__}
            for field in struct_fields(kind):
                if field.type is int and isinstance(parts[field.name], str):
                    raise msgspec.ValidationError(f"Expected `int`, got `str` - at `{where}.{field.name}`")
            return kind(**parts)
        return value


def _number_or_text(text: bytes, where: str) -> ItemId:
    """What a piece of JSON says, if it is a whole number or a text."""
    if text[:1] == b'"' or not (b"." in text or b"e" in text or b"E" in text):
        try:
            return msgspec.json.decode(text, type=ItemId)  # type: ignore[no-any-return]
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(f"{error} - at `{where}`") from None
    try:
        number = float(text)
    except ValueError:  # a list or an object
        number = 0.5
    if number.is_integer() and abs(number) < EXACT:
        return int(number)
    raise msgspec.ValidationError(f"Expected a whole number below {EXACT} or a text - at `{where}`")

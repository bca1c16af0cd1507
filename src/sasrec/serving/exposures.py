"""Lists that are shown: each gets an id that its answer carries, and what is kept of it."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from sasrec.serving.decoding import ItemId
from sasrec.serving.online_schemas import MeasuredAnswer
from sasrec.serving.schemas import Answer, encode

Arm = Literal["run", "challenger"]
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
VERSION_7, VARIANT = 0x7000, 0x8000


class Exposure(NamedTuple):
    """A list that was shown. `user`: a salted hash, or None where the request named nobody."""

    id: bytes
    user: bytes | None
    version: str
    arm: Arm
    n_items: int  # of the model's catalogue
    shown_at: float  # seconds since 1970
    items: tuple[ItemId, ...]


def new_id() -> bytes:
    """An id that sorts by time: 48 bits of milliseconds, then random ones.

    Source: RFC 9562, section 5.7 (UUID version 7).
    """
    random = os.urandom(10)
    version = VERSION_7 | (int.from_bytes(random[:2]) & 0xFFF)
    variant = VARIANT | (int.from_bytes(random[2:4]) & 0x3FFF)
    head = (time.time_ns() // 1_000_000).to_bytes(6)
    return head + version.to_bytes(2) + variant.to_bytes(2) + random[4:]


def shown_id(raw: bytes) -> str:
    """An id as clients see it."""
    return str(uuid.UUID(bytes=raw))


def read_id(text: str) -> bytes | None:
    """An id that a client sent; None = it is none."""
    return bytes.fromhex(text.replace("-", "")) if ID.fullmatch(text) else None


class Seen(Protocol):
    """What has to be known of a row: whose model answers, who will see the list, and whether somebody will."""

    @property
    def arm(self) -> Arm:
        """Whose model answers."""

    @property
    def hashed_user(self) -> bytes | None:
        """Who will see it; None = nobody is named."""

    @property
    def is_shown(self) -> bool:
        """Whether somebody will."""


class Shown:
    """The lists of one request that somebody will see.

    They get their ids as they are encoded, on the model's thread, and are kept before the answer leaves.
    """

    def __init__(self) -> None:
        self._parts: dict[int, list[Exposure]] = {}  # of the request

    @property
    def exposures(self) -> list[Exposure]:
        """What is to be kept."""
        return [exposure for part in self._parts.values() for exposure in part]

    def encoded(self, rows: Sequence[Seen], answers: Sequence[Answer], n_items: Mapping[Arm, int]) -> bytes:
        """The answers of a part of the request, separated by commas, with their ids.

        Args:
            rows: of the part. Where they are answered again, as after a failure of others, the last answers count.
            answers: to them.
            n_items: of the catalogue of each arm's model.
        """
        now, exposures, pieces = time.time(), [], []
        for row, answer in zip(rows, answers, strict=True):
            name = None
            if row.is_shown:
                items = tuple(item.item_id for item in answer.items)
                about = row.hashed_user, answer.model_version, row.arm, n_items[row.arm], now, items
                exposures.append(Exposure(new_id(), *about))
                name = shown_id(exposures[-1].id)
            rest = answer.items, answer.unknown_items, answer.fallback, answer.model_version
            pieces.append(encode(MeasuredAnswer(*rest, row.arm, name)))
        self._parts[id(rows)] = exposures
        return b",".join(pieces)

    def without_ids(self, pieces: Sequence[bytes]) -> list[bytes]:
        """The same answers for the case that the lists could not be kept."""
        ids = [b'"%s"' % shown_id(exposure.id).encode() for exposure in self.exposures]
        found = []
        for piece in pieces:
            for name in ids:  # random, so it stands in no other place
                piece = piece.replace(name, b"null", 1)
            found.append(piece)
        return found

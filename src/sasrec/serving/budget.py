"""The bytes that clients make a process hold: bodies that arrive or are answered, and answers that are not read yet.

All connections share one budget. Where it is used up, those that wait for their client make room, the largest first:
for a request that has come whole any of them, for a body that still arrives only a larger one. What waits for nothing
but the server is never taken back.
"""

from __future__ import annotations

from typing import Protocol

HELD_PER_BYTE = 8  # bytes that a body's values take for each of its own, while it is answered


class Holder(Protocol):
    """A request with what it holds."""

    held: int

    @property
    def is_arriving(self) -> bool:
        """Whether its body has not come whole."""

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for its client, to send or to read."""

    def shed(self) -> None:
        """Give back what it holds, and the request up."""


class Budget:
    """How many bytes may be held at once.

    Args:
        most: of all holders together.
    """

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0
        self._holders: set[Holder] = set()

    def take(self, holder: Holder, n: int) -> bool:
        """Whether n more bytes could be held."""
        while self.used + n > self.most:
            stuck = [other for other in self._holders if other.is_stuck and other is not holder]
            largest = max(stuck, key=lambda other: other.held, default=None)
            if largest is None or (holder.is_arriving and largest.held <= holder.held + n):
                return False
            largest.shed()
        self.used += n
        holder.held += n
        self._holders.add(holder)
        return True

    def give(self, holder: Holder) -> None:
        """All that it holds is free again."""
        self.used -= holder.held
        holder.held = 0
        self._holders.discard(holder)

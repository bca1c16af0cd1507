"""The bytes that clients make a process hold: bodies that arrive or are answered, and answers that are not read yet.

All connections share one budget. Where it is used up, those that wait for their client make room, the largest first:
for a request that has come whole any of them, for a body that still arrives only a larger one. What waits for nothing
but the server is never taken back.
"""

from __future__ import annotations

import time
from typing import Protocol

HELD_PER_BYTE = 8  # bytes that a body's values take for each of its own, while it is answered
LOOK_SECONDS = 0.1  # between two looks at all holders, of which there may be thousands, when the first was in vain


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
        self._stuck: list[Holder] = []  # at the last look, the largest last
        self._next_look = 0.0

    def take(self, holder: Holder, n: int) -> bool:
        """Whether n more bytes could be held."""
        while self.used + n > self.most:
            largest = self._largest(holder)
            if largest is None or (holder.is_arriving and largest.held <= holder.held + n):
                return False
            largest.shed()
        self.used += n
        holder.held += n
        self._holders.add(holder)
        return True

    def _largest(self, newcomer: Holder) -> Holder | None:
        """About the largest that is stuck beside it: all are looked at again when those of the last look are gone.

        Not soon after a look that found nobody: where many hold a little, as many may be refused.
        """
        while self._stuck:
            largest = self._stuck[-1]
            if largest in self._holders and largest.is_stuck and largest is not newcomer:
                return largest
            self._stuck.pop()
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._stuck = sorted((h for h in self._holders if h.is_stuck and h is not newcomer), key=lambda h: h.held)
        if not self._stuck:
            self._next_look = now + LOOK_SECONDS
            return None
        return self._stuck[-1]

    def give(self, holder: Holder) -> None:
        """All that it holds is free again."""
        self.used -= holder.held
        holder.held = 0
        self._holders.discard(holder)

"""How one connection reads and writes beside all others: when it reads on, whose turn it is, what is sent together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl

TOGETHER = 4  # connections that go on in a turn of the loop
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # uvicorn writes it before the head of an answer


class Flow(FlowControl):
    """Flow control that leaves a closed connection alone, and knows three reasons to read no more for now.

    Args:
        transport: of the connection.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_full = self._is_waiting = self._is_behind = False

    def pause_reading(self) -> None:
        """Take no more: what has come is not taken up yet."""
        self._is_full = True
        self._apply()

    def resume_reading(self) -> None:
        """What has come is taken up."""
        self._is_full = False
        self._apply()

    def wait(self, is_waiting: bool) -> None:
        """Whether it is not this connection's turn."""
        self._is_waiting = is_waiting
        self._apply()

    def fall_behind(self, is_behind: bool) -> None:
        """Whether something waits to be parsed; uvicorn reads on with each request and answer, and it would pile up."""
        self._is_behind = is_behind
        self._apply()

    def _apply(self) -> None:
        wanted = self._is_full or self._is_waiting or self._is_behind
        if wanted != self.read_paused and not self._transport.is_closing():
            super().pause_reading() if wanted else super().resume_reading()


class Turns:
    """Lets connections that have much to do go on a few at a time, so that a thousand of them keep nobody waiting."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, go_on: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Go on when it is its turn."""
        if not self._waiting:
            loop.call_soon(self._next, loop)
        self._waiting.append(go_on)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(min(TOGETHER, len(self._waiting))):
            self._waiting.popleft()()
        if self._waiting:
            loop.call_soon(self._next, loop)


class Joined:
    """What answers are written to: a head waits for what follows it, so that both leave in one packet.

    Uvicorn writes them one by one, and each write of a small answer is a call of the system and wakes the client.

    Args:
        transport: of the connection.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._awaits_head = False
        self._head = b""

    def begin(self) -> None:
        """An answer begins."""
        self._awaits_head, self._head = True, b""

    def write(self, data: bytes) -> None:
        """Write a head or what follows it."""
        if self._awaits_head and data != CONTINUE:
            self._awaits_head, self._head = False, data
        else:
            self._transport.write(self._head + data if self._head else data)
            self._head = b""

    def flush(self) -> None:
        """Nothing follows a head that waits."""
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""

    def close(self) -> None:
        """Close the connection behind what is written."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._transport.is_closing()

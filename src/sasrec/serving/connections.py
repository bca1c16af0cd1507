"""The connections of a server: uvicorn, with three things that it lacks.

It cuts clients that are slow to send or to read, accepts many connections in one turn of the event loop, and its drain
answers every request that was accepted. What happens on one connection is in wire.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from sasrec.core.server_config import ServerConfig
from sasrec.serving.app import Application
from sasrec.serving.flow import Turns
from sasrec.serving.wire import Connection

SWEEP_SECONDS = 0.5
LINGER_SECONDS = 1.0  # while draining, connections may bring requests that are on their way
ACCEPTS = 64  # connections taken in one turn of the loop
SHARED_ACCEPTS = 2  # the same where workers share the port: each should get its part
HANDSHAKE_SECONDS = 0.1  # connections that have begun when new ones are no longer let in may take so long to be there
SO_ATTACH_FILTER = 26  # of Linux
NO_SYN = (  # a packet filter: code, jumps, operand
    (0x30, 0, 0, 13),  # load the byte of TCP's flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone begins a connection:
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # else take it whole
)


def let_no_more_begin(listener: socket.socket) -> None:
    """Drop what would begin a new connection; one that has begun can still be accepted.

    Without it, a connection that the system completes between the last accept and the close is reset, with the request
    that it brought. Who comes now is refused by the closed socket when it tries again. On other systems than Linux the
    gap stays.
    """
    if sys.platform != "linux":
        return
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in NO_SYN))
    program = struct.pack("HP", len(NO_SYN), ctypes.addressof(code))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class Server(uvicorn.Server):
    """Uvicorn with a bound on slow clients, and a drain that answers all that has come.

    Args:
        app: the application.
        config: its limits and times.
    """

    def __init__(self, app: Application, config: ServerConfig) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=config.keep_alive,  # type: ignore[arg-type]  # seconds, whole or not
                timeout_graceful_shutdown=config.drain_seconds,  # type: ignore[arg-type]
                proxy_headers=bool(config.trusted_proxies),
                forwarded_allow_ips=config.trusted_proxies or None,
            )
        )
        self.app, self.limits = app, config
        self._turns = Turns(), Turns()  # of bodies, and of requests behind others
        self._connecting: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the worker."""
        yield

    def stop(self) -> None:
        """Drain; called again, end at once."""
        if self.should_exit:
            self.force_exit = True
        self.app.is_draining = True
        self.should_exit = True

    async def sweep(self) -> None:
        """Cut connections whose client is too slow, again and again; and tell how busy we are."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.app.observe()
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection) and (reason := connection.overdue(now)):
                    connection.cut(reason)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, many at a time.

        Uvloop's own servers accept one in each turn of the loop. With hundreds of busy clients a turn takes long, and
        a new client would wait for seconds.
        """
        await super().startup(sockets=[])
        for listener in sockets or []:
            listener.setblocking(False)
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Take the connections that wait, up to a bound."""
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTS if self.limits.workers == 1 else SHARED_ACCEPTS):
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no file descriptor is left, or the client has gone again
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    loop.remove_reader(listener)
                    loop.call_later(SWEEP_SECONDS, self._accept_again, listener)
                return
            task = loop.create_task(loop.connect_accepted_socket(self._connection, connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _connection(self) -> Connection:
        return Connection(self, self.limits, self.app.budget, *self._turns, self.app.metrics.refused)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, let connections end with the answers they wait for, and only then close the idle ones.

        A client that keeps its connection busy is told to close it by its next answer (`is_draining`), so that no
        request meets a closed connection.
        """
        if self.limits.workers == 1:  # else the supervisor does it for all
            for listener in sockets or []:
                let_no_more_begin(listener)
        await asyncio.sleep(HANDSHAKE_SECONDS)
        for listener in sockets or []:
            asyncio.get_running_loop().remove_reader(listener)
            n_accepted = -1
            while n_accepted < len(self._connecting):  # those that the system has completed already
                n_accepted = len(self._connecting)
                self._accept(listener)
            listener.close()
        until = time.monotonic() + min(LINGER_SECONDS, self.limits.drain_seconds)
        while (self._connecting or self.server_state.connections) and time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(0.02)
        await super().shutdown([])

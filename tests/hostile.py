"""A client that does what no library's client does: it trickles, stalls, pipelines, and does not read."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple

PATIENCE = 30.0  # seconds after which something has failed


class Reply(NamedTuple):
    """What the server answers."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def head(method: str = "POST", path: str = "/v1/recommend", **headers: object) -> bytes:
    """A request up to the empty line; `_` of a name is `-`."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def request(body: Any, path: str = "/v1/recommend", **headers: object) -> bytes:
    """A whole POST; a body that is not bytes is encoded as JSON."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("POST", path, Content_Length=len(encoded), **headers) + encoded


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n", path: str = "/v1/recommend", **headers: object) -> bytes:
    """A POST in chunks, with what is to come after them."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head("POST", path, Transfer_Encoding="chunked", **headers) + body + end


class Client:
    """One connection.

    Args:
        port: of this machine.
        receives: bytes that its system takes before the client reads; None = the usual.
    """

    def __init__(self, port: int, receives: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        if receives is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        self.socket.connect(("127.0.0.1", port))
        self._left = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.socket.close()

    def send(self, *parts: bytes, pause: float = 0.0) -> bool:
        """Send each part, with a pause after it; False when the server has closed the connection."""
        try:
            for part in parts:
                self.socket.sendall(part)
                time.sleep(pause)
        except OSError:
            return False
        return True

    def flood(self, part: bytes, seconds: float) -> int:
        """Send a part again and again; how many bytes went out before the server closed or the time was over."""
        sent, end = 0, time.monotonic() + seconds
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                self.socket.sendall(part)
                sent += len(part)
        return sent

    def _more(self) -> bytes:
        """What comes next; nothing = the end."""
        try:
            return self.socket.recv(2**16)
        except ConnectionError:
            return b""

    def reply(self) -> Reply | None:
        """The next answer; None when the connection ends before it."""
        while b"\r\n\r\n" not in self._left:
            if not (more := self._more()):
                return None
            self._left += more
        text, _, rest = self._left.partition(b"\r\n\r\n")
        first, *lines = text.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(rest) < length:
            if not (more := self._more()):
                return None
            rest += more
        self._left = rest[length:]
        found = re.match(r"HTTP/1\.1 (\d+) ", first)
        assert found, first
        return Reply(int(found[1]), headers, rest[:length])

    def replies(self, n: int) -> list[int]:
        """The statuses of the next n answers; fewer when the connection ends."""
        found = (self.reply() for _ in range(n))
        return [reply.status for reply in found if reply is not None]

    def ask(self, *parts: bytes) -> Reply | None:
        """Send, and wait for the answer."""
        self.send(*parts)
        return self.reply()

    def is_ended(self) -> bool:
        """Whether the server ends the connection, after whatever it still sends."""
        while self._more():
            pass
        return True


def trickle(data: bytes, size: int) -> Iterable[bytes]:
    """The data in pieces of so many bytes."""
    return (data[at : at + size] for at in range(0, len(data), size))

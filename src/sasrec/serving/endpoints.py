"""A request and its reply, whatever the route: body, query string, errors as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

from sasrec.core.errors import RequestError
from sasrec.serving.schemas import (
    Parameters,
    Problem,
    encode,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
JSON = b"application/json"
DISCARDED_BODIES = 8  # times the limit that is read of a body too long, so that the client sees the answer
RETRY_AFTER: Header = (b"retry-after", b"1")
NEEDS_KEY: list[Header] = [(b"www-authenticate", b"ApiKey")]


class Reply(NamedTuple):
    """A response."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: Sequence[Header] = ()


class ClientGoneError(Exception):
    """The client has closed the connection."""


class Call:
    """A request while it is answered.

    Args:
        scope: of ASGI.
        receive: of ASGI.
    """

    __slots__ = ("receive", "request_id", "scope")

    def __init__(self, scope: Scope, receive: Receive, request_id: bytes) -> None:
        self.scope, self.receive, self.request_id = scope, receive, request_id

    def parameters(self, *names: str) -> Parameters:
        """The query string, if it has no other names."""
        return Parameters(self.scope["query_string"], *names)

    def in_path(self, name: str) -> str:
        """A part of the path."""
        return str(self.scope["path_params"][name])

    async def body(self, most: int) -> bytes:
        """The whole body.

        Raises:
            RequestError: 422, it is longer than `most`.
            ClientGoneError: it never came.
        """
        message = await self.receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            body = message.get("body", b"")  # nearly always in one piece
            self._check_size(len(body), most)
            return bytes(body)
        parts, size = [], 0
        while True:
            if message["type"] != "http.request":
                raise ClientGoneError
            part = message.get("body", b"")
            size += len(part)
            if size <= most:
                parts.append(part)
            if not message.get("more_body", False) or size > DISCARDED_BODIES * most:
                self._check_size(size, most)
                return b"".join(parts)
            message = await self.receive()

    def _check_size(self, size: int, most: int) -> None:
        if size > most:
            raise RequestError(422, f"the request body is longer than {most} bytes; send fewer or shorter requests")


Handler = Callable[[Call], Awaitable[Reply]]


def problem(status: int, message: str, headers: Sequence[Header] = ()) -> Reply:
    """An error as JSON; 503 says when to come again."""
    return Reply(status, encode(Problem(message)), JSON, (*headers, RETRY_AFTER) if status == 503 else headers)

"""One route as an ASGI application: the request is read, its handler asked, the reply sent, counted and logged.

A handler sees a `Call` and returns a `Reply`; whatever it raises becomes an error in JSON here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NamedTuple, Protocol

from sasrec.core.errors import RequestError, SASRecError
from sasrec.serving.budget import HELD_PER_BYTE
from sasrec.serving.keys import Keys
from sasrec.serving.origins import FOREIGN_HOST, AllowedHosts
from sasrec.serving.schemas import Header, Parameters, Problem, encode, sentence
from sasrec.serving.wire import EXCHANGE, SMALL_BODY, UNREAD_BYTES, Exchange

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
JSON = b"application/json"
DISCARDED_BODIES = 8  # times the limit that is read of a body too long, so that the client sees the answer
FULL = "the server holds as many bytes of requests and answers as it may; try again in a second"
RETRY_AFTER: Header = (b"retry-after", b"1")
NEEDS_KEY: list[Header] = [(b"www-authenticate", b"ApiKey")]
READ = ("GET", "HEAD")
WATCHED = ("/health/live", "/health/ready", "/metrics")  # who watches over a server asks by its address
ANY_METHOD = (*READ, "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_id_prefix, _ids = b"%x-" % time.time_ns(), itertools.count(1)  # of the ids that this process gives to requests


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

    __slots__ = ("exchange", "key", "model_version", "receive", "request_id", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope, self.receive = scope, receive
        self.exchange: Exchange | None = scope.get("state", {}).get(EXCHANGE)  # None: not by a connection of ours
        self.key: bytes | None = None  # the API key that came with it
        self.model_version: str | None = None  # that answers, where it is not the one that usually does
        self.request_id = b""  # the client's own if it is plain, else a new one
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                self.request_id = value
            elif name == b"x-api-key":
                self.key = value
        if not REQUEST_ID.fullmatch(self.request_id):
            self.request_id = _id_prefix + b"%d" % next(_ids)

    def parameters(self, *names: str) -> Parameters:
        """The query string, if it has no other names."""
        return Parameters(self.scope["query_string"], *names)

    def in_path(self, name: str) -> str:
        """A part of the path."""
        return str(self.scope["path_params"][name])

    async def body(self, most: int) -> bytes:
        """The whole body.

        Raises:
            RequestError: 422, it is longer than `most`; 503, there is no room for it.
            ClientGoneError: it never came.
        """
        parts, size = [], 0
        while True:
            message = await self.receive()
            if self.exchange is not None and self.exchange.is_refused:
                raise RequestError(503, FULL)
            if message["type"] != "http.request":
                raise ClientGoneError
            part = message.get("body", b"")
            size += len(part)
            if size <= most:
                parts.append(part)
            if not message.get("more_body", False) or size > DISCARDED_BODIES * most:
                break
        self._check_size(size, most)
        if size > SMALL_BODY:
            self.hold((HELD_PER_BYTE - 1) * size)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def hold(self, n: int) -> None:
        """Count bytes that the request takes while it is answered.

        Raises:
            RequestError: 503, there is no room for them.
        """
        if self.exchange is not None and not self.exchange.hold(n):
            raise RequestError(503, FULL)

    def _check_size(self, size: int, most: int) -> None:
        if size > most:
            raise RequestError(422, f"the request body is longer than {most} bytes; send fewer or shorter requests")


Handler = Callable[[Call], Awaitable[Reply]]


def problem(status: int, message: str, headers: Sequence[Header] = ()) -> Reply:
    """An error as JSON; 503 says when to come again."""
    return Reply(
        status, encode(Problem(sentence(message))), JSON, (*headers, RETRY_AFTER) if status == 503 else headers
    )


class Host(Protocol):
    """What the endpoints of an application share."""

    keys: Keys
    hosts: AllowedHosts
    in_flight: int  # requests that are not answered yet
    is_draining: bool  # then each reply is the last one on its connection

    def record(self, route: str, call: Call, reply: Reply | None, seconds: float) -> None:
        """Count and log a request; reply None = nobody waited for it any more."""


class Endpoint:
    """One route as an ASGI application: key, method, answer, error, metrics, log.

    Args:
        host: what all routes share.
        name: of the route, in metrics and log.
        handler: the answer to a request.
        methods: that the route takes.
        is_protected: whether an API key is needed, if there are any.
    """

    def __init__(self, host: Host, name: str, handler: Handler, methods: Sequence[str], is_protected: bool) -> None:
        self.host, self.name, self.handler = host, name, handler
        self.methods, self.is_protected = methods, is_protected
        self.is_watched = name in WATCHED

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        began, call = time.perf_counter(), Call(scope, receive)
        self.host.in_flight += 1
        try:
            reply = await self._answer(call)
            if reply is not None:
                if call.exchange is not None and not call.exchange.begin_answer(len(reply.body)):
                    reply = problem(503, FULL)
                await self._send(reply, call, began, send)
        finally:
            self.host.in_flight -= 1
            if call.exchange is not None:
                call.exchange.end()
        self.host.record(self.name, call, reply, time.perf_counter() - began)

    async def _answer(self, call: Call) -> Reply | None:
        """The reply, whatever happens; None when nobody waits for it."""
        try:
            return await self._reply(call)
        except ClientGoneError:
            return None
        except asyncio.CancelledError:  # the deadline of a drain has come
            return problem(503, "the server ends, and this request took too long; send it to another")
        except SASRecError as error:
            return problem(error.status if isinstance(error, RequestError) else 500, str(error))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:  # a panic of compiled code is no Exception
            logger.exception("request %s failed", call.request_id.decode())
            return problem(500, "the server failed; its log has the reason under this answer's X-Request-ID")

    async def _reply(self, call: Call) -> Reply:
        if not (self.is_watched or self.host.hosts.admit(call.scope["headers"])):
            return problem(403, FOREIGN_HOST)
        if self.is_protected and not self.host.keys.admits(call.key):
            return problem(401, "the API key is missing or wrong; send it as X-API-Key", NEEDS_KEY)
        if call.scope["method"] not in self.methods:
            allowed = ", ".join(self.methods)
            return problem(405, f"this path takes {allowed} only", ((b"allow", allowed.encode()),))
        return await self.handler(call)

    async def _send(self, reply: Reply, call: Call, began: float, send: Send) -> None:
        """Send a reply, with the time it took."""
        headers = [
            (b"content-type", reply.content_type),
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", call.request_id),
            (b"server-timing", b"app;dur=%.3f" % (1000 * (time.perf_counter() - began))),
            *reply.headers,
        ]
        if self.host.is_draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        last = max(len(reply.body) - 1, 0) // UNREAD_BYTES * UNREAD_BYTES
        for at in range(0, last, UNREAD_BYTES):  # each waits until the client has read what is before it
            await send({"type": "http.response.body", "body": reply.body[at : at + UNREAD_BYTES], "more_body": True})
            if call.exchange is not None:
                call.exchange.has_read()
        await send({"type": "http.response.body", "body": reply.body[last:]})

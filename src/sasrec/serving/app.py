"""The HTTP server. In: a recommender and its limits; out: an ASGI application, with the web page in web/ at "/".

No model code: a request is checked (`api`), answered in a batch with others (`batching`, `serving`), counted and logged
(`telemetry`). The routes are plain ASGI, so that a request costs little more than its parsing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.resources import files
from typing import IO, Any

import msgspec
from starlette.routing import Route, Router

from sasrec.core.config import ServerConfig
from sasrec.core.errors import RequestError, SASRecError
from sasrec.recommender import Recommender
from sasrec.serving.batching import Batcher
from sasrec.serving.endpoints import (
    NEEDS_KEY,
    Call,
    ClientGoneError,
    Handler,
    Header,
    Receive,
    Reply,
    Scope,
    Send,
    problem,
)
from sasrec.serving.events import EventStore
from sasrec.serving.openapi import openapi
from sasrec.serving.schemas import (
    Health,
    ItemId,
    Query,
    Reader,
    Stored,
    encode,
)
from sasrec.serving.served_model import Row, ServedModel
from sasrec.serving.service import Job, RecommendJob, Service
from sasrec.serving.telemetry import CONTENT_TYPE, AccessLog, Metrics

logger = logging.getLogger(__name__)
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
CLIENT_GONE = 499  # what the log says when nobody waits for the answer any more
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS: list[Header] = [
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-cache"),
]
PAGE_TYPES = {
    "html": b"text/html; charset=utf-8", "js": b"text/javascript; charset=utf-8", "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml", "png": b"image/png", "ico": b"image/x-icon",
}  # fmt: skip


class Endpoint:
    """One route as an ASGI application: key, method, answer, error, metrics, log.

    Args:
        app: what all routes share.
        name: of the route, in metrics and log.
        handler: the answer to a request.
        method: that it takes; GET also takes HEAD.
        is_protected: whether an API key is needed, if there are any.
    """

    def __init__(self, app: Application, name: str, handler: Handler, method: str, is_protected: bool) -> None:
        self.app, self.name, self.handler, self.is_protected = app, name, handler, is_protected
        self.methods = ("GET", "HEAD") if method == "GET" else (method,)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        app, began = self.app, time.perf_counter()
        request_id, key = app.identify(scope)
        app.in_flight += 1
        try:
            reply = await self._answer(Call(scope, receive, request_id), key)
            if reply is not None:
                await app.send(reply, request_id, began, send)
        finally:
            app.in_flight -= 1
        app.record(self.name, scope, reply, request_id, time.perf_counter() - began)

    async def _answer(self, call: Call, key: bytes | None) -> Reply | None:
        """The reply, whatever happens; None when nobody waits for it."""
        try:
            return await self._reply(call, key)
        except ClientGoneError:
            return None
        except asyncio.CancelledError:  # the deadline of a drain has come
            return problem(503, "the server ends, and this request took too long; send it to another")
        except SASRecError as error:
            return problem(error.status if isinstance(error, RequestError) else 500, str(error))
        except Exception:
            logger.exception("request %s failed", call.request_id.decode())
            return problem(500, "the server failed; its log has the reason under this answer's X-Request-ID")

    async def _reply(self, call: Call, key: bytes | None) -> Reply:
        if self.is_protected and not self.app.admits(key):
            return problem(401, "the API key is missing or wrong; send it as X-API-Key", NEEDS_KEY)
        if call.scope["method"] not in self.methods:
            allowed = ", ".join(self.methods)
            return problem(405, f"this path takes {allowed} only", ((b"allow", allowed.encode()),))
        return await self.handler(call)


class Application:
    """The ASGI application.

    Args:
        config: limits and times.
        service: answers; it may still be without a model.
        metrics: where requests are counted.
        log: where they are written.
        keys: API keys, any of which admits; none = everybody.
    """

    def __init__(
        self, config: ServerConfig, service: Service, metrics: Metrics, log: AccessLog, keys: Iterable[str] = ()
    ) -> None:
        self.config, self.service, self.metrics, self.log = config, service, metrics, log
        self.events: EventStore | None = None
        self.is_draining = False
        self.in_flight = 0
        self.set_keys(keys)
        self.reader = Reader(config)
        self.batcher: Batcher[Job, bytes] = Batcher(
            service.answer,
            name="model",
            max_rows=config.batch_size,
            max_queued=config.queue_size,
            timeout=config.request_timeout,
            window=config.batch_window_ms / 1000,
            observe=metrics.batch_rows.observe,
        )
        self._ids = itertools.count(1)
        self._id_prefix = b"%x-" % time.time_ns()
        self._openapi = b""
        self._pages = read_pages()
        self._router = self._routes()

    def set_keys(self, keys: Iterable[str]) -> None:
        """The API keys from now on."""
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    def _routes(self) -> Router:
        def route(method: str, path: str, handler: Handler) -> Route:
            name = path.replace(":path", "")
            return Route(path, Endpoint(self, name, handler, method, path.startswith("/v1/")), methods=None)

        unknown = Endpoint(self, "none", self.not_found, "GET", False)
        unknown.methods = (*unknown.methods, "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
        routes = [
            route("POST", "/v1/recommend", self.recommend),
            route("GET", "/v1/users/{user_id:path}/recommendations", self.recommend_user),
            route("GET", "/v1/items/{item_id:path}/similar", self.similar),
            route("GET", "/v1/items", self.search),
            route("POST", "/v1/explain", self.explain),
            route("GET", "/v1/model", self.model),
            route("GET", "/health/live", self.live),
            route("GET", "/health/ready", self.ready),
            route("GET", "/metrics", self.exposition),
            route("GET", "/openapi.json", self.openapi),
            route("GET", "/", self.page),
            route("GET", "/static/{name}", self.page),
        ]
        if self.config.events:
            routes.append(route("POST", "/v1/events", self.add_events))
        return Router(routes, redirect_slashes=False, default=unknown)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            raise RuntimeError(f"sasrec answers HTTP only, not {scope['type']}; run the server with lifespan off")
        await self._router(scope, receive, send)

    def identify(self, scope: Scope) -> tuple[bytes, bytes | None]:
        """The request's id, its own or a new one, and its API key."""
        request_id = key = None
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                request_id = value
            elif name == b"x-api-key":
                key = value
        if request_id is None or not REQUEST_ID.fullmatch(request_id):
            request_id = self._id_prefix + b"%d" % next(self._ids)
        return request_id, key

    def admits(self, key: bytes | None) -> bool:
        """Whether the key is one of ours, in a time that does not depend on how much of it is right."""
        if not self._keys:
            return True
        digest = hashlib.sha256(key or b"").digest()
        admitted = False
        for own in self._keys:  # all of them, whichever fits
            admitted |= hmac.compare_digest(digest, own)
        return admitted

    async def send(self, reply: Reply, request_id: bytes, began: float, send: Send) -> None:
        """Send a reply, with the time it took; while draining, the last one on its connection."""
        headers = [
            (b"content-type", reply.content_type),
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", request_id),
            (b"server-timing", b"app;dur=%.3f" % (1000 * (time.perf_counter() - began))),
            *reply.headers,
        ]
        if self.is_draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    def record(self, route: str, scope: Scope, reply: Reply | None, request_id: bytes, seconds: float) -> None:
        """Count a request, and write it into the access log."""
        status = CLIENT_GONE if reply is None else reply.status
        self.metrics.request(route, status, seconds)
        if not self.log:
            return
        client = scope.get("client")
        model = self.service.model
        self.log.write(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 3),
                "bytes": 0 if reply is None else len(reply.body),
                "client": client[0] if client else None,
                "request_id": request_id.decode(),
                "model_version": model.version if model else None,
            }
        )

    async def recommend(self, call: Call) -> Reply:
        """POST /v1/recommend."""
        found = self.reader.queries(await call.body(self.config.max_body_bytes))
        if isinstance(found, Query):
            return Reply(200, await self.batcher.submit(RecommendJob([Row(found)])))
        if not found:
            return Reply(200, b'{"results":[]}')
        rows = [Row(query) for query in found]
        return Reply(200, await self.batcher.submit(RecommendJob(rows, True), len(rows)))

    async def recommend_user(self, call: Call) -> Reply:
        """GET /v1/users/{user_id}/recommendations."""
        given = call.parameters("k", "allow", "deny", "keep_seen")
        query = Query(
            [],
            given.integer("k", self.reader.default_k, self.config.max_k),
            given.ids("allow"),
            given.ids("deny"),
            given.flag("keep_seen"),
        )
        self.reader.check(query)
        return Reply(200, await self.batcher.submit(RecommendJob([Row(query, call.in_path("user_id"))])))

    async def similar(self, call: Call) -> Reply:
        """GET /v1/items/{item_id}/similar."""
        item: ItemId = call.in_path("item_id")
        k = call.parameters("k").integer("k", self.reader.default_k, self.config.max_k)
        return await self._ask(lambda model: model.similar(item, k))

    async def search(self, call: Call) -> Reply:
        """GET /v1/items?query=."""
        given = call.parameters("query", "k")
        text, k = given.text("query"), given.integer("k", self.reader.default_k, self.config.max_k)
        return await self._ask(lambda model: model.search(text, k))

    async def explain(self, call: Call) -> Reply:
        """POST /v1/explain."""
        query = self.reader.explain(await call.body(self.config.max_body_bytes))
        model = self.service.model  # each item is left out once, so the request weighs as so many
        n_left_out = min(len(query.history), model.recommender.config.model.max_seq_len) if model else 0
        rows = min(1 + n_left_out, self.config.queue_size)
        return await self._ask(lambda model: model.explain(query.history, query.item_id), rows)

    async def model(self, call: Call) -> Reply:
        """GET /v1/model."""
        call.parameters()
        config = self.config
        limits = {name: getattr(config, name) for name in ("max_k", "max_history", "max_filter", "max_requests")}
        more = {"limits": limits, "accepts_events": bool(config.events), "reload_error": self.service.reload_error}
        return await self._ask(lambda model: {**model.facts(), **more})

    async def _ask(self, question: Callable[[ServedModel], Any], rows: int = 1) -> Reply:
        return Reply(200, await self.batcher.submit(question, rows))

    async def add_events(self, call: Call) -> Reply:
        """POST /v1/events."""
        events = self.reader.events(await call.body(self.config.max_body_bytes))
        model = self.service.model
        if model is None or self.events is None:
            raise RequestError(503, "the model is being loaded; try again in a second")
        for event in events:
            if not model.knows_user(event.user_id):
                raise RequestError(404, "an event's user is not in the log this model was trained on; none was stored")
        await self.events.add([(event.user_id, event.item_id) for event in events])
        self.metrics.events.inc(len(events))
        unknown = [event.item_id for event in events if not model.vocabulary.index_of(event.item_id)]
        return Reply(200, encode(Stored(len(events), unknown)))

    async def live(self, call: Call) -> Reply:
        """GET /health/live."""
        call.parameters()
        return Reply(200, encode(self._health("live")))

    async def ready(self, call: Call) -> Reply:
        """GET /health/ready: 503 until a model is warm, and while draining."""
        call.parameters()
        status = "draining" if self.is_draining else "ready" if self.service.model else "loading"
        return Reply(200 if status == "ready" else 503, encode(self._health(status)))

    def _health(self, status: str) -> Health:
        model = self.service.model
        return Health(status, model.version if model else None, self.service.reload_error)

    async def exposition(self, call: Call) -> Reply:
        """GET /metrics."""
        call.parameters()
        self.observe(less=1)  # this request itself
        return Reply(200, self.metrics.exposition(), CONTENT_TYPE.encode())

    def observe(self, less: int = 0) -> None:
        """Tell the metrics how busy the server is at this moment; `less` requests do not count."""
        self.metrics.in_flight.set(self.in_flight - less)
        self.metrics.queued.set(self.batcher.rows)

    async def openapi(self, call: Call) -> Reply:
        """GET /openapi.json."""
        call.parameters()
        if not self._openapi:
            described = openapi(self.config, with_key=bool(self._keys), with_events=bool(self.config.events))
            self._openapi = msgspec.json.encode(described)
        return Reply(200, self._openapi)

    async def page(self, call: Call) -> Reply:
        """GET / and /static/{name}: the files of web/, which never change while the server runs."""
        name = call.scope["path_params"].get("name", "index.html")
        if name not in self._pages:
            return await self.not_found(call)
        body, etag = self._pages[name]
        headers = [*PAGE_HEADERS, (b"etag", etag)]
        kind = PAGE_TYPES.get(name.rpartition(".")[2], b"application/octet-stream")
        if (b"if-none-match", etag) in call.scope["headers"]:
            return Reply(304, b"", kind, headers)
        return Reply(200, body, kind, headers)

    async def not_found(self, call: Call) -> Reply:
        """Any other path."""
        return problem(404, "there is nothing at this path; /openapi.json lists what there is")

    def close(self) -> None:
        """End the threads and write what is left of the log."""
        self.batcher.close()
        if self.events is not None:
            self.events.close()
        self.log.flush()


def read_pages() -> dict[str, tuple[bytes, bytes]]:
    """The files of web/ by name, each with its ETag."""
    pages = {}
    for file in files("sasrec.serving").joinpath("web").iterdir():
        if file.is_file():
            body = file.read_bytes()
            pages[file.name] = body, b'"%s"' % hashlib.sha256(body).hexdigest()[:16].encode()
    return pages


def create_app(
    recommender: Recommender | None,
    config: ServerConfig | None = None,
    *,
    service: Service | None = None,
    keys: Iterable[str] = (),
    log_file: IO[bytes] | None = None,
) -> Application:
    """The ASGI application that serves a recommender.

    Args:
        recommender: to serve; None with a `service` that loads one later.
        config: limits and times; None = the defaults.
        service: made when None.
        keys: API keys, any of which admits; none = everybody.
        log_file: where the access log goes; None = stdout, if the config wants one.

    Raises:
        SASRecError: the model cannot answer.
        CheckpointError: the event file cannot be opened.
    """
    config = config or ServerConfig()
    metrics = service.metrics if service else Metrics()
    log = AccessLog((log_file or sys.stdout.buffer) if config.access_log else None)
    store = EventStore.open(config, metrics) if config.events else None
    service = service or Service(metrics)
    service.events = store
    app = Application(config, service, metrics, log, keys)
    app.events = store
    if recommender is not None:
        service.serve(recommender)
    return app

"""The HTTP server as an ASGI application: its routes and what each of them does.

No model code: a request is checked (`schemas`), answered in a batch with others (`batching`, `service`), counted and
logged (`telemetry`). The routes are plain ASGI, so that a request costs little more than its parsing.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import IO, Any, TypeVar

import msgspec
from starlette.routing import Route, Router

from sasrec.core.errors import RequestError
from sasrec.core.server_config import ServerConfig
from sasrec.recommender import Recommender
from sasrec.serving.batching import Batcher
from sasrec.serving.budget import HELD_PER_BYTE, Budget
from sasrec.serving.decoding import ItemId
from sasrec.serving.endpoints import ANY_METHOD, READ, Call, Endpoint, Handler, Receive, Reply, Scope, Send, problem
from sasrec.serving.events import EventStore
from sasrec.serving.exposures import Arm
from sasrec.serving.item_search import told_apart
from sasrec.serving.keys import Keys
from sasrec.serving.log_lines import AccessLog
from sasrec.serving.online import Online
from sasrec.serving.online_schemas import FeedbackReader, OnlineQueries, OnlineQuery, TwoHealths, check_online
from sasrec.serving.openapi import openapi
from sasrec.serving.origins import FOREIGN_SITE, AllowedHosts, is_cross_site
from sasrec.serving.schemas import INVALID, Health, Query, Reader, Stored, encode
from sasrec.serving.served_model import Row, ServedModel
from sasrec.serving.service import Job, RecommendJob, Service, parted, weight
from sasrec.serving.static_files import StaticFiles
from sasrec.serving.telemetry import CONTENT_TYPE, Metrics

logger = logging.getLogger(__name__)
SMALL_BODY = 2**14  # bytes of a body that is decoded at once
SMALL_WEIGHT = 4  # of a request that is computed together with others; 1 is that of a history of usual length
OTHERS_SHARE = 3  # of the time, beside 1 in which a large body is decoded
ITEM_BYTES = 64  # of an answer, about; what is held for it before it is there
SCAN_ROWS = 2  # that a look at the whole catalogue costs
Body = TypeVar("Body")
CLIENT_GONE = 499  # what the log says when nobody waits for the answer any more


class Application:
    """The ASGI application.

    Args:
        config: limits and times.
        service: answers; it may still be without a model.
        log: where requests are written.
        keys: that admit to /v1/.
        events: of users since training; None where the config has no file for them.
        online: measures what comes of answers; None where the config has no file for it.
    """

    def __init__(
        self,
        config: ServerConfig,
        service: Service,
        log: AccessLog,
        keys: Keys,
        events: EventStore | None,
        online: Online | None,
    ) -> None:
        self.config, self.service, self.log, self.keys, self.events = config, service, log, keys, events
        self.online = online
        self.metrics = service.metrics
        self.is_draining = False
        self.has_failed = False  # something that watches over the server has ended
        self.in_flight = 0
        self.hosts = AllowedHosts(config.allowed_hosts)
        self.reader = Reader(config) if online is None else Reader(config, OnlineQuery, OnlineQueries, check_online)
        self.feedback_reader = FeedbackReader(config)
        self.budget = Budget(max(config.max_held_bytes, HELD_PER_BYTE * config.max_body_bytes))
        self.batcher: Batcher[Job, bytes] = Batcher(
            service.answer,
            name="model",
            max_rows=config.batch_size,
            max_queued=config.queue_size,
            timeout=config.request_timeout,
            window=config.batch_window_ms / 1000,
            observe=self.metrics.batch_rows.observe,
        )
        self._reading = asyncio.Lock()  # of a large body
        self._openapi = b""
        self._files = StaticFiles()
        self.routes = self._routes()
        unknown = Endpoint(self, "none", self.not_found, ANY_METHOD, False)
        self._router = Router(self.routes, redirect_slashes=False, default=unknown)
        self._plain = {route.path: route.app for route in self.routes if "{" not in route.path}

    def _routes(self) -> list[Route]:
        def route(methods: tuple[str, ...], path: str, handler: Handler) -> Route:
            name = path.replace(":path", "")
            return Route(path, Endpoint(self, name, handler, methods, path.startswith("/v1/")), methods=None)

        post = ("POST",)
        routes = [
            route(post, "/v1/recommend", self.recommend),
            route(READ, "/v1/users/{user_id:path}/recommendations", self.recommend_user),
            route(READ, "/v1/items/{item_id:path}/similar", self.similar),
            route(READ, "/v1/items", self.search),
            route(post, "/v1/explain", self.explain),
            route(READ, "/v1/model", self.model),
            route(READ, "/health/live", self.live),
            route(READ, "/health/ready", self.ready),
            route(READ, "/metrics", self.exposition),
            route(READ, "/openapi.json", self.openapi),
            route(READ, "/", self.page),
            route(READ, "/static/{name}", self.page),
        ]
        if self.config.events:
            routes.append(route(post, "/v1/events", self.add_events))
        if self.online is not None:
            routes.append(route(post, "/v1/feedback", self.add_feedback))
            routes.append(route(READ, "/v1/online", self.online.figures))
        return routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            raise RuntimeError(f"sasrec answers HTTP only, not {scope['type']}; run the server with lifespan off")
        await self._plain.get(scope["path"], self._router)(scope, receive, send)  # most need no search for their route

    def record(self, route: str, call: Call, reply: Reply | None, seconds: float) -> None:
        """Count a request, and write it into the access log; reply None = nobody waited for it any more."""
        status = CLIENT_GONE if reply is None else reply.status
        self.metrics.request(route, status, seconds)
        if not self.log:
            return
        client = call.scope.get("client")
        model = self.service.model
        self.log.write(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "method": call.scope["method"],
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 3),
                "bytes": 0 if reply is None else len(reply.body),
                "client": client[0] if client else None,
                "request_id": call.request_id.decode(),
                "model_version": call.model_version or (model.version if model else None),
            }
        )

    async def recommend(self, call: Call) -> Reply:
        """POST /v1/recommend."""
        found = await self._read(call, self.reader.queries)
        if isinstance(found, Query):
            return Reply(200, b"".join(await self._recommended(call, [self._row(found)])))
        answers = await self._recommended(call, [self._row(query) for query in found])
        pieces = [piece for answer in answers for piece in (b",", answer)][1:]
        return Reply(200, b"".join([b'{"results":[', *pieces, b"]}"]))

    def _row(self, query: Query) -> Row:
        """A query of POST /v1/recommend."""
        if self.online is None or not isinstance(query, OnlineQuery):
            return Row(query)
        return self.online.of_user(Row(query), query.user_id, is_shown=query.shown)

    async def _recommended(self, call: Call, rows: list[Row]) -> list[bytes]:
        """The encoded answers of rows, those of a part in one piece."""
        for place, row in enumerate(rows):
            if row.query.where is not None:
                await self._learn(row.query.where, f"requests[{place}]." if len(rows) > 1 else "", row.arm)
        if not rows:
            return []
        shown = None if self.online is None else self.online.begin(call, rows)
        if sum(map(weight, rows)) <= SMALL_WEIGHT:
            pieces = [await self.batcher.submit(RecommendJob(rows, shown=shown), len(rows))]
        else:
            call.hold(sum(row.query.k for row in rows) * ITEM_BYTES)
            models = self.service.model, self.service.of_arm("challenger")  # for all parts the same
            parts = [RecommendJob(part, *models, shown) for part in parted(rows)]
            pieces = await self.batcher.submit_large(parts, len(rows))
        return pieces if self.online is None or shown is None else await self.online.kept(shown, pieces)

    async def _learn(self, where: str, place: str = "", arm: Arm = "run") -> None:
        """Let the model make the mask of an expression that it does not know yet, in parts, as a large request."""
        model = self.service.of_arm(arm)
        if model is None or model.masks.knows(where):
            return
        steps, done = model.masks.steps(where), b""
        try:
            while done != b"true":
                [done] = await self.batcher.submit_large([lambda _: model.learn(steps)], SCAN_ROWS)
        except RequestError as error:
            raise RequestError(error.status, f"{place if error.status == INVALID else ''}{error}") from None

    async def _read(self, call: Call, read: Callable[[bytes], Body]) -> Body:
        """The body, decoded: a large one on another thread, one at a time and for a quarter of the time."""
        body = await call.body(self.config.max_body_bytes)
        if len(body) <= SMALL_BODY:
            return read(body)
        try:
            async with asyncio.timeout(self.config.request_timeout), self._reading:
                began = time.perf_counter()
                try:
                    return await asyncio.to_thread(read, body)
                finally:
                    await asyncio.sleep(OTHERS_SHARE * (time.perf_counter() - began))
        except TimeoutError:
            raise RequestError(503, "too many large requests wait to be read; try again in a second") from None

    async def recommend_user(self, call: Call) -> Reply:
        """GET /v1/users/{user_id}/recommendations."""
        more = () if self.online is None else ("shown",)
        given = call.parameters("k", "allow", "deny", "keep_seen", "where", "diversity", *more)
        query = Query(
            [],
            given.integer("k", self.reader.default_k, self.config.max_k),
            given.ids("allow"),
            given.ids("deny"),
            given.flag("keep_seen"),
            given.expression("where"),
            given.share("diversity"),
        )
        self.reader.check(query)
        user, model = call.in_path("user_id"), self.service.model
        row = Row(query, user, model.n_events_of(user) if model else 0)
        if self.online is not None:
            is_shown = given.flag("shown") is not False and call.scope["method"] != "HEAD"
            row = self.online.of_user(row, user, is_shown=is_shown)
        return Reply(200, b"".join(await self._recommended(call, [row])))

    async def similar(self, call: Call) -> Reply:
        """GET /v1/items/{item_id}/similar."""
        item: ItemId = call.in_path("item_id")
        given = call.parameters("k", "where")
        k, where = given.integer("k", self.reader.default_k, self.config.max_k), given.expression("where")
        if where is not None:
            await self._learn(where)
        return await self._ask(lambda model: model.similar(item, k, where), SCAN_ROWS)

    async def search(self, call: Call) -> Reply:
        """GET /v1/items?query=."""
        given = call.parameters("query", "k")
        text, k = given.text("query"), given.integer("k", self.reader.default_k, self.config.max_k)
        return await self._ask(lambda model: model.search(text, k), SCAN_ROWS * len(told_apart(text.split())))

    async def explain(self, call: Call) -> Reply:
        """POST /v1/explain."""
        query = await self._read(call, self.reader.explain)
        model = self.service.model  # each item is left out once, so the request weighs as so many
        n_left_out = min(len(query.history), model.recommender.config.model.max_seq_len) if model else 0
        return await self._ask(lambda model: model.explain(query.history, query.item_id), 1 + n_left_out)

    async def model(self, call: Call) -> Reply:
        """GET /v1/model."""
        call.parameters()
        config = self.config
        limits = {name: getattr(config, name) for name in ("max_k", "max_history", "max_filter", "max_requests")}
        more = {"limits": limits, "accepts_events": bool(config.events), "reload_error": self.service.reload_error}
        if self.online is not None:
            more |= self.online.facts()
        return await self._ask(lambda model: {**model.facts(), **more})

    async def _ask(self, question: Callable[[ServedModel], Any], rows: int = 1) -> Reply:
        """The model's answer to a question that costs about as much as so many rows."""
        if rows <= SMALL_WEIGHT:
            return Reply(200, await self.batcher.submit(question, rows))
        [answer] = await self.batcher.submit_large([question], min(rows, self.config.queue_size))
        return Reply(200, answer)

    async def add_events(self, call: Call) -> Reply:
        """POST /v1/events."""
        if is_cross_site(call.scope["headers"]):
            raise RequestError(403, FOREIGN_SITE)
        events = await self._read(call, self.reader.events)
        model = self.service.model
        if model is None or self.events is None:
            raise RequestError(503, "the model is being loaded; try again in a second")
        stored: list[tuple[ItemId, ItemId]] = []
        for event in events:
            user = model.known_user(event.user_id)
            if user is None:
                raise RequestError(404, "an event's user is not in the log this model was trained on; none was stored")
            stored.append((user, event.item_id))
        await self.events.add(stored)
        self.metrics.events.inc(len(events))
        unknown = [event.item_id for event in events if not model.vocabulary.index_of(event.item_id)]
        return Reply(200, encode(Stored(len(events), unknown)))

    async def add_feedback(self, call: Call) -> Reply:
        """POST /v1/feedback."""
        assert self.online is not None
        if is_cross_site(call.scope["headers"]):
            raise RequestError(403, FOREIGN_SITE)
        return await self.online.add(await self._read(call, self.feedback_reader.feedback))

    async def live(self, call: Call) -> Reply:
        """GET /health/live."""
        call.parameters()
        return Reply(200, encode(self._health("live")))

    async def ready(self, call: Call) -> Reply:
        """GET /health/ready: 503 until a model is warm, while draining, and when a part of the server has ended."""
        call.parameters()
        has_models = self.service.model and (self.service.challenger is None or self.service.of_arm("challenger"))
        status = "draining" if self.is_draining else "ready" if has_models else "loading"
        stores = [self.events, None if self.online is None else self.online.store]
        if self.has_failed or self.batcher.has_failed or any(store and store.batcher.has_failed for store in stores):
            status = "failed"
        return Reply(200 if status == "ready" else 503, encode(self._health(status)))

    def _health(self, status: str) -> Health:
        model, challenger = self.service.model, self.service.challenger
        own = status, model.version if model else None, self.service.reload_error
        if challenger is None:
            return Health(*own)
        return TwoHealths(*own, challenger.model.version if challenger.model else None, challenger.reload_error)

    async def exposition(self, call: Call) -> Reply:
        """GET /metrics."""
        call.parameters()
        self.observe(less=1)  # this request itself
        more = b"" if self.online is None else await self.online.exposition()
        return Reply(200, self.metrics.exposition() + more, CONTENT_TYPE.encode())

    def observe(self, less: int = 0) -> None:
        """Tell the metrics how busy the server is at this moment; `less` requests do not count."""
        self.metrics.in_flight.set(self.in_flight - less)
        self.metrics.queued.set(self.batcher.rows + self.batcher.large_rows)
        self.metrics.held.set(self.budget.used)

    async def openapi(self, call: Call) -> Reply:
        """GET /openapi.json."""
        call.parameters()
        if not self._openapi:
            described = openapi(self.config, with_key=bool(self.keys), with_events=bool(self.config.events))
            self._openapi = msgspec.json.encode(described)
        return Reply(200, self._openapi)

    async def page(self, call: Call) -> Reply:
        """GET / and /static/{name}."""
        name = call.scope.get("path_params", {}).get("name", "index.html")
        return self._files.reply(name, call.scope["headers"]) or await self.not_found(call)

    async def not_found(self, call: Call) -> Reply:
        """Any other path."""
        return problem(404, "there is nothing at this path; /openapi.json lists what there is")

    def helper_ended(self, helper: asyncio.Future[None]) -> None:
        """Be ready no more, since a task has ended that watches over the server."""
        self.has_failed = True
        logger.critical("a task that watches over the server has ended", exc_info=helper.exception())

    def close(self) -> None:
        """End the threads and write what is left of the log."""
        self.batcher.close()
        if self.events is not None:
            self.events.close()
        if self.online is not None:
            self.online.store.close()
        self.log.close()


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
        CheckpointError: the file of events or of feedback cannot be opened.
    """
    config = config or ServerConfig()
    service = service or Service(Metrics())
    service.events = store = EventStore.open(config, service.metrics) if config.events else None
    online = Online.open(config, service) if config.feedback else None
    file = (log_file or sys.stdout.buffer) if config.access_log else None
    log = AccessLog(file, service.metrics.dropped_lines.inc)
    if recommender is not None:
        service.use(recommender)
        if service.challenger is not None:
            service.challenger.load()
    return Application(config, service, log, Keys(keys), store, online)

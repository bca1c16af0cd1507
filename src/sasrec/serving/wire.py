"""One client's connection: uvicorn's HTTP protocol, with a bound on everything that a client can make it keep.

What comes is parsed in small parts. All bytes of a request that are not its body count as its head, wherever they
come: lines, trailers, extensions of chunks. Bodies, answers and requests that wait behind others count in the budget
that all connections share.
"""

from __future__ import annotations

import functools
from typing import Any

import httptools
import uvicorn
from prometheus_client import Counter
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sasrec.core.server_config import ServerConfig
from sasrec.serving.budget import Budget
from sasrec.serving.flow import Flow, Joined, Turns

EXCHANGE = "exchange"  # its name in the state of an ASGI scope
MAX_HEAD_BYTES = 2**16
PART_BYTES = 1024  # parsed at once, so that few requests wait that nobody has asked to wait
BODY_PART_BYTES = 2**14  # the same within a body
STEP_BYTES = 2**16  # counted at once of a body
LONG_BODY = 2**14  # bytes after which connections take turns
CHUNK_BYTES = 16  # of a chunk's own line that count as its body
SMALL_BODY = 4096  # bytes of a body that are not counted: the queue bounds how many of those there are
MAX_WAITING = 8  # requests behind the one that is answered; what comes after them is not parsed yet
WAITING_BYTES = 4096  # that such a request takes
STUCK_SECONDS = 1.0  # after which a client that reads nothing of its answer may lose it to others
UNREAD_BYTES = 2**14  # written ahead of a client that does not read
MALFORMED = "Invalid HTTP request received."
OF_AN_UPGRADE = (b"upgrade", b"connection", b"http2-settings")


class Exchange:
    """A request and its answer, as far as they hold bytes.

    Args:
        connection: that it came by.
        budget: that its bytes count in.
    """

    __slots__ = ("body_bytes", "budget", "connection", "cycle", "held", "is_arriving", "is_refused", "reads_since")

    def __init__(self, connection: Connection, budget: Budget) -> None:
        self.connection, self.budget = connection, budget
        self.cycle: Any = None  # uvicorn's side of it, once its head has come
        self.held = self.body_bytes = 0
        self.is_arriving = True
        self.is_refused = False  # there was no room for its body
        self.reads_since: float | None = None  # when the client has last read of an answer that is counted

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for its client: to send, or to read on."""
        if self.reads_since is None:
            return self.is_arriving or self.connection.is_unread
        return self.connection.loop.time() - self.reads_since > STUCK_SECONDS

    def hold(self, n: int) -> bool:
        """Count n more bytes, if there is room."""
        return self.budget.take(self, n)

    def release(self) -> None:
        """It holds nothing any more."""
        if self.held:
            self.budget.give(self)

    def end(self) -> None:
        """It is answered: leave no circle behind that only the garbage collector would find."""
        self.release()
        self.cycle = None

    def begin_answer(self, n: int) -> bool:
        """Whether there is room for an answer of n bytes, in place of the request; the time to read it begins."""
        self.release()
        self.connection.writing_since = self.connection.loop.time()
        return n <= UNREAD_BYTES or self.hold(n)

    def has_read(self) -> None:
        """The client takes a part of a long answer."""
        self.reads_since = self.connection.loop.time()

    def refuse(self) -> None:
        """Let the handler find that the body does not come."""
        self.is_refused = True
        self.release()
        self.cycle.body = bytearray()
        self.cycle.message_event.set()

    def shed(self) -> None:
        """Give up a body that is not there yet, or an answer that is not read with all that waits behind it."""
        if self.is_arriving and self.cycle and not (self.cycle.response_started or self.connection.is_behind):
            self.refuse()
        else:
            self.connection.cut("unread")
            self.release()


class Connection(HttpToolsProtocol):
    """An HTTP connection that knows since when it waits for its client, and bounds what the client makes it keep.

    Args:
        server: that accepted it.
        limits: its limits and times.
        budget: that all connections share.
        bodies: whose turn it is to be read, of connections with long bodies; likewise.
        followers: whose turn it is of requests that came behind others; likewise.
        refused: counts connections that are cut, by reason.
    """

    def __init__(
        self,
        server: uvicorn.Server,
        limits: ServerConfig,
        budget: Budget,
        bodies: Turns,
        followers: Turns,
        refused: Counter,
    ) -> None:
        super().__init__(server.config, server.server_state, {})
        self.limits, self.budget, self.refused = limits, budget, refused
        self._bodies, self._followers = bodies, followers
        self.reading_since: float | None = None  # a request arrives
        self.writing_since: float | None = None  # an answer is read
        self.exchange = Exchange(self, self.budget)  # the last one that has begun
        self.answered: Any = None  # uvicorn's side of the one that is answered
        self._is_arriving = self._in_head = self._is_upgrade = self._is_malformed = False
        self._follows = False  # a request that waited behind another begins
        self._n_begun = self._body_in_part = self._head_bytes = self._unread_bytes = 0
        self._unparsed = b""
        self._unread_since: float | None = None

    def connection_made(self, transport: Any) -> None:
        """Refuse a connection too many."""
        super().connection_made(transport)
        self.flow: Flow = Flow(transport)
        self._answers = Joined(transport)
        transport.set_write_buffer_limits(high=UNREAD_BYTES)
        self.reading_since = self.loop.time()
        if len(self.connections) > self.limits.max_connections:
            self.cut("too_many")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for the answers any more."""
        self._give_up()
        self.resume_writing()
        super().connection_lost(exc)

    def cut(self, reason: str) -> None:
        """End the connection at once."""
        if not self.transport.is_closing():
            self.refused.labels(reason).inc()
        self._give_up()
        self.transport.abort()

    def _give_up(self) -> None:
        """Tell those who work on answers that nobody waits for them; requests behind them are forgotten."""
        for waiting, _ in self.pipeline:
            waiting.scope["state"][EXCHANGE].end()
        self.pipeline.clear()
        self.exchange.release()
        self._unparsed = b""
        for cycle in (self.answered, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.flow.resume_writing()

    def overdue(self, now: float) -> str | None:
        """Why the connection is to be cut: its request does not arrive in time, or its answer is not read in time."""
        if self.reading_since is not None and now - self.reading_since > self.limits.read_timeout:
            return "slow"
        if self.writing_since is None:
            return None
        if not self._owes_answers and not self.transport.get_write_buffer_size():
            self.writing_since = None
        elif now - self.writing_since > self.limits.write_timeout:
            return "unread"
        return None

    def pause_writing(self) -> None:
        """The client does not read: what is written ahead of it counts."""
        self.budget.used += UNREAD_BYTES - self._unread_bytes
        self._unread_bytes, self._unread_since = UNREAD_BYTES, self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client reads."""
        self.budget.used -= self._unread_bytes
        self._unread_bytes, self._unread_since = 0, None
        super().resume_writing()

    @property
    def is_unread(self) -> bool:
        """Whether the client has long read nothing of what is written."""
        return self._unread_since is not None and self.loop.time() - self._unread_since > STUCK_SECONDS

    @property
    def is_behind(self) -> bool:
        """Whether something has come that is not parsed yet."""
        return bool(self._unparsed)

    def data_received(self, data: bytes) -> None:
        """Parse what came, but not beyond the requests that may wait."""
        if self._unparsed:
            self._keep(self._unparsed + data)
            return
        if self.reading_since is None:
            self.reading_since = self.loop.time()
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        at = 0
        while at < len(data):
            if self._is_malformed or self.transport.is_closing():
                return
            if len(self.pipeline) >= MAX_WAITING:
                self._keep(data[at:])
                return
            n = BODY_PART_BYTES if self._is_arriving and not self._in_head else PART_BYTES
            self._parse_part(data[at : at + n])
            at += n
        if self._is_arriving and self.exchange.body_bytes > LONG_BODY:
            self.flow.wait(True)
            self._bodies.take(functools.partial(self.flow.wait, False), self.loop)

    def _keep(self, data: bytes) -> None:
        """Parse this later, when nothing waits any more; it counts in the last request before it."""
        n = len(data) - len(self._unparsed)
        self._unparsed, self.reading_since = data, None
        self.flow.fall_behind(True)
        if not self.exchange.hold(n):
            self.cut("memory")

    def _parse_part(self, part: bytes) -> None:
        """Parse a part, and count what of it is head: all that is not body, of the last request in it."""
        began_before = self._is_arriving
        self._n_begun = self._body_in_part = 0
        try:
            self._feed(part)
        except httptools.HttpParserError:
            self._end_malformed()
            return
        if self._n_begun + began_before > 1:  # where the last one begins is not told, so its first bytes are free
            return
        self._head_bytes += max(len(part) - self._body_in_part, 0)  # small chunks save up nothing for trailers
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.cut("head")

    def _feed(self, part: bytes) -> None:
        """Give the parser bytes; an upgrade to another protocol that a request asks for is ignored."""
        while part:
            try:
                self.parser.feed_data(part)
            except httptools.HttpParserUpgrade as upgrade:
                part = part[upgrade.args[0] :]
                self._begin_again()
            else:
                return

    def _begin_again(self) -> None:
        """Take the head once more, without the headers of an upgrade, for which the parser would not read the body."""
        self._is_upgrade = False
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            raise httptools.HttpParserError("no tunnel is opened here")
        lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] not in OF_AN_UPGRADE]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._n_begun -= 1
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def _end_malformed(self) -> None:
        """Answer 400 behind the answers that are owed, and read no more."""
        self._is_malformed = True
        broken = self.cycle if self._is_arriving and not self._in_head else None
        if broken is None:
            pass
        elif broken.response_complete:
            self.transport.close()
            return
        elif broken is not self.answered:
            self.pipeline.popleft()  # the last one that has begun
            self.exchange.end()
        else:  # its handler waits for a body that does not come
            self._give_up()
        if self._owes_answers and broken is not self.answered:
            self.flow.pause_reading()
        else:
            self.send_400_response(MALFORMED)

    @property
    def _owes_answers(self) -> bool:
        return self.answered is not None and not self.answered.response_complete

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self.reading_since = self.loop.time()
        self._is_arriving = self._in_head = True
        self._head_bytes = 0
        self._n_begun += 1
        self.exchange = self.scope["state"][EXCHANGE] = Exchange(self, self.budget)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; what comes behind the body is none."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request's head has come."""
        self._in_head = False
        self._is_upgrade = self.parser.should_upgrade()
        if self._is_upgrade or self.transport.is_closing():
            return
        super().on_headers_complete()
        self.exchange.cycle = self.cycle
        self.exchange.cycle.transport = self._answers  # has what a cycle calls
        if self.cycle is not self.answered and not self.exchange.hold(WAITING_BYTES):
            self.cut("memory")

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.answered = cycle
        self._answers.begin()
        if not self.transport.get_write_buffer_size():  # the answer before it is read
            self.writing_since = None
        if self._follows:
            self._followers.take(functools.partial(self._start_follower, cycle, app), self.loop)
        else:
            super()._start_asgi_task(cycle, app)

    def _start_follower(self, cycle: Any, app: Any) -> None:
        if cycle.disconnected:  # while it waited for its turn
            cycle.scope["state"][EXCHANGE].end()
        else:
            super()._start_asgi_task(cycle, app)

    def on_chunk_header(self) -> None:
        """A chunk of a body begins."""
        self._body_in_part += CHUNK_BYTES

    def on_body(self, body: bytes) -> None:
        """A piece of a body: kept if there is room for it."""
        exchange, n = self.exchange, len(body)
        self._body_in_part += n
        exchange.body_bytes += n
        if exchange.is_refused or self.transport.is_closing() or self.cycle.response_complete:
            return
        known = exchange.body_bytes if SMALL_BODY < exchange.body_bytes <= self.limits.max_body_bytes else 0
        if known > exchange.held and not exchange.hold(max(n, STEP_BYTES)):
            exchange.refuse()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has come whole."""
        if self._is_upgrade or self.transport.is_closing():
            return
        super().on_message_complete()
        self.exchange.is_arriving = self._is_arriving = False
        self.reading_since = None

    def on_response_complete(self) -> None:
        """An answer is written: go on with what has come behind its request."""
        self._answers.flush()
        self._follows = True
        super().on_response_complete()
        self._follows = False
        if self.transport.is_closing() or self.pipeline:
            return
        if self._is_malformed and not self._owes_answers:
            self.send_400_response(MALFORMED)
        elif self._unparsed:
            self._followers.take(self._parse_on, self.loop)

    def _parse_on(self) -> None:
        data, self._unparsed = self._unparsed, b""
        self.reading_since = self.loop.time()
        self.flow.fall_behind(False)
        self._parse(data)

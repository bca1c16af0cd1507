"""Connections from outside: slow and too many clients, a drain; and what is relied on of uvicorn's inside."""

import asyncio
import contextlib
import http.client
import re
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from server_process import PATIENCE, Load, ServerProcess, running, until
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sasrec.serving.connections import HANDSHAKE_SECONDS, LINGER_SECONDS, let_no_more_begin

HEAD = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
BODY = b'{"history": [1, 2, 3]}'


@pytest.fixture(scope="module")
def crowded(runs: Path) -> Iterator[ServerProcess]:
    """A server whose clients may be slow, but not more than 1,001 of them."""
    flags = "--max-connections", 1001, "--read-timeout", 600, "--keep-alive", 600
    with running(runs / "a", *flags, "--trusted-proxies", "127.0.0.1") as server:
        yield server


@pytest.fixture(scope="module")
def impatient(runs: Path) -> Iterator[ServerProcess]:
    """A server that waits half a second for a request, and trusts no proxy."""
    with running(runs / "a", "--read-timeout", 0.5) as server:
        yield server


@pytest.fixture
def many_files() -> Iterator[None]:
    """File descriptors for a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


@contextlib.contextmanager
def thousand_clients(server: ServerProcess) -> Iterator[list[socket.socket]]:
    """Every other one begins a request and does not go on, the others say nothing."""
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(connect(server)) for _ in range(1000)]
        for client in clients[1::2]:
            client.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        yield clients


def is_closed(client: socket.socket) -> bool:
    """Whether the server closes it."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
def test_a_thousand_idle_and_slow_clients_keep_nobody_waiting_and_one_too_many_is_closed(
    crowded: ServerProcess,
) -> None:
    with thousand_clients(crowded):
        assert [crowded.recommend()[0] for _ in range(10)] == [200] * 10
        assert crowded.metric("sasrec_connections_refused_total") == 0  # they are all there still
        with connect(crowded) as first, connect(crowded) as second:  # one of them is too many
            with selectors.DefaultSelector() as selector:  # select() knows no file beyond the 1,024th
                for client in (first, second):
                    selector.register(client, selectors.EVENT_READ)
                [(refused, _), *_] = selector.select(PATIENCE)
            assert is_closed(refused.fileobj)
    assert until(lambda: status_if_answered(crowded)) == 200
    assert crowded.metric("sasrec_connections_refused_total") >= 1


def status_if_answered(server: ServerProcess) -> int | None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return server.recommend()[0]
    return None


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
def test_a_thousand_clients_that_do_not_send_a_request_in_time_are_closed_though_they_send_something(
    impatient: ServerProcess,
) -> None:
    before = impatient.metric("sasrec_connections_refused_total")
    with thousand_clients(impatient) as clients:

        def all_closed() -> bool:
            for client in clients[1::20]:  # they go on to send a byte now and then
                with contextlib.suppress(OSError):
                    client.send(b"x")
            return impatient.metric("sasrec_connections_refused_total") == before + 1000

        until(all_closed)
        assert impatient.metric("process_open_fds") < 100
        assert impatient.recommend()[0] == 200


@pytest.mark.slow
def test_a_connection_kept_alive_may_idle_longer_than_a_request_may_take(impatient: ServerProcess) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", impatient.port, timeout=PATIENCE)
    with contextlib.closing(kept):
        kept.request("GET", "/health/live")
        assert kept.getresponse().read()
        with connect(impatient) as says_nothing:
            assert is_closed(says_nothing)
        kept.request("GET", "/health/live")
        assert kept.getresponse().status == 200


@pytest.mark.slow
def test_a_head_without_end_is_closed(crowded: ServerProcess) -> None:
    with connect(crowded) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\n")
            for _ in range(100):
                client.sendall(b"X-Long: " + b"x" * 4000 + b"\r\n")
                time.sleep(0.001)
        assert is_closed(client)
    assert crowded.recommend()[0] == 200


@pytest.mark.slow
def test_the_log_has_the_client_that_a_trusted_proxy_names(crowded: ServerProcess, impatient: ServerProcess) -> None:
    for server, client in ((crowded, "192.0.2.7"), (impatient, "127.0.0.1")):
        server.ask("GET", "/health/live", **{"X-Forwarded-For": "192.0.2.7", "X-Request-ID": "by-proxy"})
        [line] = until(lambda server=server: [line for line in server.log() if line["request_id"] == "by-proxy"])
        assert line["client"] == client


@contextlib.contextmanager
def half_sent(server: ServerProcess) -> Iterator[socket.socket]:
    """A client whose request the server has begun to read."""
    with connect(server) as client:
        client.sendall(HEAD % len(BODY) + BODY[:5])
        until(lambda: server.metric("sasrec_requests_in_flight") == 1)
        yield client


def received(client: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.slow
def test_sigterm_under_load_answers_every_accepted_request_also_one_that_is_being_sent(runs: Path) -> None:
    with running(runs / "a") as server, half_sent(server) as client:
        load = Load(server.port)
        until(lambda: load.codes[200] > 100)
        server.signal(signal.SIGTERM)
        load.join()  # each client goes on until it is refused
        time.sleep(HANDSHAKE_SECONDS + LINGER_SECONDS + 0.2)  # until idle connections have been closed
        client.sendall(BODY[5:])
        answer = received(client)
        assert server.process.wait(PATIENCE) == 0
    assert load.lost == []
    assert set(load.codes) == {200}
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer
    assert b'"items"' in answer


@pytest.mark.slow
def test_a_request_without_end_gets_503_at_the_deadline_and_the_server_ends(runs: Path) -> None:
    with running(runs / "a", "--drain-seconds", 0.5, "--read-timeout", 600) as server, half_sent(server) as client:
        server.signal(signal.SIGTERM)
        answer = received(client)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"the server ends, and this request took too long" in answer
        assert server.process.wait(PATIENCE) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can tell a listening socket to drop what begins")
def test_when_no_more_may_begin_what_has_begun_is_still_accepted_and_what_comes_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = listener.getsockname()
        before = socket.create_connection(address, timeout=PATIENCE)
        let_no_more_begin(listener)
        late = socket.socket()
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.connect(address)  # it would try again in a second
        accepted, _ = listener.accept()
        with pytest.raises(BlockingIOError):
            listener.accept()
        with before, accepted:
            before.sendall(b"asked")
            assert accepted.recv(9) == b"asked"
            accepted.sendall(b"answered")
            assert before.recv(9) == b"answered"
        late.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=PATIENCE)


class Internal(NamedTuple):
    """A part of uvicorn's inside that serving/connections.py and serving/wire.py rely on."""

    name: str
    use: str  # what they do with it
    is_there: Callable[[], Any]


def what_moved(internal: Internal) -> str:
    """A sentence when the part is not there as expected; else empty."""
    try:
        found = internal.is_there()
    except (AttributeError, TypeError, KeyError, TimeoutError):
        found = False
    message = f"uvicorn {uvicorn.__version__} has no {internal.name} any more: serving {internal.use}"
    return "" if found else message


def takes(function: Any, *names: str) -> bool:
    """Whether a function takes these parameters, and no other without a default."""
    parameters = list(signature(function).parameters.values())
    others = parameters[len(names) :]
    return [p.name for p in parameters[: len(names)]] == list(names) and all(p.default is not p.empty for p in others)


def overridden(owner: type, name: str, *parameters: str) -> Internal:
    """A method that is overridden and called."""
    what = f"{owner.__name__}.{name}({', '.join(parameters)})"
    return Internal(what, "overrides it", lambda: takes(getattr(owner, name), "self", *parameters))


async def no_content(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


SETTINGS: dict[str, Any] = {
    "http": HttpToolsProtocol, "ws": "none", "lifespan": "off", "log_config": None, "access_log": False,
    "server_header": False, "timeout_keep_alive": 0.5, "timeout_graceful_shutdown": 0.01, "proxy_headers": True,
    "forwarded_allow_ips": "192.0.2.1",
}  # fmt: skip


class Watched(uvicorn.Server):
    """A server as uvicorn makes it, and in which order its parts are called."""

    def __init__(self) -> None:
        super().__init__(uvicorn.Config(no_content, **{n: v for n, v in SETTINGS.items() if is_setting(n)}))
        self.calls: list[Any] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        self.calls.append("capture_signals")
        yield

    async def startup(self, sockets: Any = None) -> None:
        self.calls.append(("startup", sockets))
        await super().startup(sockets=[])

    async def main_loop(self) -> None:
        self.calls.append("main_loop")
        self.should_exit = True
        await super().main_loop()

    async def shutdown(self, sockets: Any = None) -> None:
        self.calls.append(("shutdown", sockets))
        await super().shutdown([])


async def served(sockets: list[Any]) -> Watched:
    server = Watched()
    await server.serve(sockets)
    return server


async def listens_to_nothing() -> bool:
    server = Watched()
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    return server.started and server.servers == []


class Transport(asyncio.Transport):
    """Takes what is written to it, and ends when it is told to."""

    is_ended = False

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def pause_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_ended

    def close(self) -> None:
        self.is_ended = True


class WatchedConnection(HttpToolsProtocol):
    """A connection as uvicorn makes it, and in which order it is told about a request."""

    def __init__(self, server: uvicorn.Server) -> None:
        super().__init__(server.config, server.server_state, {})
        self.calls: list[str] = []

    def on_message_begin(self) -> None:
        self.calls.append("on_message_begin")
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.calls.append("on_headers_complete")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.calls.append("on_message_complete")
        super().on_message_complete()


async def asked() -> WatchedConnection:
    """A connection on which a request has been answered."""
    connection = WatchedConnection(Watched())
    connection.connection_made(Transport())
    connection.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        while connection.tasks:
            await asyncio.sleep(0)
    return connection


async def writes_a_head_first() -> bool:
    """Whether a cycle writes an answer's head in one piece, before its body."""
    first, *others = (await asked()).cycle.transport.writes
    return first.endswith(b"\r\n\r\n") and not any(others)


async def ends_idle_connections() -> bool:
    """Whether `shutdown` closes what waits for nothing, and returns once it has gone."""
    server = await served([])
    connection = WatchedConnection(server)
    connection.connection_made(Transport())
    ending = asyncio.ensure_future(server.shutdown([]))
    async with asyncio.timeout(PATIENCE):
        while not connection.transport.is_closing():
            await asyncio.sleep(0)
    waited = not ending.done()
    connection.connection_lost(None)
    await asyncio.wait_for(ending, PATIENCE)
    return waited and not server.server_state.connections


async def cancels_at_the_deadline() -> bool:
    """Whether `shutdown` cancels the tasks of requests that outlive timeout_graceful_shutdown."""
    server = await served([])
    endless = asyncio.ensure_future(asyncio.sleep(PATIENCE))
    server.server_state.tasks.add(endless)
    await server.shutdown([])
    return (await asyncio.wait([endless], timeout=PATIENCE))[0] == {endless} and endless.cancelled()


async def ends_at_once_by_force() -> bool:
    """Whether `force_exit` ends `shutdown` though there are connections."""
    server = await served([])
    server.config.timeout_graceful_shutdown = None
    WatchedConnection(server).connection_made(Transport())
    server.force_exit = True
    await asyncio.wait_for(server.shutdown([]), PATIENCE)
    return True


def is_setting(name: str) -> bool:
    return name in signature(uvicorn.Config).parameters


def loaded(**settings: Any) -> uvicorn.Config:
    config = uvicorn.Config(no_content, **SETTINGS | settings)
    config.load()
    return config


async def waits_in_a_pipeline() -> WatchedConnection:
    """A connection whose second request waits behind the first, which is never answered."""

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(PATIENCE)

    server = Watched()
    connection = WatchedConnection(server)
    connection.app = endless
    connection.connection_made(Transport())
    connection.data_received(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n")
    for task in server.server_state.tasks:
        task.cancel()
    return connection


def piped() -> WatchedConnection:
    return asyncio.run(waits_in_a_pipeline())


CALLBACKS = ["on_message_begin", "on_headers_complete", "on_message_complete"]
INTERNALS = [
    Internal(
        "HttpToolsProtocol(config, server_state, app_state)", "makes each connection so",
        lambda: takes(HttpToolsProtocol.__init__, "self", "config", "server_state", "app_state"),
    ),
    overridden(HttpToolsProtocol, "connection_made", "transport"),
    overridden(HttpToolsProtocol, "data_received", "data"),
    *(overridden(HttpToolsProtocol, name) for name in CALLBACKS),
    *(overridden(HttpToolsProtocol, name) for name in ("pause_writing", "resume_writing", "on_response_complete")),
    overridden(HttpToolsProtocol, "connection_lost", "exc"),
    overridden(HttpToolsProtocol, "on_header", "name", "value"),
    overridden(HttpToolsProtocol, "on_body", "body"),
    overridden(HttpToolsProtocol, "_start_asgi_task", "cycle", "app"),
    overridden(HttpToolsProtocol, "_unset_keepalive_if_required"),
    overridden(HttpToolsProtocol, "send_400_response", "msg"),
    overridden(FlowControl, "pause_reading"),
    overridden(FlowControl, "resume_reading"),
    Internal(
        "HttpToolsProtocol.pipeline of requests that wait, the newest first", "bounds it, and forgets them",
        lambda: (found := piped()).pipeline[0][0] is found.cycle and len(found.pipeline) == 1,
    ),
    Internal(
        "HttpToolsProtocol.cycle with scope, body, message_event, response_started, response_complete, disconnected",
        "gives requests up by them",
        lambda: all(
            hasattr(piped().cycle, name)
            for name in ("scope", "body", "message_event", "response_started", "response_complete", "disconnected")
        ),
    ),
    Internal(
        "HttpToolsProtocol.cycle with a transport that takes the head of an answer first", "joins it with the body",
        lambda: asyncio.run(writes_a_head_first()),
    ),
    Internal(
        "HttpToolsProtocol.scope that is the one of its cycle", "puts its own part there",
        lambda: (found := piped()).scope is found.cycle.scope,
    ),
    Internal(
        "HttpToolsProtocol.parser, url and headers", "reads a head again by them",
        lambda: (found := piped()).parser and found.url == b"/" and found.headers == [],
    ),
    Internal(
        "HttpToolsProtocol.flow, a FlowControl of the transport", "gives it its own",
        lambda: type(piped().flow) is FlowControl and takes(FlowControl.__init__, "self", "transport"),
    ),
    Internal(
        f"HttpToolsProtocol that is told {', '.join(CALLBACKS)} of a request", "takes its times in that order",
        lambda: asyncio.run(asked()).calls == CALLBACKS,
    ),
    Internal(
        "HttpToolsProtocol.loop", "reads its clock",
        lambda: isinstance(asyncio.run(asked()).loop, asyncio.AbstractEventLoop),
    ),
    Internal(
        "HttpToolsProtocol.transport", "aborts it", lambda: isinstance(asyncio.run(asked()).transport, Transport),
    ),
    Internal(
        "HttpToolsProtocol.connections that are those of the server", "counts them",
        lambda: (found := asyncio.run(asked())).connections is found.server_state.connections,
    ),
    Internal(
        "Server.server_state.connections, a set", "goes through it for slow clients",
        lambda: type(Watched().server_state.connections) is set,
    ),
    Internal(
        "connection that adds itself to Server.server_state.connections", "counts on that",
        lambda: (found := asyncio.run(asked())) in found.server_state.connections,
    ),
    *(Internal(f"Config argument {name}", "gives it", partial(is_setting, name)) for name in SETTINGS),
    Internal(
        "Config that takes a class for http", "gives its own",
        lambda: loaded().http_protocol_class is HttpToolsProtocol,
    ),
    Internal(
        "application behind ProxyHeadersMiddleware when proxy_headers is set", "trusts it to name the client",
        lambda: isinstance(loaded().loaded_app, ProxyHeadersMiddleware)
        and not isinstance(loaded(proxy_headers=False).loaded_app, ProxyHeadersMiddleware),
    ),
    overridden(uvicorn.Server, "capture_signals"),
    overridden(uvicorn.Server, "startup", "sockets"),
    overridden(uvicorn.Server, "shutdown", "sockets"),
    Internal(
        "Server.serve(sockets) that captures signals, starts up, loops and shuts down with them",
        "puts its own parts there",
        lambda: asyncio.run(served(["listener"])).calls
        == ["capture_signals", ("startup", ["listener"]), "main_loop", ("shutdown", ["listener"])],
    ),
    Internal(
        "Server.startup(sockets=[]) that listens to nothing", "accepts connections itself",
        lambda: asyncio.run(listens_to_nothing()),
    ),
    Internal(
        "Server.should_exit that ends Server.main_loop", "drains by it", lambda: asyncio.run(served([])).should_exit,
    ),
    Internal(
        "Server.shutdown that closes idle connections and waits for them", "ends with it",
        lambda: asyncio.run(ends_idle_connections()),
    ),
    Internal(
        "Server.shutdown that cancels requests at timeout_graceful_shutdown", "bounds a drain by it",
        lambda: asyncio.run(cancels_at_the_deadline()),
    ),
    Internal(
        "Server.force_exit that ends Server.shutdown at once", "sets it on a second signal",
        lambda: asyncio.run(ends_at_once_by_force()),
    ),
]  # fmt: skip


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: internal.name)
def test_uvicorn_still_has_what_connections_rely_on(internal: Internal) -> None:
    moved = what_moved(internal)
    assert not moved, moved


def test_what_is_gone_from_uvicorn_is_named() -> None:
    class OtherProtocol:
        def on_headers_complete(self, parser: Any) -> None: ...

    version = re.escape(uvicorn.__version__)
    for name in ("on_headers_complete", "on_body"):  # one with another signature, one that is not there
        sentence = rf"uvicorn {version} has no OtherProtocol.{name}\(\) any more: serving overrides it"
        assert re.fullmatch(sentence, what_moved(overridden(OtherProtocol, name)))

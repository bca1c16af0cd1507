"""One connection from outside: heads, trailers, upgrades, pipelines, clients that do not read or do not finish."""

import asyncio
import gc
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hostile import Client, chunked, head, request, trickle
from server_process import PATIENCE, ServerProcess, running, until

from sasrec.serving import worker
from sasrec.serving.flow import Turns
from sasrec.serving.wire import STUCK_SECONDS

pytestmark = pytest.mark.slow  # a server starts

BODY = b'{"history": [1, 2, 3], "k": 2}'
ASKED = request(BODY)
MANY = {"requests": [{"history": [1, "u" * 150], "k": 25}] * 128}
ANSWER_BYTES = 150_000  # of MANY, at least
MIB = 2**20


@pytest.fixture(scope="module")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a key, a small memory and little patience with clients that do not read."""
    keys = tmp_path_factory.mktemp("wire") / "keys"
    keys.write_text("sesame\n")
    with running(runs / "a", "--api-key-file", keys, "--read-timeout", 600) as server:
        yield server


@pytest.fixture(scope="module")
def small(runs: Path) -> Iterator[ServerProcess]:
    """A server that holds little for its clients, and waits a second for them to read."""
    flags = "--max-body-bytes", 2**17, "--max-held-bytes", 2**20, "--write-timeout", 1, "--read-timeout", 600
    with running(runs / "a", *flags) as server:
        yield server


def memory(server: ServerProcess) -> float:
    """MiB that the process holds."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def test_a_client_that_asks_whether_to_go_on_is_told_so_and_answered(server: ServerProcess) -> None:
    with Client(server.port) as client:
        client.send(head(Content_Length=str(len(BODY)), X_API_Key="sesame", Expect="100-continue"))
        assert client.ask(b"").status == 100
        assert client.ask(BODY).status == 200


def test_a_client_that_reads_is_not_cut_while_its_next_answer_is_made(runs: Path) -> None:
    with (
        running(runs / "a", "--write-timeout", 0.1, "--batch-window-ms", 1000) as server,
        Client(server.port) as client,
    ):
        assert [client.ask(ASKED).status for _ in range(2)] == [200, 200]


def test_an_answer_without_a_body_comes_at_once(server: ServerProcess) -> None:
    with Client(server.port) as client:
        for _ in range(2):
            client.send(b"HEAD /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            client.socket.settimeout(PATIENCE)
            answer = client.socket.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/v1/recommend", "/nothing"])
def test_trailers_without_end_are_cut_and_cost_no_memory(server: ServerProcess, path: str) -> None:
    before = memory(server)
    with Client(server.port) as client:
        client.send(chunked(b"x", end=b"0\r\n", path=path))
        sent = client.flood(b"".join(b"X-%05d: \r\n" % i for i in range(5000)), 5)
        assert client.is_ended()
    assert sent < 64 * MIB  # what the systems between take
    assert memory(server) < before + 10


def test_trailers_are_no_headers(server: ServerProcess) -> None:
    trailers = b"0\r\nX-API-Key: sesame\r\nX-Request-ID: from-a-trailer\r\n\r\n"
    with Client(server.port) as client:
        client.send(chunked(BODY, end=b""))  # the request's handler waits for the end
        time.sleep(0.1)
        reply = client.ask(trailers)
        assert (reply.status, "from-a-trailer" in reply.headers["x-request-id"]) == (401, False)
        reply = client.ask(chunked(BODY, end=trailers, X_API_Key="sesame"))
        assert (reply.status, "from-a-trailer" in reply.headers["x-request-id"]) == (200, False)


@pytest.mark.parametrize(
    "begun",
    [
        head()[:-2] + b"X-Long: ",  # one header
        head()[:-2],  # many
        b"GET /",  # the path
        chunked(b"x", end=b"0\r\nX-Long: "),
        chunked(*[b" "] * 50_000, end=b"0\r\nX-Long: "),  # behind a body whose chunks are small
        chunked(b"x", end=b"1;"),  # an extension
        b"",  # nothing at all
    ],
    ids=["header", "headers", "path", "trailer", "trailer of small chunks", "extension", "blank"],
)
@pytest.mark.parametrize("size", [2**17, 999], ids=["at once", "in pieces"])
def test_a_head_longer_than_64_kib_is_cut_however_it_comes(server: ServerProcess, begun: bytes, size: int) -> None:
    filler = {b"": b"\r\n", head()[:-2]: b"X-A: b\r\n"}.get(begun, b"a")
    before = server.metric("sasrec_connections_refused_total")
    with Client(server.port) as client:
        client.send(*trickle(begun + filler * (90_000 // len(filler)), size), pause=0.0005)
        assert client.is_ended()
    assert server.metric("sasrec_connections_refused_total") == before + 1


def test_a_head_of_60_kib_and_a_body_in_bytes_of_their_own_are_no_long_head(server: ServerProcess) -> None:
    with Client(server.port) as client:
        assert client.ask(request(BODY, X_API_Key="sesame", X_Long="a" * 60_000)).status == 200
        long = b" " * 50_000 + BODY
        single = chunked(*(long[i : i + 1] for i in range(len(long))), X_API_Key="sesame")
        assert client.ask(single).status == 200


JAVA = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAEAAEAAAAIAAAABAAMAAABk"}


@pytest.mark.parametrize("wanted", [JAVA, {"Connection": "Upgrade", "Upgrade": "websocket"}], ids=["h2c", "websocket"])
@pytest.mark.parametrize("size", [10_000, 7], ids=["at once", "in pieces"])
def test_an_upgrade_that_is_asked_for_is_ignored(server: ServerProcess, wanted: dict[str, str], size: int) -> None:
    with Client(server.port) as client:
        for _ in range(2):  # the connection goes on
            client.send(*trickle(request(BODY, X_API_Key="sesame", X_Request_ID="up", **wanted), size), pause=0.001)
            reply = client.reply()
            assert (reply.status, len(reply.json()["items"]), reply.headers["x-request-id"]) == (200, 2, "up")
        both = request(BODY, X_API_Key="sesame", **wanted) + head("GET", "/health/live")
        client.send(both, chunked(BODY, X_API_Key="sesame", **wanted))
        assert client.replies(3) == [200, 200, 200]


def test_no_tunnel_is_opened(server: ServerProcess) -> None:
    with Client(server.port) as client:
        assert client.ask(b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n").status == 400
        assert client.is_ended()


def test_a_pipeline_of_any_length_is_answered_in_order(server: ServerProcess) -> None:
    requests = [request(BODY, X_API_Key="sesame", X_Request_ID=f"n{i}") for i in range(3000)]
    with Client(server.port) as client:
        client.send(b"".join(requests[:20]))
        client.socket.setblocking(True)
        client.send(*trickle(b"".join(requests[20:300]), 7000))
        replies = [client.reply() for _ in range(300)]
    assert [reply.status for reply in replies] == [200] * 300
    assert [reply.headers["x-request-id"] for reply in replies] == [f"n{i}" for i in range(300)]


def test_what_follows_a_request_that_is_malformed_or_broken_off_takes_no_answer_from_those_before(
    server: ServerProcess,
) -> None:
    asked = request(BODY, X_API_Key="sesame")
    for broken in (b"\x00\x01\r\n\r\n", head(Transfer_Encoding="chunked") + b"no length\r\n"):
        with Client(server.port) as client:
            client.send(asked * 5 + broken)
            assert client.replies(6) == [200] * 5 + [400]
            assert client.is_ended()
    for _ in range(20):  # the client goes while its requests are answered
        with Client(server.port) as client:
            client.send(asked * 50)
    assert server.ask("GET", "/health/live")[0] == 200  # and no traceback is written: the fixture looks


@pytest.mark.parametrize("asked", [head("GET", "/health/live"), ASKED], ids=["GET", "POST"])
def test_a_pipeline_that_is_read_piles_nothing_up(server: ServerProcess, asked: bytes) -> None:
    before = memory(server)
    with Client(server.port) as client:
        thread = threading.Thread(target=client.is_ended)
        thread.start()
        client.flood(asked * 5000, 3)
        after = memory(server)
        client.socket.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert after < before + 10


def test_pipelines_that_are_not_read_cost_little(small: ServerProcess) -> None:
    before, n_refused = memory(small), small.metric("sasrec_connections_refused_total")
    with ExitStack() as held:
        clients = [held.enter_context(Client(small.port, 2048)) for _ in range(60)]
        for client in clients:
            client.socket.setblocking(False)
            client.send(head("GET", "/openapi.json") * 4000)
        time.sleep(0.5)
        assert memory(small) < before + 30
        until(lambda: small.metric("sasrec_connections_refused_total") >= n_refused + 60)
    assert small.metric("sasrec_connections_refused_total") == n_refused + 60  # each once
    assert small.recommend()[0] == 200


def test_pipelines_that_are_not_read_make_room_for_bodies_that_have_come_whole(runs: Path) -> None:
    flags = "--max-body-bytes", 2**16, "--max-held-bytes", 2**19, "--write-timeout", 60
    with running(runs / "a", *flags) as server, ExitStack() as held:
        for _ in range(20):
            client = held.enter_context(Client(server.port, 2048))
            client.socket.setblocking(False)
            client.send(head("GET", "/openapi.json") * 4000)
        assert server.metric("sasrec_held_bytes") > 2**18
        time.sleep(STUCK_SECONDS + 0.5)
        assert server.ask("POST", "/v1/recommend", {"history": ["b" * 1000] * 60})[0] == 200


def test_answers_that_are_not_read_are_counted_and_cut_in_time(small: ServerProcess) -> None:
    with Client(small.port, 2048) as client:
        client.send(request(MANY))
        until(lambda: small.metric("sasrec_requests_in_flight") == 1)
        assert small.metric("sasrec_held_bytes") > ANSWER_BYTES
        began = time.monotonic()
        until(lambda: small.metric("sasrec_requests_in_flight") == 0)
        assert time.monotonic() - began < 5
    until(lambda: small.metric("sasrec_held_bytes") == 0)


def test_an_answer_that_is_read_slowly_but_in_time_comes_whole(server: ServerProcess) -> None:
    with Client(server.port, 2048) as client:
        client.send(request(MANY, X_API_Key="sesame"))
        time.sleep(1)
        assert len(client.reply().json()["results"]) == 128


def test_bodies_that_do_not_end_are_given_up_for_those_that_do(small: ServerProcess) -> None:
    before = memory(small)
    with ExitStack() as held:
        clients = [held.enter_context(Client(small.port)) for _ in range(40)]
        for client in clients:
            client.send(head(Content_Length=2**17) + b'{"history": ["' + b"a" * (2**17 - 100))
        until(lambda: small.metric("sasrec_requests_total") >= 10)
        assert memory(small) < before + 20
        assert small.metric("sasrec_held_bytes") <= 2**20
        refused = next(reply for client in clients[:20] if (reply := client.reply()))
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "holds as many bytes" in refused.json()["error"]
        whole = {"history": ["b" * 1000] * 100}  # and those that come whole are answered
        assert small.ask("POST", "/v1/recommend", whole)[0] == 200
    until(lambda: small.metric("sasrec_held_bytes") == 0)


def test_many_answers_that_nobody_reads_are_bounded_and_a_drain_does_not_wait_for_them(runs: Path) -> None:
    flags = "--max-body-bytes", 2**16, "--max-held-bytes", 2**19, "--write-timeout", 2
    with running(runs / "a", *flags) as server, ExitStack() as held:
        clients = [held.enter_context(Client(server.port, 2048)) for _ in range(20)]
        for client in clients:
            client.send(request(MANY))
        until(lambda: server.metric("sasrec_requests_total") >= 5)
        assert server.metric("sasrec_held_bytes") <= 2**19 + 20 * 2**14
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - began < 8  # not the 30 s of a drain


def test_a_few_connections_go_on_in_a_turn_of_the_loop_and_all_in_order() -> None:
    async def turns() -> list[list[int]]:
        loop, told, seen = asyncio.get_running_loop(), Turns(), []
        for i in range(10):
            told.take(lambda i=i: seen.append(i), loop)
        after = []
        while len(seen) < 10:
            await asyncio.sleep(0)
            after.append(list(seen))
        return after

    assert [len(seen) for seen in asyncio.run(turns())] == [4, 8, 10]
    assert asyncio.run(turns())[-1] == list(range(10))


def test_requests_behind_others_leave_room_for_those_of_other_connections(server: ServerProcess) -> None:
    with ExitStack() as held:
        for _ in range(20):
            client = held.enter_context(Client(server.port))
            client.send(head("GET", "/health/live") * 2000)
        began = time.monotonic()
        for _ in range(20):
            assert server.ask("GET", "/health/live")[0] == 200
        assert time.monotonic() - began < 10
    assert server.ask("GET", "/health/live")[0] == 200  # those that waited for their turn are forgotten


def test_the_garbage_collector_leaves_the_model_alone() -> None:
    gc.unfreeze()
    worker._leave_alone_what_stays()
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    assert frozen > 10_000

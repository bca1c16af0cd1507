"""What one request may cost the others: the server answers at once beside requests made to keep it busy."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import Client, head, request
from server_process import ServerProcess, running

pytestmark = pytest.mark.slow  # a server starts

SECONDS = 2.0
LIVE = head("GET", "/health/live")
ASKED = request({"history": [1, 2, 3]})
LONGEST_WAIT = 1.0  # seconds; a body of large exponents alone took six, and each list of the catalogue as long as it is
COSTLY = {
    "large exponents": request(b'{"history": [' + b",".join([b"1e300"] * 170_000) + b", 1.5]}"),
    "legal large exponents": request(b'{"history": [' + b",".join([b"1e300"] * 9_000) + b"]}"),
    "floats": request(
        b'{"requests": [' + b",".join([b'{"history": [' + b",".join([b"1.0"] * 2000) + b"]}"] * 128) + b"]}"
    ),
    "nested lists": request(b'{"history": [1.0, ' + b",".join([b"[" * 300 + b"]" * 300] * 1_700) + b"]}"),
    "texts": request(b'{"history": [' + b",".join([b'""'] * 300_000) + b"]}"),
    "many words": head("GET", "/v1/items?query=" + "+".join("abcdefghijklmnopqrstuvwxyz" * 3)),
    "long lists": request({"requests": [{"history": [1], "k": 1000}] * 128}),
    "new expressions": request(
        {
            "requests": [
                {"history": [1], "where": " or ".join(f"title like '%{i}_{j}%'" for j in range(45))} for i in range(40)
            ]
        }
    ),
    "diverse long lists": request({"requests": [{"history": [1], "k": 1000, "diversity": 0.5}] * 128}),
    "similar": head("GET", "/v1/items/1/similar?k=1000"),
}


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[ServerProcess]:
    """A server that looks for other models never."""
    with running(runs / "a", "--reload-seconds", 0) as server:
        yield server


@pytest.mark.parametrize("costly", COSTLY.values(), ids=COSTLY)
def test_others_are_answered_beside_a_client_that_asks_for_costly_things_all_the_time(
    server: ServerProcess, costly: bytes
) -> None:
    ended, n_costly = threading.Event(), [0, 0]

    def keep_busy(place: int) -> None:
        with Client(server.port) as client:
            while not ended.is_set() and client.ask(costly) is not None:
                n_costly[place] += 1

    busy = [threading.Thread(target=keep_busy, args=[place]) for place in range(2)]
    for thread in busy:
        thread.start()
    waits, until = [], time.monotonic() + SECONDS
    with Client(server.port) as honest:
        while time.monotonic() < until or not min(n_costly):
            for asked in (LIVE, ASKED):
                began = time.monotonic()
                reply = honest.ask(asked)
                waits.append(time.monotonic() - began)
                assert reply is not None
                assert reply.status == 200
    ended.set()
    for thread in busy:
        thread.join()
    assert max(waits) < LONGEST_WAIT
    assert len(waits) > 20

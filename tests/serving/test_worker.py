"""One process that answers, from outside: reloads, overload, a disk that goes, kill -9."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import point
from server_process import PATIENCE, Load, ServerProcess, running, start_and_fail, until

import sasrec
from sasrec.core.isa import load_native

pytestmark = pytest.mark.slow  # a server starts

REQUEST = b'POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 22\r\n\r\n{"history": [1, 2, 3]}'
QUEUE = 4


@pytest.fixture(scope="module")
def folder(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a copy of a run folder is served from."""
    folder = tmp_path_factory.mktemp("worker")
    shutil.copytree(runs / "a", folder / "run")
    return folder


@pytest.fixture(scope="module")
def systemd(folder: Path) -> Iterator[socket.socket]:
    """Hears what systemd is told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(PATIENCE)
        yield systemd


@pytest.fixture(scope="module")
def server(folder: Path, systemd: socket.socket) -> Iterator[ServerProcess]:
    """A server with a short queue, where the compiled core is there without torch and matplotlib."""
    if load_native().module:
        for name in ("torch", "matplotlib"):
            (folder / f"{name}.py").write_text("raise ImportError('this machine has none')")
    environment = {
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "NOTIFY_SOCKET": systemd.getsockname(),
    }
    flags = "--queue-size", QUEUE, "--max-requests", QUEUE, "--reload-seconds", 0
    with running(folder / "run", *flags, **environment) as server:
        yield server


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
def test_it_answers_without_torch_and_matplotlib(server: ServerProcess, folder: Path) -> None:
    assert server.ask("GET", "/health/ready")[0] == 200
    status, answer = server.recommend()
    assert status == 200
    expected = sasrec.load(folder / "run").recommend([[1, 2, 3]])["item_id"].to_list()
    assert ids_in(answer) == expected


def test_systemd_is_told_once_it_answers(server: ServerProcess, systemd: socket.socket) -> None:
    assert systemd.recv(100) == b"READY=1"
    assert server.ask("GET", "/health/ready")[0] == 200


def ids_in(answer: Any) -> list[Any]:
    return [item["item_id"] for item in answer["items"]]


def test_overload_gives_503s_wrong_answers_never_and_is_over_with_its_last_request(server: ServerProcess) -> None:
    expected = ids_in(server.recommend()[1])
    burst = 40
    codes: Counter[int] = Counter()
    with contextlib.ExitStack() as held:
        address = "127.0.0.1", server.port
        clients = [held.enter_context(socket.create_connection(address, timeout=PATIENCE)) for _ in range(burst)]
        for n in range(200):
            if n >= 5 and codes[503]:
                break
            for client in clients:
                client.sendall(REQUEST)
            for client in clients:
                reply = http.client.HTTPResponse(client)
                reply.begin()
                answer = json.loads(reply.read())
                codes[reply.status] += 1
                assert ids_in(answer) == expected if reply.status == 200 else reply.headers["retry-after"] == "1"
        status, answer = server.recommend()  # the first one after it
        assert (status, ids_in(answer)) == (200, expected)
    assert set(codes) == {200, 503}
    assert codes[200] >= 5


def test_a_disk_that_goes_takes_nothing_but_reloads_with_it(server: ServerProcess, folder: Path, runs: Path) -> None:
    expected = server.recommend()
    user = server.ask("GET", "/v1/users/3/recommendations")
    shutil.rmtree(folder / "run")
    server.signal(signal.SIGHUP)
    error = until(lambda: server.ask("GET", "/health/live")[1]["reload_error"])
    assert "there is no run folder" in error
    assert server.recommend() == expected
    assert server.ask("GET", "/v1/users/3/recommendations") == user
    assert server.ask("GET", "/health/ready")[0] == 200
    shutil.copytree(runs / "a", folder / "run")
    server.signal(signal.SIGHUP)
    until(lambda: server.ask("GET", "/health/live")[1]["reload_error"] is None)


def test_reload_under_load_swaps_good_models_and_keeps_the_old_one_for_bad_ones(run: Path, runs: Path) -> None:
    with running(run, "--reload-seconds", 0.2) as server:
        first = server.recommend()[1]["model_version"]
        load = Load(server.port, 3)
        try:
            until(lambda: load.versions[first] > 20)
            point(run, runs / "b")
            second = until(lambda: next((v for v in load.versions if v != first), None))
            until(lambda: server.metric("sasrec_reloads_total") == 1)
            for bad in (truncated(runs, run.parent), foreign(run.parent)):
                before = server.metric("sasrec_reloads_total")
                point(run, bad)
                until(lambda before=before: server.metric("sasrec_reloads_total") == before + 1)
                assert server.ask("GET", "/health/ready")[0] == 200
                assert str(run) in server.ask("GET", "/health/ready")[1]["reload_error"]
                assert server.metric("sasrec_last_reload_ok") == 0
            load.versions.clear()
            until(lambda: load.versions[second] > 20)
            assert set(load.versions) == {second}
            point(run, run.parent / "a")
            until(lambda: server.recommend()[1]["model_version"] == first)
            until(lambda: server.metric("sasrec_last_reload_ok") == 1)
        finally:
            load.stop()
        assert load.lost == []
        assert set(load.codes) == {200}


def truncated(runs: Path, folder: Path) -> Path:
    shutil.copytree(runs / "b", folder / "truncated")
    weights = folder / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    return folder / "truncated"


def foreign(folder: Path) -> Path:
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text("{}")
    return folder / "foreign"


def test_sighup_loads_the_same_folder_and_the_keys_again(run: Path, runs: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nold\n")
    with running(run, "--reload-seconds", 0, "--api-key-file", keys, SASREC_API_KEY="always") as server:
        body = {"history": [1]}
        first = server.ask("POST", "/v1/recommend", body, **{"X-API-Key": "old"})[1]["model_version"]
        assert server.ask("POST", "/v1/recommend", body)[0] == 401
        shutil.copytree(runs / "b", run, dirs_exist_ok=True)  # all of it: digests tell files of two runs apart
        keys.write_text("new\n")
        server.signal(signal.SIGHUP)
        until(lambda: server.ask("POST", "/v1/recommend", body, **{"X-API-Key": "new"})[0] == 200)
        until(lambda: server.ask("GET", "/health/live")[1]["model_version"] != first)
        assert server.ask("POST", "/v1/recommend", body, **{"X-API-Key": "old"})[0] == 401
        assert server.ask("POST", "/v1/recommend", body, **{"X-API-Key": "always"})[0] == 200


def test_events_that_were_acknowledged_survive_kill_9_and_change_the_next_answer(run: Path, tmp_path: Path) -> None:
    flags = ["--events", tmp_path / "events.db"]
    server = ServerProcess(run, *flags)
    acknowledged: list[int] = []

    def send() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            for i in range(10_000):
                assert server.ask("POST", "/v1/events", {"user_id": 3, "item_id": 100 + i})[0] == 200
                acknowledged.append(100 + i)

    sender = threading.Thread(target=send)
    sender.start()
    until(lambda: len(acknowledged) > 20)
    server.process.kill()
    sender.join()
    server.end()
    with contextlib.closing(sqlite3.connect(tmp_path / "events.db")) as connection:
        found = [int(item) for (item,) in connection.execute("SELECT item_id FROM events ORDER BY id")]
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) <= len(acknowledged) + 1
    with running(run, *flags) as again:
        assert again.ask("GET", "/v1/users/3/recommendations")[1]["unknown_items"] == [str(i) for i in found]


def test_a_folder_that_cannot_be_served_is_one_sentence_and_exit_1(run: Path) -> None:
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    done = start_and_fail(run)
    assert done.returncode == 1
    assert "model.safetensors is damaged" in done.stderr
    assert "Traceback" not in done.stderr

"""The running server, from outside: signals, crashes, slow and too many clients, a disk that goes."""

import contextlib
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_markov_log

import sasrec
from sasrec.core.config import ServerConfig
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.isa import load_native
from sasrec.serving.connections import let_no_more_begin
from sasrec.serving.supervisor import serve

pytestmark = pytest.mark.slow  # each starts a server

SMALL: dict[str, Any] = {
    "embedding_dim": 8, "n_blocks": 1, "max_seq_len": 8, "threads": 1, "max_epochs": 1, "filter_seen": "yes",
}  # fmt: skip
REQUEST = b'POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 22\r\n\r\n{"history": [1, 2, 3]}'
PATIENCE = 30.0  # seconds; a machine may be busy


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two run folders of the same log, a and b."""
    folder = tmp_path_factory.mktemp("served")
    for seed, name in enumerate("ab"):
        sasrec.fit(make_markov_log(), seed=seed, **SMALL).save(folder / name)
    return folder


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A link to a copy of a run folder."""
    shutil.copytree(runs / "a", tmp_path / "a")
    (tmp_path / "run").symlink_to("a")
    return tmp_path / "run"


def point(link: Path, target: Path) -> None:
    """Let the link lead elsewhere at one moment, as a deployment does."""
    (link.parent / "next").symlink_to(target)
    (link.parent / "next").rename(link)


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What the condition gives once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


class Running:
    """A server in a process of its own."""

    def __init__(self, run: Path, *flags: object, **environment: str) -> None:
        self.out = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sasrec", "serve", str(run), "--port", "0", *map(str, flags)],
            stdout=self.out,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.port = int(until(lambda: self.said(r"at http://127\.0\.0\.1:(\d+)") or self.process.poll() is not None))

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def said(self, pattern: str) -> str | None:
        found = re.search(pattern, "".join(self.lines))
        return found and found[found.lastindex or 0]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            text = reply.read()
            return reply.status, json.loads(text) if reply.headers["content-type"] == "application/json" else text

    def recommend(self) -> tuple[int, Any]:
        return self.ask("POST", "/v1/recommend", {"history": [1, 2, 3]})

    def metric(self, name: str) -> float:
        """The sum over labels."""
        text = self.ask("GET", "/metrics")[1].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}(\{{| )", line))

    def workers(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Ask it to end; its exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self._reader.join()
            assert self.process.stderr is not None
            self.process.stderr.close()
            self.out.seek(0)
            self.log = [json.loads(line) for line in self.out]
            self.out.close()


@contextlib.contextmanager
def serving(run: Path, *flags: object, **environment: str) -> Iterator[Running]:
    server = Running(run, *flags, **environment)
    try:
        yield server
    finally:
        code = server.end()
    assert code == 0, "".join(server.lines)
    assert not re.search("Traceback|Exception", "".join(server.lines)), "".join(server.lines)


class Load:
    """Clients that ask one thing after another, over one connection each or, without `keep_alive`, always a new one."""

    def __init__(self, port: int, n_clients: int = 6, *, keep_alive: bool = True) -> None:
        self.port, self.keep_alive, self.stopped = port, keep_alive, threading.Event()
        self.codes: Counter[int] = Counter()
        self.versions: Counter[str] = Counter()
        self.lost: list[str] = []
        self.threads = [threading.Thread(target=self._client) for _ in range(n_clients)]
        for thread in self.threads:
            thread.start()

    def _client(self) -> None:
        while not self.stopped.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            with contextlib.closing(connection):
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    return
                self._requests(connection)

    def _requests(self, connection: http.client.HTTPConnection) -> None:
        try:
            while not self.stopped.is_set():
                connection.request("POST", "/v1/recommend", b'{"history": [1, 2, 3]}')
                reply = connection.getresponse()
                answer = json.loads(reply.read())
                self.codes[reply.status] += 1
                self.versions[answer.get("model_version")] += 1
                if reply.will_close or not self.keep_alive:
                    return
        except (OSError, http.client.HTTPException) as error:
            self.lost.append(repr(error))

    def stop(self) -> None:
        self.stopped.set()
        self.join()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
def test_it_answers_and_ends_cleanly_without_torch_and_matplotlib(run: Path, tmp_path: Path) -> None:
    for name in ("torch", "matplotlib"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this machine has none')")
    with serving(run, PYTHONPATH=str(tmp_path)) as server:
        assert server.ask("GET", "/health/ready")[0] == 200
        status, answer = server.recommend()
        assert status == 200
        expected = sasrec.load(run).recommend([[1, 2, 3]])["item_id"].to_list()
        assert [item["item_id"] for item in answer["items"]] == expected


def test_it_tells_systemd_and_logs_the_client_that_a_trusted_proxy_names(run: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        with serving(run, "--trusted-proxies", "127.0.0.1", NOTIFY_SOCKET=str(tmp_path / "notify")) as server:
            assert systemd.recv(100) == b"READY=1"
            server.ask("GET", "/health/live", **{"X-Forwarded-For": "192.0.2.7"})
    assert [line["client"] for line in server.log] == ["192.0.2.7"]
    with serving(run) as server:
        server.ask("GET", "/health/live", **{"X-Forwarded-For": "192.0.2.7"})
    assert [line["client"] for line in server.log] == ["127.0.0.1"]


@pytest.mark.parametrize(("workers", "keep_alive"), [(1, True), (2, False)])
def test_sigterm_under_load_answers_every_accepted_request(run: Path, workers: int, keep_alive: bool) -> None:
    with serving(run, "--workers", workers) as server:
        load = Load(server.port, keep_alive=keep_alive)
        until(lambda: load.codes[200] > 100)
        server.signal(signal.SIGTERM)
        load.join()  # each client goes on until it is refused
        assert server.process.wait(PATIENCE) == 0
    assert load.lost == []
    assert set(load.codes) == {200}


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


def test_a_request_that_is_being_sent_when_sigterm_comes_is_answered(run: Path) -> None:
    with serving(run) as server:
        body = b'{"history": [1, 2, 3]}'
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
            client.sendall(
                b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:5]
            )
            time.sleep(0.2)
            server.signal(signal.SIGTERM)
            time.sleep(1.5)
            client.sendall(body[5:])
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        assert b'"items"' in answer


def test_a_request_without_end_does_not_outlive_the_deadline(run: Path) -> None:
    with (
        serving(run, "--drain-seconds", 1, "--read-timeout", 60) as server,
        socket.create_connection(("127.0.0.1", server.port)) as client,
    ):
        client.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.2)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        server.process.wait(PATIENCE)
        assert time.monotonic() - began < 10


def test_reload_under_load_swaps_good_models_and_keeps_the_old_one_for_bad_ones(run: Path, runs: Path) -> None:
    with serving(run, "--reload-seconds", 0.2) as server:
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
    with serving(run, "--reload-seconds", 0, "--api-key-file", keys, SASREC_API_KEY="always") as server:
        body = {"history": [1]}
        first = server.ask("POST", "/v1/recommend", body, **{"X-API-Key": "old"})[1]["model_version"]
        assert server.ask("POST", "/v1/recommend", body)[0] == 401
        for name in ("model.safetensors", "config.json"):
            shutil.copy(runs / "b" / name, run / name)
        keys.write_text("new\n")
        server.signal(signal.SIGHUP)
        until(lambda: server.ask("POST", "/v1/recommend", body, **{"X-API-Key": "new"})[0] == 200)
        until(lambda: server.ask("GET", "/health/live")[1]["model_version"] != first)
        assert server.ask("POST", "/v1/recommend", body, **{"X-API-Key": "old"})[0] == 401
        assert server.ask("POST", "/v1/recommend", body, **{"X-API-Key": "always"})[0] == 200


def test_a_killed_worker_is_replaced_while_the_others_answer_and_its_counts_stay(run: Path) -> None:
    with serving(run, "--workers", 2) as server:
        until(lambda: len(server.workers()) == 2 and "".join(server.lines).count("at http://") == 2)
        for _ in range(20):
            assert server.recommend()[0] == 200
        killed = server.workers()[0]
        os.kill(killed, signal.SIGKILL)
        codes = [server.recommend()[0] for _ in range(20)]
        assert codes == [200] * 20
        until(lambda: "".join(server.lines).count("at http://") == 3)
        assert killed not in server.workers()
        assert len(server.workers()) == 2
        assert server.metric("sasrec_answers_total") == 40
        until(lambda: server.metric("sasrec_requests_in_flight") == 0)
        server.signal(signal.SIGHUP)
        until(lambda: server.metric("sasrec_reloads_total") == 2)  # both of them


def test_workers_end_when_their_supervisor_is_killed(run: Path) -> None:
    server = Running(run, "--workers", 2)
    workers = until(lambda: len(server.workers()) == 2 and server.workers())
    until(lambda: "".join(server.lines).count("at http://") == 2)
    server.process.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() and is_alive(pid) for pid in workers))
    server.end()


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_disk_that_goes_takes_nothing_but_reloads_with_it(run: Path) -> None:
    with serving(run, "--reload-seconds", 0.2) as server:
        expected = server.recommend()
        user = server.ask("GET", "/v1/users/3/recommendations")
        shutil.rmtree(run.parent / "a")
        server.signal(signal.SIGHUP)
        error = until(lambda: server.ask("GET", "/health/live")[1]["reload_error"])
        assert "there is no run folder" in error
        assert server.recommend() == expected
        assert server.ask("GET", "/v1/users/3/recommendations") == user
        assert server.ask("GET", "/health/ready")[0] == 200


def test_a_thousand_idle_and_slow_clients_keep_nobody_waiting_and_the_slow_ones_are_closed(run: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    clients: list[socket.socket] = []
    try:
        with serving(run, "--read-timeout", 2, "--keep-alive", 60) as server:
            for i in range(1000):
                client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
                clients.append(client)
                if i % 2:
                    client.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            began = time.monotonic()
            assert [server.recommend()[0] for _ in range(10)] == [200] * 10
            assert time.monotonic() - began < 2
            for _ in range(5):  # they go on to send a byte now and then
                time.sleep(0.4)
                for client in clients[1::20]:
                    with contextlib.suppress(OSError):
                        client.send(b"x")
            until(lambda: server.metric("sasrec_connections_refused_total") == 1000)
            assert server.metric("process_open_fds") < 100
            assert server.recommend()[0] == 200
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_kept_alive_may_idle_longer_than_a_request_may_take(run: Path) -> None:
    with serving(run, "--read-timeout", 0.5) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", "/health/live")
            assert connection.getresponse().read()
            time.sleep(1.5)
            connection.request("GET", "/health/live")
            assert connection.getresponse().status == 200


def test_heads_without_end_and_connections_too_many_are_closed(run: Path) -> None:
    with serving(run, "--max-connections", 3) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"GET / HTTP/1.1\r\n")
                for _ in range(100):
                    client.sendall(b"X-Long: " + b"x" * 4000 + b"\r\n")
                    time.sleep(0.001)
            assert closed(client)
        until(lambda: server.recommend()[0] == 200)
        held = [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) for _ in range(3)]
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as one_more:
            assert closed(one_more)
        for client in held:
            client.close()
        assert until(lambda: tried(server)) == 200


def closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def tried(server: Running) -> int | None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return server.recommend()[0]
    return None


def test_overload_gives_quick_503s_wrong_answers_never_and_recovers_within_a_second(run: Path) -> None:
    with serving(run, "--queue-size", 4, "--max-requests", 4) as server:
        expected = server.recommend()[1]
        burst = 40
        clients = [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) for _ in range(burst)]
        codes: Counter[int] = Counter()
        for _ in range(5):
            for client in clients:
                client.sendall(REQUEST)
            for client in clients:
                reply = http.client.HTTPResponse(client)
                reply.begin()
                answer = json.loads(reply.read())
                codes[reply.status] += 1
                assert answer == expected if reply.status == 200 else reply.headers["retry-after"] == "1"
        began = time.monotonic()
        assert server.recommend() == (200, expected)
        assert time.monotonic() - began < 1
        for client in clients:
            client.close()
        assert set(codes) <= {200, 503}
        assert codes[200] >= 5
        assert sum(codes.values()) == 5 * burst


def test_events_that_were_acknowledged_survive_kill_9_and_change_the_next_answer(run: Path, tmp_path: Path) -> None:
    flags = ["--events", tmp_path / "events.db"]
    server = Running(run, *flags)
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
    with serving(run, *flags) as again:
        assert again.ask("GET", "/v1/users/3/recommendations")[1]["unknown_items"] == [str(i) for i in found]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_cannot_be_served_is_one_sentence_and_exit_1(run: Path, workers: int) -> None:
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    done = start_and_fail(run, "--workers", workers)
    assert done.returncode == 1
    assert "model.safetensors is damaged" in done.stderr
    assert "Traceback" not in done.stderr


def start_and_fail(run: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sasrec", "serve", str(run), "--port", "0", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_wrong_usage_is_refused_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n# nothing\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            serve(run, ServerConfig(port=port))
    with pytest.raises(ConfigError, match="holds no API key"):
        serve(run, ServerConfig(api_key_file=str(tmp_path / "keys")))
    with pytest.raises(ConfigError, match="cannot be read"):
        serve(run, ServerConfig(api_key_file=str(tmp_path / "nothing")))
    with pytest.raises(CheckpointError, match="there is no run folder"):
        serve(tmp_path / "nothing", ServerConfig())
    with pytest.raises(ConfigError, match="queue_size=512"):
        ServerConfig(max_requests=600)

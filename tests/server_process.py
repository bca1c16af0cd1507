"""A server in a process of its own, and clients of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATIENCE = 30.0  # seconds after which something has failed; a machine may be busy
READY = r"at http://127\.0\.0\.1:(\d+)"


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it is true."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE} s")


def port_of(pid: int) -> int:
    """The port that a process of this machine listens on; 0 while it does not."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(descriptor.readlink()))
        except OSError:
            continue
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
            return int(fields[1].rpartition(":")[2], 16)
    return 0


def command(run: Path, *flags: object) -> list[str]:
    return [sys.executable, "-m", "sasrec", "serve", str(run), "--port", "0", *map(str, flags)]


class ServerProcess:
    """`sasrec serve` on a free port, once it answers."""

    def __init__(self, run: Path, *flags: object, **environment: str) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            command(run, *flags),
            stdout=self._out,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        until(lambda: re.search(READY, self.said()) or self.process.poll() is not None)
        found = re.search(READY, self.said())
        assert found, self.said()
        self.port = int(found[1])

    def _read(self) -> None:
        assert self.process.stderr is not None
        self._lines.extend(self.process.stderr)

    def said(self) -> str:
        """What it has written to stderr."""
        return "".join(self._lines)

    def n_ready(self) -> int:
        """How many workers have said that they answer."""
        return len(re.findall(READY, self.said()))

    def log(self) -> list[Any]:
        """The access log so far."""
        text = os.pread(self._out.fileno(), 2**26, 0)
        return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and answer."""
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
            self._out.close()


@contextlib.contextmanager
def running(run: Path, *flags: object, **environment: str) -> Iterator[ServerProcess]:
    """A server that must end cleanly when it is told to."""
    server = ServerProcess(run, *flags, **environment)
    try:
        yield server
    finally:
        code = server.end()
    assert code == 0, server.said()
    assert not re.search("Traceback|Exception", server.said()), server.said()


def start_and_fail(run: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """A server that does not get as far as answering."""
    return subprocess.run(command(run, *flags), capture_output=True, text=True, timeout=PATIENCE, check=False)


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
        """Let each client end after the request it is at."""
        self.stopped.set()
        self.join()

    def join(self) -> None:
        """Wait until each client has ended: it is refused, or was stopped."""
        for thread in self.threads:
            thread.join(PATIENCE)

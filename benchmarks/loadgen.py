"""Closed-loop HTTP load on this machine, in a process of its own. In: a JSON line on stdin; out: one on stdout.

Each of `connections` clients sends a request, waits for its answer and sends the next, for `seconds`. With wrk where it
is installed, else with the clients below, which cost several times as much of the machine as wrk and so leave the
server less: their figures are not comparable with wrk's. Only the loopback address is ever asked.

Asked for: port, bodies (JSON texts, sent in turn), connections, seconds, generator (wrk or python), and, for python,
`expected`: the item ids that the answer to each body has, or null.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PATH = "/v1/recommend"
GRACE_SECONDS = 10.0  # for answers on their way when the time is over
SCRIPT = (
    """
local headers = {['Content-Type'] = 'application/json'}
local n = 0
function request()
  n = n % #bodies + 1
  return wrk.format('POST', '"""
    + PATH
    + """', headers, bodies[n])
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'REPORT {"requests": %d, "seconds": %f, "p50": %f, "p90": %f, "p99": %f, "p999": %f, "slowest": %f, ' ..
    '"status": %d, "lost": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3, latency.max / 1e3, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
"""
)


def has_wrk() -> bool:
    """Whether wrk is installed (Debian: apt-get install wrk)."""
    return shutil.which("wrk") is not None


def measure(**wanted: Any) -> dict[str, Any]:
    """Load in another process: requests per second, latencies in ms, and what went wrong."""
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(wanted), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def with_wrk(wanted: dict[str, Any]) -> dict[str, Any]:
    quoted = ",\n".join(f"[==[{body}]==]" for body in wanted["bodies"])
    script = f"local bodies = {{\n{quoted}\n}}\n{SCRIPT}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "load.lua"
        path.write_text(script)
        command = ["wrk", "-t1", f"-c{wanted['connections']}", f"-d{wanted['seconds']}s", "--timeout", "10s", "-s"]
        out = subprocess.run(
            [*command, str(path), f"http://{HOST}:{wanted['port']}"], capture_output=True, text=True, check=True
        ).stdout
    found: dict[str, Any] = json.loads(next(line for line in out.splitlines() if line.startswith("REPORT"))[7:])
    found["value"] = found["requests"] / found["seconds"]
    return found


class Client(asyncio.Protocol):
    """One connection that is always waiting for an answer."""

    def __init__(self, load: Load, first: int) -> None:
        self.load, self.turn = load, first
        self.received = bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self._send()

    def _send(self) -> None:
        self.turn = (self.turn + 1) % len(self.load.requests)
        self.began = time.perf_counter()
        self.transport.write(self.load.requests[self.turn])

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, rest = bytes(self.received).partition(b"\r\n\r\n")
        if not found:
            return
        headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        length = int(headers[b"content-length"])
        if len(rest) < length:
            return
        self.load.record(int(head[9:12]), time.perf_counter() - self.began, self.turn, headers, rest[:length])
        self.received.clear()
        if time.perf_counter() < self.load.until:
            self._send()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None or time.perf_counter() < self.load.until:
            self.load.lost += 1
        if not self.ended.done():
            self.ended.set_result(None)


class Load:
    """All clients of a run, and what they saw."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.wanted, self.until = wanted, time.perf_counter() + wanted["seconds"]
        head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: "
        self.requests = [f"{head}{len(body)}\r\n\r\n{body}".encode() for body in wanted["bodies"]]
        self.expected = wanted.get("expected")
        self.codes: Counter[int] = Counter()
        self.seconds: dict[int, list[float]] = {}
        self.lost = self.wrong = 0

    def record(self, code: int, seconds: float, turn: int, headers: dict[bytes, bytes], body: bytes) -> None:
        """Note an answer, and look whether it is the right one."""
        self.codes[code] += 1
        self.seconds.setdefault(code, []).append(seconds)
        if code == 503:
            self.wrong += b"retry-after" not in headers
        elif self.expected is not None:
            self.wrong += [item["item_id"] for item in json.loads(body)["items"]] != self.expected[turn]

    async def run(self) -> dict[str, Any]:
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        port, n = self.wanted["port"], self.wanted["connections"]
        pairs = [await loop.create_connection(lambda i=i: Client(self, i), HOST, port) for i in range(n)]
        _, unanswered = await asyncio.wait(
            [client.ended for _, client in pairs], timeout=self.until - began + GRACE_SECONDS
        )
        seconds = time.perf_counter() - began
        every = sorted(value for values in self.seconds.values() for value in values)
        return {
            "value": len(every) / seconds,
            "requests": len(every),
            "seconds": seconds,
            **_latencies(every),
            "status": sum(count for code, count in self.codes.items() if code >= 400),
            "lost": self.lost + len(unanswered),
            "wrong": self.wrong,
            "codes": {str(code): count for code, count in sorted(self.codes.items())},
            "by_code": {str(code): _latencies(sorted(values)) for code, values in sorted(self.seconds.items())},
        }


def _latencies(ordered: list[float]) -> dict[str, float]:
    def percentile(share: float) -> float:
        return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    return {"p50": percentile(0.5), "p90": percentile(0.9), "p99": percentile(0.99), "slowest": 1000 * ordered[-1]}


def main() -> None:
    wanted = json.loads(sys.stdin.read())
    found = with_wrk(wanted) if wanted["generator"] == "wrk" else asyncio.run(Load(wanted).run())
    print(json.dumps(found))


if __name__ == "__main__":
    main()

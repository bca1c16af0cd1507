"""`sasrec serve` under attack: what honest clients see meanwhile, and what it costs the server.

For --seconds, clients that mean harm do all of it at once, in a process of its own: trailers without end, bodies made
to be costly, long answers that nobody reads, bodies that do not end, pipelines, ids of a megabyte, upgrades, and
connections that are broken off; and nobody reads the access log. The server is told to load its model again every few
seconds, each other time a damaged one. Beside all that --connections honest clients ask for recommendations, a question
each every 20 ms.

It fails, with exit code 1, when honest p99 reaches 50 ms, resident memory reaches twice what it was under honest
clients alone, an answer is a 5xx other than 503, an honest connection is lost, the server is not ready when asked each
second, a reload is not told as it went, or it does not end on SIGTERM. Everything runs on this machine over loopback,
and shares its CPUs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
MIB = 2**20
HONEST_PAUSE = 0.02  # seconds between an answer and the next question
HONEST_SECONDS = 5.0  # of honest clients alone
LONGEST_MS = 50.0  # honest p99
MOST_MEMORY = 2.0  # times that under honest clients alone
RELOAD_SECONDS = 5.0  # between reloads
END_SECONDS = 20.0  # after SIGTERM
NICE = 10  # of the attack: it would come from other machines


def head(method: str, path: str, *lines: str) -> bytes:
    """A request up to the empty line."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def post(body: bytes, path: str = "/v1/recommend", *lines: str) -> bytes:
    """A whole POST."""
    return head("POST", path, f"Content-Length: {len(body)}", *lines) + body


LIVE = head("GET", "/health/live")
ASKED = b'{"history": [1, 2, 3], "k": 5}'
CHUNKED = head("POST", "/v1/recommend", "Transfer-Encoding: chunked")
LONG_ANSWER = post(json.dumps({"requests": [{"history": [1], "k": 1000}] * 128}).encode())
UNFINISHED = head("POST", "/v1/recommend", f"Content-Length: {MIB}") + b'{"history": ["' + b"a" * (MIB - 15)
UPGRADE = post(ASKED, "/v1/recommend", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEA")
LONG_ID = post(b'{"user_id": 1, "item_id": "%s"}' % (b"z" * 1_000_000), "/v1/events")
COSTLY = [
    post(b'{"history": [' + b",".join([b"1e300"] * 170_000) + b", 1.5]}"),
    post(b'{"history": [' + b",".join([b"1e300"] * 9_000) + b"]}"),
    post(b'{"history": [1.0, ' + b",".join([b"[" * 300 + b"]" * 300] * 1_700) + b"]}"),
    post(b'{"requests": [' + b",".join([b'{"history": [' + b",".join([b"1.0"] * 2000) + b"]}"] * 128) + b"]}"),
    head("GET", "/v1/items?query=" + "+".join("abcdefghijklmnopqrstuvwxyz" * 3)),
    head("GET", "/v1/items/1/similar?k=1000"),
]


KINDS = {  # what is done, by how many clients at a time
    "floods": 4, "asks_costly": 4, "reads_nothing": 150, "ends_nothing": 1000, "pipes": 20, "sends_long_ids": 2,
    "upgrades": 2, "breaks_off": 4,
}  # fmt: skip


class Attack:
    """Clients that mean harm.

    Args:
        port: of the server.
        seconds: how long.
    """

    def __init__(self, port: int, seconds: float) -> None:
        self.port, self.until = port, time.monotonic() + seconds
        self.done: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()

    async def run(self, kinds: list[str]) -> dict[str, Any]:
        """Do it all at once; what was done, and what the server answered."""
        await asyncio.gather(*(self._again(getattr(self, kind)) for kind in kinds for _ in range(KINDS[kind])))
        return {"done": dict(self.done), "codes": {str(code): n for code, n in sorted(self.codes.items())}}

    async def _again(self, kind: Callable[[socket.socket], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(random.random() * 5)  # they do not come all at the same moment
        while time.monotonic() < self.until:
            with socket.socket() as client:
                client.setblocking(False)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048 if kind == self.reads_nothing else 2**16)
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(max(self.until - time.monotonic(), 0.1)):
                        await loop.sock_connect(client, (HOST, self.port))
                        await kind(client)
            self.done[kind.__name__] += 1
            await asyncio.sleep(1 + random.random())

    async def _send(self, client: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(client, data)

    async def _answered(self, client: socket.socket) -> bool:
        """Read what looks like one answer, and count its code; whether there was one."""
        loop, text = asyncio.get_running_loop(), b""
        while b"\r\n\r\n" not in text:
            if not (more := await loop.sock_recv(client, 2**16)):
                return False
            text += more
        self.codes[int(text[9:12])] += 1
        top, _, rest = text.partition(b"\r\n\r\n")
        left = int(top.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]) - len(rest)
        while left > 0 and (more := await loop.sock_recv(client, min(left, 2**16))):
            left -= len(more)
        return True

    async def floods(self, client: socket.socket) -> None:
        """Trailers without end."""
        await self._send(client, CHUNKED + b"1\r\nx\r\n0\r\n")
        line = b"".join(b"X-%05d: \r\n" % i for i in range(5000))
        while time.monotonic() < self.until:
            await self._send(client, line)

    async def asks_costly(self, client: socket.socket) -> None:
        """What takes long to read or to find."""
        while True:
            await self._send(client, random.choice(COSTLY))
            if not await self._answered(client):
                return

    async def reads_nothing(self, client: socket.socket) -> None:
        """A long answer that nobody reads."""
        await self._send(client, LONG_ANSWER)
        await asyncio.sleep(30)

    async def ends_nothing(self, client: socket.socket) -> None:
        """A body without its last byte."""
        await self._send(client, UNFINISHED)
        await self._answered(client)
        await asyncio.sleep(10)

    async def pipes(self, client: socket.socket) -> None:
        """Thousands of requests at once, and no answer is read."""
        await self._send(client, LIVE * 5000)
        await asyncio.sleep(20)

    async def sends_long_ids(self, client: socket.socket) -> None:
        """An event whose id is a megabyte."""
        while True:
            await self._send(client, LONG_ID)
            if not await self._answered(client):
                return

    async def upgrades(self, client: socket.socket) -> None:
        """Another protocol is asked for."""
        while True:
            await self._send(client, UPGRADE)
            if not await self._answered(client):
                return
            await asyncio.sleep(0.05)

    async def breaks_off(self, client: socket.socket) -> None:
        """Requests, and then a reset."""
        await self._send(client, post(ASKED) * 50 + b"\x00")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


class Honest:
    """Clients that ask, wait for the answer, and ask again after a while.

    Args:
        port: of the server.
        ids: items that the model knows.
    """

    def __init__(self, port: int, ids: list[Any]) -> None:
        self.port, self.ids = port, ids
        self.codes: Counter[int] = Counter()
        self.waits: list[float] = []
        self.lost = 0
        self.not_ready = 0

    async def run(self, seconds: float, n: int) -> None:
        """So many of them, for so long."""
        until = time.monotonic() + seconds
        await asyncio.gather(*(self._client(until) for _ in range(n)), self._watch(until))

    async def _client(self, until: float) -> None:
        rng = random.Random()
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            while time.monotonic() < until:
                body = json.dumps({"history": rng.choices(self.ids, k=rng.randint(1, 200)), "k": 10}).encode()
                began = time.monotonic()
                writer.write(post(body))
                self.codes[await _status(reader)] += 1
                self.waits.append(time.monotonic() - began)
                await asyncio.sleep(HONEST_PAUSE)
        except (OSError, asyncio.IncompleteReadError):
            self.lost += 1
        finally:
            writer.close()

    async def _watch(self, until: float) -> None:
        """Ask each second whether the server is ready: it is."""
        while time.monotonic() < until:
            reader, writer = await asyncio.open_connection(HOST, self.port)
            writer.write(head("GET", "/health/ready"))
            self.not_ready += await _status(reader) != 200
            writer.close()
            await asyncio.sleep(1)

    def figures(self) -> dict[str, Any]:
        """What they have seen."""
        waits = sorted(self.waits)
        return {
            "answers": len(waits),
            "p50_ms": 1000 * waits[len(waits) // 2],
            "p99_ms": 1000 * waits[int(0.99 * len(waits))],
            "slowest_ms": 1000 * waits[-1],
            "codes": {str(code): n for code, n in sorted(self.codes.items())},
            "lost": self.lost,
            "not_ready": self.not_ready,
        }


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of an answer that is read whole."""
    top = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(top.partition(b"content-length: ")[2].split(b"\r\n")[0]))
    return int(top[9:12])


class Reloads:
    """A link to a model that is set to a sound run folder and to a damaged one in turn, and what the server says of it.

    Args:
        run: the sound one.
        folder: for the link and the damaged copy.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        self.runs, self.link = [run.resolve(), folder / "damaged"], folder / "current"
        shutil.copytree(*self.runs)
        weights = self.runs[1] / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-2] ^= 0x40
        weights.write_bytes(content)
        self.done = self.wrong = 0
        self._point()

    def _point(self) -> None:
        new = self.link.with_name("new")
        new.symlink_to(self.runs[self.done % 2])
        new.replace(self.link)

    async def run(self, server: subprocess.Popen[bytes], port: int, seconds: float) -> None:
        """Reload again and again; `wrong` counts what was told of it falsely."""
        until = time.monotonic() + seconds - RELOAD_SECONDS
        while time.monotonic() < until:
            await asyncio.sleep(RELOAD_SECONDS)
            self.done += 1
            self._point()
            server.send_signal(signal.SIGHUP)
            await asyncio.sleep(RELOAD_SECONDS)
            told = json.loads(await _got(port, "/health/ready"))["reload_error"]
            self.wrong += (told is not None) != self.done % 2


def memory_mib(process: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


async def measure(
    server: subprocess.Popen[bytes], port: int, reloads: Reloads, given: argparse.Namespace
) -> dict[str, Any]:
    """Honest clients alone, then beside the attack."""
    ids = [item["item_id"] for item in json.loads(await _got(port, "/v1/items?k=1000"))["items"]]
    alone = Honest(port, ids)
    await alone.run(HONEST_SECONDS, given.connections)
    before = memory_mib(server.pid)
    command = [
        sys.executable,
        __file__,
        "--attack",
        str(port),
        "--seconds",
        str(given.seconds),
        "--kinds",
        *given.kinds,
    ]
    attack = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=lambda: os.nice(NICE))
    beside, highest = Honest(port, ids), before
    running = asyncio.gather(beside.run(given.seconds, given.connections), reloads.run(server, port, given.seconds))
    while not running.done():
        await asyncio.sleep(0.2)
        highest = max(highest, memory_mib(server.pid))
    await running
    harm = json.loads((await asyncio.to_thread(attack.communicate))[0])
    metrics = (await _got(port, "/metrics")).decode().splitlines()
    found = {"alone": alone.figures(), "beside": beside.figures(), "attack": harm}
    found |= {"reloads": reloads.done, "reloads_told_wrong": reloads.wrong}
    found |= {"memory_mib": before, "highest_mib": highest, "factor": highest / before}
    found["metrics"] = {
        line.split()[0]: float(line.split()[1])
        for line in metrics
        if line.startswith(("sasrec_connections_refused", "sasrec_held", "sasrec_log_lines", "sasrec_requests_in_fl"))
    }
    return found


async def _got(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(head("GET", path, "Connection: close"))
    text = await reader.read()
    writer.close()
    return text.partition(b"\r\n\r\n")[2]


def faults(found: dict[str, Any]) -> list[str]:
    """What is not as promised."""
    beside, codes = found["beside"], {*found["beside"]["codes"], *found["attack"]["codes"]}
    wrong = {
        f"honest p99 {beside['p99_ms']:.1f} ms, promised below {LONGEST_MS:g}": beside["p99_ms"] >= LONGEST_MS,
        f"memory grew to {found['factor']:.2f} times, promised below {MOST_MEMORY:g}": found["factor"] >= MOST_MEMORY,
        f"answered with {sorted(codes)}, promised no 5xx but 503": any(c[0] == "5" and c != "503" for c in codes),
        f"{beside['lost']} honest connections lost": beside["lost"] > 0,
        f"not ready {beside['not_ready']} times": beside["not_ready"] > 0,
        f"{found['reloads_told_wrong']} reloads told wrong": found["reloads_told_wrong"] > 0,
        f"SIGTERM: exit code {found['exit_code']}": found["exit_code"] != 0,
    }
    return [sentence for sentence, is_so in wrong.items() if is_so]


def _port_of(server: subprocess.Popen[bytes]) -> int:
    assert server.stderr is not None
    for line in server.stderr:
        if b"http://" in line:
            return int(line.rpartition(b":")[2])
    sys.exit("error: the server did not start")


def main() -> None:
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    flags.add_argument("--run", help="run folder that is served")
    flags.add_argument("--seconds", type=float, default=600, help="of the attack")
    flags.add_argument("--connections", type=int, default=16, help="honest clients")
    flags.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what the attack does")
    flags.add_argument("--attack", type=int, default=0, help=argparse.SUPPRESS)  # this is the process that attacks
    given = flags.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if given.attack:
        print(json.dumps(asyncio.run(Attack(given.attack, given.seconds).run(given.kinds))))
        return
    if given.run is None:
        flags.error("--run is needed: a run folder")
    with tempfile.TemporaryDirectory() as folder:
        reloads = Reloads(Path(given.run), Path(folder))
        told = ["serve", str(reloads.link), "--port", "0", "--events", f"{folder}/events.db"]
        command = [sys.executable, "-m", "sasrec", *told]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # its log is read by nobody
        try:
            found = asyncio.run(measure(server, _port_of(server), reloads, given))
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(END_SECONDS)
            found["exit_code"] = server.returncode
        finally:
            server.kill()
            server.wait()
    print(json.dumps(found, indent=1))
    wrong = faults(found)
    print("\n".join(["FAILED", *wrong] if wrong else ["all as promised"]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

"""Requests per second and latency of `sasrec serve`, beside a FastAPI handler around a peer's predict().

start      from the command to /health/ready, and the memory it takes then
load       single histories of real users over --connections that are kept open, each side in turn; ours must answer
           all of them, and its memory must not grow
overload   ten times as many connections as the queue holds: every answer right or 503, then an answer within a second

Everything runs on this machine and talks over loopback: the server, in a process of its own, shares the CPUs with the
load generator (wrk where it is installed, see loadgen.py). FastAPI that only echoes is measured too: the bound of the
usual framework.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
from harness import Answer, BenchmarkError
from loadgen import HOST, has_wrk, measure

from sasrec.core.provenance import command_line, commit, machine

N_BODIES = 1000  # users whose histories are sent
START_SECONDS = 120.0
OVERLOAD_QUEUE = 32
WARM_UP_SECONDS = 2
PACKAGES = ("sasrec", "uvicorn", "uvloop", "httptools", "starlette", "fastapi", "torch", "numpy")


class Server:
    """A server in a process of its own.

    Args:
        name: what results call it.
        command: the program; it says its port on the stream and in the pattern given.
        pattern: of the port.
        threads: put into its environment.
    """

    def __init__(self, name: str, command: Sequence[str], pattern: str, threads: int) -> None:
        self.name, self.began = name, time.perf_counter()
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL if name == "sasrec" else subprocess.PIPE,
            stderr=subprocess.PIPE if name == "sasrec" else subprocess.STDOUT,
            text=True,
            env=harness.environment(threads),
        )
        self._stream: Any = self.process.stderr if name == "sasrec" else self.process.stdout
        self._reader = threading.Thread(target=self.lines.extend, args=[self._stream], daemon=True)
        self._reader.start()
        self.port = int(self._wait_for(pattern))
        self.ready_seconds = time.perf_counter() - self.began

    def _wait_for(self, pattern: str) -> str:
        while time.perf_counter() - self.began < START_SECONDS:
            found = re.search(pattern, "".join(self.lines), re.MULTILINE)
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.005)
        self.close()
        raise BenchmarkError(f"{self.name} did not start:\n{''.join(self.lines[-15:])}")

    def ask(self, path: str, body: str | None = None) -> Any:
        request = urllib.request.Request(f"http://{HOST}:{self.port}{path}", None if body is None else body.encode())
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def _processes(self) -> list[str]:
        """Its process and the workers of that."""
        own = str(self.process.pid)
        return [own, *Path(f"/proc/{own}/task/{own}/children").read_text().split()]

    def memory_mib(self) -> float:
        """Resident now."""
        pages = [int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in self._processes()]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu_seconds(self) -> float:
        """Spent so far."""
        stats = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in self._processes()]
        return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        self._stream.close()


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _flags().parse_args(argv)
    if arguments.generator == "auto":
        arguments.generator = "wrk" if has_wrk() else "python"
    if arguments.generator == "wrk" and not has_wrk():
        raise BenchmarkError("wrk is not installed (Debian: apt-get install wrk); use --generator python")
    with tempfile.TemporaryDirectory() as folder:
        log = _log(arguments, Path(folder))
        run = Path(arguments.run) if arguments.run else _train(arguments, log, Path(folder) / "run")
        bodies, highest_id = _bodies(log)
        config = json.loads((run / "config.json").read_text())
        _measure(arguments, run, bodies, {**config, "highest_id": highest_id})


def _flags() -> Any:
    flags = harness.parser(__doc__)
    flags.add_argument("--run", default=None, help="serve this run folder of --data; default: one epoch is trained")
    flags.add_argument("--items", type=int, default=0, help="split the items of --data into about so many")
    flags.add_argument("--connections", type=int, default=16, help="clients that always wait for an answer")
    flags.add_argument("--seconds", type=int, default=60, help="of each round of load")
    flags.add_argument("--peer-seconds", type=int, default=None, help="the same for peers and the echo")
    flags.add_argument("--overload-seconds", type=int, default=10, help="0 = no overload")
    flags.add_argument("--workers", type=int, default=1, help="worker processes of ours")
    flags.add_argument("--generator", default="auto", choices=["auto", "wrk", "python"], help="auto = wrk if installed")
    flags.add_argument("--no-echo", action="store_true", help="leave out FastAPI that only echoes")
    return flags


def _log(arguments: Namespace, folder: Path) -> Path:
    """The log; with --items, each item is several, told apart by user, so that histories keep their lengths."""
    source = Path(arguments.data)
    if not arguments.items:
        return source
    pairs = [tuple(map(int, line.split()[:2])) for line in source.read_text().splitlines()]
    parts = max(1, round(arguments.items / len({item for _, item in pairs})))
    made = folder / f"{source.stem}-{arguments.items}.txt"
    made.write_text("".join(f"{user} {(item - 1) * parts + user % parts + 1}\n" for user, item in pairs))
    return made


def _train(arguments: Namespace, log: Path, run: Path) -> Path:
    given = {"engine": arguments.engine, "threads": arguments.threads, **dict(map(harness.setting, arguments.set))}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    command = ["train", str(log), "--output", str(run), "--preset", arguments.preset, "--max-epochs", "1", *flags]
    done = subprocess.run([sys.executable, "-m", "sasrec", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"training failed:\n{done.stderr}")
    return run


def _bodies(log: Path) -> tuple[list[str], int]:
    """The whole histories of the first users as request bodies, and the highest item id: a peer's number of items."""
    histories: dict[str, list[int]] = defaultdict(list)
    highest_id = 0
    for line in log.read_text().splitlines():
        user, item = line.split()[:2]
        highest_id = max(highest_id, int(item))
        if user in histories or len(histories) < N_BODIES:
            histories[user].append(int(item))
    return [json.dumps({"history": history, "k": 10}) for history in histories.values()], highest_id


def _start_ours(run: Path, arguments: Namespace, *flags: str) -> Server:
    command = [sys.executable, "-m", "sasrec", "serve", str(run), "--port", "0", f"--workers={arguments.workers}"]
    return Server("sasrec", [*command, *flags], r"at http://127\.0\.0\.1:(\d+)", 1)


def _start_other(name: str, source: str, config: Answer, arguments: Namespace) -> Server:
    setup = {
        "source": source,
        "model": config["model"],
        "n_items": config["highest_id"],
        "threads": arguments.threads or harness.usable_cpus(),
    }
    python = arguments.peer_python or sys.executable
    command = [python, str(harness.HERE / "serve_peer.py"), name, json.dumps(setup)]
    return Server(name, command, r"^(\d+)$", setup["threads"])


def _measure(arguments: Namespace, run: Path, bodies: list[str], config: Answer) -> None:
    ours = _start_ours(run, arguments)
    servers = [ours]
    try:
        about = ours.ask("/v1/model")
        facts = _facts(arguments, config, about)
        started = {"value": ours.ready_seconds, "rss_mib": ours.memory_mib()}
        _print(arguments, facts, "serve, start to ready", harness.summary([started], "s"), None, None)
        others = [] if arguments.no_echo else [("echo", "")]
        others += [(name.lower(), source) for name, _, source in (peer.partition("=") for peer in arguments.peer)]
        for name, source in others:
            if name not in ("echo", "pmixer"):
                raise BenchmarkError(f"there is no handler for {name!r}; there is one for pmixer")
            servers.append(_start_other(name, source, config, arguments))
        _load(arguments, facts, servers, bodies)
    finally:
        for server in servers:
            server.close()
    if arguments.overload_seconds:
        _overload(arguments, facts, run, bodies)


def _load(arguments: Namespace, facts: Answer, servers: list[Server], bodies: list[str]) -> None:
    """Rounds of load, each side in turn; a line for each other side, or one."""
    rounds: list[list[Answer]] = []
    for number in range(arguments.repeats + 1):  # the first one warms up
        seconds = [arguments.seconds, *[arguments.peer_seconds or arguments.seconds] * (len(servers) - 1)]
        answers = [
            _round(arguments, server, bodies, wanted if number else min(wanted, WARM_UP_SECONDS))
            for server, wanted in zip(servers, seconds, strict=True)
        ]
        if number:
            rounds.append(answers)
            said = ", ".join(f"{s.name} {a['value']:.0f}/s" for s, a in zip(servers, answers, strict=True))
            print(f"serve, round {number}: {said}", file=sys.stderr)
    ours, *others = [harness.summary([r[i] for r in rounds], "requests/s") for i in range(len(servers))]
    ours["rss_growth_mib"] = rounds[-1][0]["rss_mib"] - rounds[0][0]["rss_before_mib"]
    if not others:
        _print(arguments, facts, "serve, single histories", ours, None, None)
    for server, other in zip(servers[1:], others, strict=True):
        ratio = harness.ratios(ours["runs"], other["runs"])
        _print(arguments, facts, "serve, single histories", ours, {"name": server.name, **other}, ratio)


def _round(arguments: Namespace, server: Server, bodies: list[str], seconds: int) -> Answer:
    before, cpu = server.memory_mib(), server.cpu_seconds()
    wanted = {"connections": arguments.connections, "seconds": seconds, "generator": arguments.generator}
    found = measure(port=server.port, bodies=bodies, **wanted)
    if found["status"] or found["lost"]:
        raise BenchmarkError(f"{server.name}: {found['status']} errors and {found['lost']} lost answers in {found}")
    used = server.cpu_seconds() - cpu
    more = {"rss_before_mib": before, "rss_mib": server.memory_mib(), "cpu_us": 1e6 * used / found["requests"]}
    return {**found, **more}


def _overload(arguments: Namespace, facts: Answer, run: Path, bodies: list[str]) -> None:
    """Ten times as many clients as the queue holds, whose answers are looked at one by one."""
    server = _start_ours(run, arguments, f"--queue-size={OVERLOAD_QUEUE}", f"--max-requests={OVERLOAD_QUEUE}")
    try:
        expected = [[item["item_id"] for item in server.ask("/v1/recommend", body)["items"]] for body in bodies[:100]]
        found = measure(
            port=server.port,
            bodies=bodies[:100],
            connections=10 * OVERLOAD_QUEUE * arguments.workers,
            seconds=arguments.overload_seconds,
            generator="python",
            expected=expected,
        )
        began = time.perf_counter()
        server.ask("/v1/recommend", bodies[0])
        found["recovery_seconds"] = time.perf_counter() - began
    finally:
        server.close()
    line = {**harness.summary([found], "requests/s"), "queue": OVERLOAD_QUEUE}
    _print(arguments, facts, "serve, overload", line, None, None)
    if found["lost"] or found["wrong"] or set(found["codes"]) - {"200", "503"}:
        raise BenchmarkError(f"overload: {found['lost']} answers lost, {found['wrong']} wrong, codes {found['codes']}")


def _facts(arguments: Namespace, config: Answer, about: Answer) -> Answer:
    return {
        "preset": config["preset"],
        "engine": about["engine"],
        "settings": config["model"],
        "n_items": about["n_items"],
        "connections": arguments.connections,
        "workers": arguments.workers,
        "generator": arguments.generator,
        "threads": arguments.threads or harness.usable_cpus(),
        "isa": about["isa"],
        "machine": machine(),
        "versions": harness.versions(
            ["sasrec", "uvicorn", "uvloop", "httptools", "starlette", "fastapi", "torch", "numpy"]
        ),
        "commit": commit(),
        "command": command_line(f"python benchmarks/{Path(__file__).name}"),
    }


def _print(
    arguments: Namespace, facts: Answer, what: str, ours: Answer, peer: Answer | None, ratio: Answer | None
) -> None:
    data = Path(arguments.data).name.split(".")[0]
    harness.emit({"what": what, "data": data, "ours": ours, "peer": peer, "ratio": ratio, **facts}, arguments)


if __name__ == "__main__":
    harness.run(main)

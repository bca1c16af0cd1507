"""The server's processes. In: a run folder and a ServerConfig; out: a port that answers, until SIGTERM.

One process loads the model and answers. With more, this one holds the port and looks after workers: it starts one
again that died, and passes signals on. Run as a module it is such a worker.

SIGTERM, SIGINT   take no new connection, answer what has come, end within `drain_seconds`; a second one ends at once
SIGHUP            load the run folder and the API keys again
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from sasrec.checkpoint import RunFolder
from sasrec.config import ServerConfig, from_dict, to_dict
from sasrec.connections import LINGER_SECONDS, Server, let_no_more_begin
from sasrec.errors import CheckpointError, ConfigError, SASRecError
from sasrec.server import Application, create_app
from sasrec.serving import Service
from sasrec.telemetry import SHARED_FOLDER, Metrics

logger = logging.getLogger("sasrec.workers")  # also when it runs as a module

KEY_VARIABLE = "SASREC_API_KEY"
SWITCH_SECONDS = 0.0005  # between threads of the interpreter: the model's must not wait 5 ms for the event loop
BACKLOG = 2048
RESTART_SECONDS = (0.1, 10.0)  # before a worker that died is started again: at first, and at most
TEND_SECONDS = 0.1  # the supervisor looks after its workers this often
PATIENCE_SECONDS = 5.0  # beyond a worker's own deadline, before it is killed


def serve(run: Path, config: ServerConfig) -> None:
    """Serve a run folder until SIGTERM or SIGINT.

    Raises:
        CheckpointError: the run folder cannot be served.
        ConfigError: the port or a file of the config cannot be used.
    """
    RunFolder.open(run).load_config()
    read_keys(config)
    with _listen(config) as listener:
        if config.workers == 1:
            serve_run(run, config, listener)
        else:
            Supervisor(run, config, listener).run()


def _listen(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its connections inherit it
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror}; choose another --host or --port"
        ) from error
    return listener


def read_keys(config: ServerConfig) -> list[str]:
    """The API keys of the file and of the environment; none = everybody is admitted.

    Raises:
        ConfigError: the file cannot be read, or holds no key.
    """
    keys = [key for key in [os.environ.get(KEY_VARIABLE, "").strip()] if key]
    if not config.api_key_file:
        return keys
    try:
        lines = Path(config.api_key_file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the API keys in {config.api_key_file} cannot be read: {error}") from error
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise ConfigError(f"{config.api_key_file} holds no API key; write one a line")
    return keys + found


def serve_run(run: Path, config: ServerConfig, listener: socket.socket, parent: Parent | None = None) -> None:
    """Answer at a socket that listens, in this process, until a signal.

    Args:
        run: the run folder, or a link to one.
        config: limits and times.
        listener: bound and listening.
        parent: the supervisor, when this process is a worker.

    Raises:
        SASRecError: the run folder cannot be served.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    _raise_file_limit()
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.ERROR)  # else each malformed request writes a line
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(run, config, listener, parent))


def _raise_file_limit() -> None:
    """As many open connections as the system allows; its default of 1,024 is for other programs."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(run: Path, config: ServerConfig, listener: socket.socket, parent: Parent | None) -> None:
    service = Service(Metrics(), path=run, threads=config.threads)
    app = create_app(None, config, service=service, keys=read_keys(config))
    server = Server(app, config)
    reloading = _Reloading(app, config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    loop.add_signal_handler(signal.SIGHUP, reloading.start)
    if parent is not None:
        await asyncio.to_thread(service.load)  # a worker without a model leaves connections to those that have one
    tasks = [server.serve([listener]), server.sweep(), reloading.watch()]
    answering, *helpers = map(asyncio.ensure_future, tasks)
    try:
        if parent is None:
            await asyncio.to_thread(service.load)  # meanwhile /health/live answers, and all else is 503
        else:
            helpers.append(asyncio.ensure_future(parent.follow(server)))
        _tell_ready(run, service, listener)
        await answering
    finally:
        for helper in helpers:
            helper.cancel()
        if not answering.done():
            server.stop()
            server.stop()
            await answering
        app.close()


def _tell_ready(run: Path, service: Service, listener: socket.socket) -> None:
    assert service.model is not None
    if listener.fileno() < 0:
        return  # it has been told to end meanwhile
    address, port = listener.getsockname()[:2]
    where = f"[{address}]" if ":" in address else address
    logger.info("serving %s (model %s) at http://%s:%d", run, service.model.version, where, port)
    _tell_systemd(b"READY=1")


class Parent:
    """What a worker knows of its supervisor.

    Args:
        process: its id.
        channel: a pipe's end; a byte in it says that this worker answers.
    """

    def __init__(self, process: int, channel: int) -> None:
        self.process, self.channel = process, channel

    async def follow(self, server: Server) -> None:
        """Say that this worker answers; end when the supervisor has died, as nobody else would end it."""
        while not server.started:
            await asyncio.sleep(0.01)
        os.write(self.channel, b".")
        while os.getppid() == self.process:
            await asyncio.sleep(1.0)
        logger.error("the supervisor has died; this worker ends")
        server.stop()


class _Reloading:
    """Loads the run folder again, in a thread, when told to or when it has moved."""

    def __init__(self, app: Application, config: ServerConfig) -> None:
        self.app, self.config = app, config
        self._running: asyncio.Future[None] | None = None
        self._again = False

    def start(self) -> None:
        """Load now, or once more when it is loading already."""
        if self._running is not None and not self._running.done():
            self._again = True
            return
        self._running = asyncio.ensure_future(self._reload())

    async def _reload(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            try:
                self.app.set_keys(read_keys(self.config))
            except ConfigError as error:
                logger.error("the API keys stay as they are: %s", error)
            await asyncio.to_thread(self.app.service.reload)

    async def watch(self) -> None:
        """Look now and then whether the path leads elsewhere."""
        while self.config.reload_seconds:
            await asyncio.sleep(self.config.reload_seconds)
            if await asyncio.to_thread(self.app.service.has_moved):
                self.start()


def _tell_systemd(state: bytes) -> None:
    """sd_notify, for units of Type=notify."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state, address.replace("@", "\0", 1) if address.startswith("@") else address)


@dataclass(eq=False)
class _Slot:
    """The place of one worker."""

    worker: subprocess.Popen[bytes] | None = None
    channel: int = -1  # where it says that it answers
    is_ready: bool = False
    failures: int = 0  # in a row, to answer at all
    due: float = 0.0  # when an empty place is to be filled


class Supervisor:
    """Starts workers, starts them again when they die, and passes signals on to them.

    Args:
        run: the run folder.
        config: limits and times.
        listener: the socket that all workers accept from.
    """

    def __init__(self, run: Path, config: ServerConfig, listener: socket.socket) -> None:
        self.run_folder, self.config, self.listener = run, config, listener
        self._slots = [_Slot() for _ in range(config.workers)]
        self._wake = threading.Event()
        self._hang_up = self._stopping = False

    def run(self) -> None:
        """Look after the workers until SIGTERM or SIGINT.

        Raises:
            CheckpointError: no worker lives long enough to answer.
        """
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hang_up)
        with tempfile.TemporaryDirectory(prefix="sasrec-metrics-") as folder:
            self._environment = {**os.environ, SHARED_FOLDER: folder}
            try:
                while not self._stopping:
                    self._tend(folder)
                    self._wake.wait(TEND_SECONDS)
                    self._wake.clear()
                    if self._hang_up:
                        self._hang_up = False
                        self._send(signal.SIGHUP)
            finally:
                self._end()

    def _on_stop(self, *_: Any) -> None:
        if self._stopping:
            self._send(signal.SIGTERM)  # a second one: workers end at once
        self._stopping = True
        self._wake.set()

    def _on_hang_up(self, *_: Any) -> None:
        self._hang_up = True
        self._wake.set()

    def _tend(self, folder: str) -> None:
        """Start the workers that are missing and due."""
        for slot in self._slots:
            if slot.worker is not None:
                slot.is_ready = slot.is_ready or _has_byte(slot.channel)
                if slot.worker.poll() is not None:
                    self._bury(slot, slot.worker, folder)
            if slot.worker is None and time.monotonic() >= slot.due:
                self._start(slot)

    def _bury(self, slot: _Slot, worker: subprocess.Popen[bytes], folder: str) -> None:
        """Note a worker's death, and when its place is filled again."""
        forget_worker(folder, worker.pid)
        os.close(slot.channel)
        slot.failures = 0 if slot.is_ready else slot.failures + 1
        slot.worker, slot.is_ready = None, False
        if all(other.worker is None and other.failures for other in self._slots):
            raise CheckpointError("no worker could serve the run folder; the lines above say why")
        first, most = RESTART_SECONDS
        pause = min(first * 2**slot.failures, most)
        slot.due = time.monotonic() + pause
        logger.error("worker %d ended (code %s); another starts in %.1f s", worker.pid, worker.returncode, pause)

    def _start(self, slot: _Slot) -> None:
        listener = self.listener.fileno()
        slot.channel, its_end = os.pipe()
        told = {
            "run": str(self.run_folder), "listener": listener, "channel": its_end, "config": to_dict(self.config),
        }  # fmt: skip
        slot.worker = subprocess.Popen(
            [sys.executable, "-m", "sasrec.workers", json.dumps(told)],
            pass_fds=[listener, its_end],
            env=self._environment,
        )
        os.close(its_end)

    def _send(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.worker is not None and slot.worker.poll() is None:
                slot.worker.send_signal(number)

    def _end(self) -> None:
        """Let the workers drain; those that do not end in time are killed."""
        for slot in self._slots:
            if slot.worker is not None and not slot.is_ready and not _has_byte(slot.channel):
                slot.worker.kill()  # it holds the port and accepts nobody
                slot.worker.wait()
        let_no_more_begin(self.listener)
        self.listener.close()  # nor must this process
        self._send(signal.SIGTERM)
        until = time.monotonic() + self.config.drain_seconds + LINGER_SECONDS + PATIENCE_SECONDS
        for worker in [slot.worker for slot in self._slots if slot.worker is not None]:
            try:
                worker.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def _has_byte(channel: int) -> bool:
    return bool(select.select([channel], [], [], 0)[0]) and bool(os.read(channel, 1))


def forget_worker(folder: str, process: int) -> None:
    """Drop what a worker that died told about itself at this moment; its counts stay."""
    for kind in ("livesum", "livemax", "livemin", "livemostrecent"):
        with contextlib.suppress(FileNotFoundError):
            (Path(folder) / f"gauge_{kind}_{process}.db").unlink()


def main(text: str) -> int:
    """A worker's life; the exit code."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("sasrec").addHandler(handler)
    logging.getLogger("sasrec").setLevel(logging.INFO)
    told = json.loads(text)
    config = from_dict(ServerConfig, told["config"])
    listener = socket.socket(fileno=told["listener"])
    try:
        serve_run(Path(told["run"]), config, listener, Parent(os.getppid(), told["channel"]))
    except SASRecError as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

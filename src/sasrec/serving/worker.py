"""One process that answers: it loads a run folder, serves it until a signal, and loads it again when told to.

Run as a module it is a worker of the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import uvloop

from sasrec.core.config import from_dict
from sasrec.core.errors import ConfigError, SASRecError
from sasrec.core.server_config import ServerConfig
from sasrec.serving.app import Application, create_app
from sasrec.serving.challenger import Challenger
from sasrec.serving.connections import Server
from sasrec.serving.keys import Keys, read_keys
from sasrec.serving.log_lines import messages_never_wait
from sasrec.serving.service import Service
from sasrec.serving.telemetry import Metrics

logger = logging.getLogger("sasrec.serving.worker")  # also when it runs as a module

M_MMAP_THRESHOLD, LARGE_BLOCK = -3, 2**20  # of glibc
NEVER = 86400.0  # seconds
SWITCH_SECONDS = 0.0005  # between threads of the interpreter: the model's must not wait 5 ms for the event loop


def run_worker(run: Path, config: ServerConfig, listener: socket.socket, parent: Parent | None = None) -> None:
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
    _give_memory_back()
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.ERROR)  # else each malformed request writes a line
    metrics = Metrics()
    with (
        messages_never_wait(metrics.dropped_lines.inc),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(Service(metrics, path=run, threads=config.threads), config, listener, parent))


def _raise_file_limit() -> None:
    """As many open connections as the system allows; its default of 1,024 is for other programs."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _give_memory_back() -> None:
    """Let glibc give large blocks back at once when they are freed: it would keep more the larger they were."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _leave_alone_what_stays() -> None:
    """Let the garbage collector not look through the model again and again: it holds everything up for 0.1 s."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def _serve(service: Service, config: ServerConfig, listener: socket.socket, parent: Parent | None) -> None:
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
    for helper in helpers:
        helper.add_done_callback(app.helper_ended)
    try:
        if parent is None:
            await asyncio.to_thread(service.load)  # meanwhile /health/live answers, and all else is 503
        else:
            helpers.append(asyncio.ensure_future(parent.follow(server)))  # it ends with its parent
        _leave_alone_what_stays()
        _tell_ready(service, listener)
        await answering
    finally:
        for helper in helpers:
            helper.remove_done_callback(app.helper_ended)
            helper.cancel()
        if not answering.done():
            server.stop()
            server.stop()
            await answering
        app.close()


def _tell_ready(service: Service, listener: socket.socket) -> None:
    assert service.model is not None
    if listener.fileno() < 0:
        return  # it has been told to end meanwhile
    address, port = listener.getsockname()[:2]
    where = f"[{address}]" if ":" in address else address
    challenger = service.challenger
    if isinstance(challenger, Challenger) and challenger.model is not None:
        told = challenger.path, challenger.model.version, 100 * challenger.share
        logger.info("challenger %s (model %s) answers %g %% of the users", *told)
    logger.info("serving %s (model %s) at http://%s:%d", service.path, service.model.version, where, port)
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
                self.app.keys = Keys(read_keys(self.config))
            except ConfigError as error:
                logger.error("the API keys stay as they are: %s", error)
            if await asyncio.to_thread(self.app.service.reload):
                _leave_alone_what_stays()

    async def watch(self) -> None:
        """Look now and then whether the path leads elsewhere."""
        while True:
            await asyncio.sleep(self.config.reload_seconds or NEVER)
            if self.config.reload_seconds and await asyncio.to_thread(self.app.service.has_moved):
                self.start()


def _tell_systemd(state: bytes) -> None:
    """sd_notify, for units of Type=notify."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state, address.replace("@", "\0", 1) if address.startswith("@") else address)


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
        run_worker(Path(told["run"]), config, listener, Parent(os.getppid(), told["channel"]))
    except SASRecError as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

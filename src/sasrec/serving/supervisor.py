"""The processes of a server: opens the port, and answers from it until SIGTERM.

With one worker this process loads the model and answers. With more it holds the port, starts the workers, replaces one
that died, and passes signals on.

SIGTERM, SIGINT   take no new connection, answer what has come, end within `drain_seconds`; a second one ends at once
SIGHUP            load the run folder and the API keys again
"""

from __future__ import annotations

import json
import logging
import os
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

from prometheus_client.multiprocess import mark_process_dead

from sasrec.core.config import ServerConfig, to_dict
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.runs.folder import RunFolder
from sasrec.serving.connections import LINGER_SECONDS, let_no_more_begin
from sasrec.serving.keys import read_keys
from sasrec.serving.telemetry import SHARED_FOLDER
from sasrec.serving.worker import run_worker

logger = logging.getLogger(__name__)

BACKLOG = 2048
SYSTEM_BUFFER_BYTES = 2**16  # of a connection in each direction
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
            run_worker(run, config, listener)
        else:
            Supervisor(run, config, listener).run()


def _listen(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its connections inherit it
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # else the system keeps megabytes for each of them
            listener.setsockopt(socket.SOL_SOCKET, buffer, SYSTEM_BUFFER_BYTES)
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror}; choose another --host or --port"
        ) from error
    return listener


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
        self._metrics_folder = ""
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
            self._metrics_folder = folder
            try:
                while not self._stopping:
                    self._tend()
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

    def _tend(self) -> None:
        """Start the workers that are missing and due."""
        for slot in self._slots:
            if slot.worker is not None:
                slot.is_ready = slot.is_ready or _has_byte(slot.channel)
                if slot.worker.poll() is not None:
                    self._bury(slot, slot.worker)
            if slot.worker is None and time.monotonic() >= slot.due:
                self._start(slot)

    def _bury(self, slot: _Slot, worker: subprocess.Popen[bytes]) -> None:
        """Note a worker's death, and when its place is filled again."""
        mark_process_dead(worker.pid, self._metrics_folder)  # type: ignore[no-untyped-call]  # its counts stay
        os.close(slot.channel)
        slot.failures = 0 if slot.is_ready else slot.failures + 1
        slot.worker, slot.is_ready = None, False
        if all(other.failures and not other.is_ready for other in self._slots):
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
            [sys.executable, "-m", "sasrec.serving.worker", json.dumps(told)],
            pass_fds=[listener, its_end],
            env={**os.environ, SHARED_FOLDER: self._metrics_folder},
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
    ready = select.poll()  # select() knows no file beyond the 1,024th
    ready.register(channel, select.POLLIN)
    return bool(ready.poll(0)) and bool(os.read(channel, 1))

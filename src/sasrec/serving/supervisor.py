"""The processes of a server: opens the port, and answers from it until SIGTERM.

With one worker this process loads the model and answers. With more it holds the port, starts the workers, replaces one
that died, and passes signals on.

SIGTERM, SIGINT   take no new connection, answer what has come, end within `drain_seconds`; a second one ends at once
SIGHUP            load the run folder and the API keys again
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from sasrec.core.config import to_dict
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.server_config import ServerConfig, read_run_share
from sasrec.runs.folder import RunFolder
from sasrec.serving.connections import LINGER_SECONDS, let_no_more_begin
from sasrec.serving.feedback import FeedbackStore
from sasrec.serving.keys import read_keys
from sasrec.serving.log_lines import messages_never_wait
from sasrec.serving.telemetry import SHARED_FOLDER, Metrics
from sasrec.serving.worker import run_worker

logger = logging.getLogger(__name__)

BACKLOG = 2048
SENT_BYTES = 2**16  # of a connection that the system has and the client has not
RESTART_SECONDS = (0.1, 10.0)  # before a worker that died is started again: at first, and at most
HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
METRICS_FOLDER = "sasrec-metrics-"
NEW_SECONDS = 5.0  # that such a folder is left alone
END_SECONDS = 0.02  # between looks whether the workers have ended
TEND_SECONDS = 0.1  # the supervisor looks after its workers this often
PATIENCE_SECONDS = 5.0  # beyond a worker's own deadline, before it is killed


def serve(run: Path, config: ServerConfig) -> None:
    """Serve a run folder until SIGTERM or SIGINT.

    Raises:
        CheckpointError: a run folder cannot be served, or the feedback file cannot be used.
        ConfigError: the port or a file of the config cannot be used.
    """
    RunFolder.open(run).load_config()
    if config.challenger:
        RunFolder.open(Path(read_run_share(config.challenger)[0])).load_config()
    if config.feedback:
        FeedbackStore.open(config, Metrics()).close()  # made once, before workers come
    read_keys(config)
    with _listen(config) as listener:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until somebody heeds it: the run folder is yet to be loaded
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
        # Else the system takes megabytes of an answer that nobody reads. (A small SO_RCVBUF would delay bodies.)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENT_BYTES)
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
    is_outdated: bool = False  # is to load the run folder again
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
        self._metrics_folder, self._metrics_lock = "", -1
        self._stopping = False

    def run(self) -> None:
        """Look after the workers until SIGTERM or SIGINT.

        Raises:
            CheckpointError: no worker lives long enough to answer.
        """
        with messages_never_wait(), _signals() as signals, _metrics_folder() as (folder, lock):
            self._metrics_folder, self._metrics_lock = folder, lock
            try:
                while not self._stopping:
                    self._tend()
                    self._heed(signals, TEND_SECONDS)
            finally:
                self._end(signals)

    def _heed(self, signals: int, seconds: float) -> None:
        """Wait for signals so long, and do what they ask for."""
        ready = select.poll()  # select() knows no file beyond the 1,024th
        ready.register(signals, select.POLLIN)
        for number in os.read(signals, 1024) if ready.poll(1000 * seconds) else b"":
            if number == signal.SIGHUP:
                for slot in self._slots:
                    slot.is_outdated = True
            elif self._stopping:
                self._send(signal.SIGTERM)  # a second one: workers end at once
            else:
                self._stopping = True

    def _tend(self) -> None:
        """Start the workers that are missing and due."""
        for slot in self._slots:
            if slot.worker is not None:
                slot.is_ready = slot.is_ready or _has_byte(slot.channel)
                if slot.worker.poll() is not None:
                    self._bury(slot, slot.worker)
                elif slot.is_outdated and slot.is_ready:  # one that starts would not outlive the signal
                    slot.is_outdated = False
                    slot.worker.send_signal(signal.SIGHUP)
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
        slot.is_outdated = False
        told = {
            "run": str(self.run_folder), "listener": listener, "channel": its_end, "config": to_dict(self.config),
        }  # fmt: skip
        slot.worker = subprocess.Popen(
            [sys.executable, "-m", "sasrec.serving.worker", json.dumps(told)],
            pass_fds=[listener, its_end, self._metrics_lock],
            env={**os.environ, SHARED_FOLDER: self._metrics_folder},
            process_group=0,  # Ctrl-C in a terminal reaches the supervisor alone: a worker would take two for haste
        )
        os.close(its_end)

    def _send(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.worker is not None and slot.worker.poll() is None:
                slot.worker.send_signal(number)

    def _end(self, signals: int) -> None:
        """Let the workers drain; those that do not end in time are killed."""
        for slot in self._slots:
            if slot.worker is not None and not slot.is_ready and not _has_byte(slot.channel):
                slot.worker.kill()  # it holds the port and accepts nobody
                slot.worker.wait()
        let_no_more_begin(self.listener)
        self.listener.close()  # nor must this process
        self._stopping = True
        self._send(signal.SIGTERM)
        until = time.monotonic() + self.config.drain_seconds + LINGER_SECONDS + PATIENCE_SECONDS
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        while any(worker.poll() is None for worker in workers) and time.monotonic() < until:
            self._heed(signals, END_SECONDS)
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A pipe with a byte for each signal that comes. A handler in Python could meet a lock that is held."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    before = {number: signal.signal(number, lambda *_: None) for number in HEEDED}
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    try:
        yield reads
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reads)
        os.close(writes)


@contextlib.contextmanager
def _metrics_folder() -> Iterator[tuple[str, int]]:
    """A folder for the workers' metrics, and the lock that says it is in use; those of servers that were killed go."""
    for folder in Path(tempfile.gettempdir()).glob(f"{METRICS_FOLDER}*"):
        with contextlib.suppress(OSError), _locked(folder) as lock:
            if time.time() - os.fstat(lock).st_mtime < NEW_SECONDS:
                continue  # its server may be about to lock it
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=METRICS_FOLDER) as name, _locked(Path(name)) as lock:
        yield name, lock


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold a folder of ours; its workers hold it too.

    Raises:
        OSError: somebody holds it, or it is not ours.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid != os.getuid():
            raise PermissionError(f"{folder} is of another user")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
    finally:
        os.close(lock)


def _has_byte(channel: int) -> bool:
    ready = select.poll()  # select() knows no file beyond the 1,024th
    ready.register(channel, select.POLLIN)
    return bool(ready.poll(0)) and bool(os.read(channel, 1))

"""Lines of logs: written whole and in order where somebody reads, dropped and counted where nobody does."""

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from hostile import Client, head
from server_process import PATIENCE, port_of, until

from sasrec.serving.log_lines import CLOSE_SECONDS, WAITING_BYTES, AccessLog, LineWriter, messages_never_wait


def test_the_log_is_written_in_lines_and_a_reader_that_has_gone_is_no_error() -> None:
    file = io.BytesIO()

    async def main() -> None:
        log = AccessLog(file)
        log.write({"status": 200})
        log.write({"status": 422, "route": "ü"})
        assert file.getvalue() == b""
        log.flush()

    asyncio.run(main())
    assert [json.loads(line) for line in file.getvalue().splitlines()] == [
        {"status": 200},
        {"status": 422, "route": "ü"},
    ]

    async def gone() -> None:
        log = AccessLog(file)
        file.close()
        log.write({})
        log.flush()

    asyncio.run(gone())
    assert not AccessLog(None)


@pytest.fixture
def pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Where to read and where to write."""
    reads, writes = os.pipe()
    with os.fdopen(reads, "rb") as reader, os.fdopen(writes, "wb") as writer:
        yield reader, writer


def test_lines_that_nobody_reads_are_dropped_and_counted_and_nothing_waits(pipe: tuple[IO[bytes], IO[bytes]]) -> None:
    reader, file = pipe
    dropped: list[int] = []
    writer = LineWriter(file, dropped.append)
    line = b"x" * 999 + b"\n"
    began = time.monotonic()
    for i in range(3000):
        writer.write(b"%d " % i + line)
    writer.close()
    assert time.monotonic() - began < CLOSE_SECONDS + 5
    assert 0 < sum(dropped) < 3000
    assert 3000 - sum(dropped) <= 2 * WAITING_BYTES // len(line)
    kept = [reader.readline() for _ in range(3000 - sum(dropped))]  # now somebody reads: whole lines in their order
    numbers = [int(text.split()[0]) for text in kept]
    assert numbers == sorted(numbers)
    assert kept == [b"%d " % i + line for i in numbers]


def test_a_pipe_that_never_blocks_is_waited_for(pipe: tuple[IO[bytes], IO[bytes]]) -> None:
    reader, file = pipe
    os.set_blocking(file.fileno(), False)
    writer = LineWriter(file, lambda n: None)
    line = b"x" * 99_999 + b"\n"  # more than a pipe holds
    writer.write(line)
    assert reader.readline() == line
    writer.close()


def test_messages_go_to_stderr_as_before_but_on_a_thread(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("sasrec")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    with messages_never_wait():
        assert handler not in logger.handlers
        logging.getLogger("sasrec.serving").error("ü %d", 1)
        logging.getLogger("uvicorn.error").error("two")
    assert logger.handlers == [handler]
    assert capfd.readouterr().err == "ERROR: ü 1\nERROR: two\n"


def dropped(client: Client) -> float:
    """How many lines of logs the server has dropped, as its metrics tell."""
    metrics = client.ask(head("GET", "/metrics")).body.decode()
    [told] = [line for line in metrics.splitlines() if line.startswith("sasrec_log_lines_dropped_total ")]
    return float(told.split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("unread", ["stdout", "stderr"])
def test_a_server_goes_on_and_ends_though_nobody_reads_what_it_says(runs: Path, unread: str, tmp_path: Path) -> None:
    with Path(tmp_path / "said").open("wb") as said:
        streams = {"stdout": said, "stderr": said, unread: subprocess.PIPE}
        command = [sys.executable, "-m", "sasrec", "serve", str(runs / "a"), "--port", "0"]
        server = subprocess.Popen(command, **streams)
        with Client(until(lambda: port_of(server.pid))) as client:
            until(lambda: client.ask(head("GET", "/health/ready")).status == 200)
            for _ in range(60 if unread == "stdout" else 1):  # 2 MB of log
                client.send(head("GET", "/health/live", X_Request_ID="x" * 100) * 100)
                assert client.replies(100) == [200] * 100
            for _ in range(3):
                server.send_signal(signal.SIGHUP)
                assert client.ask(head("GET", "/health/live")).status == 200
            if unread == "stdout":  # lines are handed over some at a time
                until(lambda: dropped(client) > 0)
            n_dropped = dropped(client)
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
        for stream in (server.stdout, server.stderr):
            if stream is not None:
                stream.close()
    assert (n_dropped > 0) == (unread == "stdout")

"""The event file: what `add` has returned for is there, whatever happens; and it has an end."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sasrec.core.errors import CheckpointError, RequestError
from sasrec.core.server_config import ServerConfig
from sasrec.serving.events import EventStore
from sasrec.serving.telemetry import Metrics


def store(path: Path, **settings: Any) -> EventStore:
    return EventStore.open(ServerConfig(events=str(path), **settings), Metrics())


def test_events_come_back_by_user_in_their_order(tmp_path: Path) -> None:
    events = store(tmp_path / "e.db")
    asyncio.run(events.add([("u", 3), (7, "b"), ("u", 1)]))
    asyncio.run(events.add([("7", 3), ("u", 3)]))
    asyncio.run(events.add([]))
    assert events.events_of("u") == ["3", "1", "3"]
    assert events.events_of(7) == ["b", "3"]
    assert events.events_of("nobody") == []
    events.close()
    assert store(tmp_path / "e.db").events_of("u") == ["3", "1", "3"]


def test_two_processes_see_each_others_events(tmp_path: Path) -> None:
    first, second = store(tmp_path / "e.db"), store(tmp_path / "e.db")

    async def main() -> None:
        await asyncio.gather(*(s.add([("u", i)]) for i in range(20) for s in (first, second)))

    asyncio.run(main())
    assert len(first.events_of("u")) == len(second.events_of("u")) == 40


def test_only_the_newest_events_of_a_user_are_kept(tmp_path: Path) -> None:
    events = store(tmp_path / "e.db", max_user_events=3)
    asyncio.run(events.add([("u", i) for i in range(10)]))
    asyncio.run(events.add([("v", 1), ("u", 10)]))
    assert events.events_of("u") == ["8", "9", "10"]
    assert events.events_of("v") == ["1"]


def test_a_full_file_refuses_whole_requests_and_takes_what_fits(tmp_path: Path) -> None:
    events = store(tmp_path / "e.db", max_events=3)
    asyncio.run(events.add([("u", 1), ("u", 2)]))
    with pytest.raises(RequestError, match="holds its most, 3 events") as full:
        asyncio.run(events.add([("u", 3), ("u", 4)]))
    assert full.value.status == 503
    asyncio.run(events.add([("v", 3)]))
    assert events.events_of("u") == ["1", "2"]
    assert events.events_of("v") == ["3"]


def test_a_file_that_goes_is_made_again_and_never_written_to_while_it_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    events = store(folder / "e.db")
    asyncio.run(events.add([("u", 1)]))
    folder.rename(tmp_path / "away")
    with pytest.raises(RequestError, match="could not be stored") as refused:
        asyncio.run(events.add([("u", 2)]))
    assert refused.value.status == 503
    assert events.events_of("u") == []
    folder.mkdir()
    asyncio.run(events.add([("u", 3)]))
    assert events.events_of("u") == ["3"]
    assert events._metrics.registry.get_sample_value("sasrec_event_failures_total") == 2


def test_a_file_of_something_else_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "e.db").write_text("not a database, and long enough to be seen as none" * 20)
    with pytest.raises(CheckpointError, match="cannot be used: file is not a database"):
        store(tmp_path / "e.db")
    with pytest.raises(CheckpointError, match="cannot be used"):
        store(tmp_path / "nowhere" / "e.db")


WRITER = """
import asyncio, sys
from sasrec.core.server_config import ServerConfig
from sasrec.serving.events import EventStore
from sasrec.serving.telemetry import Metrics

async def main():
    store = EventStore.open(ServerConfig(events=sys.argv[1]), Metrics())
    for i in range(100_000):
        await store.add([("u", i)])
        print(i, flush=True)

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(50)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    writer.stdout.close()
    found = store(path, max_user_events=100_000).events_of("u")
    assert found[: len(acknowledged)] == [str(i) for i in acknowledged]
    assert len(found) <= len(acknowledged) + 1  # the one that was on its way may be there


def test_long_ids_of_an_older_file_are_left_out(tmp_path: Path) -> None:
    events = store(tmp_path / "e.db")
    asyncio.run(events.add([("u", "z" * 1_000_000), ("u", "z" * 512), ("u", 3)]))
    assert events.events_of("u") == ["z" * 512, "3"]

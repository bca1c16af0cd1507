"""Measuring from outside: feedback under load while the server, or a worker, is killed; and a made A/B test."""

import contextlib
import http.client
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from server_process import PATIENCE, ServerProcess, running, start_and_fail, until

from sasrec.serving.online_report import report

pytestmark = pytest.mark.slow  # servers start

N_EVENTS = 10_000
N_CLIENTS = 6
LISTS = 25  # of a request
GOLDEN = 0.6180339887  # its multiples are spread evenly over 0..1
Key = tuple[str, str, str]


class Clients:
    """Connections that ask for lists and give feedback on each of their items, some together, until enough is stored.

    A server that is gone is waited for; what it has answered is noted.
    """

    def __init__(self, port: int) -> None:
        self.port, self.answered, self.problems = port, set[Key](), list[str]()
        self._lock, self._n_lost = threading.Lock(), 0
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(N_CLIENTS)]
        for thread in self._threads:
            thread.start()

    @property
    def is_done(self) -> bool:
        return len(self.answered) >= N_EVENTS or bool(self.problems)

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        while not self.is_done:
            time.sleep(0.05)  # a server that starts needs the CPU, too
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                while not self.is_done and self._has_gone_round(connection, rng):
                    pass

    def _has_gone_round(self, connection: http.client.HTTPConnection, rng: random.Random) -> bool:
        requests = [{"history": [rng.randint(1, 30)], "user_id": rng.randint(1, 500)} for _ in range(LISTS)]
        status, answer = ask(connection, "/v1/recommend", {"requests": requests})
        if status != 200:
            return False
        keys = [
            (one["recommendation_id"], str(item["item_id"]), rng.choice(["click", "buy"]))
            for one in answer["results"]
            for item in one["items"][: rng.randint(1, 6)]
        ]
        while keys:
            some, keys = keys[: rng.randint(1, 20)], keys[20:]
            self._give(connection, some)
        return True

    def _give(self, connection: http.client.HTTPConnection, keys: list[Key]) -> None:
        bodies = [{"recommendation_id": list_, "item_id": item, "kind": kind} for list_, item, kind in keys]
        status, answer = ask(connection, "/v1/feedback", {"feedback": bodies} if bodies[1:] else bodies[0])
        with self._lock:
            if status == 200:
                self.answered |= set(keys)
            elif status != 503:
                self.problems.append(f"{status} {answer}")

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10 * PATIENCE)


def ask(connection: http.client.HTTPConnection, path: str, body: Any) -> tuple[int, Any]:
    connection.request("POST", path, json.dumps(body))
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def stored(path: Path) -> list[Key]:
    connection = sqlite3.connect(path)
    with contextlib.closing(connection):
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = connection.execute("SELECT lower(hex(id)), item, kind FROM feedback").fetchall()
    return [(f"{i[:8]}-{i[8:12]}-{i[12:16]}-{i[16:20]}-{i[20:]}", item, kind) for i, item, kind in found]


def port_for(server: ServerProcess) -> tuple[str, int]:
    return "--port", server.port  # the one given last counts


def test_ten_thousand_events_under_load_lose_none_that_was_answered_when_the_server_is_killed(
    runs: Path, tmp_path: Path
) -> None:
    flags = "--feedback", tmp_path / "f.db", "--challenger", f"{runs / 'a'}:0.3", "--no-access-log"
    server = ServerProcess(runs / "a", *flags)
    clients = Clients(server.port)
    for n in (1000, 3000, 6000):
        until(lambda n=n: len(clients.answered) > n or clients.problems)
        server.process.kill()
        server.end()
        server = ServerProcess(runs / "a", *flags, *port_for(server))
    clients.join()
    server.end()
    assert clients.problems == []
    assert len(clients.answered) >= N_EVENTS
    found = stored(tmp_path / "f.db")
    assert len(found) == len(set(found))
    assert clients.answered <= set(found)


def test_they_lose_none_when_one_of_several_workers_is_killed(runs: Path, tmp_path: Path) -> None:
    flags = "--feedback", tmp_path / "f.db", "--workers", 2, "--no-access-log"
    with running(runs / "a", *flags) as server:
        until(lambda: server.n_ready() == 2)
        clients = Clients(server.port)
        for i, n in enumerate((1000, 4000)):
            until(lambda n=n: len(clients.answered) > n or clients.problems)
            os.kill(server.workers()[0], signal.SIGKILL)
            until(lambda i=i: server.n_ready() == 3 + i)
        clients.join()
        assert server.metric("sasrec_exposures") * 10 > N_EVENTS  # the same from whichever worker
        assert server.metric("sasrec_feedback_failures_total") == 0
    assert clients.problems == []
    assert clients.answered <= set(stored(tmp_path / "f.db"))


def test_a_made_difference_between_two_runs_is_found_through_the_server_and_the_arms_outlive_it(
    runs: Path, tmp_path: Path
) -> None:
    path, rng, arms = tmp_path / "f.db", random.Random(0), dict[int, str]()
    flags = "--feedback", path, "--challenger", f"{runs / 'a'}:0.5", "--no-access-log"
    shares, n_lists = {"run": 0.5, "challenger": 0.6}, Counter[str]()  # clicked lists of each: a fifth more

    def is_clicked(arm: str) -> bool:
        """Spread evenly, so that which users an arm has does not decide how large the difference is."""
        n_lists[arm] += 1
        return n_lists[arm] * GOLDEN % 1 < shares[arm]

    for half in range(2):
        with running(runs / "a", *flags) as server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
            with contextlib.closing(connection):
                for start in range(0, 1500, 100):
                    users = range(start, start + 100)
                    requests = [{"history": [1 + user % 30], "k": 5, "user_id": user} for user in users]
                    answers = ask(connection, "/v1/recommend", {"requests": requests})[1]["results"]
                    for user, one in zip(users, answers, strict=True):
                        assert arms.setdefault(user, one["arm"]) == one["arm"], f"half {half}"
                    given = [
                        {
                            "recommendation_id": one["recommendation_id"],
                            "item_id": rng.choice(one["items"])["item_id"],
                            "kind": "click",
                        }
                        for one in answers
                        if is_clicked(one["arm"])
                    ]
                    assert ask(connection, "/v1/feedback", {"feedback": given})[0] == 200
    found = report(path)
    difference = found.kinds["click"]
    assert 2900 < sum(arm.n_lists for arm in found.arms.values()) <= 3000  # from the challenger's first one on
    assert difference["p_value"] is not None
    assert difference["p_value"] < 0.001
    assert difference["difference"] == pytest.approx(0.1, abs=0.01)


def test_what_cannot_be_measured_is_refused_at_the_start_in_one_sentence(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "f.db").write_text("no database at all, and long enough to be seen as none" * 20)
    for flags, sentence in [
        (("--feedback", tmp_path / "f.db"), "cannot be used: file is not a database"),
        (("--challenger", f"{runs / 'b'}:0.1"), "challenger needs feedback"),
        (("--feedback", tmp_path / "g.db", "--challenger", f"{tmp_path}:0.1"), "is not a run folder"),
        (("--feedback", tmp_path / "g.db", "--challenger", f"{runs / 'b'}:0.1", "--workers", 2), "have no column"),
    ]:
        done = start_and_fail(runs / "a", *flags)
        assert done.returncode in (1, 2)
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr

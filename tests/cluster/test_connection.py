"""What a cluster is asked for on the command line, and what it answers wrongly, is said in one sentence."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from sasrec.cluster.connection import Cluster, _OfThisThread, check_place
from sasrec.core.errors import ConfigError, DataError, TrainingError


@pytest.mark.parametrize(
    ("on", "workers", "message"),
    [
        (None, 2, "--workers is for a cluster: add --on ray"),
        ("spark", None, "--on spark is no cluster; use ray for this machine, or ray://HOST:PORT"),
        ("ray://", None, "--on ray:// is no cluster"),
        ("ray", 0, "--workers 0 is too few; it takes 1 or more"),
    ],
)
def test_a_place_that_is_none_is_refused(on: str | None, workers: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_place(on, workers)


def test_a_place_is_taken() -> None:
    for on in (None, "ray", "ray://auto", "ray://10.0.0.1:10001"):
        check_place(on, None if on is None else 3)


class TaskError(Exception):
    """As Ray wraps the error of a task."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a page of words")
        self.cause = cause


class LostError(Exception):
    """As Ray tells of lost workers."""


def cluster_that_raises(error: Exception) -> Cluster:
    def get(reference: Any) -> Any:
        raise error

    names = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "ObjectLostError")
    errors = SimpleNamespace(RayTaskError=TaskError, **dict.fromkeys(names, LostError))
    return Cluster(SimpleNamespace(get=get, exceptions=errors), None)


def test_the_error_of_a_task_is_raised_as_it_was() -> None:
    with pytest.raises(DataError, match="line 3 has nothing"):
        cluster_that_raises(TaskError(DataError("line 3 has nothing"))).result("a reference")


def test_lost_workers_are_an_error_of_one_line() -> None:
    with pytest.raises(TrainingError, match=r"workers of the cluster were lost again and again: gone$"):
        cluster_that_raises(LostError("\ngone\nwith a page of words")).result("a reference")


def test_what_ray_prints_beside_a_command_is_not_among_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.redirect_stdout(_OfThisThread()):
        print("ours")
        other = threading.Thread(target=lambda: print("(raylet) a worker was lost"))
        other.start()
        other.join()
    told = capsys.readouterr()
    assert (told.out, told.err) == ("ours\n", "(raylet) a worker was lost\n")

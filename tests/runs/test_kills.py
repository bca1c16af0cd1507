"""Kills at every moment: whatever was begun goes on, and ends as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "killed.py"
KINDS = ["train", "refit", "study", "benchmark", "bulk", "replace", "warm"]


def kill(kind: str, folder: Path, step: int) -> list[dict[str, Any]]:
    """A line a kill, before every `step`-th call that changes what lies on disk."""
    command = [sys.executable, "-B", str(PROGRAM), kind, str(folder), str(step)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    *lines, last = (json.loads(line) for line in done.stdout.splitlines())
    assert last["calls"] > 20
    assert len(lines) == -(-last["calls"] // step)
    return lines


def check(line: dict[str, Any]) -> None:
    assert line["code"] == -9
    assert line["mode"] != "nothing", line
    assert line["differs"] == [], line  # from a run that was not killed: weights, data, history, results; no left-overs
    assert line["wrong"] == [], line
    assert all("Error(" not in sentence for sentence in line["said"]), line  # a refusal is one sentence


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_after_some_kills_work_goes_on_to_the_same_end(kind: str, tmp_path: Path) -> None:
    for line in kill(kind, tmp_path, step=29):
        check(line)


@pytest.mark.outside
@pytest.mark.parametrize("kind", KINDS)
def test_after_many_kills_work_goes_on_to_the_same_end(kind: str, tmp_path: Path) -> None:
    for line in kill(kind, tmp_path, step=11):  # with 1, before each call: `python tests/killed.py train FOLDER 1`
        check(line)

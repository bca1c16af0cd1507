"""Commands with `--on ray`, started by tests, and the processes that they start."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worlds import ends_of

MARK = "SASREC_TEST_MARK"  # tells the processes of a test from others
NEEDS_RAY = pytest.mark.skipif(
    shutil.which("ray", path=Path(sys.executable).parent) is None, reason="Ray is not installed"
)


class Commands:
    """Runs sasrec with `--on ray`, and knows the workers that it starts."""

    def __init__(self, folder: Path) -> None:
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            MARK: uuid.uuid4().hex, "RAY_TMPDIR": str(folder),
        }  # fmt: skip

    def start(self, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sasrec", *map(str, words), "--on", "ray", "--workers", "2"]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )

    def run(self, *words: object) -> tuple[int, str, str]:
        return ends_of([self.start(*words)], timeout=300)[0]

    def workers(self, kind: str = "RayTrainWorker") -> list[int]:
        """Processes of a class of workers."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                is_ours = self.environment[MARK].encode() in (path / "environ").read_bytes()
                if is_ours and kind.encode() in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
        return found


@contextlib.contextmanager
def commands() -> Iterator[Commands]:
    """Commands of a test, whose clusters keep their files in a folder of their own."""
    folder = Path("/tmp") / f"r{uuid.uuid4().hex[:8]}"  # short: paths of sockets have a limit
    yield Commands(folder)
    shutil.rmtree(folder, ignore_errors=True)


def until(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not is_so():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)

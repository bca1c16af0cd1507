"""A process of its own that uses a Hub: huggingface_hub reads its address and its cache when it is imported."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fake_hub import OWNER, FakeHub

PROGRAM = """
import contextlib, io, json, logging, os, sys, warnings
from pathlib import Path
import sasrec
from sasrec.cli.main import main
from sasrec.runs.folder import RunFolder
from sasrec.publishing import push
warnings.simplefilter("error", UserWarning)
answers, sys.stdout = sys.stdout, sys.stderr
told = []
handler = logging.Handler()
handler.emit = lambda record: told.append(f"{record.levelname}: {record.getMessage()}")
def cli(*words):
    out, err, sys.argv, code = io.StringIO(), io.StringIO(), ["sasrec", *words], 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return [code, out.getvalue(), err.getvalue()]
for line in sys.stdin:
    told.clear()
    logging.getLogger("sasrec").handlers = [handler]
    logging.getLogger("sasrec").setLevel(logging.INFO)
    try:
        answer = {"value": eval(json.loads(line))}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({**answer, "told": list(told)}), file=answers, flush=True)
"""


class RefusedError(Exception):
    """What the process raised, as "CheckpointError: ..."."""


class Worker:
    """Evaluates expressions in a process with the address of a Hub in HF_ENDPOINT."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.told = process, list[str]()

    def do(self, expression: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(expression) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.told = answer["told"]
        if "error" in answer:
            raise RefusedError(answer["error"])
        return answer["value"]


def environment_of(hub: FakeHub, home: Path, **more: str) -> dict[str, str]:
    """Of a process that uses this Hub as its owner, with a cache in a folder of its own."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": OWNER, "HF_HUB_DISABLE_XET": "1"}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **own, **quiet, **more}


@contextlib.contextmanager
def working(hub: FakeHub, home: Path, **more: str) -> Iterator[Worker]:
    """The process while it runs."""
    environment = environment_of(hub, home, **more)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Worker(process)
        finally:
            process.kill()

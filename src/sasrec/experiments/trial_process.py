"""A process that trains trials of a search: `python -m sasrec.experiments.trial_process LOG METRIC`.

LOG is a prepared folder. On stdin come a line for each trial, and one for each epoch that was told: whether to end the
trial. It ends with its stdin, so it never outlives the search.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from sasrec.core.errors import SASRecError
from sasrec.data.logs import load_log
from sasrec.experiments.trial_workers import TrialJob, train_trial
from sasrec.training.progress import Progress


class _Parent:
    """The search, at the other end of two pipes."""

    def __init__(self, heard: IO[str], told: IO[str]) -> None:
        self.lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.told, self.heard = told, heard
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.heard:
            self.lines.put(json.loads(line))
        os._exit(0)  # the search has ended, and with it what this process does

    def tell(self, **what: Any) -> None:
        self.told.write(json.dumps(what) + "\n")
        self.told.flush()

    def report(self, epoch: int, value: float) -> bool:
        self.tell(epoch=epoch, value=value)
        return bool(self.lines.get())

    def show(self, progress: Progress) -> None:
        self.tell(progress=asdict(progress))


def main() -> None:
    """Train what comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which the search hears too
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not for the search
    parent = _Parent(sys.stdin, told)
    log, metric = load_log(Path(sys.argv[1])), sys.argv[2]
    while True:
        job = TrialJob(**parent.lines.get())
        try:
            end = train_trial(log, job, metric, parent.report, parent.show)
        except SASRecError as error:
            parent.tell(refused=str(error))
        else:
            parent.tell(end=asdict(end))


if __name__ == "__main__":
    main()

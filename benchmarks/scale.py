"""A log like Steam's: wall seconds and peak memory of `sasrec prepare`, and memory from epoch to epoch of training.

Without --data the log is made by synthetic.py. Training runs on the prepared folder, with validation, as
`sasrec train` does; --max-steps bounds its epochs by keeping only as many users as they need.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import harness
from harness import Answer, BenchmarkError, Session

EPOCHS = 5


def main(argv: Sequence[str] | None = None) -> None:
    flags = harness.parser(__doc__, needs_data=False)
    flags.set_defaults(engine="torch")
    flags.add_argument("--epochs", type=int, default=EPOCHS, help="training epochs")
    flags.add_argument("--max-steps", type=int, default=None, help="bound each epoch, for a quick look")
    arguments = flags.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(arguments.data or Path(temporary) / "synthetic.txt")
        if arguments.data is None:
            subprocess.run([sys.executable, str(harness.HERE / "synthetic.py"), str(log)], check=True)
        folders = [Path(temporary) / str(number) / log.stem for number in range(arguments.repeats)]
        prepared = [prepare(log, folder, arguments.threads or harness.usable_cpus()) for folder in folders]
        arguments.data = str(folders[0])
        with Session(arguments) as session:
            peak = max(answer["peak_rss_mib"] for answer in prepared)
            session.print_line("prepare", {**harness.summary(prepared, "s"), "peak_rss_mib": peak}, None)
            answer = session.ours.ask("train_epochs", epochs=arguments.epochs, max_steps=arguments.max_steps)
            session.print_line("memory after each epoch", _memory(answer, arguments.max_steps), None)


def prepare(log: Path, folder: Path, threads: int) -> Answer:
    """Wall seconds, start of the interpreter included, and peak memory of one `sasrec prepare`."""
    command = [sys.executable, "-m", "sasrec", "--quiet", "prepare", str(log), "--output", str(folder)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=harness.environment(threads))
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BenchmarkError(f"sasrec prepare {log} ended with exit code {process.returncode}")
    return {"value": seconds, "peak_rss_mib": usage.ru_maxrss / 1024}


def _memory(answer: Answer, max_steps: int | None) -> Answer:
    """Resident memory after each epoch, and how far the largest is above the smallest."""
    rss = answer["rss_mib"]
    return {
        **harness.spread(rss),
        "unit": "MiB",
        "runs": rss,
        "growth": max(rss) / min(rss) - 1,
        "peak_rss_mib": answer["peak_rss_mib"],
        "epoch_seconds": answer["seconds"],
        "max_steps": max_steps,
    }


if __name__ == "__main__":
    harness.run(main)

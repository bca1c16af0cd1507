"""Wall seconds from the start of `sasrec train` to the first model, chosen by valid, that is good enough on test.

The clock starts before the process does: imports, reading the log, validation and the choice of the epoch all count.
Test metrics are logged beside the valid ones and choose nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
from harness import Answer, BenchmarkError, Session

LOOK_SECONDS = 0.02  # how often the history is looked at


def main(argv: Sequence[str] | None = None) -> None:
    flags = harness.parser(__doc__)
    flags.set_defaults(repeats=3)
    flags.add_argument("--seeds", dest="repeats", type=int, help="seeds 0, 1, ...: the same as --repeats")
    flags.add_argument("--ndcg", type=float, required=True, help="test NDCG@10 to reach")
    flags.add_argument("--hr", type=float, required=True, help="test HR@10 to reach")
    flags.add_argument("--max-seconds", type=float, default=900, help="give up after so long")
    arguments = flags.parse_args(argv)
    with Session(arguments) as session:
        pass  # what this side is: engine, settings, versions
    goal = {"ndcg@10": arguments.ndcg, "hr@10": arguments.hr}
    runs, metric = [], session.ours.about["settings"]["valid_metric"]
    for seed in range(arguments.repeats):
        runs.append(train_until(goal, _command(seed, session), metric, session.threads, arguments.max_seconds))
        print(f"seed {seed}: {runs[-1]['value']:.1f} s, epoch {runs[-1]['epoch']}", file=sys.stderr)
    ours = {**harness.summary(runs, "s"), "epochs": [run["epoch"] for run in runs], "goal": goal}
    session.print_line("time to quality", ours, None)


def train_until(goal: dict[str, float], command: list[str], metric: str, threads: int, max_seconds: float) -> Answer:
    """Seconds until the best epoch so far by the valid metric reaches the goal on test, and that epoch's figures.

    Args:
        goal: what the test metrics have to be, by name.
        command: trains and logs test metrics; the output folder is added to it.
        metric: the valid metric that chooses the epoch.
        threads: of the process.
        max_seconds: give up after so long.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--output", str(run)],
            env=harness.environment(threads),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            best: dict[str, Any] = {}
            for line in _lines(run / "history.jsonl", process, began + max_seconds):
                if not best or line["valid"][metric] > best["valid"][metric]:
                    best = line
                if all(best["test"][name] >= value for name, value in goal.items()):
                    return {"value": time.perf_counter() - began, "epoch": best["epoch"], "metrics": best["test"]}
        finally:
            process.kill()
            errors = process.communicate()[1]
    reached = {name: round(best["test"][name], 4) for name in goal} if best else errors[-500:]
    raise BenchmarkError(f"{goal} was not reached; the best epoch by valid had {reached}")


def _command(seed: int, session: Session) -> list[str]:
    settings = {**dict(map(harness.setting, session.arguments.set)), "seed": seed, "engine": session.arguments.engine}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return [
        *(sys.executable, "-m", "sasrec", "train", session.arguments.data),
        *("--preset", session.arguments.preset, "--threads", str(session.threads), "--log-test", *flags),
    ]


def _lines(history: Path, process: subprocess.Popen[str], deadline: float) -> Iterator[dict[str, Any]]:
    """The validated epochs of a history as they are written, until training ends or time is up."""
    seen = 0
    while True:
        ended = process.poll() is not None
        complete = history.read_bytes().splitlines(keepends=True) if history.exists() else []
        for text in complete[seen:]:
            if not text.endswith(b"\n"):
                break
            seen += 1
            line = json.loads(text)
            if "valid" in line:
                yield line
        if ended or time.perf_counter() > deadline:
            return
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    harness.run(main)

"""How reading and training grow with a log: time and peak memory of reading by events, of a step by items and length.

Made logs (made_log.py) are kept in --folder and made once. Each point is a process of its own, so that its peak memory
is its own. Points are printed as JSON lines when they are there, so a run that is cut short still tells; --plot draws
them. A point that is in --results already is not measured again.

    reading: `sasrec prepare` of 100 Parquet files with --memory; users are a tenth of the events, items at most 1 M.
    steps:   the preset's steps on a log of 3 M events, mean over --steps after 256 others, by items and by length.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
from made_log import Made, write

WARM_UP = 256  # steps: by then each row has waited as long as rows do
USERS_SHARE, MOST_ITEMS, FILES = 10, 1_000_000, 100
Point = dict[str, Any]


def reading(folder: Path, n_events: int, memory: str) -> Point:
    """Wall seconds and peak memory of `sasrec prepare`."""
    log = made(folder, n_events, n_events // USERS_SHARE, min(MOST_ITEMS, n_events // USERS_SHARE), FILES)
    command = [sys.executable, "-m", "sasrec", "--quiet", "prepare", str(log), "--output", f"{log}-prepared"]
    began = time.perf_counter()
    peak = run([*command, "--overwrite", "--memory", memory])
    seconds = time.perf_counter() - began
    return {"events": n_events, "seconds": seconds, "events_per_second": n_events / seconds, "peak_mib": peak}


def run(command: Sequence[str]) -> float:
    """Run a command; its peak memory in MiB."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return usage.ru_maxrss / 1024


def made(folder: Path, n_events: int, n_users: int, n_items: int, n_files: int = 1) -> Path:
    """A made log of these sizes in the folder."""
    log = folder / f"log-{n_events}-{n_users}-{n_items}"
    if not log.exists():
        write(Made(n_events, n_users, n_items, n_files), log.with_name(f"{log.name}.part"), "parquet")
        log.with_name(f"{log.name}.part").rename(log)
    return log


def steps(given: argparse.Namespace, n_items: int, length: int) -> Point:
    """Milliseconds of a step and peak memory, measured in a process of its own."""
    log = made(given.folder, int(given.step_events), int(given.step_events) // length, n_items)
    child = [sys.executable, str(Path(__file__).resolve()), "--child", str(log), "--preset", given.preset]
    child += ["--steps", str(given.steps), "--warm-up", str(given.warm_up)]
    child += [word for one in given.set for word in ("--set", one)]
    told = subprocess.run(child, stdout=subprocess.PIPE, check=True, text=True).stdout
    return {"items": n_items, "length": length, **json.loads(told)}


def measured_steps(log: Path, preset: str, settings: Mapping[str, Any], n_steps: int, warm_up: int) -> Point:
    """Train so many steps after a warm-up."""
    import sasrec.fitting as fitting
    from sasrec.core.threads import set_threads
    from sasrec.data.batches import TrainBatches
    from sasrec.data.logs import load_log
    from sasrec.training.steps import take_step

    told = load_log(str(log))
    split, config = fitting.configure(told, preset, settings)
    engine = fitting.engine_for(config, split, told.vocabulary, None)
    set_threads(engine.threads)
    batches, train = TrainBatches(split, config.model, config.train), config.train
    seconds, n, epoch = 0.0, 0, 0
    while n < warm_up + n_steps:
        for batch in batches.epoch(epoch):
            began = time.perf_counter()
            take_step(engine, batch, train, batches.steps_per_epoch)
            seconds += (time.perf_counter() - began) * (n >= warm_up)
            n += 1
            if n >= warm_up + n_steps:
                break
        epoch += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"n_items": told.sequences.n_items, "batch_size": train.batch_size, "dim": config.model.embedding_dim}
    found["n_negatives"] = train.n_negatives
    return {**found, "ms_per_step": 1000 * seconds / n_steps, "peak_mib": peak}


class Points:
    """What has been measured, in a file of lines.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines: list[Point] = []
        if path is not None and path.exists():
            self.lines = [json.loads(line) for line in path.read_text().splitlines()]

    def add(self, key: Point, measure: Callable[[], Point]) -> None:
        """Measure a point, unless it is there."""
        known = next((line for line in self.lines if key.items() <= line.items()), None)
        if known is None:
            known = {**key, **measure()}
            self.lines.append(known)
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps(known) + "\n")
        print(json.dumps(known), flush=True)


def draw(points: Sequence[Point], path: Path) -> None:
    """Four curves; what is at the left is logarithmic, and the lower ends of times are 0."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(9, 6), layout="constrained")
    wanted: tuple[tuple[str, str, str, Callable[[Point], float]], ...] = (
        ("reading", "events", "sasrec prepare: microseconds an event", lambda p: 1e6 * p["seconds"] / p["events"]),
        ("reading", "events", "sasrec prepare: peak memory, MiB", lambda p: p["peak_mib"]),
        ("items", "n_items", "a step: ms for 128 users", lambda p: p["ms_per_step"] * 128 / p["batch_size"]),
        ("length", "length", "a step: ms for 128 users", lambda p: p["ms_per_step"] * 128 / p["batch_size"]),
    )
    for ax, (kind, x, title, y) in zip(figure.subplots(2, 2).flat, wanted, strict=True):
        mine = sorted((p[x], y(p)) for p in points if p["kind"] == kind)
        ax.plot([a for a, _ in mine], [b for _, b in mine], "o-", color="#0b6bcb")
        ax.set_xscale("log")
        ax.set_xlabel({"events": "events", "n_items": "items that have events", "length": "events a user"}[x])
        ax.set_xticks([a for a, _ in mine], [f"{a:,}" for a, _ in mine])
        ax.minorticks_off()
        ax.set_ylim(0, 1.15 * max(b for _, b in mine))
        ax.set_title(title, fontsize="medium", loc="left")
        ax.grid(color="#dde3ea")
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the points that are not there yet."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    flags.add_argument("--folder", type=Path, help="where made logs are kept")
    flags.add_argument("--events", default="1e6,1e7,1e8", help="of the logs that are read")
    flags.add_argument("--items", default="1e4,1e5,1e6", help="of the logs that are trained on")
    flags.add_argument("--lengths", default="10,50,200", help="events a user, on the fewest items")
    flags.add_argument("--step-events", type=float, default=3e6, help="of the logs that are trained on")
    flags.add_argument("--memory", default="4GB", help="of reading")
    flags.add_argument("--preset", default="best")
    flags.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of training")
    flags.add_argument("--steps", type=int, default=512)
    flags.add_argument("--warm-up", type=int, default=WARM_UP, help="steps before these")
    flags.add_argument("--results", type=Path, help="a file for the points, which are not measured again")
    flags.add_argument("--plot", type=Path, help="a picture to write, such as scale.svg")
    flags.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = flags.parse_args(argv)
    settings = dict(map(harness.setting, given.set))
    if given.child is not None:
        print(json.dumps(measured_steps(given.child, given.preset, settings, given.steps, given.warm_up)))
        return
    if given.folder is None:
        flags.error("--folder is needed: the made logs are kept there")
    points = Points(given.results)
    for n in numbers(given.events):
        points.add(
            {"kind": "reading", "events": n, "memory": given.memory}, lambda n=n: reading(given.folder, n, given.memory)
        )
    for n in numbers(given.items):
        key = {"kind": "items", "items": n, "preset": given.preset, "settings": settings}
        points.add(key, lambda n=n: steps(given, n, 10))
    for n in numbers(given.lengths):
        key = {"kind": "length", "length": n, "preset": given.preset, "settings": settings}
        points.add(key, lambda n=n: steps(given, min(numbers(given.items)), n))
    if given.plot is not None:
        draw(points.lines, given.plot)


def numbers(text: str) -> list[int]:
    """The whole numbers of a list such as 1e6,1e7."""
    return [int(float(part)) for part in text.split(",") if part]


if __name__ == "__main__":
    main()

"""A program that is killed again and again: before each rename, flush, removal and new folder.

`python killed.py KIND FOLDER STEP` starts a process that trains (or whatever KIND says) and kills itself just before
the n-th of these calls, for n = 1, 1 + STEP, ... until one goes through. After each kill a second process goes on: with
resume, else plainly, else with overwrite. For each kill it prints a line of JSON that says how that went.

Processes are forked from one that has imported the package and has not used it: that takes a third of the time.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from conftest import make_markov_log
from made import SETTINGS

import sasrec
from sasrec.core import digests
from sasrec.core.errors import SASRecError
from sasrec.data.logs import Log
from sasrec.data.sequences import build_sequences
from sasrec.experiments.grid import Grid, run_benchmark
from sasrec.experiments.seeds import run_study
from sasrec.export.all_users import recommend_all
from sasrec.fitting import FitOptions, fit_log
from sasrec.runs.digests import verify
from sasrec.runs.folder import RunFolder
from sasrec.runs.lock import replaced_by
from sasrec.training import trainer

CALLS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "fsync"}
MODES: list[dict[str, bool]] = [{"resume": True}, {}, {"overwrite": True}]
SMALL = {**SETTINGS, "save_every_minutes": 1e-9}


def made_log(seed: int = 0) -> Log:
    return Log(*build_sequences(make_markov_log(60, seed=seed)), "made")


def train(output: Path, **mode: bool) -> None:
    fit_log(made_log(), FitOptions(output=output, **mode), SMALL)


def refit(output: Path, **mode: bool) -> None:
    fit_log(made_log(), FitOptions(output=output, refit=True, report=False, **mode), SMALL)


def warm(output: Path, **mode: bool) -> None:
    """A training that begins from `yesterday`."""
    init = output.parent / "model"
    fit_log(made_log(), FitOptions(output=output, report=False, init=init, **mode), SMALL)


def yesterday(output: Path) -> None:
    """The run of a log that lacks the newest events, and an item."""
    log = make_markov_log(60).group_by("user_id", maintain_order=True).head(9).filter(pl.col("item_id") != 7)
    fit_log(Log(*build_sequences(log), "yesterday"), FitOptions(output=output, report=False), SMALL)


def study(output: Path, **mode: bool) -> None:
    run_study(made_log(), FitOptions(output=output, report=False, **mode), {**SMALL, "max_epochs": 1}, [3, 4])


def benchmark(output: Path, **mode: bool) -> None:
    grid = Grid(("paper",), ("leave_one_out",), ("full",), (3, 4))
    run_benchmark(made_log(), grid, FitOptions(output=output, report=False, **mode), {**SMALL, "max_epochs": 1})


def bulk(output: Path, **mode: bool) -> None:
    if mode.get("overwrite") or mode.get("resume"):
        raise SASRecError("the same call goes on")
    output.mkdir(exist_ok=True)
    recommend_all(sasrec.load(output.parent / "model"), output / "lists.csv", 3, part_users=20)


def replace(output: Path, **mode: bool) -> None:
    """Another run is there, and gives way."""
    fit_log(made_log(), FitOptions(output=output, report=False, **(mode or {"overwrite": True})), SMALL)


def old(output: Path) -> None:
    """The run that `replace` replaces."""
    fit_log(made_log(1), FitOptions(output=output, report=False), SMALL)


KINDS: dict[str, Callable[..., None]] = {
    "train": train, "refit": refit, "warm": warm, "study": study, "benchmark": benchmark, "bulk": bulk,
    "replace": replace,
}  # fmt: skip


BEFORE: dict[str, Callable[[Path], None]] = {"bulk": train, "warm": yesterday}  # what makes the model that a kind needs


def in_a_process(body: Callable[[], object]) -> tuple[int, str]:
    """Run in a fork; its exit status and what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        code, told = 0, ""
        try:
            told = json.dumps(body())
        except SASRecError as error:
            code, told = 1, str(error)
        except BaseException as error:
            code, told = 2, repr(error)
        os.write(writing, told.encode())
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


def kill_before(number: int) -> None:
    """From now on, count the calls that change what lies on disk, and die before the n-th."""
    count, plain = 0, os.fsync

    def called(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in CALLS or (event == "os.remove" and not _exists(*arguments)):
            return
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(file: int) -> None:
        called("fsync", ())
        plain(file)

    os.fsync = counted
    sys.addaudithook(called)


def _exists(path: str | bytes | os.PathLike[str], folder: int) -> bool:
    return folder != -1 or os.path.lexists(path)


def trained(folder: Path) -> dict[str, Any]:
    """All that must be the same whether or not a process was killed."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in ("model.safetensors", "items.parquet", "lists.csv") or path.parent.name == "sequences":
            found[name] = digests.digest_of(path).blake2b
        elif path.name == "history.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [[line["epoch"], round(line["train_loss"], 9), line["valid"]] for line in lines]
        elif path.name in ("metrics.json", "summary.json"):
            found[name] = json.loads(path.read_text())["results"]
        elif path.name == "results.jsonl":
            found[name] = [json.loads(line)["metrics"] for line in path.read_text().splitlines()]
        elif path.is_file() and path.name in ("report.html", "README.md", "summary.md", "study.json", "benchmark.json"):
            found[name] = True
        elif path.name.startswith("."):
            found[name] = "left over"
    beside = [path.name for path in folder.parent.iterdir() if path.name.startswith(f".{folder.name}")]
    whole = [verify(RunFolder.open(path.parent)) for path in sorted(folder.rglob("config.json"))]
    return {**found, "beside": beside, "whole": whole}


def wrong(kind: str, folder: Path) -> list[str]:
    """What must not be so after a kill."""
    for path in (folder, replaced_by(folder)):
        try:
            config, run = sasrec.load(path).config, RunFolder(path)
        except SASRecError:
            continue
        if run.has_refit(dataclasses.replace(config, refit_epochs=1)) and not config.refit_epochs:
            return ["a model that has seen the targets can be measured"]
        return []
    return ["neither the old run nor the new one can be loaded"] if kind == "replace" else []


def go_on(kind: str, folder: Path) -> tuple[str, list[str]]:
    """Try to go on until it works; by which mode, and what the others said."""
    said = []
    for mode in MODES:
        code, told = in_a_process(lambda mode=mode: KINDS[kind](folder, **mode))
        if not code:
            return next(iter(mode), "plain"), said
        said.append(told if code == 1 and "\n" not in told else f"{code} {told!r}")
    return "nothing", said


def main(kind: str, scratch: Path, step: int) -> None:
    logging.disable()
    trainer.REPORT_SECONDS = trainer.SAVE_SECONDS = 0.0
    body = KINDS[kind]
    if kind in BEFORE:
        in_a_process(lambda: BEFORE[kind](scratch / "model"))
    reference = scratch / "reference"
    _, told = in_a_process(lambda: (body(reference), trained(reference))[1])
    wanted = json.loads(told)
    for number in range(1, 10_000, step):
        folder = scratch / f"kill-{number}"
        if kind == "replace":
            in_a_process(lambda folder=folder: old(folder))

        def killed(folder: Path = folder, number: int = number) -> None:
            kill_before(number)
            body(folder)

        code, told = in_a_process(killed)
        if code == 0:
            print(json.dumps({"calls": number - 1}), flush=True)
            return
        at_once = json.loads(in_a_process(lambda folder=folder: wrong(kind, folder))[1])
        mode, said = go_on(kind, folder)
        code_after, told = in_a_process(lambda folder=folder: trained(folder))
        found = json.loads(told) if not code_after else {"error": told}
        differs = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        line = {"number": number, "code": code, "mode": mode, "said": said, "differs": differs, "wrong": at_once}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

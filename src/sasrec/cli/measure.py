"""The commands that look at runs: evaluate, compare and info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from sasrec.cli import console
from sasrec.cli.flags import (
    Json,
    Run,
    Split,
    settings_of,
    with_flags,
)
from sasrec.cli.output import print_json, print_text
from sasrec.core.errors import ConfigError
from sasrec.data.logs import load_log
from sasrec.data.prepared import ITEMS, understanding_of
from sasrec.engine.protocol import environment
from sasrec.evaluation.comparison import compare_all
from sasrec.experiments.seeds import run_folders
from sasrec.recommender import load
from sasrec.report.item_facts import item_facts
from sasrec.report.text import metrics_table
from sasrec.runs.digests import verify
from sasrec.runs.folder import RunFolder
from sasrec.runs.memory import Memory

OtherLog = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        help="measure on this log in place of the run's own: anything that train takes; repeat it for several files",
    ),
]


@with_flags("eval")
def evaluate(
    context: typer.Context,
    run: Run,
    split: Split = "test",
    log: OtherLog = None,
    candidates: Annotated[
        Path | None,
        typer.Option("--candidates", help="file of items to rank among, not drawn ones: .npz, or users and items"),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="the same as --eval-seed")] = None,
    json_: Json = False,
    **given: Any,
) -> None:
    """Measure a run on valid or test, beside the baselines popularity and last item.

    Settings that are not given are those of the run. With --log, targets that the run was trained on are left out, and
    items that it does not know rank last.
    """
    settings = settings_of(given, None)
    if seed is not None:
        settings["eval_seed"] = seed
    if candidates is not None:
        settings["protocol"] = "sampled"
    with console.RankingDisplay(quiet=context.obj["quiet"]) as display:
        result = load(run).evaluate(split, log=log or None, candidates=candidates, progress=display.update, **settings)
    if json_:
        print_json(result.to_dict())
    else:
        print_text(metrics_table([result]))


@with_flags("eval")
def compare_(
    context: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="two or more run folders, or folders of train --seeds")],
    split: Split = "test",
    log: OtherLog = None,
    pairs: Annotated[
        Literal["first", "all"], typer.Option("--pairs", help="compare each with the first, or all pairs")
    ] = "first",
    json_: Json = False,
    **given: Any,
) -> None:
    """Compare runs on the same targets with a paired test over users.

    A folder of several seeds counts as one side: the mean over its runs for each user.
    With more than two sides, p-values are also corrected for the number of comparisons (Holm).
    Settings that are not given are those of the runs. With --log, the runs may be of different logs: all are measured
    on this one, without targets that any of them was trained on; items that a run does not know rank last.
    """
    settings = settings_of(given, None)
    names = [str(side) if side not in runs[:i] else f"{side} ({i + 1})" for i, side in enumerate(runs)]
    folders = {name: run_folders(side) for name, side in zip(names, runs, strict=True)}
    everyone = [run for side in folders.values() for run in side]
    if log:
        settings |= {"log": load_log(log), "unseen_by": [Memory.of(run) for run in everyone]}
    else:
        _check_same_log(everyone)
    with console.RankingDisplay(quiet=context.obj["quiet"]) as display:
        settings |= {"baselines": False, "progress": display.update}
        sides = {name: [load(run).evaluate(split, **settings) for run in runs_of] for name, runs_of in folders.items()}
    comparisons = compare_all(sides, pairs)
    if json_:
        told = [comparison.to_dict() for comparison in comparisons]
        print_json(told[0] if len(runs) == 2 else {"comparisons": told})
    else:
        print_text("\n\n".join(comparison.to_text() for comparison in comparisons))


def _check_same_log(runs: list[Path]) -> None:
    logs = {run: RunFolder.open(run).load_config().data.fingerprint for run in runs}
    other = next((run for run in runs if logs[run] != logs[runs[0]]), None)
    if other is not None:
        raise ConfigError(
            f"{runs[0]} and {other} were trained on different logs, so their users cannot be paired; --log gives "
            "one to measure both on"
        )


def info(
    run: Annotated[Path | None, typer.Argument(help="a run folder, or hf://user/model@REVISION")] = None,
    verify_: Annotated[
        bool, typer.Option("--verify", help="read RUN from end to end, and compare each file with its digest")
    ] = False,
    json_: Json = False,
) -> None:
    """Show versions, CPUs and engine; with a run folder, also its settings and how its log was read."""
    facts: dict[str, Any] = dict(environment())
    if verify_ and run is None:
        raise ConfigError("--verify reads a run folder; give one")
    if run is not None:
        folder = RunFolder.open(run)
        config, read = folder.load_config(), understanding_of(folder.path)
        facts["run"] = json.loads(config.to_json())
        if read is not None:
            facts["log"] = read.lines(config.data.n_events, config.data.n_users, config.data.n_items)[:2]
        items = item_facts(folder.load_vocabulary()) if (folder.path / ITEMS).exists() else None
        if items is not None:
            facts["items"] = items.to_dict()
        if verify_:
            facts["verified"] = verify(folder)
    if json_:
        print_json(facts)
        return
    typer.echo(yaml.safe_dump(facts, sort_keys=False, default_flow_style=False).rstrip())

"""The command that searches settings: tune."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sasrec.cli.flags import (
    ConfigFile,
    Json,
    Logs,
    NoHistories,
    On,
    Output,
    Overwrite,
    PresetName,
    settings_of,
    split_reading,
    with_flags,
)
from sasrec.cli.output import print_json, print_text
from sasrec.cli.settings_file import read_settings
from sasrec.cli.train import load_with_progress, say_interrupted, seeds_from, watched
from sasrec.cluster.connection import check_place, connected
from sasrec.cluster.tune import ClusterTrainers
from sasrec.core.config import OF_INIT
from sasrec.core.presets import DEFAULT_PRESET
from sasrec.core.provenance import command_line
from sasrec.experiments.search import beside, search
from sasrec.experiments.search_pages import in_words
from sasrec.experiments.search_trials import SearchPlan
from sasrec.fitting import FitOptions


@with_flags("model", "train", "eval", reading=True, without=("max_minutes", *OF_INIT))
def tune(
    context: typer.Context,
    log: Logs,
    output: Output,
    preset: PresetName = DEFAULT_PRESET,
    trials: Annotated[int, typer.Option("--trials", min=1, help="settings tried, the preset's first")] = 50,
    space: Annotated[
        Path | None,
        typer.Option(
            "--space",
            help="YAML file of what is tried: 'dropout: 0.1..0.6', 'learning_rate: 1e-4..1e-2 log', "
            "'embedding_dim: [64, 128]'; default: around the preset's values",
        ),
    ] = None,
    max_minutes: Annotated[
        float, typer.Option("--max-minutes", min=0.0, help="bound of the whole command; 0 = no limit")
    ] = 0.0,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            min=1,
            help="runs of the winner and of the untouched preset at the end",
            rich_help_panel="Training",
        ),
    ] = 3,
    on: On = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="trials at a time, each in a process of its own with its share of the threads; default: 1, with --on "
            "one for each CPU",
            rich_help_panel="Cluster",
        ),
    ] = None,
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the search in --output")] = False,
    overwrite: Overwrite = False,
    no_histories: NoHistories = False,
    json_: Json = False,
    **given: Any,
) -> None:
    """Search settings with Optuna, chosen on valid, and say whether the winner is better than the untouched preset.

    The first trial is the preset. Trials below the others are ended early. At the end the winner and the preset are
    trained over several seeds, and their difference on test is tested over users.
    Settings that are given are fixed. Ctrl-C keeps all trials; --resume goes on.
    """
    began = time.monotonic()
    check_place(on, None if on is None else workers)
    cluster = None if on is None else context.with_resource(connected(on, workers))
    trainers = beside(workers or 1) if cluster is None else partial(ClusterTrainers, cluster)
    reading, flags = split_reading(given)
    read, settings = load_with_progress(context, log, reading, output, cluster=cluster), settings_of(flags, config)
    tried = None if space is None else read_settings(space)
    plan = SearchPlan(preset, trials, tried, tuple(seeds_from(settings, seeds)), max_minutes)
    options = FitOptions(
        output=output, resume=resume, overwrite=overwrite, histories=not no_histories, began=began
    )  # fmt: skip
    with watched(output, quiet=context.obj["quiet"]) as watch:
        command = command_line("sasrec")
        result = search(read, plan, options, settings, command=command, watch=watch, trainers=trainers)
    if result is None:
        say_interrupted("stopped")
    if json_:
        print_json(result.to_dict())
        return
    print_text(in_words(result, preset))
    if result.comparison is not None:
        print_text(f"\n{result.comparison.to_text()}")
    typer.echo(f"\nsummary: {output / 'summary.md'}; settings for train --config: {output / 'best.yaml'}")

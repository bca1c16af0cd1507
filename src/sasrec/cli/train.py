"""The commands that read logs: prepare, inspect, train, benchmark and demo; and datasets, for those known by name."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer

from sasrec.cli import console
from sasrec.cli.flags import (
    ConfigFile,
    Json,
    Logs,
    NoHistories,
    On,
    Output,
    Overwrite,
    PresetName,
    Workers,
    names,
    settings_of,
    split_reading,
    with_flags,
)
from sasrec.cli.output import estimate_lines, names_of, print_facts, print_frame, print_json, print_text
from sasrec.cluster.connection import Cluster, check_place, connected
from sasrec.cluster.prepare import ClusterWorkers
from sasrec.cluster.train import Ended, TrainingJob, train_on
from sasrec.core.config import OF_INIT, Protocol, SplitMethod, TrainConfig
from sasrec.core.errors import ConfigError
from sasrec.core.presets import DEFAULT_PRESET, PRESETS
from sasrec.core.provenance import command_line
from sasrec.core.world import World, is_first, together
from sasrec.data.bounded import Workplace
from sasrec.data.logs import Log, Reading, load_log
from sasrec.engine.distributed import joined
from sasrec.estimating import estimate
from sasrec.evaluation.results import Result
from sasrec.experiments.grid import Grid, lines_of, run_benchmark
from sasrec.experiments.grid_tables import benchmark_text
from sasrec.experiments.seeds import Watch, read_runs, run_study
from sasrec.experiments.summary import summarise, summary_text
from sasrec.fitting import FitOptions, fit_log
from sasrec.reading.datasets import DATASETS, unknown_dataset
from sasrec.reading.sources import STDIN
from sasrec.report.inspection import inspect_log
from sasrec.report.text import metrics_table
from sasrec.runs.folder import RunFolder
from sasrec.runs.spool import spool
from sasrec.tracking.backends import BACKENDS
from sasrec.tracking.tracker import trackers
from sasrec.training.progress import duration
from sasrec.training.result import INTERRUPTED, TrainResult

TOLD_BY_INSPECT = ("sasrec.reading.notes", "sasrec.data.logs", "sasrec.data.sequences")  # loggers whose words it prints


@with_flags(reading=True)
def prepare(
    context: typer.Context,
    log: Logs,
    output: Output,
    overwrite: Overwrite = False,
    on: On = None,
    workers: Workers = None,
    json_: Json = False,
    **given: Any,
) -> None:
    """Read a log once and write a folder that train loads without parsing."""
    check_place(on, workers)
    cluster = None if on is None else context.with_resource(connected(on, workers))
    read = load_with_progress(context, log, split_reading(given)[0], output, cluster=cluster)
    with RunFolder.claim(output, overwrite=overwrite) as folder:
        folder.save_data(read.vocabulary, read.sequences)
        folder.forget_replaced()
    print_facts(read.sequences, json_)


def load_with_progress(
    context: typer.Context,
    log: list[str],
    reading: Reading,
    output: Path,
    world: World | None = None,
    cluster: Cluster | None = None,
) -> Log:
    """Read a log; what does not fit in --memory, or is read by a cluster, lies beside the output until the end."""
    if world is not None:
        return together(world, lambda: load_log(log, reading))
    place, readers = context.with_resource(spool(output)), None
    if cluster is not None:
        cluster.check(place.folder())
        readers = ClusterWorkers(cluster)
    with console.ReadingDisplay(quiet=context.obj["quiet"]) as display:
        return load_log(log, reading, Workplace(place.folder, display.update, readers))


@with_flags(reading=True, without=("memory",))
def inspect(log: Logs, json_: Json = False, **given: Any) -> None:
    """Show how a log is read, what it is like and what is odd about it. Nothing is written.

    Takes the flags of reading that train takes, and ends with the command to train.
    """
    reading = split_reading(given)[0]
    with console.silenced(*TOLD_BY_INSPECT):
        found = inspect_log(load_log(log, reading), log, reading)
    if json_:
        print_json(found.to_dict())
    else:
        typer.echo(found.to_text())


@with_flags("model", "train", "eval", reading=True)
def train(
    context: typer.Context,
    log: Logs,
    output: Output,
    preset: PresetName = DEFAULT_PRESET,
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --output")] = False,
    overwrite: Overwrite = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="afterwards train again on all events, for the number of epochs that valid chose",
            rich_help_panel="Training",
        ),
    ] = False,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            help="the run to begin from: its weights and settings of the model, for the items of this log; items that "
            "are new start at what stands around them",
            rich_help_panel="Training",
        ),
    ] = None,
    no_histories: NoHistories = False,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            min=1,
            help="train this many runs, with --seed and the numbers after it, and write a summary",
            rich_help_panel="Training",
        ),
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="write nothing: read the log, try a few steps and some ranking, and print how much memory and time "
            "the training would take",
        ),
    ] = False,
    track: Annotated[
        str | None,
        typer.Option(
            "--track",
            help="keep settings, curves, metrics and report in a tracker: mlflow, wandb, trackio, tensorboard; several "
            "are separated by commas",
            rich_help_panel="Tracking",
            autocompletion=names(BACKENDS),
        ),
    ] = None,
    track_project: Annotated[
        str | None,
        typer.Option(
            "--track-project", help="the tracker's experiment or project; default: sasrec", rich_help_panel="Tracking"
        ),
    ] = None,
    on: On = None,
    workers: Workers = None,
    json_: Json = False,
    **given: Any,
) -> None:
    """Train a model on a log and write a run folder with its results and a report.

    The epoch is chosen on valid. Test is measured once, at the end.
    Settings that are not given come from the preset; those that it leaves open have the defaults shown.
    """
    began = time.monotonic()
    reading, flags = split_reading(given)
    check_place(on, workers)
    callbacks = trackers(track, track_project)
    if on is not None:
        _check_alone(reading, seeds, dry_run, "leave out --on")
        options = FitOptions(preset, output.absolute(), resume, overwrite, refit, not no_histories, init=init)
        options = replace(options, callbacks=callbacks)
        job = TrainingJob(log, reading, options, settings_of(flags, config), Path.cwd(), time.monotonic() - began)
        _train_on(context.obj["quiet"], on, workers, job, json_)
        return
    with joined() as world:
        if not is_first(world):
            console.only_errors()
        if world is not None:
            _check_alone(reading, seeds, dry_run, "start it without torchrun")
        read = load_with_progress(context, log, reading, output, world)
        settings = settings_of(flags, config)
        options = FitOptions(
            preset, output, resume, overwrite, refit, not no_histories, init=init, began=began, world=world
        )
        options = replace(options, callbacks=callbacks)
        if dry_run:
            found = estimate(read, options, settings)
            print_json(found.to_dict()) if json_ else print_text("\n".join(estimate_lines(found)))
            return
        if seeds > 1:
            _train_seeds(context, read, options, settings, seeds, json_)
            return
        with console.TrainingDisplay(quiet=context.obj["quiet"] or not is_first(world)) as display:
            recommender = fit_log(read, options, settings, display.update if is_first(world) else None)
    assert recommender.train_result is not None
    _tell(recommender.train_result, recommender.results, output, json_, is_first(world))


def _check_alone(reading: Reading, seeds: int, dry_run: bool, fix: str) -> None:
    """Refuse what several processes do not do together."""
    if reading.memory is not None:
        raise ConfigError("--memory is for one process; sasrec prepare LOG --memory writes a folder that all can map")
    if seeds > 1 or dry_run:
        raise ConfigError(f"{'--seeds' if seeds > 1 else '--dry-run'} is for one process; {fix}")


def _train_on(quiet: bool, on: str, workers: int | None, job: TrainingJob, json_: bool) -> None:
    """`train` on a cluster."""
    output = job.options.output
    assert output is not None
    if STDIN in job.log:
        raise ConfigError("standard input is of this machine alone; sasrec prepare - writes a folder for all")
    with connected(on, workers) as cluster, spool(output) as place, console.TrainingDisplay(quiet=quiet) as display:
        cluster.check(place.folder())
        ended = train_on(cluster, job, place.folder(), display.update)
    run = RunFolder(output)
    _tell(ended, run.load_metrics() if ended.stopped not in INTERRUPTED else [], output, json_, is_first=True)


def _tell(result: Ended | TrainResult, results: Sequence[Result], output: Path, json_: bool, is_first: bool) -> None:
    """Print how a training ended; the exit code is that of an error where it was interrupted."""
    if not is_first:
        raise typer.Exit(int(result.stopped in INTERRUPTED))
    if result.stopped == "interrupted":
        say_interrupted(f"stopped in epoch {result.epochs + 1}")
    if result.stopped == "measuring":
        say_interrupted("stopped while the model was measured")
    if json_:
        print_json(_training_summary(result, results, output))
        return
    print_text(metrics_table(results))
    typer.echo(
        f"\nbest epoch {result.best_epoch} of {result.epochs} ({result.stopped}), "
        f"{duration(result.seconds)} of training; report: {output / 'report.html'}"
    )


def say_interrupted(where: str) -> NoReturn:
    """End a command that was interrupted, and say how to go on."""
    text = f"{where}; all work so far is saved. To go on, run the same command with --resume in place of --overwrite"
    console.stderr.print(text, soft_wrap=True)
    raise typer.Exit(1)


@contextlib.contextmanager
def watched(output: Path, *, quiet: bool) -> Iterator[Watch]:
    """Shows one training after the other; Ctrl-C between two of them is told as one that a training saw."""
    try:
        with console.TrainingDisplay(quiet=quiet) as display:
            yield Watch(display.begin, display.update)
    except KeyboardInterrupt:
        if not output.is_dir():
            raise
        say_interrupted("stopped")


def seeds_from(settings: Mapping[str, Any], n: int) -> list[int]:
    """The seed that is set, and the numbers after it."""
    first = TrainConfig(seed=settings.get("seed", TrainConfig().seed)).seed
    return list(range(first, first + n))


def _train_seeds(
    context: typer.Context, log: Log, options: FitOptions, settings: dict[str, Any], n: int, json_: bool
) -> None:
    """`train` for several seeds."""
    folder = options.output
    assert folder is not None
    with watched(folder, quiet=context.obj["quiet"]) as watch:
        done = run_study(log, options, settings, seeds_from(settings, n), command_line("sasrec"), watch)
    if not done:
        say_interrupted("stopped")
    summary = summarise(read_runs(folder))
    if json_:
        print_json(summary.to_dict())
        return
    print_text(summary_text(summary))
    runs = ", ".join(run.folder for run in summary.runs)
    typer.echo(f"\nsummary: {folder / 'summary.md'}; each of {runs} in {folder} is a run folder of its own")


@with_flags("model", "train", "eval", reading=True, without=("split_method", "protocol", *OF_INIT))
def benchmark_(
    context: typer.Context,
    log: Logs,
    output: Output,
    presets: Annotated[
        str,
        typer.Option("--presets", help="names of presets, separated by commas", autocompletion=names(PRESETS)),
    ] = DEFAULT_PRESET,
    split_methods: Annotated[
        str,
        typer.Option(
            "--split-methods",
            help="leave_one_out, temporal, temporal_by_user, separated by commas",
            autocompletion=names(get_args(SplitMethod)),
        ),
    ] = "leave_one_out",
    protocols: Annotated[
        str,
        typer.Option(
            "--protocols", help="full, sampled or both, separated by commas", autocompletion=names(get_args(Protocol))
        ),
    ] = "full,sampled",
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            min=1,
            help="runs of each preset and split method, with --seed and the numbers after it",
            rich_help_panel="Training",
        ),
    ] = 3,
    results: Annotated[
        Path | None,
        typer.Option("--results", help="append the result lines to this file instead of results.jsonl in --output"),
    ] = None,
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the benchmark in --output")] = False,
    overwrite: Overwrite = False,
    no_histories: NoHistories = False,
    json_: Json = False,
    **given: Any,
) -> None:
    """Train presets with several seeds and split methods, and write a line for each result.

    Each split method trains its own models, because a leave-one-out model has seen events after a temporal cut.
    Settings that are not given come from the preset; those that it leaves open have the defaults shown.
    """
    reading, flags = split_reading(given)
    told, settings = load_with_progress(context, log, reading, output), settings_of(flags, config)
    owned = sorted({"split_method", "protocol"} & set(settings))
    if owned:
        raise ConfigError(f"{owned[0]} in {config} is set by --{owned[0].replace('_', '-')}s here; take it out")
    chosen, methods, kept = (tuple(names_of(text)) for text in (presets, split_methods, protocols))
    grid = Grid(chosen, methods, kept, tuple(seeds_from(settings, seeds)))
    options = FitOptions(output=output, resume=resume, overwrite=overwrite, histories=not no_histories)
    with watched(output, quiet=context.obj["quiet"]) as watch:
        command = command_line("sasrec")
        done = run_benchmark(told, grid, options, settings, command=command, results=results, watch=watch)
    if not done:
        say_interrupted("stopped")
    lines = lines_of(output, grid)
    for line in lines if json_ else []:
        print_json(line.to_dict())
    if not json_:
        print_text(benchmark_text(lines))


def _training_summary(result: Ended | TrainResult, results: Sequence[Result], output: Path) -> dict[str, Any]:
    return {
        "run": str(output),
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "stopped": result.stopped,
        "seconds": result.seconds,
        "valid": result.valid,
        "results": [one.to_dict() for one in results],
    }


def datasets(
    fetch: Annotated[
        str | None,
        typer.Option("--fetch", help="name of a data set to download into the cache", autocompletion=names(DATASETS)),
    ] = None,
    json_: Json = False,
) -> None:
    """List the named data sets, or fetch one."""
    if fetch is not None:
        print_facts(load_log(_known_dataset(fetch)).sequences, json_)
    elif json_:
        print_json({name: {"about": d.about, "source": d.source, "licence": d.licence} for name, d in DATASETS.items()})
    else:
        for name, dataset in DATASETS.items():
            typer.echo(f"{name:20} {dataset.about}\n{'':20} from {dataset.source}; licence: {dataset.licence}")


def _known_dataset(name: str) -> str:
    if name not in DATASETS:
        raise ConfigError(unknown_dataset(name))
    return name


def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="the run folder to write")] = Path("runs/ml-100k"),
    preset: PresetName = DEFAULT_PRESET,
    max_epochs: Annotated[
        int | None, typer.Option("--max-epochs", help="stop after this many epochs; default: the preset's", min=1)
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Fetch MovieLens 100K, train, measure beside baselines, recommend with titles, write a report.

    As `sasrec train` does with a log of yours. --preset fast takes less time, for lists that are a little worse.
    """
    log = load_log("ml-100k")
    sequences, vocabulary = log.sequences, log.vocabulary
    options = FitOptions(preset, output, overwrite=overwrite)
    settings = {} if max_epochs is None else {"max_epochs": max_epochs}
    with console.TrainingDisplay(quiet=context.obj["quiet"]) as display:
        recommender = fit_log(log, options, settings, display.update)
    if not recommender.results:
        console.stderr.print("stopped; run the command again, with --overwrite")
        raise typer.Exit(1)
    print_text(metrics_table(recommender.results))
    user = sequences.user_ids[0]
    recent = vocabulary.titles_of(sequences.history(0)[-5:])
    print_text(f"\nUser {user} last watched:\n  " + "\n  ".join(recent) + "\nand may like next:")
    print_frame(recommender.recommend_users([user]), None, False, vocabulary)
    typer.echo(f"\nreport: {output / 'report.html'}\nmore:   sasrec recommend {output} --user 2")

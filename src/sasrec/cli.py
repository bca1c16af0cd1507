"""The command line: thin, one function a command. In: flags; out: results on stdout, progress and logs on stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import polars as pl
import typer
import yaml

from sasrec import __version__, console
from sasrec.benchmark import Grid, benchmark_text, lines_of, run_benchmark
from sasrec.bulk import recommend_all, write_frame
from sasrec.checkpoint import RunFolder, atomic_write
from sasrec.comparison import compare_all
from sasrec.config import DEFAULT_PRESET, PRESETS, ServerConfig, TrainConfig, from_dict
from sasrec.datasets import DATASETS
from sasrec.engine import environment
from sasrec.errors import ConfigError, DataError, SASRecError
from sasrec.export import export_embeddings, export_onnx
from sasrec.flags import (
    ConfigFile,
    History,
    Json,
    K,
    LogArgument,
    Output,
    Overwrite,
    Run,
    Split,
    load_log_of,
    settings_of,
    with_flags,
)
from sasrec.provenance import command_line
from sasrec.published import LAYOUTS, dump_published
from sasrec.recommender import (
    FitOptions,
    Recommender,
    convert,
    fit_sequences,
    load,
    load_log,
)
from sasrec.sequences import Sequences, Vocabulary
from sasrec.study import Log, Watch, load_summary, run_folders, run_study, summary_text
from sasrec.tables import metrics_table, plain_table

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and debug logs")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only warnings")] = False,
) -> None:
    """Sequential recommendation: from a log of events to recommendations, honestly measured."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
    console.set_up_logging(quiet=quiet, debug=debug)
    context.obj = {"quiet": quiet}


@app.command()
@with_flags(reading=True)
def prepare(log: LogArgument, output: Output, overwrite: Overwrite = False, json_: Json = False, **given: Any) -> None:
    """Read a log once and write it as a folder that train reads without parsing."""
    sequences, vocabulary, _ = load_log_of(log, given)
    folder = RunFolder.create(output, overwrite=overwrite)
    folder.save_data(vocabulary, sequences)
    _print_facts(sequences, json_)


def _print_facts(sequences: Sequences, json_: bool) -> None:
    facts = dataclasses.asdict(sequences.facts)
    if json_:
        _print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name:15} {value:,}" if type(value) is int else f"{name:15} {value}")


@app.command()
@with_flags("model", "train", "eval", reading=True)
def train(
    context: typer.Context,
    log: LogArgument,
    output: Output,
    preset: Annotated[str, typer.Option("--preset", help=", ".join(PRESETS))] = DEFAULT_PRESET,
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --output")] = False,
    overwrite: Overwrite = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="afterwards train again on all events for the chosen number of epochs")
    ] = False,
    no_histories: Annotated[bool, typer.Option("--no-histories", help="do not store users' histories")] = False,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", min=1, help="train so often, from --seed upwards: a run folder each in --output, and a summary"
        ),
    ] = 1,
    json_: Json = False,
    **given: Any,
) -> None:
    """Train on a log, choose the epoch on valid, measure on test, write a run folder with a report."""
    sequences, vocabulary, name = load_log_of(log, given)
    options = FitOptions(preset, output, resume, overwrite, refit, not no_histories)
    if seeds > 1:
        _train_seeds(context, Log(sequences, vocabulary, name), options, settings_of(given, config), seeds, json_)
        return
    with console.TrainingDisplay(quiet=context.obj["quiet"]) as display:
        recommender = fit_sequences(sequences, vocabulary, name, options, settings_of(given, config), display.update)
    result = recommender.train_result
    assert result is not None
    if result.stopped == "interrupted":
        _say_interrupted(f"stopped in epoch {result.epochs + 1}")
    if json_:
        _print_json(_training_summary(recommender, output))
        return
    typer.echo(metrics_table(recommender.results))
    typer.echo(
        f"\nbest epoch {result.best_epoch} of {result.epochs} ({result.stopped}), "
        f"{console.duration(result.seconds)} of training; report: {output / 'report.html'}"
    )


def _say_interrupted(where: str) -> NoReturn:
    text = f"{where}; everything so far is saved. Go on with: the same command with --resume in place of --overwrite"
    console.stderr.print(text, soft_wrap=True)
    raise typer.Exit(1)


def _seeds(settings: Mapping[str, Any], n: int) -> list[int]:
    first = TrainConfig(seed=settings.get("seed", TrainConfig().seed)).seed
    return list(range(first, first + n))


def _train_seeds(
    context: typer.Context, log: Log, options: FitOptions, settings: dict[str, Any], n: int, json_: bool
) -> None:
    """`train` for several seeds."""
    folder = options.output
    assert folder is not None
    with console.TrainingDisplay(quiet=context.obj["quiet"]) as display:
        watch = Watch(display.begin, display.update)
        done = run_study(log, options, settings, _seeds(settings, n), command_line("sasrec"), watch)
    if not done:
        _say_interrupted("stopped")
    summary = load_summary(folder)
    if json_:
        _print_json(summary)
        return
    typer.echo(summary_text(summary))
    runs = ", ".join(run["folder"] for run in summary["runs"])
    typer.echo(f"\nsummary: {folder / 'summary.md'}; each of {runs} in {folder} is a run folder of its own")


@app.command(name="benchmark")
@with_flags("model", "train", "eval", reading=True, without=("split_method", "protocol"))
def benchmark_(
    context: typer.Context,
    log: LogArgument,
    output: Output,
    presets: Annotated[str, typer.Option("--presets", help="separated by commas")] = DEFAULT_PRESET,
    split_methods: Annotated[
        str, typer.Option("--split-methods", help="leave_one_out, temporal or both, separated by a comma")
    ] = "leave_one_out",
    protocols: Annotated[str, typer.Option("--protocols", help="full, sampled or both")] = "full,sampled",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="runs of each, from --seed upwards")] = 3,
    results: Annotated[
        Path | None, typer.Option("--results", help="append the lines to this file; else results.jsonl in --output")
    ] = None,
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the benchmark in --output")] = False,
    overwrite: Overwrite = False,
    no_histories: Annotated[bool, typer.Option("--no-histories", help="do not store users' histories")] = False,
    json_: Json = False,
    **given: Any,
) -> None:
    """Train presets by split methods over seeds, measure each by both protocols, keep a line of each result.

    Every split method trains its own models: one trained leave-one-out has seen events after a temporal cut.
    """
    told, settings = Log(*load_log_of(log, given)), settings_of(given, config)
    owned = sorted({"split_method", "protocol"} & set(settings))
    if owned:
        raise ConfigError(f"{owned[0]} in {config} is set by --{owned[0].replace('_', '-')}s here; take it out")
    chosen, methods, kept = (tuple(_ids(text)) for text in (presets, split_methods, protocols))
    grid = Grid(chosen, methods, kept, tuple(_seeds(settings, seeds)))
    options = FitOptions(output=output, resume=resume, overwrite=overwrite, histories=not no_histories)
    with console.TrainingDisplay(quiet=context.obj["quiet"]) as display:
        watch = Watch(display.begin, display.update)
        command = command_line("sasrec")
        done = run_benchmark(told, grid, options, settings, command=command, results=results, watch=watch)
    if not done:
        _say_interrupted("stopped")
    lines = lines_of(output, grid)
    for line in lines if json_ else []:
        _print_json(line)
    if not json_:
        typer.echo(benchmark_text(lines))


def _training_summary(recommender: Recommender, output: Path) -> dict[str, Any]:
    result = recommender.train_result
    assert result is not None
    return {
        "run": str(output),
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "stopped": result.stopped,
        "seconds": result.seconds,
        "valid": result.valid,
        "results": recommender.results,
    }


@app.command()
@with_flags("eval")
def evaluate(
    run: Run,
    split: Split = "test",
    candidates: Annotated[Path | None, typer.Option("--candidates", help="candidate file (.npz) to rank among")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="seed of the sampled negatives (as --eval-seed)")] = None,
    json_: Json = False,
    **given: Any,
) -> None:
    """Measure a run on valid or test, beside popularity and last-item co-occurrence."""
    settings = settings_of(given, None)
    if seed is not None:
        settings["eval_seed"] = seed
    if candidates is not None:
        settings["protocol"] = "sampled"
    result = load(run).evaluate(split, candidates=candidates, **settings).to_dict()
    if json_:
        _print_json(result)
    else:
        typer.echo(metrics_table([result]))


@app.command(name="compare")
@with_flags("eval")
def compare_(
    runs: Annotated[list[Path], typer.Argument(help="two or more: run folders, or folders of train --seeds")],
    split: Split = "test",
    pairs: Annotated[
        Literal["first", "all"], typer.Option("--pairs", help="compare each with the first, or each with each")
    ] = "first",
    json_: Json = False,
    **given: Any,
) -> None:
    """Compare runs on the same targets by a paired test per user.

    The runs of a folder of several seeds count as one side: their mean per user. With more than two sides p-values are
    also corrected for the number of comparisons (Holm).
    """
    settings = settings_of(given, None)
    names = [str(side) if side not in runs[:i] else f"{side} ({i + 1})" for i, side in enumerate(runs)]
    folders = {name: run_folders(side) for name, side in zip(names, runs, strict=True)}
    _check_same_log([run for side in folders.values() for run in side])
    sides = {name: [load(run).evaluate(split, baselines=False, **settings) for run in f] for name, f in folders.items()}
    comparisons = compare_all(sides, pairs)
    if json_:
        told = [comparison.to_dict() for comparison in comparisons]
        _print_json(told[0] if len(runs) == 2 else {"comparisons": told})
    else:
        typer.echo("\n\n".join(comparison.to_text() for comparison in comparisons))


def _check_same_log(runs: list[Path]) -> None:
    logs = {run: RunFolder.open(run).load_config().data.fingerprint for run in runs}
    other = next((run for run in runs if logs[run] != logs[runs[0]]), None)
    if other is not None:
        raise ConfigError(f"{runs[0]} and {other} were trained on different logs, so their users cannot be paired")


@app.command()
def recommend(
    context: typer.Context,
    run: Run,
    users: Annotated[Path | None, typer.Option("--users", help="file with a user id a line")] = None,
    user: Annotated[list[str] | None, typer.Option("--user", help="a user id; may be repeated")] = None,
    history: History = None,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="every user of the log; into --output part by part")
    ] = False,
    k: K = 10,
    allow: Annotated[
        Path | None, typer.Option("--allow", help="file with the only item ids allowed, one a line")
    ] = None,
    deny: Annotated[Path | None, typer.Option("--deny", help="file with item ids never wanted, one a line")] = None,
    keep_seen: Annotated[
        bool | None, typer.Option("--keep-seen/--hide-seen", help="recommend items of the history too, or never")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="write .parquet, .csv or .jsonl; else print")
    ] = None,
    json_: Json = False,
) -> None:
    """Recommend the next items for users of the log, or after a history."""
    chosen = [users is not None, bool(user), history is not None, all_users]
    if sum(chosen) != 1:
        raise ConfigError("give one of --users FILE, --user ID, --history ID,ID,... or --all-users")
    recommender = load(run)
    filters: dict[str, Any] = {"allow": _lines(allow), "deny": _lines(deny), "keep_seen": keep_seen}
    if all_users and output is not None:
        _recommend_all(recommender, output, k, filters, quiet=context.obj["quiet"])
        return
    if history is not None:
        details = recommender.recommend_detailed([_ids(history)], k, **filters)
        frame = details.frame
        if details.fallback[0]:
            console.stderr.print("no item of the history is known; these are popular items", soft_wrap=True)
    else:
        wanted = _lines(users) if users is not None else user or None
        frame = recommender.recommend_users(wanted, k, **filters)
    _write_frame(frame, output, json_, recommender.vocabulary)


def _recommend_all(recommender: Recommender, output: Path, k: int, filters: dict[str, Any], *, quiet: bool) -> None:
    try:
        with console.UsersDisplay(quiet=quiet) as display:
            summary = recommend_all(recommender, output, k, progress=display.update, **filters)
    except KeyboardInterrupt:
        console.stderr.print("stopped; what is done is kept, and the same command goes on from there", soft_wrap=True)
        raise typer.Exit(1) from None
    typer.echo(f"wrote the lists of {summary.n_users:,} users to {output}")


@app.command()
def score(
    run: Run,
    history: Annotated[str, typer.Option("--history", help="item ids, oldest first, separated by commas")],
    items: Annotated[str, typer.Option("--items", help="item ids to score, separated by commas")],
    json_: Json = False,
) -> None:
    """Score given items after a history, as the published predict()."""
    recommender, wanted = load(run), _ids(items)
    scores = recommender.score([_ids(history)], wanted)[0].tolist()
    frame = pl.DataFrame({"item_id": [str(i) for i in wanted], "score": scores})
    _write_frame(frame, None, json_, recommender.vocabulary)


@app.command()
def similar(run: Run, item: Annotated[str, typer.Argument(help="an item id")], k: K = 10, json_: Json = False) -> None:
    """Items nearest to an item by the cosine of their embeddings."""
    recommender = load(run)
    _write_frame(recommender.similar_items(item, k), None, json_, recommender.vocabulary)


@app.command()
def explain(
    run: Run,
    history: Annotated[str, typer.Option("--history", help="item ids, oldest first, separated by commas")],
    item: Annotated[str, typer.Option("--item", help="the recommended item to explain")],
    json_: Json = False,
) -> None:
    """Which items of a history speak for an item: how its score falls when one is left out."""
    recommender = load(run)
    _write_frame(recommender.explain(_ids(history), item), None, json_, recommender.vocabulary)


@app.command()
@with_flags("server")
def serve(run: Run, config: ConfigFile = None, **given: Any) -> None:
    """Answer over HTTP, with a web page at /: history in, recommendations out. docs/serving.md has the operation."""
    from sasrec.workers import serve as serve_run_folder

    serve_run_folder(run, from_dict(ServerConfig, settings_of(given, config)))


@app.command(name="convert")
def convert_(
    source: Annotated[Path, typer.Argument(help="a checkpoint (.pth) of the published code, or a run folder")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the run folder (or, from a run, the .pth) to write")],
    layout: Annotated[str | None, typer.Option("--layout", help="which code: " + ", ".join(LAYOUTS))] = None,
    log: Annotated[str | None, typer.Option("--log", help="the log the checkpoint was trained on")] = None,
    n_heads: Annotated[int | None, typer.Option("--n-heads", help="attention heads, when not in the file name")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a checkpoint of pmixer/SASRec.pytorch into a run folder, or a run into such a checkpoint."""
    if source.is_dir():
        recommender = load(source)
        if output.exists() and not overwrite:
            raise ConfigError(f"output {output} exists; use --overwrite or another name")
        atomic_write(output, dump_published(recommender.config.model, recommender.engine.weights(), layout))
    else:
        if log is None and layout in LAYOUTS:
            raise ConfigError("--log is needed: the log that the checkpoint was trained on, for its items and users")
        convert(source, layout, log, n_heads=n_heads).save(output, overwrite=overwrite)
    typer.echo(f"wrote {output}")


@app.command()
def export(
    run: Run,
    format_: Annotated[
        Literal["onnx", "embeddings"], typer.Option("--format", help="onnx = the model; embeddings = the item vectors")
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="the folder to write; else onnx, onnx-int8 or embeddings in RUN"),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="onnx: keep the item tables as bytes")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the export in --output")] = False,
    json_: Json = False,
) -> None:
    """Write a model that others can serve: an ONNX graph, checked against this package, or vectors to search."""
    if int8 and format_ != "onnx":
        raise ConfigError("--int8 is for --format onnx; vector databases have their own compression")
    folder = output or run / (f"{format_}-int8" if int8 else format_)
    recommender = load(run)
    if format_ == "onnx":
        facts = export_onnx(recommender, folder, int8=int8, overwrite=overwrite)
    else:
        facts = export_embeddings(recommender, folder, overwrite=overwrite)
    if json_:
        _print_json({"output": str(folder), **facts})
        return
    typer.echo(f"wrote {folder}: model {facts['model_version']}, {facts['n_items']:,} items")
    if "check" in facts:
        typer.echo(_check_sentence(facts["check"], int8))


def _check_sentence(check: dict[str, Any], int8: bool) -> str:
    if int8:
        return (
            f"recall@{check['k']} against float32 {check['recall']:.4f} on {check['n_histories']} histories; scores "
            f"differ by up to {check['largest_difference']:.2g}"
        )
    return (
        f"scores and lists as this package's on {check['n_histories']} histories, to {check['largest_difference']:.1g}"
    )


@app.command()
def datasets(
    fetch: Annotated[str | None, typer.Option("--fetch", help="download this one into the cache")] = None,
    json_: Json = False,
) -> None:
    """List the named data sets, or fetch one."""
    if fetch is not None:
        sequences, _, _ = load_log(_known_dataset(fetch))
        _print_facts(sequences, json_)
    elif json_:
        _print_json(
            {name: {"about": d.about, "source": d.source, "licence": d.licence} for name, d in DATASETS.items()}
        )
    else:
        for name, dataset in DATASETS.items():
            typer.echo(f"{name:20} {dataset.about}\n{'':20} from {dataset.source}; licence: {dataset.licence}")


def _known_dataset(name: str) -> str:
    if name not in DATASETS:
        raise ConfigError(f"data set {name!r} is not known; there are: {', '.join(DATASETS)}")
    return name


@app.command()
def info(run: Annotated[Path | None, typer.Argument(help="a run folder")] = None, json_: Json = False) -> None:
    """Show versions, threads and engine; with a run folder, how it was trained."""
    facts = environment()
    if run is not None:
        facts["run"] = json.loads(RunFolder.open(run).load_config().to_json())
    if json_:
        _print_json(facts)
        return
    typer.echo(yaml.safe_dump(facts, sort_keys=False, default_flow_style=False).rstrip())


@app.command()
def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="the run folder to write")] = Path("runs/ml-100k"),
    max_epochs: Annotated[
        int | None, typer.Option("--max-epochs", help="stop after this many epochs; else the preset's", min=1)
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Fetch MovieLens 100K, train, measure beside baselines, recommend with titles, write a report."""
    sequences, vocabulary, name = load_log("ml-100k")
    options = FitOptions(output=output, overwrite=overwrite)
    settings = {} if max_epochs is None else {"max_epochs": max_epochs}
    with console.TrainingDisplay(quiet=context.obj["quiet"]) as display:
        recommender = fit_sequences(sequences, vocabulary, name, options, settings, display.update)
    typer.echo(metrics_table(recommender.results))
    user = sequences.user_ids[0]
    recent = vocabulary.titles_of(sequences.history(0)[-5:])
    typer.echo(f"\nUser {user} last watched:\n  " + "\n  ".join(recent) + "\nand may like next:")
    _write_frame(recommender.recommend_users([user]), None, False, vocabulary)
    typer.echo(f"\nreport: {output / 'report.html'}\nmore:   sasrec recommend {output} --user 2")


def _ids(text: str) -> list[str]:
    """The ids of a comma-separated flag."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _lines(path: Path | None) -> list[str] | None:
    """The ids of a file, one a line."""
    if path is None:
        return None
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file with an id a line") from error


def _write_frame(frame: pl.DataFrame, output: Path | None, json_: bool, vocabulary: Vocabulary) -> None:
    """A frame into a file, or onto stdout as JSON or as a table with titles."""
    if output is not None:
        write_frame(frame, output)
        typer.echo(f"wrote {len(frame):,} rows to {output}")
    elif json_:
        _print_json(frame.to_dicts())
    else:
        _print_table(frame, vocabulary)


def _print_table(frame: pl.DataFrame, vocabulary: Vocabulary) -> None:
    if vocabulary.titles is not None:
        titles = vocabulary.titles_of(vocabulary.indices_of(frame["item_id"].to_list()))
        frame = frame.with_columns(pl.Series("title", titles))
    rows = [[f"{v:.4f}" if isinstance(v, float) else str(v) for v in row] for row in frame.iter_rows()]
    typer.echo(plain_table([frame.columns, *rows]))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def main() -> None:
    """Run the command line: one sentence and an exit code for what goes wrong, a traceback only with --debug."""
    debug = "--debug" in sys.argv
    try:
        app()
    except SASRecError as error:
        if debug:
            raise
        console.stderr.print(f"error: {error}", markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        console.stderr.print("interrupted")
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; nothing more to say
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        text = f"error: unexpected {type(error).__name__}: {error}; run again with sasrec --debug for the traceback"
        console.stderr.print(text, markup=False, soft_wrap=True)
        sys.exit(1)

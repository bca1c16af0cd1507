"""A study: the same settings trained with several seeds, and the mean and spread of their results.

STUDY/study.json      preset, settings, seeds and the command
STUDY/seed-0/ ...     one run folder per seed, like that of a single run: evaluate, recommend and the others take it
STUDY/summary.json    each figure's mean, standard deviation and standard error over seeds
STUDY/summary.md      the same for people
"""

from __future__ import annotations

import json
import logging
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sasrec.core.config import to_dict
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.files import atomic_write
from sasrec.core.tables import markdown_table, plain_table
from sasrec.data.logs import Log
from sasrec.fitting import FitOptions, configure, fit_log
from sasrec.report.text import PROTOCOLS_NOTE, measured_in_words
from sasrec.runs.folder import RunConfig, RunFolder, check_resumable
from sasrec.training.trainer import Progress

logger = logging.getLogger(__name__)

FORMAT = 1
MARKER = "study.json"
SEED_FOLDER = "seed-"
LINE_KEYS = (
    "split", "split_method", "protocol", "candidates", "excluded", "ties", "n_users", "metrics", "baselines",
)  # fmt: skip
TOLD_ELSEWHERE = {"seed", "engine", "threads", "split_method"}  # in fields of their own, not among the overrides
ENDS_TRAINING = ("max_epochs", "max_minutes", "patience")  # may change on resume; then training goes on


@dataclass(frozen=True)
class SeedRun:
    """A run of a study that has ended."""

    seed: int
    config: RunConfig
    results: list[dict[str, Any]]  # each a Result.to_dict()
    training: dict[str, Any]  # Recommender.training_facts()


@dataclass(frozen=True)
class Watch:
    """Callbacks of a study: `begin` gets each run's name, `update` its progress."""

    begin: Callable[[str], None]
    update: Callable[[Progress], None]


def run_study(
    log: Log,
    options: FitOptions,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    command: str = "",
    watch: Watch | None = None,
) -> bool:
    """Train and measure once for each seed, then write the summary.

    Args:
        log: what to train on.
        options: as for one run; `output` is the study's folder, and with `resume` the runs that have ended are kept.
        settings: as for one run; their seed is replaced.
        seeds: one run each.
        command: the command line that starts it again; written into study.json.
        watch: is told about runs and their progress.

    Returns:
        Whether every run has ended; False = interrupted, and `resume` goes on.

    Raises:
        ConfigError: the folder is not empty, or resume with other settings.
        CheckpointError: nothing to resume, or the log has changed.
    """
    folder = open_marked_folder(options, MARKER, "study of several seeds")
    config = configure(log, options.preset, {**settings, "seed": seeds[0]})[1]
    configs = {seed: replace(config, train=replace(config.train, seed=seed)) for seed in seeds}
    _check_runs(folder, configs)
    told = {name: value for name, value in settings.items() if name not in TOLD_ELSEWHERE}
    _save_about(folder, {"preset": options.preset, "settings": told, "seeds": list(seeds)}, command)
    for number, seed in enumerate(seeds, 1):
        path, given = folder / f"{SEED_FOLDER}{seed}", {**settings, "seed": seed}
        if _has_ended(path, configs[seed], options.refit):
            logger.info("seed %d has been trained already", seed)
            continue
        if watch is not None:
            watch.begin(f"seed {seed} ({number} of {len(seeds)})")
        run_options = replace(options, output=path, overwrite=False, resume=_can_resume(path))
        update = None if watch is None else watch.update
        (path / "metrics.json").unlink(missing_ok=True)  # it is of an earlier end of training
        result = fit_log(log, run_options, given, update).train_result
        assert result is not None
        if result.stopped == "interrupted":
            return False
    _write_summary(folder, summarise(read_runs(folder)))
    return True


def open_marked_folder(options: FitOptions, marker: str, what: str) -> Path:
    """A folder that a marker file identifies: new, emptied, or kept to go on.

    Raises:
        ConfigError: no folder is given, or it is not empty.
        CheckpointError: nothing to resume.
    """
    folder = options.output
    if folder is None:
        raise ConfigError(f"a {what} needs an output folder, for the run folders that go into it")
    marked = (folder / marker).is_file()
    if options.resume:
        if not marked:
            raise CheckpointError(f"{folder} holds no {what} to go on with; leave --resume out, or give its folder")
        return folder
    if marked and options.overwrite:
        shutil.rmtree(folder)
    return RunFolder.create(folder, overwrite=options.overwrite).path


def is_study(folder: Path) -> bool:
    """Whether a folder holds the runs of several seeds."""
    return (folder / MARKER).is_file()


def run_folders(folder: Path) -> list[Path]:
    """The run folders that a folder of runs holds; the folder itself when it is a run folder, or holds none."""
    if (folder / "config.json").is_file() or not folder.is_dir():
        return [folder]
    found = [path.parent for path in folder.glob("*/config.json")]
    return sorted(found, key=lambda path: (len(path.name), path.name)) or [folder]  # seed-9 before seed-10


def _check_runs(folder: Path, configs: Mapping[int, RunConfig]) -> None:
    """Refuse other settings or another log before any run is touched; configs are by seed."""
    for seed, config in configs.items():
        path = folder / f"{SEED_FOLDER}{seed}"
        if _can_resume(path):
            check_resumable(RunFolder.open(path).load_config(), config)
        elif path.exists():  # cut off before its settings were written
            shutil.rmtree(path)


def _can_resume(path: Path) -> bool:
    return (path / "config.json").is_file()


def _has_ended(path: Path, config: RunConfig, refit: bool) -> bool:
    """Whether a run has been measured, and trained to the end that these settings ask for."""
    if not _can_resume(path):
        return False
    run = RunFolder(path)
    saved = run.load_config()
    same_end = all(getattr(saved.train, name) == getattr(config.train, name) for name in ENDS_TRAINING)
    return same_end and bool(run.load_training()) and (not refit or saved.refit_epochs > 0)


def _save_about(folder: Path, about: dict[str, Any], command: str) -> None:
    """Write study.json; the first command stays while it describes the study."""
    path, told = folder / MARKER, json.loads(json.dumps({"format": FORMAT, **about}))
    if path.exists() and {**_load_about(folder), "command": command} == {**told, "command": command}:
        return
    atomic_write(path, json.dumps({**told, "command": command}, indent=1))


def _load_about(folder: Path) -> dict[str, Any]:
    path = folder / MARKER
    try:
        about = dict(json.loads(path.read_text()))
        found = about["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is missing or damaged; train again with --overwrite") from error
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found}, and this version reads format {FORMAT}; update sasrec")
    return about


def read_runs(folder: Path) -> list[SeedRun]:
    """The runs of a study that have ended, in the order of their seeds.

    Raises:
        CheckpointError: not a study, or a run is damaged.
    """
    runs = []
    for seed in _load_about(folder)["seeds"]:
        run = RunFolder(folder / f"{SEED_FOLDER}{seed}")
        training = run.load_training()
        if training:
            runs.append(SeedRun(seed, run.load_config(), run.load_metrics(), training))
    return runs


def summarise(runs: Sequence[SeedRun]) -> dict[str, Any]:
    """The mean and spread of each result over seeds, and how each run went."""
    return {
        "seeds": [run.seed for run in runs],
        "runs": [{"seed": run.seed, "folder": f"{SEED_FOLDER}{run.seed}", **run.training} for run in runs],
        "results": [over_seeds(results) for results in zip(*(run.results for run in runs), strict=True)],
    }


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result in place of one per seed.

    Each metric gets its mean, its standard deviation over seeds (std; None for one seed), the standard error of that
    mean (stderr) and each seed's value. `users_stderr` is the uncertainty from the sample of users: the mean of the
    seeds' own standard errors. Baselines do not depend on the seed.
    """
    first = results[0]
    same = {k: v for k, v in first.items() if k not in ("metrics", "baselines", "warnings")}
    metrics = {name: _spread([r["metrics"][name] for r in results]) for name in first["metrics"]}
    baselines = {
        name: {metric: estimate["value"] for metric, estimate in b.items()} for name, b in first["baselines"].items()
    }
    return {**same, "metrics": metrics, "baselines": baselines, "warnings": list(first.get("warnings", []))}


def _spread(estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [estimate["value"] for estimate in estimates]
    std = statistics.stdev(values) if len(values) > 1 else None
    of_users = [estimate.get("stderr") for estimate in estimates]
    known = [stderr for stderr in of_users if stderr is not None]
    return {
        "mean": statistics.fmean(values),
        "std": std,
        "stderr": None if std is None else std / len(values) ** 0.5,
        "users_stderr": statistics.fmean(known) if known else None,
        "values": values,
    }


def _write_summary(folder: Path, summary: dict[str, Any]) -> None:
    atomic_write(folder / "summary.json", json.dumps(summary, indent=1))
    atomic_write(folder / "summary.md", summary_page(folder.name, summary))


def load_summary(folder: Path) -> dict[str, Any]:
    """What summary.json holds.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = folder / "summary.json"
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is missing or damaged; train with --resume to make it") from error


def result_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a study for benchmarks/results/*.jsonl: one per split and protocol.

    There are none before all of its runs have ended. They come from the folder alone, so they are the same each time.

    Raises:
        CheckpointError: not a study, or a run is damaged.
    """
    about, runs = _load_about(folder), read_runs(folder)
    if len(runs) < len(about["seeds"]):
        return []
    config = runs[0].config
    told = {
        "data": config.data_name,
        "seeds": [run.seed for run in runs],
        "train_seconds": statistics.fmean(run.training["seconds"] for run in runs),
        "best_epochs": [run.training["best_epoch"] for run in runs],
        "preset": config.preset,
        "overrides": about["settings"],
        "settings": {**to_dict(config.model), **to_dict(config.train), "k": list(config.eval.k)},
        "fingerprint": config.data.fingerprint,
        **{name: _distinct(runs, name) for name in ("engine", "isa", "threads", "machine", "versions", "commit")},
        "command": about["command"],
    }
    return [line_of(results, told) for results in zip(*(run.results for run in runs), strict=True)]


def line_of(results: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> dict[str, Any]:
    """One line: a result over seeds, and how it was made."""
    result = over_seeds(results)
    return {**{name: result[name] for name in LINE_KEYS}, **told}


def _distinct(runs: Sequence[SeedRun], name: str) -> Any:
    """A fact of the runs; where they differ, as after a resume on another machine, all values in one text."""
    found = [run.training[name] for run in runs]
    distinct = [value for i, value in enumerate(found) if value not in found[:i]]
    return distinct[0] if len(distinct) == 1 else "; ".join(map(str, distinct))


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    parts = [f"{measured_in_words(r)}\n{plain_table(_rows(r))}" for r in summary["results"]]
    return "\n\n".join([*parts, _legend(summary)])


def summary_page(name: str, summary: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    seeds = ", ".join(map(str, summary["seeds"]))
    parts = [f"# {name}: seeds {seeds}\n"]
    for r in summary["results"]:
        title = f"## {r['split'].capitalize()}, {r['protocol']} protocol"
        parts += [f"{title}\n\n{measured_in_words(r)}.\n\n{markdown_table(_rows(r))}\n"]
    runs = [["seed", "best epoch", "epochs", "training, s", "stopped by", "folder"]]
    runs += [
        [
            *(str(run[k]) for k in ("seed", "best_epoch", "epochs")),
            f"{run['seconds']:.0f}",
            run["stopped"],
            run["folder"],
        ]
        for run in summary["runs"]
    ]
    return "\n".join([*parts, f"{_legend(summary)}\n", f"## Runs\n\n{markdown_table(runs)}\n"])


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    """A result over seeds as a table: a row a metric, spread and baselines in columns."""
    header = ["", "mean", "std", "std error", "min", "max", "users' std error", *result["baselines"]]
    return [header, *(_metric_row(name, m, result["baselines"]) for name, m in result["metrics"].items())]


def _metric_row(name: str, m: Mapping[str, Any], baselines: Mapping[str, Any]) -> list[str]:
    values = [m["mean"], m["std"], m["stderr"], min(m["values"]), max(m["values"]), m["users_stderr"]]
    digits = 4 if abs(m["mean"]) < 1 else 3 if abs(m["mean"]) < 100 else 1
    cells = [*values, *(baseline.get(name) for baseline in baselines.values())]
    return [name, *("-" if value is None else f"{value:.{digits}f}" for value in cells)]


def _legend(summary: Mapping[str, Any]) -> str:
    n = len(summary["seeds"])
    text = (
        f"mean, std, std error, min and max are over {n} seeds; users' std error is the uncertainty from the sample of "
        "users."
    )
    both = {r["protocol"] for r in summary["results"] if r["split"] == "test"} == {"full", "sampled"}
    return f"{text} {PROTOCOLS_NOTE}" if both else text

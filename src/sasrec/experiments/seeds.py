"""A study: the same settings trained with several seeds, and the mean and spread of their results.

STUDY/study.json      preset, settings, seeds and the command
STUDY/seed-0/ ...     one run folder per seed, like that of a single run: evaluate, recommend and the others take it
STUDY/summary.json    each figure's mean, standard deviation and standard error over seeds
STUDY/summary.md      the same for people
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.files import atomic_write
from sasrec.core.scalars import plain
from sasrec.data.logs import Log
from sasrec.experiments.summary import SeedRun, summarise, summary_page
from sasrec.fitting import FitOptions, configure, fit_log, origin_of
from sasrec.runs.folder import RunConfig, RunFolder, check_resumable, is_run_folder
from sasrec.runs.lock import Claim, claim, replaced_by
from sasrec.training.progress import Progress

logger = logging.getLogger(__name__)

FORMAT = 1
MARKER = "study.json"
SEED_FOLDER = "seed-"
TOLD_ELSEWHERE = {"seed", "engine", "threads", "split_method"}  # in fields of their own, not among the overrides
ENDS_TRAINING = ("max_epochs", "max_minutes", "patience")  # may change on resume; then training goes on


@dataclass(frozen=True)
class Study:
    """What study.json holds: how the runs came about."""

    preset: str
    settings: dict[str, Any]  # on top of the preset
    seeds: list[int]
    command: str


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
    with marked_folder(options, MARKER, "study of several seeds") as claimed:
        folder = claimed.path
        config = configure(log, options.preset, {**settings, "seed": seeds[0]}, origin_of(options))[1]
        configs = {seed: replace(config, train=replace(config.train, seed=seed)) for seed in seeds}
        _check_runs(folder, configs, settings)
        told = {name: plain(value) for name, value in settings.items() if name not in TOLD_ELSEWHERE}
        _save_study(folder, Study(options.preset, told, [plain(seed) for seed in seeds], command))
        for number, seed in enumerate(seeds, 1):
            if _has_ended(folder / f"{SEED_FOLDER}{seed}", configs[seed], options):
                logger.info("seed %d has been trained already", seed)
                with RunFolder.claim(folder / f"{SEED_FOLDER}{seed}", resume=True):
                    pass  # sweeps what a kill may have left
            elif not _run_seed(log, options, settings, seed, f"seed {seed} ({number} of {len(seeds)})", watch):
                return False
            claimed.check()
            claimed.forget_replaced()
        _write_summary(folder)
    return True


def _run_seed(
    log: Log, options: FitOptions, settings: Mapping[str, Any], seed: int, title: str, watch: Watch | None
) -> bool:
    """Train and measure one seed, or go on with it; False = interrupted."""
    assert options.output is not None
    path = options.output / f"{SEED_FOLDER}{seed}"
    if watch is not None:
        watch.begin(title)
    run_options = replace(options, output=path, overwrite=False, resume=_can_resume(path), began=None)
    update = None if watch is None else watch.update
    result = fit_log(log, run_options, {**settings, "seed": seed}, update).train_result
    assert result is not None
    return result.is_whole


@contextlib.contextmanager
def marked_folder(options: FitOptions, marker: str, what: str) -> Iterator[Claim]:
    """A folder that a marker file identifies, which no other process writes meanwhile: new, or kept to go on.

    Raises:
        ConfigError: no folder is given, another process writes it, or it is not empty.
        CheckpointError: nothing to resume.
    """
    folder = options.output
    if folder is None:
        raise ConfigError(f"a {what} needs an output folder, for the run folders that go into it")
    nothing = CheckpointError(f"{folder} holds no {what} to go on with; leave --resume out, or give its folder")
    if options.resume and not folder.exists() and not replaced_by(folder).exists():
        raise nothing

    def is_ours(path: Path) -> bool:
        return (path / marker).is_file() or is_run_folder(path)

    with claim(folder, is_ours, resume=options.resume, overwrite=options.overwrite) as claimed:
        if options.resume and not (folder / marker).is_file():
            raise nothing
        yield claimed


def is_study(folder: Path) -> bool:
    """Whether a folder holds the runs of several seeds."""
    return (folder / MARKER).is_file()


def run_folders(folder: Path) -> list[Path]:
    """The run folders that a folder of runs holds; the folder itself when it is a run folder, or holds none."""
    if (folder / "config.json").is_file() or not folder.is_dir():
        return [folder]
    found = [path.parent for path in folder.glob("*/config.json")]
    return sorted(found, key=lambda path: (len(path.name), path.name)) or [folder]  # seed-9 before seed-10


def _check_runs(folder: Path, configs: Mapping[int, RunConfig], given: Mapping[str, Any]) -> None:
    """Refuse other settings or another log before any run is touched; configs are by seed."""
    for seed, config in configs.items():
        path = folder / f"{SEED_FOLDER}{seed}"
        if _can_resume(path):
            check_resumable(RunFolder.open(path).load_config(), config, given)
        elif path.exists():  # cut off before its settings were written
            shutil.rmtree(path)


def _can_resume(path: Path) -> bool:
    return (path / "config.json").is_file()


def _has_ended(path: Path, config: RunConfig, options: FitOptions) -> bool:
    """Whether a run has been measured and reported, and trained to the end that these settings ask for."""
    if not _can_resume(path):
        return False
    run = RunFolder(path)
    saved = run.load_config()
    same_end = all(getattr(saved.train, name) == getattr(config.train, name) for name in ENDS_TRAINING)
    if not same_end or run.load_training() is None or (options.refit and not run.has_refit(saved)):
        return False
    return not options.report or (path / "README.md").is_file()  # the report's last file


def _save_study(folder: Path, study: Study) -> None:
    """Write study.json; the first command stays while it describes the study."""
    path = folder / MARKER
    text = json.dumps({"format": FORMAT, **asdict(study)}, indent=1)
    if path.exists() and replace(_study_of(text), command="") == replace(load_study(folder), command=""):
        return
    atomic_write(path, text)


def load_study(folder: Path) -> Study:
    """What study.json tells.

    Raises:
        CheckpointError: missing, damaged or of a later format.
    """
    path = folder / MARKER
    try:
        text = path.read_text()
        found = json.loads(text)["format"]
        if found == FORMAT:
            return _study_of(text)
    except (OSError, ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{path} is missing or damaged; train again with --overwrite") from error
    raise CheckpointError(f"{path} has format {found}, and this version reads format {FORMAT}; update sasrec")


def _study_of(text: str) -> Study:
    return msgspec.json.decode(text, type=Study)


def read_runs(folder: Path) -> list[SeedRun]:
    """The runs of a study that have ended, in the order of their seeds.

    Raises:
        CheckpointError: not a study, or a run is damaged.
    """
    runs = []
    for seed in load_study(folder).seeds:
        run = RunFolder(folder / f"{SEED_FOLDER}{seed}")
        training = run.load_training()
        if training is not None:
            runs.append(SeedRun(seed, run.load_config(), run.load_metrics(), training, run.path.name))
    return runs


def _write_summary(folder: Path) -> None:
    summary = summarise(read_runs(folder))
    atomic_write(folder / "summary.json", json.dumps(summary.to_dict(), indent=1))
    atomic_write(folder / "summary.md", summary_page(folder.name, summary))

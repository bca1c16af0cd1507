"""A search for settings: trials by Optuna, chosen and pruned on valid; then the winner beside the untouched preset.

DIR/search.json      preset, settings, space, seeds and the command
DIR/trials.db        Optuna's study, which its own tools read: optuna-dashboard sqlite:///DIR/trials.db
DIR/best.yaml        the winner's settings, as `train --config` takes them
DIR/winner, DIR/preset   a study of several seeds each, where the winner is not the preset itself
DIR/result.json, summary.md, history.png   what was found

Only valid chooses. Test is looked at once, at the end, by both studies; their difference is tested over users.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sasrec.core.config import TrainConfig, to_dict
from sasrec.core.errors import ConfigError, TrainingError
from sasrec.core.extras import require
from sasrec.core.files import atomic_write
from sasrec.core.presets import DEFAULT_PRESET
from sasrec.core.scalars import plain
from sasrec.core.threads import set_threads
from sasrec.data.logs import Log, load_log
from sasrec.evaluation.comparison import Comparison, compare_all
from sasrec.experiments.search_pages import SearchResult, Trial, write_summary
from sasrec.experiments.search_space import Choice, Space, default_space, holds, read_space, told
from sasrec.experiments.seeds import (
    SEED_FOLDER,
    TOLD_ELSEWHERE,
    Watch,
    is_study,
    load_study,
    marked_folder,
    run_study,
)
from sasrec.experiments.trials import ERROR, distribution_of, has_ended, importance_of, quiet_optuna, trial_of
from sasrec.fitting import FitOptions, configure, engine_for
from sasrec.recommender import load
from sasrec.runs.record import EpochLine
from sasrec.training.callbacks import Callbacks
from sasrec.training.trainer import train

logger = logging.getLogger(__name__)

FORMAT = 1
MARKER, DATABASE, BEST, RESULT = "search.json", "trials.db", "best.yaml", "result.json"
STARTUP = 5  # trials that are drawn at random, and that end before any is pruned
WARM_UP = 0.2  # of an epoch count: earlier epochs prune nothing
QUEUED = "queued"  # those of an earlier start that wait to be tried again
SAFETY = 1.2  # times the seconds that a run took


@dataclass(frozen=True)
class SearchPlan:
    """What is searched; checked when the search begins.

    Args:
        preset: whose settings are the first trial, and stand beside the winner.
        trials: how many are tried, those of an earlier start included.
        space: by setting, a range, choices or a value; None = around the preset's values.
        seeds: of the winner's and the preset's runs at the end; trials have the first.
        max_minutes: of the whole command; 0 = no limit.
    """

    preset: str
    trials: int = 50
    space: Mapping[str, Any] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    max_minutes: float = 0.0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"trials={self.trials} is too small; the least is 1")
        if self.max_minutes < 0:
            raise ConfigError(f"max_minutes={self.max_minutes:g} is too small; the least is 0")


class _CutShortError(Exception):
    """A trial was interrupted, or its time was used up."""


class Search:
    """One call of `search`: the study, and what its trials share.

    Args:
        log: what trials train on.
        plan: what is tried.
        settings: fixed in all trials.
        folder: where it is kept.
        watch: is told of trials and their progress.
        began: by time.monotonic(), when what max_minutes bounds began.
    """

    def __init__(
        self, log: Log, plan: SearchPlan, settings: Mapping[str, Any], folder: Path, watch: Watch | None, began: float
    ) -> None:
        self.log, self.plan, self.folder, self.watch, self.began = log, plan, folder, watch, began
        self.fixed = {**settings, "seed": plan.seeds[0]}
        split, config = configure(log, plan.preset, self.fixed)
        self.metric = config.train.valid_metric
        if not len(split.valid):
            raise ConfigError("a search chooses by valid targets, and this split has none; set valid_fraction")
        self.preset: dict[str, Any] = {**to_dict(config.model), **to_dict(config.train)}
        space, more = self._space(split.statistics.mean_train_len)
        self.space, self.fixed = space, self.fixed | more
        self.study = self._open()

    def _space(self, mean_len: float) -> tuple[Space, dict[str, Choice]]:
        """What is searched and what the space fixes, without what is given."""
        if self.plan.space is not None:
            return read_space({name: value for name, value in self.plan.space.items() if name not in self.fixed})
        space = default_space(self.preset, mean_len)
        return {name: values for name, values in space.items() if name not in self.fixed}, {}

    def _open(self) -> Any:
        """Optuna's study, with the trials of an earlier start; those that were cut short are to be tried again."""
        optuna = quiet_optuna()
        epochs = self.preset["max_epochs"]
        study = optuna.create_study(
            storage=f"sqlite:///{self.folder.resolve() / DATABASE}",
            study_name=MARKER.partition(".")[0],
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=int(WARM_UP * epochs)),
        )
        queued = study.user_attrs.get(QUEUED, [])
        for trial in study.get_trials():
            if trial.state == optuna.trial.TrialState.RUNNING:  # of a process that was killed
                self._cut(study, trial.number)
            elif trial.state != optuna.trial.TrialState.FAIL or ERROR in trial.user_attrs:
                continue
            if trial.number not in queued and trial.params:
                study.enqueue_trial(trial.params)
            queued = [*queued, trial.number]
        study.set_user_attr(QUEUED, queued)
        return study

    def _cut(self, study: Any, number: int) -> None:
        """A trial was cut short: it counts for nothing, and is tried again."""
        study.tell(number, state=quiet_optuna().trial.TrialState.FAIL)

    @property
    def trials(self) -> list[Trial]:
        """Those that have ended, numbered from 1 in the order in which they began."""
        ended = [trial for trial in self.study.get_trials(deepcopy=False) if has_ended(trial)]
        return [trial_of(trial, number) for number, trial in enumerate(ended, 1)]

    @property
    def complete(self) -> list[Trial]:
        """Those that were trained to their end."""
        return [trial for trial in self.trials if trial.state == "complete"]

    @property
    def best(self) -> Trial:
        """The one with the highest valid metric; of equal ones the earlier."""
        return max(self.complete, key=lambda trial: (trial.value, -trial.number))

    def left(self) -> float | None:
        """Seconds that trials may still take: of max_minutes, without what the runs at the end take."""
        if not self.plan.max_minutes:
            return None
        left = 60 * self.plan.max_minutes - (time.monotonic() - self.began)
        if not self.complete:
            return left
        return left - SAFETY * len(self.plan.seeds) * self.pair_seconds

    @property
    def pair_seconds(self) -> float:
        """What the untouched preset and the winner take together."""
        return self.complete[0].seconds + self.best.seconds

    def run(self) -> bool:
        """Try until the trials or the time are used up; False = interrupted."""
        while len(self.trials) < self.plan.trials:
            left = self.left()
            if left is not None and left <= (0 if not self.complete else self.complete[0].seconds / 4):
                logger.info("the time for trials is used up after %d of %d", len(self.trials), self.plan.trials)
                break
            try:
                self._try_next(left)
            except _CutShortError:
                return False
        return True

    def _try_next(self, left: float | None) -> None:
        """One trial, from the draw of its settings to what is told of it."""
        optuna, number = quiet_optuna(), len(self.trials)
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=self.plan.seeds[0] + number)
        is_first = number == 0
        if is_first and all(holds(self.space, name, self.preset[name]) for name in self.space):
            self.study.enqueue_trial({name: self.preset[name] for name in self.space}, skip_if_exists=True)
            is_first = False
        trial = self.study.ask({} if is_first else {n: distribution_of(optuna, v) for n, v in self.space.items()})
        if self.watch is not None:
            self.watch.begin(f"trial {number + 1} of {self.plan.trials}")
        try:
            value, epochs, seconds, stopped = self._train(trial, left)
        except TrainingError as error:
            logger.warning("trial %d failed: %s", number + 1, error)
            trial.set_user_attr(ERROR, str(error))
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        except (ConfigError, KeyboardInterrupt):
            self._cut(self.study, trial.number)
            raise
        if stopped in ("interrupted", "max_minutes"):
            self._cut(self.study, trial.number)
            if stopped == "interrupted":
                raise _CutShortError
            return
        trial.set_user_attr("epochs", epochs)
        trial.set_user_attr("seconds", seconds)
        if stopped == "callback":
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(trial, value)
        logger.info("trial %d: %s %.4f%s", number + 1, self.metric, value, ", pruned" * (stopped == "callback"))

    def _train(self, trial: Any, left: float | None) -> tuple[float, int, float, str]:
        """Train one: its best valid metric, epochs, seconds, and what ended it."""
        began = time.monotonic()
        limit = {} if left is None else {"max_minutes": max(left, 1.0) / 60}
        split, config = configure(self.log, self.plan.preset, {**self.fixed, **trial.params, **limit})
        engine = engine_for(config, split, self.log.vocabulary, None)
        set_threads(engine.threads)
        progress = None if self.watch is None else self.watch.update
        callbacks = Callbacks([_Prune(trial, self.metric)])
        result = train(engine, split, config.model, config.train, config.eval, progress=progress, callbacks=callbacks)
        value = result.valid.get(self.metric, 0.0)
        return value, result.epochs, time.monotonic() - began, result.stopped


class _Prune:
    """Tells Optuna of each validated epoch, and ends a trial that is below the others."""

    def __init__(self, trial: Any, metric: str) -> None:
        self.trial, self.metric = trial, metric

    def on_epoch(self, line: EpochLine) -> bool:
        if line.valid is None:
            return False
        self.trial.report(line.valid[self.metric], line.epoch)
        return bool(self.trial.should_prune())


def search(
    log: Log,
    plan: SearchPlan,
    options: FitOptions,
    settings: Mapping[str, Any],
    *,
    command: str = "",
    watch: Watch | None = None,
) -> SearchResult | None:
    """Try settings, then train the winner and the untouched preset over several seeds, and test their difference.

    Args:
        log: what is trained on.
        plan: what is tried.
        options: `output` is the search's folder; with `resume` its trials and runs are kept. The preset is not read.
        settings: fixed in all trials, and not searched.
        command: the command line that starts it again.
        watch: is told of trials, runs and their progress.

    Returns:
        None = interrupted; `resume` goes on.

    Raises:
        ConfigError: the folder is not empty; resume with another preset, space or other settings; Optuna is missing.
        TrainingError: no trial has come to its end.
    """
    require("optuna", "a search", extra="tune")
    began = options.began or time.monotonic()
    with marked_folder(options, MARKER, "search") as claimed:
        folder = claimed.path
        plan = _kept(folder, plan, settings, command)
        found = Search(log, plan, settings, folder, watch, began)
        is_done = found.run()
        claimed.check()
        if not is_done:
            return None
        if not found.trials or found.trials[0].state != "complete":
            why = f" in {plan.max_minutes:g} minutes; give more" if plan.max_minutes else "; the warnings say why"
            raise TrainingError(f"the untouched preset, the first trial, did not come to its end{why}")
        claimed.forget_replaced()
        return _measured(found, options, command)


def tune(
    log: Any,
    *,
    output: Path | str,
    preset: str = DEFAULT_PRESET,
    trials: int = 50,
    space: Mapping[str, Any] | None = None,
    seeds: int = 3,
    max_minutes: float = 0.0,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> SearchResult | None:
    """Search settings for a log, and say whether the winner is better than the untouched preset.

    Args:
        log: anything `load_log` takes.
        output: the folder of the search.
        preset: the first trial, and what the winner is compared with.
        trials: how many settings are tried, those of an earlier start included.
        space: by setting, a range such as "1e-4..1e-2 log", a list of choices, or a value; None = around the preset's.
        seeds: runs of the winner and of the preset at the end.
        max_minutes: bound of all of it; 0 = no limit.
        resume: go on with the search in `output`.
        overwrite: replace what is in `output`.
        settings: any field of ModelConfig, TrainConfig, EvalConfig; fixed in all trials.

    Returns:
        None = interrupted; `resume` goes on.

    Raises:
        ConfigError, DataError, TrainingError: as `search` and `fit` raise them.
    """
    first = TrainConfig(seed=settings.pop("seed", TrainConfig().seed)).seed
    plan = SearchPlan(preset, trials, space, tuple(range(first, first + seeds)), max_minutes)
    options = FitOptions(output=Path(output), resume=resume, overwrite=overwrite, began=time.monotonic())
    return search(load_log(log), plan, options, settings)


def _kept(folder: Path, plan: SearchPlan, settings: Mapping[str, Any], command: str) -> SearchPlan:
    """The plan, once it is known to be that of the trials that are there."""
    told_settings = {name: plain(value) for name, value in settings.items()}
    space = None if plan.space is None else {name: plain(value) for name, value in plan.space.items()}
    now = {"format": FORMAT, "preset": plan.preset, "space": space, "seed": plan.seeds[0], "settings": told_settings}
    path = folder / MARKER
    if path.is_file():
        saved = {name: value for name, value in json.loads(path.read_text()).items() if name != "command"}
        now = json.loads(json.dumps(now))
        differs = next((name for name in now if saved.get(name) != now[name]), None)
        if differs is not None:
            raise ConfigError(
                f"{folder} was begun with {differs}={saved.get(differs)!r}, and now it is {now[differs]!r}; search "
                "into another folder"
            )
        return plan
    atomic_write(path, json.dumps({**now, "command": command}, indent=1))
    return plan


def _measured(found: Search, options: FitOptions, command: str) -> SearchResult | None:
    """The winner beside the preset; None = interrupted."""
    best, first, plan, folder = found.best, found.complete[0], found.plan, found.folder
    settings = {name: value for name, value in {**found.fixed, **best.settings}.items() if name != "seed"}
    atomic_write(folder / BEST, _yaml(settings, plan.preset))
    is_preset = best.number == first.number
    result = SearchResult(found.metric, found.trials, best, settings, first.value or 0.0, importance_of(found.study))
    untouched = {name: value for name, value in found.fixed.items() if name != "seed"}
    sides = {"winner": settings} if is_preset else {"preset": untouched, "winner": settings}
    seeds = _train_sides(found, sides, options, command)
    if not seeds:
        return None
    compared = None if is_preset else _compared(folder, sides, seeds)
    result = replace(result, comparison=compared, seeds=seeds)
    atomic_write(folder / RESULT, json.dumps(result.to_dict(), indent=1))
    write_summary(folder, plan.preset, told(found.space), result)
    return result


def _train_sides(
    found: Search, sides: Mapping[str, Mapping[str, Any]], options: FitOptions, command: str
) -> tuple[int, ...]:
    """Train each side with one seed after the other while there is time; the seeds that all have; none = interrupted.

    The first seed is trained in any case.
    """
    plan, seconds = found.plan, 0.0
    for n in range(1, len(plan.seeds) + 1):
        left = 60 * plan.max_minutes - (time.monotonic() - found.began)
        if n > 1 and plan.max_minutes and left < seconds:
            logger.warning(
                "there is time for %d of %d seeds at the end; --max-minutes bounds it", n - 1, len(plan.seeds)
            )
            return plan.seeds[: n - 1]
        began = time.monotonic()
        for side, settings in sides.items():
            where = found.folder / side
            is_kept = is_study(where) and load_study(where).settings == _told(settings)
            side_options = FitOptions(
                plan.preset, where, is_kept, overwrite=where.exists() and not is_kept, histories=options.histories
            )
            watch = _named(found.watch, side)
            if not run_study(found.log, side_options, settings, plan.seeds[:n], command, watch):
                return ()
        seconds = time.monotonic() - began
    return plan.seeds


def _compared(folder: Path, sides: Mapping[str, Any], seeds: Sequence[int]) -> Comparison:
    """The sides on test."""
    measured = {
        side: [
            load(folder / side / f"{SEED_FOLDER}{seed}").evaluate("test", protocol="full", baselines=False)
            for seed in seeds
        ]
        for side in sides
    }
    return compare_all(measured)[0]


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a study tells them."""
    return {name: plain(value) for name, value in settings.items() if name not in TOLD_ELSEWHERE}


def _named(watch: Watch | None, side: str) -> Watch | None:
    """Tells which side a run belongs to."""
    return None if watch is None else Watch(lambda title: watch.begin(f"{side}, {title}"), watch.update)


def _yaml(settings: Mapping[str, Any], preset: str) -> str:
    head = f"# sasrec train LOG --preset {preset} --config {BEST}\n"
    return head + yaml.safe_dump({name: plain(value) for name, value in settings.items()}, sort_keys=False)

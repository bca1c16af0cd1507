"""The trials of a search: which settings are tried next, what is told of them to Optuna, and when it is enough.

Optuna's study lies in DIR/trials.db, and this process alone writes it, whoever trains.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sasrec.core.errors import ConfigError
from sasrec.data.logs import Log
from sasrec.experiments.search_pages import Trial
from sasrec.experiments.search_space import Choice, Space, default_space, holds, read_space
from sasrec.experiments.seeds import Watch
from sasrec.experiments.trial_workers import Trainers, TrialEnd, TrialJob
from sasrec.experiments.trials import ERROR, PRESET, distribution_of, has_ended, quiet_optuna, trial_of
from sasrec.fitting import configure
from sasrec.training.progress import Progress

logger = logging.getLogger(__name__)

DATABASE, STUDY = "trials.db", "search"
STARTUP = 5  # trials that are drawn at random, and that end before any is pruned
WARM_UP = 0.2  # of an epoch count: earlier epochs prune nothing
QUEUED = "queued"  # those of an earlier start that wait to be tried again
SAFETY = 1.2  # times the seconds that a run took
END_SHARE = 0.5  # of max_minutes, that the runs at the end get at most where one seed needs no more


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


class Search:
    """One call of `search`: the study, and what its trials share.

    Args:
        log: what trials train on.
        plan: what is tried.
        settings: fixed in all trials.
        folder: where it is kept.
        watch: is told of trials and their progress.
        began: by time.monotonic(), when what max_minutes bounds began.

    It is the `Conductor` of those who train its trials; Optuna's study is written by this process alone.
    """

    def __init__(
        self, log: Log, plan: SearchPlan, settings: Mapping[str, Any], folder: Path, watch: Watch | None, began: float
    ) -> None:
        self.log, self.plan, self.folder, self.watch, self.began = log, plan, folder, watch, began
        self.running: dict[int, _Running] = {}  # by the number of Optuna's trial
        self.is_interrupted = self.is_said = self.is_parallel = False
        self.shown: int | None = None
        self.fixed = {**settings, "seed": plan.seeds[0]}
        split, config = configure(log, plan.preset, self.fixed)
        self.metric = config.train.valid_metric
        if not len(split.valid):
            raise ConfigError("a search chooses by valid targets, and this split has none; set valid_fraction")
        self.preset: dict[str, Any] = {**asdict(config.model), **asdict(config.train)}
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
            study_name=STUDY,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=int(WARM_UP * epochs)),
        )
        states = optuna.trial.TrialState
        for trial in study.get_trials():  # a process may have been killed between any two writes
            if has_ended(trial) or trial.state == states.WAITING:
                continue
            if ERROR in trial.user_attrs:
                study.tell(trial.number, state=states.FAIL)
            else:
                self._cut(study, trial.number)
        return study

    def _cut(self, study: Any, number: int) -> None:
        """A trial was cut short: it counts for nothing, and is tried again.

        Where that was while its settings were drawn, all are drawn again, as a search without a break draws them.
        """
        trial = study.get_trials(deepcopy=False)[number]
        if not trial.state.is_finished():
            study.tell(trial.number, state=quiet_optuna().trial.TrialState.FAIL)
        queued = study.user_attrs.get(QUEUED, [])
        if trial.number in queued:
            return
        study.set_user_attr(QUEUED, [*queued, trial.number])  # first, so that no kill has it tried twice
        if trial.params and trial.params.keys() == self.space.keys():
            told = {PRESET: True} if PRESET in trial.user_attrs else None
            study.enqueue_trial(trial.params, user_attrs=told)

    @property
    def trials(self) -> list[Trial]:
        """Those that have ended, the untouched preset first, then in the order in which they began."""
        return [trial_of(trial, number) for number, trial in enumerate(self._ended(), 1)]

    def _ended(self) -> list[Any]:
        """The same as Optuna has them."""
        ended = [trial for trial in self.study.get_trials(deepcopy=False) if has_ended(trial)]
        return sorted(ended, key=lambda trial: (PRESET not in trial.user_attrs, trial.number))

    @property
    def complete(self) -> list[Trial]:
        """Those that were trained to their end."""
        return [trial for trial in self.trials if trial.state == "complete"]

    @property
    def untouched(self) -> Trial | None:
        """The preset itself, once it was trained to its end."""
        first = next(iter(self._ended()), None)
        is_preset = first is not None and PRESET in first.user_attrs
        return found if is_preset and (found := trial_of(first, 1)).state == "complete" else None

    @property
    def best(self) -> Trial:
        """The one with the highest valid metric; of equal ones the earlier."""
        return max(self.complete, key=lambda trial: (trial.value, -trial.number))

    def left(self) -> float | None:
        """Seconds that trials may still take: of max_minutes, without what the runs at the end take.

        These get half of all at most, and one seed in any case; there may be fewer seeds then.
        """
        if not self.plan.max_minutes:
            return None
        left = 60 * self.plan.max_minutes - (time.monotonic() - self.began)
        untouched = self.untouched
        if untouched is None:
            return left
        a_seed = SAFETY * (untouched.seconds + self.best.seconds)
        return left - min(len(self.plan.seeds) * a_seed, max(END_SHARE * 60 * self.plan.max_minutes, a_seed))

    def run(self, trainers: Trainers) -> bool:
        """Try until the trials or the time are used up; False = interrupted."""
        self.is_parallel = trainers.size > 1
        try:
            trainers.train(self, self.metric)
        finally:
            for number in list(self.running):
                self.on_lost(number)
        return not self.is_interrupted

    def next_job(self) -> TrialJob | None:
        begun = len(self._ended()) + len(self.running)
        if self.is_interrupted or begun >= self.plan.trials:
            return None
        left, untouched = self.left(), self.untouched
        if left is not None and left <= (0 if untouched is None else untouched.seconds / 4):
            if not self.is_said:
                logger.info("the time for trials is used up after %d of %d", begun, self.plan.trials)
            self.is_said = True
            return None
        trial = self._ask(begun)
        self.running[trial.number] = _Running(trial, begun + 1)
        limit = {} if left is None else {"max_minutes": max(left, 1.0) / 60}
        return TrialJob(trial.number, self.plan.preset, {**self.fixed, **trial.params, **limit})

    def _ask(self, begun: int) -> Any:
        """Optuna's next trial: the untouched preset, one that was cut short, or one that is drawn."""
        optuna, study = quiet_optuna(), self.study
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP, constant_liar=self.is_parallel, seed=self.plan.seeds[0] + begun
        )
        known = [t for t in study.get_trials(deepcopy=False) if has_ended(t) or not t.state.is_finished()]
        if not any(PRESET in trial.user_attrs for trial in known):
            if not all(holds(self.space, name, self.preset[name]) for name in self.space):
                trial = study.ask({})
                trial.set_user_attr(PRESET, True)
                return trial
            study.enqueue_trial({name: self.preset[name] for name in self.space}, user_attrs={PRESET: True})
        return study.ask({name: distribution_of(optuna, values) for name, values in self.space.items()})

    def show(self, number: int, progress: Progress) -> None:
        first = min(self.running, default=None)
        if self.watch is None or first is None or number != first:
            return
        if self.shown != first:
            self.watch.begin(f"trial {self.running[first].place} of {self.plan.trials}")
            self.shown = first
        self.watch.update(progress)

    def on_epoch(self, number: int, epoch: int, value: float) -> bool:
        trial = self.running[number].trial
        trial.report(value, epoch)
        return PRESET not in trial.user_attrs and bool(trial.should_prune())

    def on_lost(self, number: int) -> None:
        del self.running[number]
        self._cut(self.study, number)

    def on_end(self, end: TrialEnd) -> None:
        if end.stopped in ("interrupted", "max_minutes"):
            self.is_interrupted |= end.stopped == "interrupted"
            self.on_lost(end.number)
            return
        trial, place = self.running.pop(end.number)
        state = quiet_optuna().trial.TrialState
        if end.error:
            logger.warning("trial %d failed: %s", place, end.error)
            trial.set_user_attr(ERROR, end.error)
            self.study.tell(trial, state=state.FAIL)
            return
        trial.set_user_attr("epochs", end.epochs)
        trial.set_user_attr("seconds", end.seconds)
        is_pruned = end.stopped == "callback"
        if is_pruned:
            self.study.tell(trial, state=state.PRUNED)
        else:
            self.study.tell(trial, end.value)
        logger.info("trial %d: %s %.4f%s", place, self.metric, end.value, ", pruned" * is_pruned)


class _Running(NamedTuple):
    """A trial under way."""

    trial: Any
    place: int  # from 1, in the order in which trials began

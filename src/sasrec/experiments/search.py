"""A search for settings: trials by Optuna, chosen and pruned on valid; then the winner beside the untouched preset.

DIR/search.json      preset, settings, space, seeds and the command
DIR/trials.db        Optuna's study, which its own tools read: optuna-dashboard sqlite:///DIR/trials.db
DIR/best.yaml        the winner's settings, as `train --config` takes them
DIR/winner, DIR/preset   a study of several seeds each, where the winner is not the preset itself
DIR/result.json, summary.md, history.png   what was found
DIR/log             what processes map that train trials side by side; removed when trials end

Only valid chooses. Test is looked at once, at the end, by both studies; their difference is tested over users.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from sasrec.core.config import TrainConfig
from sasrec.core.errors import ConfigError, TrainingError
from sasrec.core.extras import require
from sasrec.core.files import atomic_write
from sasrec.core.presets import DEFAULT_PRESET
from sasrec.core.scalars import plain
from sasrec.data.logs import Log, Reading, load_log
from sasrec.evaluation.comparison import Comparison, compare_all
from sasrec.experiments.search_pages import SearchResult, write_summary
from sasrec.experiments.search_space import told
from sasrec.experiments.search_trials import Search, SearchPlan
from sasrec.experiments.seeds import (
    SEED_FOLDER,
    TOLD_ELSEWHERE,
    Watch,
    is_study,
    load_study,
    marked_folder,
    run_study,
)
from sasrec.experiments.trial_workers import OneByOne, SideBySide, Trainers
from sasrec.experiments.trials import importance_of
from sasrec.fitting import FitOptions
from sasrec.recommender import load

logger = logging.getLogger(__name__)

FORMAT = 1
MARKER, BEST, RESULT = "search.json", "best.yaml", "result.json"


def search(
    log: Log,
    plan: SearchPlan,
    options: FitOptions,
    settings: Mapping[str, Any],
    *,
    command: str = "",
    watch: Watch | None = None,
    trainers: Callable[[Log, Path], Trainers] | None = None,
) -> SearchResult | None:
    """Try settings, then train the winner and the untouched preset over several seeds, and test their difference.

    Args:
        log: what is trained on.
        plan: what is tried.
        options: `output` is the search's folder; with `resume` its trials and runs are kept. The preset is not read.
        settings: fixed in all trials, and not searched.
        command: the command line that starts it again.
        watch: is told of trials, runs and their progress.
        trainers: makes who trains the trials, of the log and the search's folder; None = this process.

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
        is_done = found.run(OneByOne(log) if trainers is None else trainers(log, folder))
        claimed.check()
        if not is_done:
            return None
        if found.untouched is None:
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
    workers: int = 1,
    max_minutes: float = 0.0,
    titles: Any = None,
    items: Any = None,
    item_features: Any = (),
    item_vectors: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    event_column: str | None = None,
    weight_column: str | None = None,
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
        workers: trials at a time, each in a process of its own with its share of the threads; 1 = in this process.
            Which settings are drawn then depends on which trial ends first.
        max_minutes: bound of all of it; 0 = no limit.
        titles: as `fit` takes them, like the three that follow.
        items: what is known of items.
        item_features: columns of `items` that the model learns from.
        item_vectors: vectors of items.
        resume: go on with the search in `output`.
        overwrite: replace what is in `output`.
        event_column: name of the log's column of types of events.
        weight_column: name of the log's column of weights of events.
        settings: any field of ModelConfig, TrainConfig, EvalConfig; fixed in all trials.

    Returns:
        None = interrupted; `resume` goes on.

    Raises:
        ConfigError, DataError, TrainingError: as `search` and `fit` raise them.
    """
    first = TrainConfig(seed=settings.pop("seed", TrainConfig().seed)).seed
    plan = SearchPlan(preset, trials, space, tuple(range(first, first + seeds)), max_minutes)
    options = FitOptions(output=Path(output), resume=resume, overwrite=overwrite, began=time.monotonic())
    read = load_log(log, Reading(event_column=event_column, weight_column=weight_column))
    described = read.with_titles(titles).with_items(items, item_features, item_vectors)
    return search(described, plan, options, settings, trainers=beside(workers))


def beside(workers: int) -> Callable[[Log, Path], Trainers] | None:
    """Who trains as many trials at a time on this machine, as `search` takes it.

    Raises:
        ConfigError: there are fewer than one.
    """
    if workers < 1:
        raise ConfigError(f"workers={workers} is too small; the least is 1")
    return None if workers == 1 else partial(SideBySide, size=workers)


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
    best, first, plan, folder = found.best, found.untouched, found.plan, found.folder
    assert first is not None
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

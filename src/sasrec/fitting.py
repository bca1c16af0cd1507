"""Train on a log: `fit` makes a Recommender of anything that can be read as a log, and its run folder.

Split, train, choose the epoch on valid, measure on test, report.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sasrec import __version__
from sasrec.core.config import DERIVED, OF_ANSWERS, EvalConfig, ModelConfig
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.presets import DEFAULT_PRESET, LogStatistics, resolve, with_feature_settings
from sasrec.core.threads import set_threads
from sasrec.core.world import Pulse, World, is_first, on_first
from sasrec.data.bounded import Workplace
from sasrec.data.event_types import event_weights
from sasrec.data.item_features import ItemFeatures
from sasrec.data.items import check_same_items
from sasrec.data.logs import Log, Reading, load_log
from sasrec.data.sequences import LogFacts
from sasrec.data.splits import Split, hides_repeats, split_sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.engine.distributed import placed
from sasrec.engine.protocol import Engine, create_engine
from sasrec.evaluation.intervals import FEW_USERS
from sasrec.evaluation.protocols import check_targets
from sasrec.evaluation.results import Result
from sasrec.measuring import Request, measure
from sasrec.ranking.scorers import Baselines
from sasrec.recommender import Recommender
from sasrec.runs.folder import FORMAT, RunConfig, RunFolder, check_resumable, resumed_config
from sasrec.runs.memory import seen_by
from sasrec.runs.spool import spool
from sasrec.training.bar import Bar
from sasrec.training.callbacks import Callbacks
from sasrec.training.interrupts import StoppedError, interruptible
from sasrec.training.progress import Progress
from sasrec.training.together import check_alike, shared_config
from sasrec.training.trainer import train
from sasrec.training.warm_start import (
    Origin,
    check_same_init,
    read_origin,
    refuse_without_origin,
    start_from,
    with_features_of,
    without_average,
)

logger = logging.getLogger(__name__)

MOST_RANKED = 10**10  # targets times items of a measurement on all users


@dataclass(frozen=True)
class FitOptions:
    """What `fit` does around training."""

    preset: str = DEFAULT_PRESET
    output: Path | None = None
    resume: bool = False
    overwrite: bool = False
    refit: bool = False
    histories: bool = True  # whether the run folder keeps users' histories
    report: bool = True  # whether it gets report.html, curve.png and the model card
    init: Path | Recommender | None = None  # the model to begin from; None = initial weights
    began: float | None = None  # by time.monotonic(), when what max_minutes bounds began; None = when training does
    world: World | None = None  # processes that train together, each of which does the same call; None = one
    callbacks: Sequence[Any] = ()  # see training/callbacks.py; of several processes the first one's are told


def fit(
    log: Any,
    *,
    preset: str = DEFAULT_PRESET,
    output: Path | str | None = None,
    titles: Any = None,
    items: Any = None,
    item_features: Any = (),
    item_vectors: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    refit: bool = False,
    init: Path | str | Recommender | None = None,
    progress: Callable[[Progress], None] | bool | None = None,
    callbacks: Sequence[Any] = (),
    event_column: str | None = None,
    weight_column: str | None = None,
    memory: str | int | None = None,
    **settings: Any,
) -> Recommender:
    """Train on a log: split, train, choose the epoch on valid, measure on test.

    Args:
        log: anything `load_log` takes.
        preset: a name of `PRESETS`.
        output: a run folder to write while training; needed to resume.
        titles: a frame item_id, title of any library, for explanations and reports.
        items: what is known of items: anything `read_items` takes. Items without events can be recommended, too, if
            there are features.
        item_features: names of columns of `items` that the model learns from; see `FeatureEncoder.fit`.
        item_vectors: the column of `items` that holds vectors, or a .npy file or an array (n, W) whose rows are those
            of `items`.
        resume: go on with the run in `output`.
        overwrite: replace the run in `output`.
        refit: afterwards train again on all events, for the number of epochs that valid chose: the model to serve.
        init: the run, or its folder, to begin from: its weights and settings of the model, for this log's items.
        progress: called about twice a second with a `Progress`; True = show it: a bar in a notebook, a line elsewhere.
        callbacks: objects with any of `on_start(config)`, `on_epoch(line)`, which ends the training by True,
            `on_end(result)` and `on_error(error)`; see `sasrec.training.callbacks`.
        event_column: name of the log's column of types of events, which target_events and event_weights speak of.
        weight_column: name of the log's column that says how much each event counts in training.
        memory: the most that reading files may take, such as "4GB"; what does not fit is put together on disk beside
            `output`, which is needed then. None = the log is read in memory.
        settings: any field of ModelConfig, TrainConfig, EvalConfig.

    Raises:
        DataError: the log cannot be used.
        ConfigError: a setting is unknown, out of range or does not fit `init`; the memory is too little.
        CheckpointError: `init` is no run, or is damaged.
        TrainingError: the loss is no longer a number.
    """
    begins, folder = Path(init) if isinstance(init, str) else init, None if output is None else Path(output)
    options = FitOptions(
        preset, folder, resume, overwrite, refit, init=begins, began=time.monotonic(), callbacks=callbacks
    )
    bound = None if memory is None else str(memory)
    reading = Reading(event_column=event_column, weight_column=weight_column, memory=bound)
    with contextlib.ExitStack() as stack:
        place = None if folder is None else Workplace(stack.enter_context(spool(folder)).folder)
        described = load_log(log, reading, place).with_titles(titles).with_items(items, item_features, item_vectors)
        told = stack.enter_context(Bar()) if progress is True else progress or None
        return fit_log(described, options, settings, told)


def fit_log(
    log: Log,
    options: FitOptions,
    settings: Mapping[str, Any],
    progress: Callable[[Progress], None] | None = None,
) -> Recommender:
    """`fit` for a log that has been read already."""
    callbacks = Callbacks(options.callbacks if is_first(options.world) else ())
    with callbacks.told_of_errors():
        recommender = _fit(log, options, settings, progress, callbacks)
        callbacks.end(recommender)
    return recommender


def _fit(
    log: Log,
    options: FitOptions,
    settings: Mapping[str, Any],
    progress: Callable[[Progress], None] | None,
    callbacks: Callbacks,
) -> Recommender:
    origin = origin_of(options)
    if origin is not None:
        log = replace(log, vocabulary=with_features_of(origin, log.vocabulary))
        log = _without_seen(log, origin, options.preset, settings)
    world = options.world
    split, config = configure(log, options.preset, settings, origin)
    config = replace(config, processes=1 if world is None else world.size)
    with _output(options) as run:
        before = shared_config(world, on_first(world, lambda: _begin(run, log, options, config, settings)))
        if before is not None:
            config = replace(resumed_config(before, config), format=FORMAT, refit_epochs=0)
        spent = 0.0 if options.began is None else time.monotonic() - options.began
        into = _Into(run, before, world, spent, callbacks)
        callbacks.start(config)
        recommender = _train(log, split, config, origin, into, progress)
        result = recommender.train_result
        assert result is not None
        if result.stopped == "interrupted":
            return recommender
        logger.info("measuring the model of epoch %d on valid and test, beside baselines", result.best_epoch)
        try:
            pulse = Pulse(world)
            with interruptible() as pulse.asked:
                recommender.results = final_results(recommender, split, pulse, progress)
        except (StoppedError, KeyboardInterrupt):
            recommender.train_result = replace(result, stopped="measuring")
            logger.warning("the model is not measured; the trained model is kept, and can be measured at any time")
            return recommender
        if run is not None:
            run.save_metrics(recommender.results, recommender.training_facts())
        if options.refit:
            recommender = _refit(recommender, split, origin, into, progress)
            if not recommender.config.refit_epochs:  # interrupted
                return recommender
        if run is not None and options.report:
            recommender.write_report(run.path)
        return recommender


class _Into(NamedTuple):
    """What a training writes, and who trains."""

    run: RunFolder | None  # None = nothing is written, or by another process
    before: RunConfig | None  # settings of the run that is gone on with
    world: World | None
    spent: float  # seconds of max_minutes that have passed
    callbacks: Callbacks


def _train(
    log: Log,
    split: Split,
    config: RunConfig,
    origin: Origin | None,
    into: _Into,
    progress: Callable[[Progress], None] | None,
) -> Recommender:
    """Train by valid."""
    run, before, world, spent, callbacks = into
    engine = engine_for(config, split, log.vocabulary, origin, world)
    set_threads(engine.threads)
    if run is not None and before is not None:
        # The mark that the saved model has seen all events stays until another model is in its place.
        run.save_config(replace(config, refit_epochs=before.refit_epochs))
        run.forget_metrics()  # they are of an earlier end of training
    loop = partial(train, run=run, resume=before is not None, progress=progress, spent=spent, world=world)
    loop = partial(loop, callbacks=callbacks)
    result = replace(loop(engine, split, config.model, config.train, config.eval), weights={})  # the engine has them
    if run is not None and before is not None and before.refit_epochs and not run.has_refit(before):
        run.save_config(config)
    return Recommender(engine, log.vocabulary, config, log.sequences, (), result)


def engine_for(
    config: RunConfig, split: Split, vocabulary: Vocabulary, origin: Origin | None, world: World | None = None
) -> Engine:
    """An engine with initial weights, or with those of the model that training begins from."""
    n_items, features = len(vocabulary), vocabulary.features
    settings = config.train if world is None else placed(config.model, config.train, world)
    if origin is None:
        trained = split.train_counts > 0
        engine = create_engine(config.model, n_items, settings, features=features, trained=trained)
    else:
        weights, moments = start_from(origin, split, vocabulary, config.train)
        engine = create_engine(config.model, n_items, settings, weights, features=features)
        engine.load_optimizer_state(moments)
    if world is not None:
        check_alike(world, config, engine)
    return engine


def origin_of(options: FitOptions) -> Origin | None:
    """The model that training begins from; None for initial weights.

    Raises:
        CheckpointError: there is no run where it should be, or it is damaged.
        ConfigError: it lies where the new run is to be written.
    """
    init = options.init
    if init is None:
        return None
    if isinstance(init, Recommender):
        trained, moments = init.train_result, without_average(init.engine.optimizer_state())
        parts = init.config, init.vocabulary, init.engine.weights(), moments, init.sequences
        return Origin("the given model", *parts, is_whole=trained is None or trained.is_whole)
    if options.output is not None and options.output.resolve() == init.resolve():
        raise ConfigError(f"{init} is both the run to begin from and the one to write; write into another folder")
    return read_origin(init)


def _without_seen(log: Log, origin: Origin, preset: str, settings: Mapping[str, Any]) -> Log:
    """The log, with a note of held-out events that the model which training begins from knows."""
    seen = seen_by(origin, log)
    seen = seen[~_cut(log, preset, settings).is_train(seen)]
    log = replace(log, sequences=replace(log.sequences, seen=seen))
    split = _cut(log, preset, settings)
    for part, n_seen in zip(("valid", "test"), split.n_seen, strict=True):
        if n_seen:
            logger.info("%d %s targets are left out: %s was trained on them", n_seen, part, origin.where)
            check_targets(split, part)
    return log


def _cut(log: Log, preset: str, settings: Mapping[str, Any]) -> Split:
    return split_sequences(log.sequences, resolve(preset, _no_statistics(log.sequences.facts), settings)[2])


def configure(
    log: Log, preset: str, settings: Mapping[str, Any], origin: Origin | None = None
) -> tuple[Split, RunConfig]:
    """The split, and all settings: the preset's for this log, with the user's own on top, and the model of `origin`."""
    facts = log.sequences.facts
    _, _, eval_config = resolve(preset, _no_statistics(facts), settings)
    split = split_sequences(log.sequences, eval_config)
    in_train = replace(split.facts, repeat_share=split.repeat_share)  # valid and test decide no setting
    hides_seen = hides_repeats(in_train, eval_config)
    if not hides_seen and eval_config.filter_seen == "auto":
        logger.info("%.0f %% of events repeat one of the user's, so seen items stay", 100 * in_train.repeat_share)
    statistics = replace(split.statistics, hides_seen=hides_seen)
    model, train_config, eval_config = resolve(preset, statistics, settings)
    if origin is None:
        refuse_without_origin(train_config)
    else:
        model, train_config = origin.settings(train_config, settings)
    model = _with_sizes(model, log.vocabulary.features)
    kept = {} if origin is None else {name: getattr(model, name) for name in OF_ANSWERS}
    model, train_config = with_feature_settings(model, train_config, {**kept, **settings})
    eval_config = _bounded(eval_config, split, settings)
    event_weights(log.sequences, train_config.event_weights, split.target_types)  # refuses unknown types
    init = None if origin is None else origin.facts(log.vocabulary)
    return split, RunConfig(model, train_config, eval_config, preset, log.name, facts, __version__, init=init)


def _bounded(config: EvalConfig, split: Split, settings: Mapping[str, Any]) -> EvalConfig:
    """The settings with as many users to measure on as keep targets times items within a bound, where none are set."""
    most = MOST_RANKED // max(split.sequences.n_items, 1)
    users = {"valid_users": split.valid, "eval_users": split.test}
    bounds: dict[str, Any] = {
        name: max(most * targets.n_users // len(targets), FEW_USERS)
        for name, targets in users.items()
        if name not in settings and len(targets) > most
    }
    for name, n_users in bounds.items():
        logger.info("%s: %d of %d users, since there are many items; 0 = all", name, n_users, users[name].n_users)
    return replace(config, **bounds)


def _with_sizes(model: ModelConfig, features: ItemFeatures | None) -> ModelConfig:
    """The settings with the sizes that items decide.

    Raises:
        ConfigError: they were set to something else.
    """
    n_features, vector_dim = (0, 0) if features is None else (features.n_features, features.vector_dim)
    for name, size in zip(DERIVED, (n_features, vector_dim), strict=True):
        given = getattr(model, name)
        if given not in (0, size):
            raise ConfigError(
                f"{name}={given} cannot be set: it follows from the features of items, which give {size} "
                "(item_features, item_vectors)"
            )
    return replace(model, n_features=n_features, vector_dim=vector_dim)


def _no_statistics(facts: LogFacts) -> LogStatistics:
    """Statistics good enough to resolve the settings of the split, which presets leave alone."""
    return LogStatistics(facts.n_users, facts.n_items, facts.n_events, facts.n_events / max(facts.n_users, 1))


@contextlib.contextmanager
def _output(options: FitOptions) -> Iterator[RunFolder | None]:
    """The run folder to write, which no other process writes meanwhile."""
    if options.output is None:
        if options.resume:
            raise ConfigError("resume needs the output folder of the run to go on with")
        yield None
        return
    with contextlib.ExitStack() as stack:
        claimed = RunFolder.claim(options.output, resume=options.resume, overwrite=options.overwrite)
        yield on_first(options.world, lambda: stack.enter_context(claimed))


def _begin(
    run: RunFolder | None, log: Log, options: FitOptions, config: RunConfig, given: Mapping[str, Any]
) -> RunConfig | None:
    """Write what training starts from; the settings of the run that is gone on with, or None for a new one.

    Settings come first, so a folder that a kill cut short before anything was trained is known for what it is.
    """
    saved = None
    if run is None:
        return saved
    if options.resume and not run.is_empty():
        saved = RunFolder.open(run.path).load_config()
        check_same_init(saved.init, config.init)
        check_resumable(saved, config, given)
        if run.has_begun():
            check_same_items(run.load_vocabulary(), log.vocabulary)
        if saved.refit_epochs and saved.format == 1:
            raise CheckpointError(
                f"{run.path} was trained again on all events by an earlier version, which did not keep the weights of "
                "the chosen epoch, so it cannot be gone on with; train into another folder"
            )
        run.begin_digests()
    else:
        run.save_config(config)
    if not run.has_begun():
        run.save_data(log.vocabulary, log.sequences if options.histories else None)
    return saved


def final_results(
    recommender: Recommender,
    split: Split,
    pulse: Pulse | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Result]:
    """Valid by the protocol that chose the epoch, and test by both protocols, without the figures of users.

    Raises:
        StoppedError: it was asked for meanwhile.
    """
    plan = [("valid", recommender.config.train.valid_protocol), ("test", "full"), ("test", "sampled")]
    result, pulse = recommender.train_result, pulse or Pulse()
    for part in ("valid", "test"):
        split = split.bounded(part, recommender.config.eval)  # once for all that is measured
    baselines, results = Baselines(split, recommender.vocabulary.features, [split.valid, split.test]), []
    for part, protocol in plan:

        def show(done: int, total: int, what: str = f"{part}, {protocol}") -> None:
            pulse.beat()
            if pulse.is_set():
                raise StoppedError
            if progress is not None and result is not None:
                progress(result.measuring(what, done, total))

        request = Request(part, None, baselines, show, {"protocol": protocol}, world=pulse.world, split=split)
        results.append(measure(recommender, request).without_users())
    return results


def _refit(
    recommender: Recommender,
    split: Split,
    origin: Origin | None,
    into: _Into,
    progress: Callable[[Progress], None] | None,
) -> Recommender:
    """Train again on all events, for as many epochs as valid chose."""
    result, config = recommender.train_result, recommender.config
    assert result is not None
    epochs = max(result.best_epoch, 1)
    logger.info("training again on all events for %d epochs", epochs)
    train_config = replace(config.train, max_epochs=epochs, patience=0, max_minutes=0.0)
    everything, run, world = split.all_events(), into.run, into.world
    engine = engine_for(replace(config, train=train_config), everything, recommender.vocabulary, origin, world)
    again = train(engine, everything, config.model, train_config, config.eval, progress=progress, world=world)
    if again.stopped == "interrupted":
        logger.warning("the second training was interrupted; the model chosen by valid is kept")
        recommender.train_result = replace(result, stopped="interrupted")
        return recommender
    config = replace(config, refit_epochs=epochs)
    if run is not None:
        run.save_config(config)  # first: no model that has seen the targets lies there without the mark
        run.save_weights(again.weights, epochs, refit=True)
    return Recommender(engine, recommender.vocabulary, config, recommender.sequences, recommender.results, result)

"""Measure a trained model on valid or test: of its own log, or of another one, as yesterday's model on today's log.

On another log, what the model was trained on is no target. That is told by its histories; without them it is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from sasrec.core.arrays import Int32
from sasrec.core.config import EvalConfig, from_dict, to_dict
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.world import World
from sasrec.data.logs import Log, load_log
from sasrec.data.splits import Split, cut_alike, split_sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.engine.protocol import Engine
from sasrec.evaluation.candidates import read_candidates
from sasrec.evaluation.protocols import check_unseen, evaluate
from sasrec.evaluation.results import Result
from sasrec.ranking.mapped_scorer import MappedScorer
from sasrec.ranking.next_items import NextItems
from sasrec.ranking.scorers import Baselines, ModelScorer, Scorer
from sasrec.runs.memory import Trained, is_unchecked, unseen_by


class Model(Trained, Protocol):
    """What is measured: a Recommender."""

    @property
    def engine(self) -> Engine:
        """Holds the weights."""

    @property
    def next_items(self) -> NextItems:
        """Ranks its own items."""


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    part: str  # "valid" or "test"
    candidates: Any  # of the sampled protocol, as `read_candidates` takes them; None = they are drawn
    baselines: bool | Baselines
    progress: Callable[[int, int], None] | None
    settings: Mapping[str, Any]  # fields of EvalConfig that differ from the run's
    log: Any = None  # another log, anything `load_log` takes, or one that has been read; None = the model's own
    unseen_by: Sequence[Trained] = ()  # whose train events are no targets of that log either
    world: World | None = None  # processes that measure the same model together
    split: Split | None = None  # the model's own log as it was cut for training; None = it is cut again


def measure(model: Model, request: Request) -> Result:
    """Measure a model on the split that it was trained with, or on that of another log.

    Raises:
        ConfigError: an unknown setting, a model that has seen the targets (--refit, or another split), or a log with
            none of its items.
        CheckpointError: its own log is not there, since it was saved without histories.
        DataError: the log cannot be read, or has no targets that the model has not seen.
    """
    config = from_dict(EvalConfig, {**to_dict(model.config.eval), **request.settings})
    if request.log is None:
        return _on_own_log(model, config, request)
    return _on_log(model, request.log if isinstance(request.log, Log) else load_log(request.log), config, request)


def _on_own_log(model: Model, config: EvalConfig, request: Request) -> Result:
    run = model.config
    if request.unseen_by:
        raise ConfigError("unseen_by is for targets of another log; give it as log, too")
    if run.refit_epochs:
        raise ConfigError(
            "this model was trained again on all events (--refit), so it has seen the targets; "
            "metrics.json holds the figures of the model it was chosen by"
        )
    if model.sequences is None:
        raise CheckpointError("this run was saved without histories (--no-histories); give a log to measure it on")
    own = request.split or split_sequences(model.sequences, run.eval)
    split = own
    if not cut_alike(run.eval, config):
        split = split_sequences(model.sequences, config)
        if request.part == "test":
            split = split.drawn_as(own)
        check_unseen(own, split, request.part)
    scorer = ModelScorer(model.engine, run.model.max_seq_len, model.next_items.index)
    result = _evaluate(scorer, split, config, model.vocabulary, request)
    return replace(result, init_unchecked=is_unchecked(model))


def _on_log(model: Model, log: Log, config: EvalConfig, request: Request) -> Result:
    """All items of the log are ranked, those that the model does not know last; what was trained on is no target."""
    trained = [model, *request.unseen_by]
    log = unseen_by(log, trained)
    split = split_sequences(log.sequences, config)
    own = _own_items(model, log)
    scorer = MappedScorer(model.engine, model.config.model.max_seq_len, own, model.vocabulary.counts)
    result = _evaluate(scorer, split, config, log.vocabulary, request)
    n_unknown = int((own[split.part(request.part).items(log.sequences)] == 0).sum())
    unchecked = any(map(is_unchecked, trained))
    told = (*result.warnings, *_told(n_unknown, result.n_targets, unchecked))
    return replace(result, unknown_targets=n_unknown, init_unchecked=unchecked, warnings=told)


def _told(n_unknown: int, n_targets: int, unchecked: bool) -> Iterator[str]:
    if n_unknown:
        yield f"{n_unknown} of {n_targets} targets are items that the model does not know; they count as misses"
    if unchecked:
        yield "a run has no histories, so targets that it was trained on may be among these"


def _own_items(model: Model, log: Log) -> Int32:
    """(V,) the model's index of each item of a log; 0 = it does not know it."""
    own = np.concatenate([np.zeros(1, np.int32), model.vocabulary.indices_of(log.vocabulary.ids)])
    if own.any():
        return own
    raise ConfigError(
        f"the log has none of the model's {len(model.vocabulary):,} items (ids such as {model.vocabulary.ids[0]!r}; "
        f"the log's are such as {log.vocabulary.ids[0]!r}), so it cannot be measured on it"
    )


def _evaluate(scorer: Scorer, split: Split, config: EvalConfig, vocabulary: Vocabulary, request: Request) -> Result:
    drawn = None
    if request.candidates is not None:
        drawn = read_candidates(request.candidates, request.part, split, vocabulary)
    return evaluate(
        scorer,
        split,
        request.part,
        config,
        candidates=drawn,
        baselines=request.baselines,
        features=vocabulary.features,
        progress=request.progress,
        world=request.world,
    )

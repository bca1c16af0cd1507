"""Begin a training from a model that was trained before: what comes along, and where new items start.

Rows of item tables go by item id, so both logs may have other items, in another order, with ids of another type. All
other weights stay as they are. An item that only the new log has starts at the mean of the items that its train events
stand near; at the mean of all kept items where there are none; at 0 where the model has features, which stand for it.
Shape legend: V n_items + 1 of the new log (row 0 is padding), D embedding_dim.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sasrec.core.arrays import Bool, Float32, Float64, Int32, Int64
from sasrec.core.config import OF_ANSWERS, OF_INIT, ModelConfig, TrainConfig, from_dict, split_settings
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.data.items import told_or_known
from sasrec.data.sequences import Sequences
from sasrec.data.splits import Split
from sasrec.data.vocabulary import Vocabulary
from sasrec.model.weights import ITEM_TABLE, OUTPUT_TABLE, Weights, check_weights, weight_shapes
from sasrec.runs.digests import version_of
from sasrec.runs.folder import RunConfig, RunFolder
from sasrec.runs.memory import is_unchecked
from sasrec.runs.record import InitFacts

logger = logging.getLogger(__name__)

NEAR = 3  # places on each side of an event: what stands there says what a new item is like
EPOCHS_SHARE = 0.25  # of the preset's epochs: a trained model needs few
AVERAGE = "average/"  # of an optimizer's state: the moving average of the weights
CHUNK = 2**15  # events around which rows are added up at once


@dataclass(frozen=True)
class Origin:
    """A trained model that another training begins from."""

    where: str  # what messages call it
    config: RunConfig
    vocabulary: Vocabulary
    weights: Weights  # those that were chosen
    moments: Weights  # Adam's, after its last step; empty = there are none
    sequences: Sequences | None
    is_whole: bool = True  # False = its training, or its measuring, has not ended

    def facts(self, vocabulary: Vocabulary) -> InitFacts:
        """What config.json tells of a training that begins from it, on a log with these items.

        Raises:
            ConfigError: the log has none of its items.
        """
        kept = int(np.count_nonzero(self.vocabulary.indices_of(vocabulary.ids)))
        if not kept:
            raise ConfigError(
                f"the log has none of the {len(self.vocabulary):,} items of {self.where} (ids such as "
                f"{self.vocabulary.ids[0]!r}; the log's are such as {vocabulary.ids[0]!r}), so nothing can come along"
            )
        n_old, n_new = len(self.vocabulary), len(vocabulary)
        version = version_of(self.config, self.weights, self.vocabulary)
        return InitFacts(version, self.config.data_name, kept, n_new - kept, n_old - kept, is_unchecked(self))

    def settings(self, train: TrainConfig, given: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
        """The settings of a training that begins from it.

        Args:
            train: the preset's, with the user's own on top.
            given: the user's own.

        Raises:
            ConfigError: a setting of the model is given, and is not that of the model. Only those of answers may be
                others.
        """
        own = asdict(self.config.model)
        wanted = asdict(from_dict(ModelConfig, {**own, **split_settings(given)["model"]}))
        for name, value in own.items():
            if wanted[name] != value and name not in OF_ANSWERS:
                raise ConfigError(
                    f"{name}={wanted[name]} does not fit {self.where}, whose model has {name}={value} and is what this "
                    "training begins from; leave it out, or train without --init"
                )
        if "max_epochs" not in given:
            train = replace(train, max_epochs=math.ceil(EPOCHS_SHARE * train.max_epochs))
        return replace(self.config.model, **{name: wanted[name] for name in OF_ANSWERS}), train


def with_features_of(origin: Origin, vocabulary: Vocabulary) -> Vocabulary:
    """The items of a new log with features as the model that training begins from makes them.

    What nobody tells of an item anew is as that model knows it.

    Raises:
        ConfigError: only one of both has features, or they are made from other columns.
        DataError: a column is of another type than it was.
    """
    theirs, given = origin.vocabulary.encoder, vocabulary.encoder
    if theirs is None and given is not None:
        raise ConfigError(
            f"{origin.where} knows items by their ids alone, so a training that begins from it has no features; leave "
            "item_features and item_vectors out, or train without --init"
        )
    if theirs is None:
        return vocabulary
    if given is not None and sorted(given.columns) != sorted(theirs.columns):
        raise ConfigError(
            f"the features of {origin.where} are made from {', '.join(theirs.columns)}, and {', '.join(given.columns)} "
            "are given; give the same columns, or train without --init"
        )
    known = origin.vocabulary.attributes
    assert known is not None
    place = pl.Series(origin.vocabulary.indices_of(vocabulary.ids).astype(np.int64) - 1)
    place = place.set(place < 0, None)
    columns = {} if vocabulary.attributes is None else {column.name: column for column in vocabulary.attributes}
    for name in theirs.columns:
        columns[name] = told_or_known(columns.get(name), known[name].gather(place))
    attributes = pl.DataFrame(columns)
    told = Vocabulary(vocabulary.item_ids, vocabulary.counts, vocabulary.titles, attributes, theirs)
    for sentence in theirs.unseen(attributes):
        logger.info("%s", sentence)
    return told


def read_origin(path: Path) -> Origin:
    """The model of a run folder, with Adam's moments where it still has its training state.

    Raises:
        CheckpointError: there is no run at this path, or it is damaged.
    """
    if path.is_file():
        raise CheckpointError(f"{path} is a file, and a training begins from a run folder; sasrec convert makes one")
    run = RunFolder.open(path)
    config, vocabulary = run.load_config(), run.load_vocabulary()
    weights = run.load_weights()[0]
    shapes = weight_shapes(config.model, len(vocabulary))
    check_weights(weights, shapes)
    moments = _moments_of(run, shapes)
    return Origin(str(path), config, vocabulary, weights, moments, run.load_sequences(), run.is_whole())


def _moments_of(run: RunFolder, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    try:
        saved = run.load_state()
        moments = {} if saved is None else without_average(saved.optimizer)
        for name, value in moments.items():
            kind, _, weight = name.partition("/")
            check_weights({weight: value}, {weight: () if kind == "step" else shapes.get(weight, ())})
    except CheckpointError as error:
        raise CheckpointError(
            f"the training state of {run.path} is damaged; remove {run.path / 'training'} to begin without Adam's "
            "moments"
        ) from error
    return moments


def without_average(optimizer: Mapping[str, Float32]) -> Weights:
    """The state of an optimizer without the moving average of the weights: Adam's moments and steps."""
    return {name: optimizer[name] for name in optimizer if not name.startswith(AVERAGE)}


def refuse_without_origin(train: TrainConfig) -> None:
    """Refuse settings of a training that begins from another model, for one that does not.

    Raises:
        ConfigError: init_scale, init_smoothing or init_moments is set.
    """
    plain = TrainConfig()
    for name in OF_INIT:
        if getattr(train, name) != getattr(plain, name):
            raise ConfigError(
                f"{name}={getattr(train, name)} is for a training that begins from an earlier run; give init, or leave "
                f"{name} out"
            )


def start_from(origin: Origin, split: Split, vocabulary: Vocabulary, train: TrainConfig) -> tuple[Weights, Weights]:
    """Weights and moments for the items of another log; the log says what came along.

    Two settings change items' own embeddings; as they are by default, no bit changes. First, with init_smoothing a,
    each row becomes (1 - a) row + a (mean of the rows that stand near the item's train events): what training has made
    an item know of single users gives way, and what is new in the log comes in. Source: one step of the propagation of
    He et al. 2020 (LightGCN, equation 3), here between items of the same user, by their mean. Then all rows are
    multiplied by init_scale: less than 1 shrinks the scores that the earlier log has made sure of, so that the loss
    has something to learn from again. Source: Ash & Adams 2020 (On Warm-Starting Neural Network Training), shrink and
    perturb, here for item tables and without noise.

    Args:
        origin: the model.
        split: of the log that is trained on.
        vocabulary: of it.
        train: the settings of the training that begins.
    """
    own = np.concatenate([np.zeros(1, np.int32), origin.vocabulary.indices_of(vocabulary.ids)])  # (V,)
    model, n_near = origin.config.model, 0
    weights, moments = dict(origin.weights), dict(origin.moments) if train.init_moments else {}
    for table in {ITEM_TABLE, OUTPUT_TABLE} & set(weights):
        weights[table] = _moved(weights[table], own)
        for moment in [name for name in moments if name.endswith(f"/{table}") and moments[name].ndim]:
            moments[moment] = _moved(moments[moment], own)
        if not model.has_features:
            n_near = _fill(weights[table], own, split)
        if train.init_smoothing:
            _smooth(weights[table], train.init_smoothing, split)
        weights[table] *= np.float32(train.init_scale)
    near = f"{n_near:,} from items near them in train, the others from the mean"
    _say(origin, origin.facts(vocabulary), "from their features" if model.has_features else near, train.init_moments)
    return weights, moments


def _moved(table: Float32, own: Int32) -> Float32:
    """The rows of a table for the new log's items; 0 for new ones."""
    moved: Float32 = table[own]
    moved[1:][own[1:] == 0] = 0
    return moved


def _fill(table: Float32, own: Int32, split: Split) -> int:
    """Write the first values of new items' rows into a table; how many have known items near them."""
    known, new = own > 0, own == 0
    new[0] = False
    means, counts = _near(table, split, new, known)
    near = counts > 0
    table[new] = table[known].mean(axis=0, dtype=np.float64)
    table[near] = means[near]
    return int(near.sum())


def _smooth(table: Float32, share: float, split: Split) -> None:
    """Bring each row nearer to the mean of those near it; rows with nothing near them stay."""
    items = np.arange(len(table)) > 0
    means, counts = _near(table, split, items, items)
    near = counts > 0
    table[near] = (1.0 - share) * table[near] + share * means[near]


def _near(table: Float32, split: Split, of: Bool, among: Bool) -> tuple[Float64, Int64]:
    """Mean rows of what stands up to NEAR places from items' train events, of the same user.

    Args:
        table: (V, D) the rows.
        split: of the log.
        of: (V,) the items that are asked about.
        among: (V,) the items whose rows count; the item itself never does.

    Returns:
        (V, D) means, 0 where there are none; (V,) how many rows each is the mean of.
    """
    sums: Float64 = np.zeros(table.shape)
    counts = np.zeros(len(table), np.int64)
    for part in split.train_parts():
        items, users = part.values, part.row_of
        places = np.flatnonzero(of[items])
        for start in range(0, len(places), CHUNK):
            chunk = places[start : start + CHUNK]
            rows, n_rows = _around(chunk, table, items, users, among)
            np.add.at(sums, items[chunk], rows)
            np.add.at(counts, items[chunk], n_rows)
    sums /= np.maximum(counts, 1)[:, None]
    return sums, counts


def _around(places: Int64, table: Float32, items: Int32, users: Int64, among: Bool) -> tuple[Float64, Int64]:
    """The sums of the rows near some events (n, D), and how many rows each is of (n,)."""
    rows: Float64 = np.zeros((len(places), table.shape[1]))
    n_rows = np.zeros(len(places), np.int64)
    for step in (*range(-NEAR, 0), *range(1, NEAR + 1)):
        beside = np.clip(places + step, 0, len(items) - 1)
        near = items[beside]
        counted = (beside == places + step) & (users[beside] == users[places]) & among[near] & (near != items[places])
        rows[counted] += table[near[counted]]
        n_rows += counted
    return rows, n_rows


def _say(origin: Origin, facts: InitFacts, how: str, moments: bool) -> None:
    """What came along, in a line or two: how new items start, and whether moments were to come."""
    new = f"{facts.new:,} new ({how})" if facts.new else "none new"
    logger.info("begins from %s: %s items kept, %s, %s gone", origin.where, f"{facts.kept:,}", new, f"{facts.gone:,}")
    if not origin.is_whole:
        logger.warning(
            "%s has not ended: its training or measuring was interrupted, or goes on; this one begins from the best "
            "epoch that it has",
            origin.where,
        )
    if moments and not origin.moments:
        logger.info("%s has no training state any more, so Adam's moments begin at 0", origin.where)
    if facts.unchecked:
        logger.warning(
            "%s has no histories, so targets that it was trained on cannot be told and left out", origin.where
        )


def check_same_init(saved: InitFacts | None, now: InitFacts | None) -> None:
    """Refuse to resume a training that began from another model.

    Raises:
        ConfigError: it did.
    """
    if saved is None and now is not None:
        raise ConfigError("cannot resume: this run did not begin from another one; leave --init out")
    if saved is not None and now is None:
        raise ConfigError(
            f"cannot resume: this run began from a model of {saved.data_name} (version {saved.model_version}); give "
            "the same --init again"
        )
    if saved is not None and now is not None and saved.model_version != now.model_version:
        raise ConfigError(
            f"cannot resume: this run began from the model version {saved.model_version}, and --init gives "
            f"{now.model_version}; give the same run, or train into another folder"
        )

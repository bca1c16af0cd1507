"""What digests tell of a run: its model's version, and whether all of its files are whole."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from sasrec.core.arrays import Float32
from sasrec.core.config import to_dict
from sasrec.core.digests import is_as_written, read_book
from sasrec.core.errors import CheckpointError
from sasrec.data.item_features import ItemFeatures
from sasrec.data.prepared import DATA_FILES, ITEMS, SEQUENCES, check_fingerprint
from sasrec.data.splits import hides_repeats
from sasrec.data.vocabulary import Vocabulary
from sasrec.model.weights import digest_of
from sasrec.runs.folder import CONFIG, WHAT_COUNTS, RunConfig, RunFolder
from sasrec.runs.lock import WEIGHTS

TRAINING_ONLY = {"dropout"}  # of the model's settings: they change no answer


def version_of(config: RunConfig, weights: Mapping[str, Float32], vocabulary: Vocabulary) -> str:
    """Twelve characters that are equal for models that give equal answers, wherever they are stored.

    Weights, item ids and what items are like, what the model computes with them, whether seen items are left out, and
    the counts that popular items are chosen by. Format 1 told weights and ids only, and its folders keep their
    versions.
    """
    if config.format == 1:
        return digest_of(weights, vocabulary.ids)
    features: ItemFeatures | None = vocabulary.features
    model = {name: value for name, value in to_dict(config.model).items() if name not in TRAINING_ONLY}
    told = [model, hides_repeats(config.data, config.eval), str(vocabulary.item_ids.dtype)]
    more = json.dumps(told, sort_keys=True).encode() + np.asarray(vocabulary.counts).tobytes()
    return digest_of(weights, vocabulary.ids, more + (features.to_bytes() if features is not None else b""))


def verify(run: RunFolder) -> list[str]:
    """Read a run folder from end to end; the names of the files that were compared with their digests.

    A folder of format 1 has none: its events, users and item ids are compared with the log's fingerprint.

    Raises:
        CheckpointError: a file is missing or not as it was written, or does not fit the others.
    """
    config, book = run.load_config(), read_book(run.path)
    names = [name for name in WHAT_COUNTS if (run.path / name).is_file()]
    noted = [name for name in DATA_FILES if book is not None and name in book]  # they are placed before the weights
    missing = [name for name in dict.fromkeys((CONFIG, ITEMS, WEIGHTS, *noted)) if name not in names]
    damaged = [name for name in names if not is_as_written(run.path, name, whole=True)]
    if missing or damaged:
        told = [f"{name} is missing" for name in missing] + [f"{name} is not as it was written" for name in damaged]
        raise CheckpointError(f"{run.path} is damaged: {'; '.join(told)}")
    _check_together(run, config)
    return names if book is not None else []


def _check_together(run: RunFolder, config: RunConfig) -> None:
    """Refuse parts that can be read and are not of one run."""
    vocabulary, sequences = run.load_vocabulary(), run.load_sequences()
    run.load_weights()
    run.load_state()
    run.load_metrics()
    if sequences is None:
        return
    check_fingerprint(run.path, sequences, vocabulary)
    if sequences.facts != config.data:
        raise CheckpointError(f"{run.path} is damaged: {SEQUENCES} is of another log than {CONFIG}")

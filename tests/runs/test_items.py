"""What a run folder keeps of its items, and what changes its model's version."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log

from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.data.items import check_same_items
from sasrec.data.logs import Log, load_log
from sasrec.data.prepared import ITEM_FEATURES
from sasrec.data.vocabulary import Vocabulary
from sasrec.fitting import configure
from sasrec.runs.digests import verify, version_of
from sasrec.runs.folder import RunConfig, RunFolder

ITEMS = pl.DataFrame(
    {"item_id": [*range(1, 31), 99], "brand": [["lego", "duplo"][i % 2] for i in range(31)], "price": np.arange(31.0)}
)


def described(items: pl.DataFrame, features: list[str]) -> tuple[Log, RunConfig]:
    log = load_log(make_markov_log(60)).with_items(items, features)
    return log, configure(log, "fast", {"embedding_dim": 8})[1]


def test_the_sizes_of_features_are_those_of_the_items() -> None:
    log, config = described(ITEMS, ["brand", "price"])
    assert (config.model.n_features, config.model.vector_dim) == (12, 0)
    assert config.data == load_log(make_markov_log(60)).sequences.facts
    told = configure(log, "fast", {"n_features": 12})[1]
    assert told.model.n_features == 12
    for name, value in (("n_features", 5), ("vector_dim", 3)):
        with pytest.raises(ConfigError, match=f"{name}={value} cannot be set: it follows from the features of items"):
            configure(log, "fast", {name: value})


def test_a_folder_keeps_items_and_tells_when_they_are_damaged(tmp_path: Path) -> None:
    log, config = described(ITEMS, ["brand"])
    run = RunFolder.create(tmp_path / "run")
    run.save_config(config)
    run.save_data(log.vocabulary, log.sequences)
    run.save_weights({"item_embedding": np.zeros((32, 8), np.float32)}, 1)
    assert ITEM_FEATURES in verify(run)
    again = run.load_vocabulary()
    check_same_items(log.vocabulary, again)
    assert again.attributes is not None
    assert again.attributes.columns == ["brand", "price"]
    assert run.load_sequences() is not None
    file = run.path / ITEM_FEATURES
    told = json.loads(file.read_bytes())
    told["features"][0]["values"].reverse()
    file.write_text(json.dumps(told))
    for read in (run.load_vocabulary, lambda: verify(run)):
        with pytest.raises(CheckpointError, match=r"item_features\.json"):
            read()


def test_features_of_items_change_the_models_version() -> None:
    log, config = described(ITEMS, ["brand"])
    other, _ = described(
        ITEMS.with_columns(brand=pl.col("brand").replace({"lego": "duplo", "duplo": "lego"})), ["brand"]
    )
    weights = {"item_embedding": np.zeros((32, 8), np.float32)}
    assert other.vocabulary.ids == log.vocabulary.ids
    first, second = (version_of(config, weights, one.vocabulary) for one in (log, other))
    assert first != second
    by_id = replace(config, model=replace(config.model, n_features=0))
    plain, named = (version_of(by_id, weights, one) for one in (log.vocabulary.with_encoder(None), _named(log)))
    assert plain == named  # attributes alone change no answer


def _named(log: Log) -> Vocabulary:
    vocabulary = log.vocabulary.with_encoder(None)
    vocabulary.attributes = None
    return vocabulary

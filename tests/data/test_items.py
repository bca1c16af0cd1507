"""What is known of items, joined onto those of a log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sasrec.core.config import EvalConfig
from sasrec.core.errors import CheckpointError, ConfigError, DataError, SASRecError
from sasrec.data.items import check_same_items, with_items
from sasrec.data.logs import Log, Reading, load_log
from sasrec.data.prepared import ITEM_FEATURES, load_sequences, load_vocabulary, save_sequences, save_vocabulary
from sasrec.data.splits import split_sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.evaluation.protocols import evaluate
from sasrec.ranking.scorers import Baselines

EVENTS = pl.DataFrame({"user_id": [1, 1, 1, 1, 2, 2, 2, 2], "item_id": [10, 20, 30, 40, 40, 30, 20, 10]})
ITEMS = pl.DataFrame(
    {
        "item_id": [50, 10, 30, 5, 20],
        "title": ["Fifty", "Ten", "Thirty", "Five", None],
        "brand": ["lego", "lego", "duplo", "mega", "lego"],
        "price": [1.0, 2.0, 3.0, 4.0, None],
        "v": [[1.0, 2.0], [3.0, 4.0], [5.0, 7.0], [7.0, 8.0], None],
    }
)


@pytest.fixture
def log() -> Log:
    return load_log(EVENTS)


def test_attributes_come_in_the_order_of_indices_and_the_log_stays(log: Log) -> None:
    described = log.with_items(ITEMS.drop("v"))
    vocabulary = described.vocabulary
    assert vocabulary.ids == [10, 20, 30, 40]
    assert vocabulary.attributes is not None
    assert vocabulary.attributes.rows() == [("lego", 2.0), ("lego", None), ("duplo", 3.0), (None, None)]
    assert vocabulary.titles is not None
    assert vocabulary.titles.to_list() == ["Ten", None, "Thirty", None]
    assert vocabulary.features is None
    assert described.sequences.facts == log.sequences.facts


def test_items_without_events_follow_where_there_are_features(log: Log) -> None:
    described = log.with_items(ITEMS, ["brand", "price"], "v")
    vocabulary = described.vocabulary
    assert vocabulary.ids == [10, 20, 30, 40, 5, 50]
    assert vocabulary.counts.tolist() == [2, 2, 2, 2, 0, 0]
    assert vocabulary.titles is not None
    assert vocabulary.titles.to_list() == ["Ten", None, "Thirty", None, "Five", "Fifty"]
    features = vocabulary.features
    assert (features.n_items, features.vector_dim) == (6, 2)
    assert features.values.lengths.tolist() == [0, 2, 1, 2, 0, 1, 2]  # 40 has no row, and "mega" is no brand of the log
    assert features.values.row(6)[0] == features.values.row(1)[0]  # both are of lego
    assert described.sequences.facts == log.sequences.facts
    assert described.sequences.has_fingerprint_of(vocabulary)


def test_the_catalogue_is_the_vocabularys_wherever_items_are_counted(log: Log) -> None:
    sequences = log.with_items(ITEMS, ["brand"]).sequences
    split = split_sequences(sequences, EvalConfig())
    assert (sequences.n_items, len(split.train_counts)) == (6, 7)
    assert split.statistics.n_items == 4  # presets look at what is trained on
    popularity = Baselines(split).scorers()[0]
    result = evaluate(popularity, split, "test", EvalConfig(), baselines=False)
    assert result.candidates == "all 6 items"
    assert result.metrics["coverage@10"]["value"] <= 1.0
    sampled = evaluate(popularity, split, "test", EvalConfig(protocol="sampled", n_candidates=3), baselines=False)
    assert sampled.n_users == 2


def test_ids_are_the_same_however_they_are_written(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    items = pl.DataFrame({"item_id": ["10", "20.0", "030", "x"], "brand": ["a", "b", "c", "d"]})
    vocabulary = with_items(log.vocabulary, items)
    assert vocabulary.attributes is not None
    assert vocabulary.attributes["brand"].to_list() == ["a", "b", None, None]
    assert "2 of 4 items have ids that are no integers, as those of the log are, such as '030'" in caplog.text
    texts = Vocabulary(pl.Series(["10", "x"]), np.array([1, 1]))
    assert with_items(texts, pl.DataFrame({"item_id": [10, 7], "brand": ["a", "b"]})).ids == ["10", "x", "7"]


def test_what_was_known_stays_where_the_frame_says_nothing(log: Log) -> None:
    first = (
        log.with_titles(pl.DataFrame({"item_id": [10], "title": ["X"]})).with_items(ITEMS, ["brand"], "v").vocabulary
    )
    assert first.titles is not None
    assert first.titles[0] == "X"
    more = pl.DataFrame(
        {"item_id": [60, 10], "brand": ["mega", None], "v": [[9.0, 9.0], None], "colour": ["red", "red"]}
    )
    second = with_items(first, more)
    assert second.ids == [10, 20, 30, 40, 5, 50, 60]
    assert second.attributes is not None
    assert second.attributes["brand"].to_list() == ["lego", "lego", "duplo", None, "mega", "lego", "mega"]
    assert second.attributes["colour"].to_list() == ["red", None, None, None, None, None, "red"]
    assert second.features.n_items == 7
    assert second.features.vectors[:7].tolist() == first.features.vectors.tolist()


def test_new_items_of_a_trained_model_may_all_be_new(log: Log) -> None:
    first = log.with_items(ITEMS, ["brand"]).vocabulary
    assert with_items(first, pl.DataFrame({"item_id": [99], "brand": ["lego"]})).ids[-1] == 99


def test_what_is_missing_is_said_in_one_sentence_each(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log.with_items(ITEMS.drop("v"))
    assert "1 of 4 items of the log (25.0 %) have no row among the items" in caplog.text
    assert (
        "items without events, which are left out: 2; an item without events can only be recommended by" in caplog.text
    )
    caplog.clear()
    log.with_items(ITEMS, ["brand"])
    assert "items without events: 2; they follow after those of the log" in caplog.text
    assert (
        "values of 'brand' that no item of the log has, such as 'mega', are no features (1 of 6 items)" in caplog.text
    )
    caplog.clear()
    log.with_items(ITEMS.head(2))
    assert "3 of 4 items of the log (75.0 %) have no row among the items: the log's ids are such as 10" in caplog.text


def test_a_file_of_vectors_goes_by_the_rows_of_the_items(log: Log, tmp_path: Path) -> None:
    vectors = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.save(tmp_path / "v.npy", vectors)
    items = ITEMS.drop("v")
    for given in (vectors, str(tmp_path / "v.npy"), tmp_path / "v.npy"):
        vocabulary = log.with_items(items, (), given).vocabulary
        assert vocabulary.attributes is not None
        assert vocabulary.attributes["item_vector"].to_list() == [[2, 3], [8, 9], [4, 5], None, [6, 7], [0, 1]]
        assert vocabulary.features.vector_dim == 2


REFUSED: list[tuple[dict[str, Any], type[SASRecError], str]] = [
    ({"features": ["brand"]}, ConfigError, r"need the items that they are of; give items= \(--item-file\)"),
    ({"vectors": np.zeros((4, 2))}, ConfigError, "need the items that they are of"),
    ({"items": ITEMS, "features": ["colour"]}, ConfigError, "no column 'colour'; their columns are: brand, price, v"),
    ({"items": ITEMS, "features": ["title"]}, ConfigError, "no column 'title'"),
    ({"items": ITEMS, "features": [1]}, ConfigError, "item_features is a list of names of columns"),
    ({"items": ITEMS, "vectors": "w"}, ConfigError, "no column 'w'"),
    ({"items": ITEMS, "vectors": "w.npy"}, DataError, "there is no file w.npy"),
    ({"items": ITEMS, "vectors": np.zeros((4, 2))}, DataError, "has 4 rows, and the frame of items has 5"),
    ({"items": ITEMS.with_columns(item_id=pl.lit(77))}, DataError, "none of the 1 items is in the log: the log's ids"),
    ({"items": ITEMS.select("item_id", "title"), "features": ["brand"]}, ConfigError, "have titles and no attributes"),
    ({"items": ITEMS, "item_column": "sku"}, DataError, "has no column 'sku'"),
    ({"items": 17}, DataError, "cannot read a log from int|give a path"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED)
def test_items_that_do_not_fit_are_one_sentence(
    arguments: dict[str, Any], error: type[SASRecError], message: str, log: Log
) -> None:
    with pytest.raises(error, match=message) as caught:
        log.with_items(**arguments)
    assert "\n" not in str(caught.value)


def test_a_column_of_another_type_than_before_is_refused(log: Log) -> None:
    first = log.with_items(ITEMS, ["price"]).vocabulary
    with pytest.raises(DataError, match="'price' of the items holds String, and held Float64 before"):
        with_items(first, pl.DataFrame({"item_id": [10], "price": ["cheap"]}))


def test_a_prepared_folder_keeps_attributes_and_features(log: Log, tmp_path: Path) -> None:
    described = log.with_items(ITEMS, ["brand", "price"], "v")
    save_vocabulary(tmp_path, described.vocabulary)
    save_sequences(tmp_path, described.sequences)
    again = load_log(tmp_path)
    assert again.vocabulary.ids == described.vocabulary.ids
    assert again.vocabulary.features.is_same_as(described.vocabulary.features)
    assert again.sequences.n_items == 6
    check_same_items(described.vocabulary, again.vocabulary)
    others = load_log(tmp_path, Reading(item_features="price"))  # of the attributes that the folder has
    assert others.vocabulary.features.n_features == 2
    with pytest.raises(CheckpointError, match="items or their features have changed since this run began"):
        check_same_items(described.vocabulary, others.vocabulary)


def test_damaged_and_lost_features_are_one_sentence(log: Log, tmp_path: Path) -> None:
    described = log.with_items(ITEMS, ["brand"])
    save_vocabulary(tmp_path, described.vocabulary)
    file = tmp_path / ITEM_FEATURES
    text = file.read_bytes()
    for damaged in (text.replace(b"lego", b"mega"), b"", None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"item_features\.json is missing or damaged"):
            load_vocabulary(tmp_path)
    file.write_bytes(text)
    assert load_vocabulary(tmp_path).encoder == described.vocabulary.encoder
    assert load_sequences(tmp_path) is None

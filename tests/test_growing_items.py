"""Training from yesterday's model with features, on a log whose items have grown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from test_add_items import SMALL, items_of, log_of

from sasrec import fit, load
from sasrec.core.errors import ConfigError, DataError
from sasrec.core.presets import COLD_SCALE
from sasrec.recommender import Recommender

ITEMS = items_of(list(range(1, 31)))
STILL = {"learning_rate": 0.0, "max_epochs": 1, "threads": 1}  # nothing moves, so the weights are those of the start


@pytest.fixture(scope="module")
def yesterday() -> Recommender:
    return fit(log_of(20), preset="paper", items=ITEMS, item_features=["kind", "price"], **SMALL)


def row_of(recommender: Recommender, name: str, item: int) -> np.ndarray:
    return recommender.engine.weights()[name][recommender.vocabulary.index_of(item)]


def test_features_are_made_as_they_were_and_new_items_start_from_them(yesterday: Recommender) -> None:
    today = fit(log_of(30), preset="paper", items=ITEMS, item_features=["kind", "price"], init=yesterday, **STILL)
    assert today.vocabulary.encoder == yesterday.vocabulary.encoder
    old, new = yesterday.engine.weights(), today.engine.weights()
    assert np.array_equal(old["feature_embedding.weight"], new["feature_embedding.weight"])
    known = [i for i in range(1, 21) if yesterday.vocabulary.counts[yesterday.vocabulary.index_of(i) - 1]]
    for item in known:
        assert np.array_equal(
            row_of(yesterday, "item_embedding.weight", item), row_of(today, "item_embedding.weight", item)
        )
    assert not row_of(today, "item_embedding.weight", 29).any()
    assert today.engine.item_table()[today.vocabulary.index_of(29)].any()
    both = {i: today.vocabulary.features.values.row(today.vocabulary.index_of(i)).tolist() for i in known}
    assert both == {
        i: yesterday.vocabulary.features.values.row(yesterday.vocabulary.index_of(i)).tolist() for i in known
    }


def test_what_is_not_told_anew_is_as_the_earlier_model_knows_it(yesterday: Recommender) -> None:
    today = fit(log_of(20), preset="paper", init=yesterday, **STILL)
    assert today.vocabulary.attributes is not None
    wanted = dict(ITEMS.select("item_id", "kind").iter_rows())
    assert dict(zip(today.vocabulary.ids, today.vocabulary.attributes["kind"], strict=True)) == {
        i: wanted[i] for i in today.vocabulary.ids
    }
    changed = ITEMS.with_columns(pl.col("kind").replace({"red": "green", "green": "red"}))
    today = fit(log_of(20), preset="paper", items=changed, item_features=["kind", "price"], init=yesterday, **STILL)
    anew = dict(changed.select("item_id", "kind").iter_rows())
    assert today.vocabulary.attributes is not None
    assert today.vocabulary.attributes["kind"].to_list() == [anew[i] for i in today.vocabulary.ids]


def test_features_that_the_earlier_model_has_not_are_refused(yesterday: Recommender) -> None:
    with pytest.raises(ConfigError, match="are made from kind, price, and kind are given; give the same columns"):
        fit(log_of(20), items=ITEMS, item_features=["kind"], init=yesterday, **STILL)
    plain = fit(log_of(20), preset="paper", **{**SMALL, "feature_dropout": 0.0})
    with pytest.raises(ConfigError, match="knows items by their ids alone, so a training that begins from it has no"):
        fit(log_of(20), items=ITEMS, item_features=["kind"], init=plain, **STILL)
    odd = ITEMS.with_columns(price=pl.Series([f"{i % 4} euros" for i in range(30)]))
    with pytest.raises(DataError, match=r"column 'price' of the items holds String, and held Float64 before"):
        fit(log_of(20), items=odd, item_features=["kind", "price:category"], init=yesterday, **STILL)


def test_own_embeddings_are_left_out_at_times_where_items_have_features_unless_told_otherwise() -> None:
    told = {name: value for name, value in SMALL.items() if name != "feature_dropout"}
    features = {"items": ITEMS, "item_features": ["kind", "price"]}
    assert fit(log_of(20), preset="paper", **features, **told).config.train.feature_dropout == 0.2
    assert fit(log_of(20), preset="paper", **features, **told, feature_dropout=0).config.train.feature_dropout == 0
    assert fit(log_of(20), preset="paper", items=ITEMS, **told).config.train.feature_dropout == 0


@pytest.mark.parametrize("name", ["feature_dropout", "cold_scale"])
def test_what_is_of_features_is_refused_where_items_have_none(name: str) -> None:
    plain = {key: value for key, value in SMALL.items() if key != "feature_dropout"}
    with pytest.raises(ConfigError, match=rf"^{name}=0.3 is for items with features, and these have none; give"):
        fit(log_of(20), preset="paper", items=ITEMS, **plain, **{name: 0.3})


def test_rows_of_cold_items_are_longer_where_items_have_features_unless_told_otherwise(yesterday: Recommender) -> None:
    features = {"items": ITEMS, "item_features": ["kind", "price"]}
    assert yesterday.config.model.cold_scale == COLD_SCALE
    assert fit(log_of(20), preset="paper", **features, **SMALL, cold_scale=0).config.model.cold_scale == 0
    assert fit(log_of(20), preset="paper", **{**SMALL, "feature_dropout": 0.0}).config.model.cold_scale == 0


def test_how_much_longer_comes_along_from_the_earlier_model_and_may_be_told_anew(yesterday: Recommender) -> None:
    given = {"preset": "paper", "items": ITEMS, "item_features": ["kind", "price"], **STILL}
    other = fit(log_of(20), init=yesterday, cold_scale=1.3, **given)
    assert other.config.model.cold_scale == 1.3
    assert fit(log_of(20), init=other, **given).config.model.cold_scale == 1.3


def test_a_run_that_was_begun_without_the_setting_goes_on_without_it(tmp_path: Path) -> None:
    given = {"preset": "paper", "items": ITEMS, "item_features": ["kind", "price"], "output": tmp_path / "run"}
    fit(log_of(20), **given, **SMALL, cold_scale=0)
    more = {**SMALL, "max_epochs": 4, "resume": True}
    assert fit(log_of(20), **given, **more).config.model.cold_scale == 0
    assert load(tmp_path / "run").config.model.cold_scale == 0
    with pytest.raises(ConfigError, match=r"cold_scale was 0\.0 and is now 1\.3; use the same settings"):
        fit(log_of(20), **given, **more, cold_scale=1.3)

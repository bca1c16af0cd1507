"""Attributes become features: which, for whom, and what is refused."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasrec.core.errors import ConfigError, DataError, SASRecError
from sasrec.data.feature_encoder import Bins, Categories, FeatureEncoder
from sasrec.data.item_features import ItemFeatures

ITEMS = pl.DataFrame(
    {
        "brand": ["lego", "lego", "duplo", None, "duplo"],
        "tags": [["red", "new"], ["red"], [], None, ["new", "red", "red"]],
        "price": [1.0, 2.0, None, 4.0, 5.0],
        "v": [[1.0, 10.0], [3.0, 10.0], None, [5.0, 10.0], [7.0, 10.0]],
    }
)


def lists_of(features: ItemFeatures) -> list[list[int]]:
    """The features of each item, without padding."""
    return [features.values.row(index).tolist() for index in range(1, features.n_items + 1)]


def rows_of(encoder: FeatureEncoder, items: pl.DataFrame) -> list[list[int]]:
    return lists_of(encoder.encode(items))


def test_each_value_of_a_category_is_a_feature_and_padding_has_none() -> None:
    encoder = FeatureEncoder.fit(ITEMS, ["brand", "tags"])
    assert encoder.features == (Categories("brand", ("duplo", "lego")), Categories("tags", ("new", "red")))
    assert (encoder.n_features, encoder.columns) == (4, ["brand", "tags"])
    assert rows_of(encoder, ITEMS) == [[1, 2, 3], [1, 3], [0], [], [0, 2, 3]]
    features = encoder.encode(ITEMS)
    assert (features.n_items, features.n_features, features.vector_dim) == (5, 4, 0)
    assert features.values.lengths[0] == 0


def test_numbers_become_bins_of_about_as_many_items() -> None:
    numbers = pl.DataFrame({"price": np.arange(100.0)})
    encoder = FeatureEncoder.fit(numbers, ["price"])
    assert encoder.n_features == 10
    assert np.bincount(encoder.encode(numbers).values.values).tolist() == [10] * 10
    beyond = pl.DataFrame({"price": [-1e9, 1e9, None, float("nan")]})
    assert rows_of(encoder, beyond) == [[0], [9], [], []]


@pytest.mark.parametrize(
    ("values", "edges"),
    [
        ([0.0] * 95 + [1.0, 2.0, 3.0, 4.0, 5.0], (1.0,)),  # nearly all are the least value
        ([0.0] * 50 + [1.0] * 50, (1.0,)),
        ([float("inf"), 1.0, 2.0, 3.0], None),
    ],
)
def test_no_bin_is_empty(values: list[float], edges: tuple[float, ...] | None) -> None:
    frame = pl.DataFrame({"price": values})
    encoder = FeatureEncoder.fit(frame, ["price"])
    (bins,) = encoder.features
    assert isinstance(bins, Bins)
    assert edges is None or bins.edges == edges
    used = np.unique(encoder.encode(frame).values.values)
    assert used.tolist() == list(range(encoder.n_features))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pl.Series("n", [1, 2, 1, 2]), Categories),
        (pl.Series("n", list(range(60)) * 2), Bins),
        (pl.Series("brand_id", list(range(60)) * 2), Categories),
        (pl.Series("n", [0.5, 1.5]), Bins),
        (pl.Series("n", [True, False, None, True]), Categories),
        (pl.Series("n", ["1", "2", "1"]), Categories),
        (pl.Series("n", [[1, 2], [1]]), Categories),
        (pl.Series("n", [datetime(2024, 1, day) for day in (1, 2, 3)]), Bins),
    ],
)
def test_the_type_says_whether_values_are_categories_or_numbers(column: pl.Series, kind: type[object]) -> None:
    (feature,) = FeatureEncoder.fit(column.to_frame(), [column.name]).features
    assert type(feature) is kind


def test_a_name_may_say_what_its_column_is_taken_for() -> None:
    frame = pl.DataFrame({"year": [1995, 1995, 1996, 1997], "rank": ["1", "2", "3", "4"], "a:b": ["x", "x", "y", "y"]})
    encoder = FeatureEncoder.fit(frame, ["year:number", "rank:number", "a:b"])
    assert [type(feature) for feature in encoder.features] == [Bins, Bins, Categories]
    (feature,) = FeatureEncoder.fit(frame.select(pl.col("year").cast(pl.Float64)), ["year:category"]).features
    assert feature == Categories("year", ("1995", "1996", "1997"))


def test_a_few_words_among_numbers_are_missing(caplog: pytest.LogCaptureFixture) -> None:
    frame = pl.DataFrame({"year": [*map(str, range(1950, 2000)), "unkonwn"]})
    encoder = FeatureEncoder.fit(frame, ["year:number"])
    assert rows_of(encoder, frame)[-1] == []
    assert "values of 'year' that are no numbers, such as 'unkonwn', are no features (1)" in caplog.text


def test_a_value_is_the_same_category_whatever_its_type() -> None:
    encoder = FeatureEncoder.fit(pl.DataFrame({"n": [[1, 2], [1], [2]]}), ["n"])
    for column in ([[1]], [["1"]], [[1.0]], ["1"], [1], [" 1 "]):
        assert rows_of(encoder, pl.DataFrame({"n": column})) == [[0]]


def test_vectors_are_standardised_over_the_items_that_have_one() -> None:
    encoder = FeatureEncoder.fit(ITEMS, [], "v")
    vectors = encoder.encode(ITEMS).vectors
    assert vectors is not None
    assert vectors.dtype == np.float32
    given = vectors[[1, 2, 4, 5]]
    np.testing.assert_allclose(given[:, 0], (np.array([1, 3, 5, 7]) - 4) / np.sqrt(5), rtol=1e-6)
    assert not given[:, 1].any()  # the same for all
    assert not vectors[[0, 3]].any()  # padding, and the item without one


def test_new_items_are_encoded_as_those_of_the_log() -> None:
    encoder = FeatureEncoder.fit(ITEMS, ["brand", "price"], "v")
    again = FeatureEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert again == encoder
    new = pl.DataFrame({"brand": ["lego", "mega"], "price": [9, None], "v": [[4.0, 0.0], None], "other": [1, 2]})
    features = again.encode(new)
    assert lists_of(features) == [[1, encoder.n_features - 1], []]
    assert features.vectors is not None
    assert features.vectors[1].tolist() == [0, -10]
    assert again.unseen(new) == [
        "values of 'brand' that no item of the log has, such as 'mega', are no features (1 of 2 items)"
    ]
    without = new.with_columns(v=pl.lit(None))
    assert not again.encode(without).vectors.any()


def test_what_was_learnt_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    FeatureEncoder.fit(ITEMS, ["brand"], "v")
    assert "items of the log without a vector: 1 of 5" in caplog.text
    assert "features of items: brand 2 categories, v vectors of 2" in caplog.text
    caplog.clear()
    FeatureEncoder.fit(ITEMS, ["brand"])
    assert "items of the log without any feature: 1 of 5" in caplog.text


REFUSED: list[tuple[dict[str, Any], list[str], str | None, type[SASRecError], str]] = [
    ({"a": ["x", "x", "y"]}, ["b"], None, ConfigError, "the items have no column 'b'; their columns are: a"),
    ({"a": ["x", "x", "y"]}, ["a", "a"], None, ConfigError, "'a' is named twice"),
    ({"a": [[1.0], [2.0]]}, ["a"], "a", ConfigError, "'a' is named twice among item_features and item_vectors"),
    ({"a": ["x", "x", "y"]}, ["a:colour"], None, ConfigError, "a column is a :category or a :number"),
    ({"a": ["x", "x", "x"]}, ["a"], None, DataError, "'x' for all 3 items of the log, which tells none from another"),
    ({"a": [7.5, 7.5]}, ["a"], None, DataError, "7.5 for all 2 items"),
    ({"a": ["", None]}, ["a"], None, DataError, "'a' has no value for any item of the log"),
    ({"a": [None, float("nan")]}, ["a:number"], None, DataError, "'a' has no value for any item"),
    ({"a": [float("inf"), float("-inf")]}, ["a"], None, DataError, "has no finite number"),
    (
        {"url": [f"http://x/{j}" for j in range(40)]}, ["url"], None, DataError,
        "'url' has 40 different values for 40 items, and 0.0 % of them share one with another, so it says no more",
    ),
    ({"a": [[0.5, 1.5], [2.0]]}, ["a"], None, ConfigError, "lists of numbers, which are no categories; name it"),
    ({"a": [["x"], ["x", "y"]]}, ["a:number"], None, ConfigError, "lists of text, and an item has one number"),
    ({"a": ["1", "two"]}, ["a:number"], None, DataError, "has 'two', which is not a number; use it as :category"),
    ({"a": ["x", "y"]}, [], "a", DataError, "holds String, and vectors are lists of numbers"),
    ({"a": [1.0, 2.0]}, [], "a", DataError, "holds Float64, and vectors are lists of numbers"),
    ({"a": [[1.0, 2.0], [1.0]]}, [], "a", DataError, "row 1 of .* a vector of 1 numbers, and the first has 2"),
    ({"a": [None, [1.0, None], [1.0, 2.0]]}, [], "a", DataError, "row 1 of column 'a' .* missing or not a finite"),
    ({"a": [[1.0], [float("nan")]]}, [], "a", DataError, "row 1 of column 'a' .* missing or not a finite"),
    ({"a": [[1.0], [1e300]]}, [], "a", DataError, "row 1 of column 'a' .* missing or not a finite"),
    ({"a": pl.Series([[], []], dtype=pl.List(pl.Float64))}, [], "a", DataError, "have 0 numbers; give 1 to"),
    ({"a": [[1.0, 2.0], [1.0, 2.0]]}, [], "a", DataError, "the same vector for all items of the log"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "features", "vectors", "error", "message"), REFUSED)
def test_columns_that_cannot_be_used_are_one_sentence(
    columns: dict[str, Any], features: list[str], vectors: str | None, error: type[SASRecError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        FeatureEncoder.fit(pl.DataFrame(columns, strict=False), features, vectors)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"price": [1.0], "v": [[1.0, 2.0]]}, "the items have no column 'brand', which the model's features are made"),
        ({"brand": ["x"], "price": [[1.0]], "v": [[1.0, 2.0]]}, "'price' .* holds lists of numbers, and one number"),
        ({"brand": ["x"], "price": [1.0], "v": [[1.0]]}, "has vectors of 1 numbers, and the model was trained on 2"),
    ],
)
def test_new_items_of_another_kind_are_one_sentence(new: dict[str, Any], message: str) -> None:
    encoder = FeatureEncoder.fit(ITEMS, ["brand", "price"], "v")
    with pytest.raises(DataError, match=message):
        encoder.encode(pl.DataFrame(new))


def test_a_column_of_many_rare_values_is_used_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    values = [*map(str, range(60)), *["many"] * 20]
    assert FeatureEncoder.fit(pl.DataFrame({"a": values}), ["a"]).n_features == 61
    assert "only 25.0 % of the items share a value of 'a' with another item" in caplog.text


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5), min_size=2, max_size=30))
def test_features_are_those_of_a_plain_dictionary(lists: list[list[str]]) -> None:
    lists = [*lists, ["a"], ["a", "b"]]
    encoder = FeatureEncoder.fit(pl.DataFrame({"t": lists}, schema={"t": pl.List(pl.String)}), ["t"])
    known = sorted({value for one in lists for value in one})
    expected = [sorted({known.index(value) for value in one}) for one in lists]
    assert rows_of(encoder, pl.DataFrame({"t": lists}, schema={"t": pl.List(pl.String)})) == expected


@pytest.mark.parametrize(
    "told",
    [{}, {"format": 2, "features": [], "vectors": None}, {"format": 1, "features": [{"column": 1}], "vectors": None}],
)
def test_what_is_no_encoder_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError)):
        FeatureEncoder.from_dict(told)

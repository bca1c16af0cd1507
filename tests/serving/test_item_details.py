"""What is known of items, as answers tell it."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl

from sasrec.data.vocabulary import Vocabulary
from sasrec.serving.item_details import ItemDetails
from sasrec.serving.schemas import Item, encode


def details_of(attributes: pl.DataFrame | None) -> ItemDetails:
    return ItemDetails(Vocabulary(pl.Series([7, 8]), np.array([1, 1]), None, attributes))


def test_each_item_has_what_is_known_of_it() -> None:
    details = details_of(
        pl.DataFrame(
            {
                "brand": ["lego", None],
                "tags": [["a", "b"], []],
                "day": [date(2024, 1, 31), None],
                "v": pl.Series([[0.0], [1.0]], dtype=pl.Array(pl.Float32, 1)),
            }
        )
    )
    assert details.columns == ["brand", "tags", "day"]
    (first,) = details.of([1])
    assert first == {"brand": "lego", "tags": ["a", "b"], "day": date(2024, 1, 31)}
    assert details.of([2, 1]) == [None, first]
    told = encode(Item(7, 1, None, first))
    assert told == b'{"item_id":7,"count":1,"attributes":{"brand":"lego","tags":["a","b"],"day":"2024-01-31"}}'


def test_without_attributes_nothing_is_said() -> None:
    assert details_of(None).of([1, 2]) == [None, None]
    assert encode(Item(7, 1)) == b'{"item_id":7,"count":1}'


def test_what_files_of_items_say_cannot_swell_answers() -> None:
    wide = {f"c{j}": ["x" * 10_000, "x"] for j in range(100)} | {}
    lists = {"tags": [["y" * 1000] * 1000, None]}
    (told, _) = details_of(pl.DataFrame(lists | wide)).of([1, 2])
    assert told is not None
    assert len(told) == 20
    assert len(encode(told)) < 10_000

"""What is known of items, in a few bounded words."""

from __future__ import annotations

import numpy as np
import polars as pl

from sasrec.data.feature_encoder import FeatureEncoder
from sasrec.data.vocabulary import Vocabulary
from sasrec.report.item_facts import AttributeFacts, item_facts

ATTRIBUTES = pl.DataFrame(
    {
        "tags": [["red", "<b>"], ["red"], [], None],
        "price": [1.0, None, 3.5, 2.0],
        "url": ["a", "b", "c", "d"],
        "v": pl.Series([[0.0], [1.0], [2.0], None], dtype=pl.Array(pl.Float32, 1)),
    }
)


def vocabulary_of(attributes: pl.DataFrame | None) -> Vocabulary:
    encoder = None if attributes is None else FeatureEncoder.fit(attributes, [attributes.columns[0]])
    return Vocabulary(pl.Series([1, 2, 3, 4]), np.array([3, 2, 1, 0]), None, attributes, encoder)


def test_columns_are_told_with_shares_and_frequent_values() -> None:
    facts = item_facts(vocabulary_of(ATTRIBUTES))
    assert facts is not None
    assert facts.columns == [
        AttributeFacts("tags", "lists of text", 0.5, "red (2), <b> (1)", True),
        AttributeFacts("price", "numbers", 0.75, "1 to 3.5", False),
        AttributeFacts("url", "text", 1.0, "", False),
        AttributeFacts("v", "vectors of width 1", 0.75, "", False),
    ]
    assert (facts.n_items, facts.n_without_events, facts.n_more) == (4, 1, 0)
    assert facts.sentence.startswith("Known of items, with the share that has it: tags (lists of text, 50 %), price")
    assert facts.sentence.endswith("The model learns from tags. Items without events: 1.")
    assert facts.to_dict()["attributes"]["tags"] == {
        "holds": "lists of text", "items with it": "50 %", "values": "red (2), <b> (1)", "feature": "yes",
    }  # fmt: skip


def test_without_attributes_there_is_nothing_to_tell() -> None:
    assert item_facts(vocabulary_of(None)) is None


def test_wide_tables_and_long_values_are_cut() -> None:
    wide = pl.DataFrame({f"c{j}" + "x" * 99: ["y" * 999, "y" * 999, "z", None] for j in range(50)})
    facts = item_facts(vocabulary_of(wide))
    assert facts is not None
    assert (len(facts.columns), facts.n_more) == (20, 30)
    assert all(len(column.name) <= 40 and len(column.values) < 60 for column in facts.columns)

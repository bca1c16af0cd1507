"""Items found by what somebody types: words of titles, ids, parts of them."""

import numpy as np
import polars as pl

from sasrec.data.vocabulary import Vocabulary
from sasrec.serving.item_search import ItemSearch, told_apart

TITLES = ["The Matrix", "Amélie", "Matrix Reloaded", "Postmatrix", "Other", None, "Matrix Zero"]
COUNTS = np.array([9, 1, 2, 99, 5, 7, 3], np.int64)


def make_search(titles: list[str | None] | None) -> ItemSearch:
    ids = pl.Series(range(1, len(COUNTS) + 1))
    vocabulary = Vocabulary(ids, COUNTS, None if titles is None else pl.Series(titles))
    return ItemSearch(vocabulary, np.argsort(-COUNTS).astype(np.int32) + 1)


def test_words_are_found_without_case_and_accents_the_beginning_first_then_the_popular() -> None:
    def found(text: str, k: int = 10) -> list[int]:
        return search.find(text, k).tolist()

    search = make_search(TITLES)
    assert found("matrix") == [7, 3, 1, 4]
    assert found("MATRIX rel") == [3]
    assert found("amelie") == found("AMÉLIE") == [2]
    assert found("6") == [6]
    assert found("a.*b [") == []
    assert found("matrix", 2) == [7, 3]


def test_without_a_word_the_most_popular_are_found() -> None:
    for nothing in ("", "  ", "\u0301"):
        assert make_search(TITLES).find(nothing, 2).tolist() == [4, 1]


def test_items_without_titles_are_found_by_id() -> None:
    assert make_search(None).find("7", 10).tolist() == [7]
    assert make_search(None).find("matrix", 10).tolist() == []


def test_words_that_are_parts_of_others_are_not_looked_for() -> None:
    assert told_apart(["a"] * 100 + ["alpha", "beta", "et", "x"]) == ["alpha", "beta", "x"]
    assert told_apart([]) == []

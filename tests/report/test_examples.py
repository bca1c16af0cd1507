"""Examples of a report: users spread over the log, what they had, what came next, what the model gives."""

import numpy as np
import polars as pl
from made import make_split
from numpy.typing import NDArray

from sasrec.data.ragged import Ragged
from sasrec.report.examples import Recommended, ShownItem, build_examples


def top_two(histories: Ragged, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Items 2 and 1 for everyone, in rows that end in padding."""
    indices, scores = np.zeros((len(histories), k), np.int32), np.zeros((len(histories), k), np.float32)
    indices[:, :2], scores[:, :2] = [2, 1], [1.5, 0.5]
    return indices, scores


def test_an_example_is_a_history_its_target_and_a_list_without_padding() -> None:
    split, vocabulary = make_split([[10, 20, 30, 20]])
    vocabulary = vocabulary.with_titles(pl.DataFrame({"item_id": [20], "title": ["Heat"]}))
    (example,) = build_examples(split, vocabulary, top_two)
    assert example.user_id == 1
    assert [item.title for item in example.history] == ["10", "Heat", "30"]  # an item without a title shows its id
    assert example.target == ShownItem(20, "Heat")
    assert example.recommended == [Recommended(ShownItem(20, "Heat"), 1, 1.5), Recommended(ShownItem(10, "10"), 2, 0.5)]


def test_users_are_spread_over_the_log_and_histories_end_before_the_target() -> None:
    split, vocabulary = make_split([[item % 20 + 1 for item in range(user, user + 12)] for user in range(9)])
    examples = build_examples(split, vocabulary, top_two)
    assert [example.user_id for example in examples] == [1, 3, 6, 9]
    assert [item.item_id for item in examples[0].history] == list(range(4, 12))
    assert examples[0].target.item_id == 12
    assert all(isinstance(r.score, float) for r in examples[0].recommended)


def test_a_log_of_few_users_has_as_many_examples() -> None:
    split, vocabulary = make_split([[1, 2, 3], [3, 2, 1]])
    assert [example.user_id for example in build_examples(split, vocabulary, top_two)] == [1, 2]

"""The examples of a report: what the model recommends to a few users before their last event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sasrec.core.arrays import Float32, Int32
from sasrec.data.ragged import Ragged
from sasrec.data.splits import Split
from sasrec.data.targets import Targets
from sasrec.data.vocabulary import Vocabulary

N_EXAMPLES = 4  # users shown
LAST_ITEMS = 8  # of their history
K = 10


@dataclass(frozen=True)
class ShownItem:
    """An item as people see it."""

    item_id: int | str
    title: str  # its id where it has none


@dataclass(frozen=True)
class Recommended:
    """An item of a list."""

    item: ShownItem
    rank: int  # from 1
    score: float


@dataclass(frozen=True)
class Example:
    """A user: the last items before the target, the target, and what the model recommends in its place."""

    user_id: int | str
    history: list[ShownItem]  # oldest first
    target: ShownItem
    recommended: list[Recommended]  # best first


def build_examples(
    split: Split, vocabulary: Vocabulary, top_k: Callable[[Ragged, int], tuple[Int32, Float32]]
) -> list[Example]:
    """A few users of the test part, evenly spread.

    Args:
        split: the log, cut.
        vocabulary: ids and titles.
        top_k: histories and a number -> (B, K) item indices, best first, 0 at the end of a short row; their scores.
    """
    rows = np.linspace(0, len(split.test) - 1, min(N_EXAMPLES, len(split.test))).astype(np.int64)
    chosen = Targets(split.test.users[rows], split.test.positions[rows])
    histories, targets = chosen.histories(split.sequences), chosen.items(split.sequences)
    indices, scores = top_k(histories, K)
    examples = []
    for i, user in enumerate(chosen.users):
        listed = zip(_shown(vocabulary, indices[i][indices[i] > 0]), scores[i].tolist(), strict=False)
        examples.append(
            Example(
                user_id=split.sequences.user_ids[int(user)],
                history=_shown(vocabulary, histories.row(i)[-LAST_ITEMS:]),
                target=_shown(vocabulary, targets[i : i + 1])[0],
                recommended=[Recommended(item, rank, score) for rank, (item, score) in enumerate(listed, 1)],
            )
        )
    return examples


def _shown(vocabulary: Vocabulary, indices: Int32) -> list[ShownItem]:
    ids, titles = vocabulary.ids_of(indices).to_list(), vocabulary.titles_of(indices)
    return [ShownItem(item_id, title) for item_id, title in zip(ids, titles, strict=True)]

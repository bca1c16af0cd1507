"""The examples of a report: what the model recommends to a few users before their last event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sasrec.core.arrays import Float32, Int32
from sasrec.data.sequences import Ragged
from sasrec.data.splits import Split, Targets
from sasrec.data.vocabulary import Vocabulary

N_EXAMPLES = 4  # users shown
LAST_ITEMS = 8  # of their history
K = 10


def build_examples(
    split: Split, vocabulary: Vocabulary, top_k: Callable[[Ragged, int], tuple[Int32, Float32]]
) -> list[dict[str, Any]]:
    """A few users of the test part, evenly spread, with their last items, the target and what is recommended.

    Args:
        split: the log, cut.
        vocabulary: ids and titles.
        top_k: histories and a number -> (B, K) item indices, best first, 0 at the end of a short row; their scores.
    """
    rows = np.linspace(0, len(split.test) - 1, min(N_EXAMPLES, len(split.test))).astype(np.int64)
    chosen = Targets(split.test.users[rows], split.test.positions[rows])
    histories, titles_of = chosen.histories(split.sequences), vocabulary.titles_of
    indices, scores = top_k(histories, K)
    examples = []
    for i, target in enumerate(chosen.items(split.sequences)):
        listed = indices[i][indices[i] > 0]
        ids = vocabulary.ids_of(listed).to_list()
        rows_ = zip(ids, titles_of(listed), scores[i].tolist(), strict=False)
        examples.append(
            {
                "user_id": split.sequences.user_ids[int(chosen.users[i])],
                "history": titles_of(histories.row(i)[-LAST_ITEMS:]),
                "target": titles_of(np.array([target], np.int32))[0],
                "target_id": vocabulary.ids_of(np.array([target], np.int32))[0],
                "recommendations": [
                    {"rank": rank, "item_id": item_id, "title": title, "score": score}
                    for rank, (item_id, title, score) in enumerate(rows_, 1)
                ],
            }
        )
    return examples

"""The nearest of some names."""

import pytest

from sasrec.core.suggestions import nearest, suggestion


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("usr", ["item", "user", "time"], "user"),
        ("bset", ["paper", "fast", "best"], "best"),
        ("Embedding-Dim", ["embedding_dim", "n_blocks"], "embedding_dim"),
        ("ndgc@10", ["hr@10", "ndcg@10", "mrr@10"], "ndcg@10"),
        ("purch", ["view", "purchase", "cart"], "purchase"),
        ("temp", ["temporal", "temporary"], "temporal"),
        ("n", ["name", "nothing"], None),
        ("zebra", ["item", "user"], None),
        ("", ["item"], None),
        (7, ["item", "user"], None),
        ("user", [], None),
    ],
)
def test_nearest_name_is_found_or_none(name: object, known: list[str], found: str | None) -> None:
    assert nearest(name, known) == found


def test_suggestion_is_a_part_of_a_sentence() -> None:
    assert suggestion("usr", ["user"]) == " (did you mean 'user'?)"
    assert suggestion("zebra", ["user"]) == ""

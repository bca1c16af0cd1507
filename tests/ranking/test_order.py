"""Ranks and top-k lists against loops and sorts that are too simple to be wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sasrec.core.config import Ties
from sasrec.core.errors import ConfigError, DataError
from sasrec.data.ragged import Ragged
from sasrec.ranking.order import ranks_full, ranks_sampled, top_k

RULES: tuple[Ties, ...] = ("expected", "strict", "pessimistic")


class Block:
    """A random block of scores with few distinct values, so that ties abound, and hidden items with repeats."""

    def __init__(self, seed: int, n_rows: int, n_items: int, n_levels: int) -> None:
        rng = np.random.default_rng(seed)
        self.scores = rng.integers(-n_levels, n_levels + 1, (n_rows, n_items + 1)).astype(np.float32)
        self.scores[:, 0] = n_levels + 1  # padding would win everywhere
        self.targets = rng.integers(1, n_items + 1, n_rows).astype(np.int32)
        self.hidden = [
            rng.integers(1, n_items + 1, rng.integers(0, 2 * n_items)).astype(np.int32) for _ in range(n_rows)
        ]
        self.allowed = rng.random(n_items + 1) < 0.7

    @property
    def ragged(self) -> Ragged:
        return Ragged.from_lists(self.hidden)


blocks = st.builds(
    Block, st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 60), st.sampled_from([0, 1, 5, 1000])
)


def naive_rank(own: float, others: list[float], ties: Ties) -> float:
    above = sum(s > own for s in others)
    tied = sum(s == own for s in others)
    return 1 + above + {"expected": tied / 2, "strict": 0, "pessimistic": tied}[ties]


def naive_top(scores: NDArray[np.float32], k: int, hidden: NDArray[np.int32], allowed: NDArray[np.bool_]) -> list[int]:
    gone = {0, *hidden.tolist(), *np.flatnonzero(~allowed).tolist()}
    return [i for i in np.argsort(-scores, kind="stable").tolist() if i not in gone][:k]


@given(blocks, st.sampled_from(RULES), st.booleans())
def test_full_ranks_equal_a_plain_loop(block: Block, ties: Ties, hide: bool) -> None:
    expected = []
    for scores, target, hidden in zip(block.scores, block.targets, block.hidden, strict=True):
        gone = set(hidden.tolist()) if hide else set()
        others = [scores[i] for i in range(1, len(scores)) if i != target and i not in gone]
        expected.append(naive_rank(scores[target], others, ties))
    ranks = ranks_full(block.scores, block.targets, block.ragged if hide else None, ties)
    assert ranks.tolist() == expected


@given(blocks, st.sampled_from(RULES), st.integers(1, 8))
def test_sampled_ranks_equal_a_plain_loop(block: Block, ties: Ties, n: int) -> None:
    rng = np.random.default_rng(n)
    drawn = rng.integers(1, block.scores.shape[1], (len(block.targets), n)).astype(np.int32)
    candidates = np.column_stack([block.targets, drawn])
    scores = np.take_along_axis(block.scores, candidates, axis=1)
    expected = [naive_rank(row[0], row[1:].tolist(), ties) for row in scores]
    assert ranks_sampled(scores, candidates, ties).tolist() == expected


@given(blocks, st.integers(1, 70), st.booleans(), st.booleans())
def test_top_k_equals_a_full_sort(block: Block, k: int, hide: bool, restrict: bool) -> None:
    allowed = block.allowed if restrict else np.ones_like(block.allowed)
    nothing = np.zeros(0, np.int32)
    expected = [
        naive_top(s, k, h if hide else nothing, allowed) for s, h in zip(block.scores, block.hidden, strict=True)
    ]
    before = block.scores.copy()
    indices, scores = top_k(
        block.scores, k, hidden=block.ragged if hide else None, allowed=allowed if restrict else None
    )
    width = max(map(len, expected))
    assert indices.shape == scores.shape == (len(expected), width)
    assert indices.dtype == np.int32
    assert scores.dtype == np.float32
    for row, best in enumerate(expected):
        filler = width - len(best)
        assert indices[row].tolist() == best + [0] * filler
        assert scores[row].tolist() == block.scores[row, best].tolist() + [-np.inf] * filler
    assert np.array_equal(block.scores, before)


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_results_do_not_depend_on_the_chunk_of_rows(chunk: int) -> None:
    block = Block(3, 50, 9, 2)
    whole = (
        ranks_full(block.scores, block.targets, block.ragged, "expected"),
        *top_k(block.scores, 4, hidden=block.ragged),
    )
    parts = (
        ranks_full(block.scores, block.targets, block.ragged, "expected", chunk=chunk),
        *top_k(block.scores, 4, hidden=block.ragged, chunk=chunk),
    )
    for a, b in zip(whole, parts, strict=True):
        assert np.array_equal(a, b)


def test_permuting_rows_permutes_ranks_and_lists() -> None:
    block = Block(5, 40, 30, 3)
    order = np.random.default_rng(0).permutation(40)
    hidden = block.ragged
    ranks = ranks_full(block.scores, block.targets, hidden, "expected")
    indices, _ = top_k(block.scores, 5, hidden=hidden)
    assert np.array_equal(
        ranks_full(block.scores[order], block.targets[order], hidden.take(order), "expected"), ranks[order]
    )
    assert np.array_equal(top_k(block.scores[order], 5, hidden=hidden.take(order))[0], indices[order])


@pytest.mark.parametrize(("ties", "rank"), [("expected", 1.5), ("strict", 1.0), ("pessimistic", 2.0)])
def test_the_tie_rules_of_the_documentation(ties: Ties, rank: float) -> None:
    scores = np.array([[9, 5, 3, 5, 1]], np.float32)
    assert ranks_full(scores, np.array([2], np.int32), None, ties).tolist() == [3.0]
    assert ranks_full(scores, np.array([3], np.int32), None, ties).tolist() == [rank]
    assert ranks_full(scores, np.array([3], np.int32), Ragged.from_lists([[1]]), ties).tolist() == [1.0]


def test_a_target_in_its_own_history_stays_a_candidate() -> None:
    scores = np.array([[0, 4, 3, 2, 1]], np.float32)
    history = Ragged.from_lists([[1, 3, 1, 3]])
    assert ranks_full(scores, np.array([3], np.int32), history, "expected").tolist() == [2.0]


def test_an_item_hidden_twice_counts_once() -> None:
    scores = np.array([[0, 4, 4, 2, 1]], np.float32)
    for ties in RULES:
        assert ranks_full(scores, np.array([3], np.int32), Ragged.from_lists([[1, 2, 1, 2]]), ties).tolist() == [1.0]


def test_the_same_item_is_an_exact_tie_whatever_its_rounding() -> None:
    one_up = np.nextafter(np.float32(1), np.float32(2))
    scores = np.array([[1.0, one_up, 0.5], [1.0, one_up, 0.5]], np.float32)
    candidates = np.array([[7, 7, 2], [7, 8, 2]], np.int32)
    assert ranks_sampled(scores, candidates, "strict").tolist() == [1.0, 2.0]
    assert ranks_sampled(scores, candidates, "pessimistic").tolist() == [2.0, 2.0]


def test_top_k_never_returns_padding_even_if_its_score_is_infinite() -> None:
    scores = np.array([[np.inf, 1, 2], [np.nan, 2, 1]], np.float32)
    indices, best = top_k(scores, 5)
    assert indices.tolist() == [[2, 1], [1, 2]]
    assert best.tolist() == [[2, 1], [2, 1]]
    assert ranks_full(scores, np.array([1, 1], np.int32), None, "strict").tolist() == [2.0, 1.0]


def test_top_k_of_rows_without_candidates() -> None:
    scores = np.ones((2, 3), np.float32)
    indices, best = top_k(scores, 2, hidden=Ragged.from_lists([[1, 2], [2]]))
    assert indices.tolist() == [[0], [1]]
    assert best.tolist() == [[-np.inf], [1]]
    indices, best = top_k(scores, 2, hidden=Ragged.from_lists([[1, 2], [2, 1]]))
    assert indices.shape == best.shape == (2, 0)
    assert top_k(scores, 2, allowed=np.zeros(3, bool))[0].shape == (2, 0)


def test_no_rows_give_no_results() -> None:
    scores = np.zeros((0, 5), np.float32)
    assert top_k(scores, 3)[0].shape == (0, 0)
    assert ranks_full(scores, np.zeros(0, np.int32), Ragged.from_lists([]), "strict").shape == (0,)


def test_a_catalogue_of_one_item() -> None:
    scores = np.zeros((2, 2), np.float32)
    assert ranks_full(scores, np.array([1, 1], np.int32), Ragged.from_lists([[1], []]), "expected").tolist() == [1, 1]
    assert top_k(scores, 10)[0].tolist() == [[1], [1]]


def test_top_k_of_equal_scores_takes_the_first_items() -> None:
    assert top_k(np.zeros((3, 5000), np.float32), 4)[0].tolist() == [[1, 2, 3, 4]] * 3


def test_scores_may_be_a_read_only_broadcast() -> None:
    scores = np.broadcast_to(np.array([0, 1, 3, 2], np.float32), (4, 4))
    assert ranks_full(scores, np.array([1, 2, 3, 3], np.int32), None, "strict").tolist() == [3, 1, 2, 2]
    assert top_k(scores, 1, hidden=Ragged.from_lists([[2], [], [], []]))[0].ravel().tolist() == [3, 2, 2, 2]


def test_the_largest_floats_are_not_mistaken_for_infinity() -> None:
    big = np.finfo(np.float32).max
    scores = np.array([[0, big, big, -big]], np.float32)
    assert ranks_full(scores, np.array([1], np.int32), None, "pessimistic").tolist() == [2.0]
    assert top_k(scores, 3)[0].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_an_error_that_says_where(bad: float) -> None:
    scores = np.zeros((3, 4), np.float32)
    scores[1, 2] = bad
    targets = np.ones(3, np.int32)
    with pytest.raises(DataError, match=rf"row 1, column 2 is {bad}.*finite.*learning rate"):
        ranks_full(scores, targets, None, "strict")
    with pytest.raises(DataError, match="row 1, column 2"):
        top_k(scores, 2)
    with pytest.raises(DataError, match="row 1, column 2"):
        ranks_sampled(scores, np.ones((3, 4), np.int32), "strict")


@pytest.mark.parametrize("k", [0, -1])
def test_a_k_below_one_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k={k} is not a number of items"):
        top_k(np.zeros((1, 3), np.float32), k)

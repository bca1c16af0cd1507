"""The compiled core's ranks and lists against the plain ones, and against loops, for every variant and any shape."""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sasrec.core.config import Ties
from sasrec.core.errors import ConfigError, DataError
from sasrec.core.isa import load_native
from sasrec.data.ragged import Ragged, flat_index
from sasrec.ranking.index import (
    Exceptions,
    NativeIndex,
    NativeLevelIndex,
    PlainIndex,
    PlainLevelIndex,
    create_index,
    create_level_index,
)

RULES: tuple[Ties, ...] = ("expected", "strict", "pessimistic")
SHAPES = [(1, 1, 3), (2, 3, 1), (64, 7, 5), (65, 16, 6), (300, 50, 101), (700, 64, 40), (4999, 300, 7), (5003, 33, 2)]

pytestmark = pytest.mark.skipif(load_native().module is None, reason=load_native().why)


class Case:
    """A table and features of whole numbers up to a size, so that all scores are exact; size 0 = of any numbers.

    Small numbers make many ties, larger ones few.
    """

    def __init__(self, n_items: int, dim: int, n_rows: int, size: int = 2, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.n_items = n_items
        self.table, self.features = self.values(n_items + 1, dim, size), self.values(n_rows, dim, size)
        self.table[0] = 99  # padding would often win
        self.targets = self.items(n_rows)
        hidden = [self.items(int(n)) for n in self.rng.integers(0, min(2 * n_items, 60), n_rows)]
        for row in range(0, n_rows, 3):
            hidden[row] = np.append(hidden[row], [self.targets[row]] * 2).astype(np.int32)
        self.hidden = Ragged.from_lists(hidden)

    def values(self, rows: int, columns: int, size: int) -> NDArray[np.float32]:
        if not size:
            return self.rng.standard_normal((rows, columns)).astype(np.float32)
        return self.rng.integers(-size, size + 1, (rows, columns)).astype(np.float32)

    def items(self, n: int) -> NDArray[np.int32]:
        return self.rng.integers(1, self.n_items + 1, n).astype(np.int32)

    def masks(self) -> list[NDArray[np.bool_] | None]:
        """All items, half of them, and few enough to be scored one by one."""
        return [None, self.rng.random(self.n_items + 1) < 0.5, self.rng.random(self.n_items + 1) < 0.05]

    @property
    def plain(self) -> PlainIndex:
        return PlainIndex(self.table)

    def native(self, threads: int = 2) -> NativeIndex:
        made = create_index(self.table, threads)
        assert isinstance(made, NativeIndex)
        return made


def close(got: NDArray[np.float32], expected: NDArray[np.float32], rel: float, least: float) -> bool:
    """What pytest.approx says of arrays, at once for all values; infinite ones must be the same."""
    if got.shape != expected.shape or not np.array_equal(got[np.isinf(expected)], expected[np.isinf(expected)]):
        return False
    a, b = got[~np.isinf(expected)], expected[~np.isinf(expected)]
    return bool((np.abs(a - b) <= np.maximum(rel * np.abs(b), least)).all())


class Asked(NamedTuple):
    """Arguments of a method, and what the plain index answers: computed once for all variants."""

    arguments: dict[str, Any]
    answer: Any


@functools.cache
def plain_ranks(n_items: int, dim: int, n_rows: int, size: int, hide: bool) -> tuple[Case, list[Asked]]:
    case = Case(n_items, dim, n_rows, size)
    hidden, k = case.hidden if hide else None, min(7, case.n_items)
    common: dict[str, Any] = {"features": case.features, "targets": case.targets, "hidden": hidden, "k": k}
    return case, [Asked(common | {"ties": ties}, case.plain.rank(**common, ties=ties)) for ties in RULES]


@pytest.mark.parametrize(("n_items", "dim", "n_rows"), SHAPES)
@pytest.mark.parametrize("size", [2, 30])
@pytest.mark.parametrize("hide", [True, False])
def test_full_ranks_and_lists_are_the_plain_ones(
    isa: str, n_items: int, dim: int, n_rows: int, size: int, hide: bool
) -> None:
    case, asked = plain_ranks(n_items, dim, n_rows, size, hide)
    index = case.native()
    for arguments, (ranks, lists) in asked:
        got = index.rank(**arguments)
        assert np.array_equal(got[0], ranks)
        assert np.array_equal(got[1], lists)
        assert np.array_equal(index.rank(**arguments | {"k": 0})[0], ranks)


@functools.cache
def plain_ranks_among(n_items: int, dim: int, n_rows: int, size: int) -> tuple[Case, list[Asked]]:
    case, asked = Case(n_items, dim, n_rows, size), []
    for n in (1, 30):
        candidates = np.column_stack([case.targets, case.items(n_rows * n).reshape(n_rows, n)])
        candidates[::2, -1] = case.targets[::2]  # the target drawn again
        common = {"features": case.features, "candidates": candidates}
        asked += [Asked(common | {"ties": ties}, case.plain.rank_among(**common, ties=ties)) for ties in RULES]
    return case, asked


@pytest.mark.parametrize(("n_items", "dim", "n_rows"), SHAPES)
@pytest.mark.parametrize("size", [2, 30])
def test_sampled_ranks_are_the_plain_ones(isa: str, n_items: int, dim: int, n_rows: int, size: int) -> None:
    case, asked = plain_ranks_among(n_items, dim, n_rows, size)
    index = case.native()
    for arguments, ranks in asked:
        assert np.array_equal(index.rank_among(**arguments), ranks)


@functools.cache
def plain_lists(n_items: int, dim: int, n_rows: int, size: int, hide: bool) -> tuple[Case, list[Asked]]:
    case = Case(n_items, dim, n_rows, size)
    common: dict[str, Any] = {"features": case.features, "hidden": case.hidden if hide else None}
    wanted = [(k, allowed) for k in (1, 10, 2 * case.n_items) for allowed in case.masks()]
    asked = [common | {"k": k, "allowed": allowed} for k, allowed in wanted]
    return case, [Asked(arguments, case.plain.top_k(**arguments)) for arguments in asked]


@pytest.mark.parametrize(("n_items", "dim", "n_rows"), SHAPES)
@pytest.mark.parametrize("size", [2, 30])
@pytest.mark.parametrize("hide", [True, False])
def test_top_k_is_the_plain_one(isa: str, n_items: int, dim: int, n_rows: int, size: int, hide: bool) -> None:
    case, asked = plain_lists(n_items, dim, n_rows, size, hide)
    index = case.native()
    for arguments, (lists, scores) in asked:
        got = index.top_k(**arguments)
        assert np.array_equal(got[0], lists)
        assert close(got[1], scores, 1e-4, 1e-4)


def edge_masks(n_items: int) -> list[NDArray[np.bool_]]:
    """All items, none, the first, the last, those beside borders of 8 and of 64, and ranges of few and of many."""
    item = np.arange(n_items + 1)
    few = n_items // 32  # up to so many are scored one by one
    masks = [item > 0, item < 0, item == 1, item == n_items, item % 64 == 0, item % 64 == 1, item % 8 == 1]
    for n in (few, few + 1, n_items // 3):
        masks += [item <= n, item > n_items - n, (item > n_items // 2) & (item <= n_items // 2 + n)]
    for mask in masks:
        mask[0] = False
    return masks


@pytest.mark.parametrize("n_items", [4096, 4097, 4103, 4104, 4159, 4160, 4161])
def test_masks_of_any_form_give_the_plain_lists(isa: str, n_items: int) -> None:
    case = Case(n_items, 5, 2)
    index = case.native()
    for allowed in edge_masks(n_items):
        for rows in (slice(0, 1), slice(0, 2)):
            arguments: dict[str, Any] = {"k": 10, "hidden": case.hidden.take(rows), "allowed": allowed}
            lists, scores = case.plain.top_k(case.features[rows], **arguments)
            got = index.top_k(case.features[rows], **arguments)
            assert np.array_equal(got[0], lists)
            assert np.array_equal(got[1], scores)  # sums of whole numbers, so exact


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    n_items=st.integers(1, 700),
    dim=st.integers(1, 300),
    n_rows=st.integers(0, 15),
    size=st.sampled_from([1, 2, 30]),
    k=st.integers(1, 20),
    seed=st.integers(0, 2**32),
)
def test_any_shape_gives_the_plain_order(n_items: int, dim: int, n_rows: int, size: int, k: int, seed: int) -> None:
    case = Case(n_items, dim, n_rows, size, seed)
    k = min(k, n_items)
    expected = case.plain.rank(case.features, case.targets, case.hidden, "expected", k)
    got = case.native().rank(case.features, case.targets, case.hidden, "expected", k)
    assert np.array_equal(got[0], expected[0])
    assert np.array_equal(got[1], expected[1])
    allowed = case.masks()[1]
    expected_top = case.plain.top_k(case.features, k, hidden=case.hidden, allowed=allowed)[0]
    assert np.array_equal(case.native().top_k(case.features, k, hidden=case.hidden, allowed=allowed)[0], expected_top)


def trained_like(case: Case) -> None:
    """Norms that differ a hundredfold, and a direction that all items share."""
    norms = case.rng.lognormal(0, 1, (len(case.table), 1)).astype(np.float32)
    case.table[1:] = ((case.table + 1.5) * norms)[1:]


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_list_of_a_large_table_is_exactly_that_of_the_full_product(isa: str, trained: bool, threads: int) -> None:
    case = Case(100_003, 24, 60, 0)
    if trained:
        trained_like(case)
    index = case.native(threads)
    together = index.top_k(case.features, 20, hidden=case.hidden)  # so many rows read the floats
    for row in range(0, 60, 7):  # a few read bytes first
        alone = index.top_k(case.features[row : row + 1], 20, hidden=case.hidden.take(slice(row, row + 1)))
        assert np.array_equal(alone[0][0], together[0][row])
        assert np.array_equal(alone[1][0], together[1][row])


def awkward(case: Case, kind: str) -> None:
    """Tables whose scores are hard to bound by bytes."""
    if kind == "near ties":
        case.table[1:] = case.table[1] * (1 + 1e-6 * case.rng.standard_normal((case.n_items, 1)).astype(np.float32))
    elif kind == "a giant among them":
        case.table[5] *= 1e6
    elif kind == "norms of all sizes":
        case.table[1:] *= case.rng.lognormal(0, 5, (case.n_items, 1)).astype(np.float32)
    elif kind == "nearly nothing":
        case.table *= np.float32(1e-36)
    elif kind == "half nothing":
        case.table[1::2] = 0
    elif kind == "a row of nothing":
        case.features[3] = 0
    elif kind == "a coordinate that all share":
        case.table[:, 0] += 50
        case.features[:, 0] -= 50


@pytest.mark.parametrize(
    "kind",
    [
        "near ties", "a giant among them", "norms of all sizes", "nearly nothing", "half nothing", "a row of nothing",
        "a coordinate that all share",
    ],
)  # fmt: skip
@pytest.mark.parametrize("dim", [3, 50])
def test_a_batch_gets_the_lists_that_are_made_from_floats_alone(isa: str, kind: str, dim: int) -> None:
    case = Case(4900, dim, 100, 0)
    awkward(case, kind)
    index, targets = case.native(), np.ones(100, np.int32)
    for k in (1, 10, 76):
        for hidden in (None, case.hidden):
            expected = index.rank(case.features, targets, hidden, "strict", k)[1]
            best, scores = index.top_k(case.features, k, hidden=hidden)
            assert np.array_equal(best, expected)
            assert (np.diff(scores, axis=1) <= 0).all()
            products = np.einsum("bd,bkd->bk", case.features, case.table[best])
            assert close(scores, products, 1e-4, 1e-4 * float(np.abs(products).max()))


def test_threads_that_share_a_very_large_table_find_the_same_list(isa: str) -> None:
    case = Case(600_000, 6, 40, 0)
    together = case.native(1).top_k(case.features, 30, hidden=case.hidden)
    for threads in (1, 2, 3):
        alone = case.native(threads).top_k(case.features[:2], 30, hidden=case.hidden.take(slice(0, 2)))
        assert np.array_equal(alone[0], together[0][:2])
        assert np.array_equal(alone[1], together[1][:2])


@pytest.mark.parametrize("n_rows", [1, 40])
def test_a_large_table_of_equal_scores_gives_its_first_items(isa: str, n_rows: int) -> None:
    case = Case(20_000, 8, n_rows)
    case.table[:] = 1
    hidden = Ragged.from_lists([[1, 3, 3, 20_000]] * n_rows)
    for features in (case.features, np.zeros_like(case.features)):
        assert case.native().top_k(features, 4, hidden=hidden)[0].tolist() == [[2, 4, 5, 6]] * n_rows


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_batch_gives_what_single_rows_give_on_any_number_of_threads(isa: str, threads: int) -> None:
    case = Case(9001, 50, 203, 0)
    together = case.native(threads)
    ranks, lists = together.rank(case.features, case.targets, case.hidden, "expected", 10)
    best, scores = together.top_k(case.features, 10, hidden=case.hidden)
    alone = case.native(1)
    for row in (0, 5, 96, 202):
        part, gone = slice(row, row + 1), case.hidden.take(slice(row, row + 1))
        rank, one_list = alone.rank(case.features[part], case.targets[part], gone, "expected", 10)
        one_best, one_scores = alone.top_k(case.features[part], 10, hidden=gone)
        assert rank[0] == ranks[row]
        assert np.array_equal(one_list[0], lists[row])
        assert np.array_equal(one_best[0], best[row])
        assert np.array_equal(one_scores[0], scores[row])


def test_a_duplicate_of_the_target_is_an_exact_tie_wherever_it_lies(isa: str) -> None:
    case = Case(1000, 50, 30, 0)
    copies = np.arange(1, 1001, 37)
    case.table[copies] = case.table[1]
    for target in copies:
        targets = np.full(30, target, np.int32)
        expected, strict, pessimistic = (case.native().rank(case.features, targets, None, ties)[0] for ties in RULES)
        assert (pessimistic - strict == len(copies) - 1).all()
        assert (2 * expected == pessimistic + strict).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["table", "features"])
@pytest.mark.parametrize("n_items", [50, 5000])
def test_a_score_that_is_not_finite_is_an_error_that_names_it(isa: str, bad: float, where: str, n_items: int) -> None:
    case = Case(n_items, 8, 3, 0)
    if where == "table":
        case.table[40, 2] = bad
    else:
        case.features[1, 2] = bad
    index, candidates = case.native(), np.column_stack([case.targets, [40, 40, 40]]).astype(np.int32)
    with pytest.raises(DataError, match="finite"):
        index.rank(case.features, case.targets, None, "strict")
    with pytest.raises(DataError, match="finite"):
        index.rank_among(case.features, candidates, "strict")
    with pytest.raises(DataError, match="finite"):
        index.top_k(case.features, 5)


def test_padding_is_never_scored(isa: str) -> None:
    case = Case(6000, 8, 3, 0)
    case.table[0] = np.nan
    assert (case.native().rank(case.features, case.targets, None, "strict", 5)[1] > 0).all()
    assert (case.native().top_k(case.features, 5)[0] > 0).all()


def test_rows_that_lack_candidates_end_in_nothing(isa: str) -> None:
    case = Case(5, 4, 2)
    indices, scores = case.native().top_k(case.features, 9, hidden=Ragged.from_lists([[1, 2, 3, 4], [2]]))
    assert indices.shape == (2, 4)
    assert indices[0].tolist() == [5, 0, 0, 0]
    assert scores[0, 1:].tolist() == [-np.inf] * 3
    assert case.native().top_k(case.features, 9, allowed=np.zeros(6, bool))[0].shape == (2, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, i: i.rank(c.features, c.targets + 50, None, "strict"), r"item index \d+ is not in 1\.\.50"),
        (lambda c, i: i.rank(c.features, c.targets[:1], None, "strict"), "one target for each row"),
        (lambda c, i: i.rank(c.features[:, :5], c.targets, None, "strict"), "features must be"),
        (lambda c, i: i.rank(c.features, c.targets, c.hidden.take(slice(0, 1)), "strict"), "one row of hidden items"),
        (
            lambda c, i: i.top_k(c.features, 3, hidden=Ragged.from_lists([[51], [], []])),
            r"hidden item is not in 1\.\.50",
        ),
        (lambda c, i: i.top_k(c.features, 3, allowed=np.ones(3, bool)), "allowed must be"),
        (lambda c, i: i.rank_among(c.features, np.full((3, 2), 51, np.int32), "strict"), "item index 51 is not in"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(call: Any, message: str) -> None:
    case = Case(50, 8, 3)
    with pytest.raises(ValueError, match=message):
        call(case, case.native())


def test_a_k_below_one_is_refused() -> None:
    case = Case(50, 8, 3)
    for index in (case.native(), case.plain):
        with pytest.raises(ConfigError, match="k=0 is not a number of items"):
            index.top_k(case.features, 0)


@pytest.mark.parametrize("block_bytes", [1, 4 * 51 * 3])
def test_plain_ranks_do_not_depend_on_the_block(block_bytes: int) -> None:
    case = Case(50, 8, 20)
    whole, parts = (
        (
            *index.rank(case.features, case.targets, case.hidden, "expected", 5),
            *index.top_k(case.features, 5),
        )
        for index in (PlainIndex(case.table), PlainIndex(case.table, block_bytes))
    )
    for a, b in zip(whole, parts, strict=True):
        assert np.array_equal(a, b)


class LevelCase:
    """Shared scores with few distinct values, rows of exceptions and of hidden items, with repeats in both."""

    def __init__(self, n_items: int, n_rows: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.levels = rng.integers(0, 6, n_items + 1).astype(np.float32)
        self.levels[0] = 99
        self.targets = rng.integers(1, n_items + 1, n_rows).astype(np.int32)

        def rows() -> Ragged:
            lengths = rng.integers(0, 12, n_rows)
            lists = [rng.integers(1, n_items + 1, n).astype(np.int32) for n in lengths]
            return Ragged.from_lists([np.append(row, row[:2]).astype(np.int32) for row in lists])

        items = rows()
        self.exceptions = Exceptions.of_rows(items, rng.integers(-3, 12, len(items.values)).astype(np.float32))
        self.hidden = rows()


@pytest.mark.parametrize("n_items", [1, 2, 17, 400])
@pytest.mark.parametrize("ties", RULES)
@pytest.mark.parametrize("hide", [True, False])
def test_ranks_by_levels_are_those_of_the_scores_in_full(isa: str, n_items: int, ties: Ties, hide: bool) -> None:
    case = LevelCase(n_items, 50)
    hidden, k = case.hidden if hide else None, min(9, n_items)
    index = create_level_index(case.levels)
    assert isinstance(index, NativeLevelIndex)
    for exceptions in (case.exceptions, Exceptions.none(50)):
        expected = PlainLevelIndex(case.levels).rank(exceptions, case.targets, hidden, ties, k)
        got = index.rank(exceptions, case.targets, hidden, ties, k)
        assert np.array_equal(got[0], expected[0])
        assert np.array_equal(got[1], expected[1])
        assert np.array_equal(index.rank(exceptions, case.targets, hidden, ties, 0)[0], expected[0])


@pytest.mark.parametrize("n_items", [3, 60])
@pytest.mark.parametrize("hide", [True, False])
def test_rows_that_share_exceptions_rank_as_rows_with_their_own(isa: str, n_items: int, hide: bool) -> None:
    case = LevelCase(n_items, 300)
    hidden, k = case.hidden if hide else None, min(9, n_items)
    list_of = np.repeat([7, 3, 299, 0, 3, 12], [100, 1, 31, 32, 96, 40])  # runs that are sorted and others
    shared = Exceptions(case.exceptions.items, case.exceptions.scores, list_of)
    starts = case.exceptions.items.offsets[list_of]
    items = case.exceptions.items.take(list_of)
    own = Exceptions.of_rows(items, case.exceptions.scores[flat_index(starts, items.offsets)])
    expected = PlainLevelIndex(case.levels).rank(own, case.targets, hidden, "expected", k)
    for index in (PlainLevelIndex(case.levels), create_level_index(case.levels)):
        for exceptions in (shared, own):
            ranks, lists = index.rank(exceptions, case.targets, hidden, "expected", k)
            assert np.array_equal(ranks, expected[0])
            assert np.array_equal(lists, expected[1])
    for wrong in (-1, 300):
        with pytest.raises(ValueError, match="list_of must name lists of exceptions"):
            create_level_index(case.levels).rank(
                replace(shared, list_of=np.full(300, wrong)), case.targets, hidden, "expected", k
            )


@pytest.mark.parametrize("block_bytes", [1, 4 * 41 * 3])
def test_plain_ranks_by_levels_do_not_depend_on_the_block(block_bytes: int) -> None:
    case = LevelCase(40, 20)
    whole, parts = (
        index.rank(case.exceptions, case.targets, case.hidden, "expected", 5)
        for index in (PlainLevelIndex(case.levels), PlainLevelIndex(case.levels, block_bytes))
    )
    for a, b in zip(whole, parts, strict=True):
        assert np.array_equal(a, b)


def test_of_an_exception_named_twice_the_higher_score_counts(isa: str) -> None:
    exceptions = Exceptions.of_rows(Ragged.from_lists([[2, 2, 2]]), np.array([1, 5, 3], np.float32))
    levels, target = np.array([0, 4, 4, 4], np.float32), np.array([2], np.int32)
    for index in (create_level_index(levels), PlainLevelIndex(levels)):
        ranks, lists = index.rank(exceptions, target, None, "pessimistic", 3)
        assert ranks.tolist() == [1.0]
        assert lists.tolist() == [[2, 1, 3]]

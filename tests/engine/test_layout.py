"""How histories are cut into parts and groups."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasrec.engine.device import ON_CPU
from sasrec.engine.layout import ATTENTION_TOKENS, chunks_of_rows, length_groups


def group_cost(groups: list[tuple[int, int, int]]) -> float:
    return sum(
        (stop - start) * width * (1 + width / ATTENTION_TOKENS) + ON_CPU.group_overhead for start, stop, width in groups
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=7))
def test_length_groups_cover_all_rows_at_the_least_cost(lengths: list[int]) -> None:
    ordered = np.sort(lengths)
    groups = length_groups(ordered, ON_CPU.group_overhead)
    assert [start for start, _, _ in groups] == [0, *(stop for _, stop, _ in groups)][:-1]
    assert groups[-1][1] == len(ordered)
    assert all(ordered[stop - 1] <= width for _, stop, width in groups)
    best = min(
        group_cost([(a, b, int(ordered[b - 1])) for a, b in itertools.pairwise([0, *cuts, len(ordered)])])
        for n in range(len(ordered))
        for cuts in itertools.combinations(range(1, len(ordered)), n)
    )
    assert group_cost(groups) == pytest.approx(best)


def test_many_distinct_lengths_are_still_covered() -> None:
    lengths = np.sort(np.random.default_rng(0).integers(1, 200, 500))
    groups = length_groups(lengths, ON_CPU.group_overhead)
    assert groups[0][0] == 0
    assert groups[-1][1] == 500
    assert all(lengths[stop - 1] <= width for _, stop, width in groups)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=30, max_size=200))
def test_many_distinct_lengths_cost_little_more_than_the_best_cut(lengths: list[int]) -> None:
    ordered = np.sort(lengths)
    best = [0.0]
    for stop in range(1, len(ordered) + 1):
        width = int(ordered[stop - 1])
        best.append(min(best[start] + group_cost([(start, stop, width)]) for start in range(stop)))
    assert best[-1] <= group_cost(length_groups(ordered, ON_CPU.group_overhead)) + 1e-6
    assert group_cost(length_groups(ordered, ON_CPU.group_overhead)) <= 1.2 * best[-1]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), max_size=30), st.sampled_from([0, 9]), st.integers(1, 40))
def test_chunks_hold_each_row_once_and_no_more_tokens_than_allowed(
    lengths: list[int], full_length: int, max_tokens: int
) -> None:
    chunks = chunks_of_rows(np.array(lengths, np.int64), full_length, max_tokens)
    assert sorted(row for chunk in chunks for row in chunk.tolist()) == list(range(len(lengths)))
    for chunk in chunks:
        width = full_length or max(lengths[row] for row in chunk)
        assert len(chunk) == 1 or len(chunk) * width <= max_tokens

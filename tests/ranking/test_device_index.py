"""The device's index on CPU tensors beside the plain one: ties, hidden items, blocks, padding."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sasrec.core.arrays import Bool, Float32, Int32
from sasrec.core.config import ModelConfig, Ties, TrainConfig
from sasrec.core.errors import ConfigError, DataError
from sasrec.data.ragged import Ragged
from sasrec.engine.device import ON_CUDA
from sasrec.engine.protocol import create_engine
from sasrec.engine.torch_engine import TorchEngine
from sasrec.ranking.device_index import DeviceIndex, index_for
from sasrec.ranking.index import PlainIndex
from sasrec.ranking.scorers import ModelScorer

RULES: tuple[Ties, ...] = ("expected", "strict", "pessimistic")


class Case(NamedTuple):
    table: Float32
    features: Float32
    targets: Int32
    hidden: Ragged
    allowed: Bool
    candidates: Int32


def case_of(n_items: int, dim: int, n_rows: int, size: int, seed: int = 0) -> Case:
    """Whole numbers up to `size`, so that scores are exact: small ones make many ties. Targets may be hidden."""
    rng = np.random.default_rng(seed)
    table, features = (rng.integers(-size, size + 1, (n, dim)).astype(np.float32) for n in (n_items + 1, n_rows))
    table[0] = 99  # padding would often win
    targets, candidates = (rng.integers(1, n_items + 1, (n_rows, n)).astype(np.int32) for n in (1, 9))
    candidates[:, 0] = targets[:, 0]
    candidates[::2, -1] = targets[::2, 0]  # the target drawn again
    hidden = [rng.integers(1, n_items + 1, n).tolist() for n in rng.integers(0, min(n_items, 9) + 1, n_rows)]
    for row in range(0, n_rows, 3):
        hidden[row] += [int(targets[row, 0])] * 2
    return Case(table, features, targets[:, 0], Ragged.from_lists(hidden), rng.random(n_items + 1) < 0.4, candidates)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    n_items=st.integers(1, 200),
    dim=st.integers(1, 20),
    n_rows=st.integers(0, 12),
    size=st.sampled_from([1, 2, 30]),
    k=st.integers(1, 220),
    rows_at_once=st.integers(1, 13),
    seed=st.integers(0, 2**32),
)
def test_any_shape_gives_the_plain_order(
    n_items: int, dim: int, n_rows: int, size: int, k: int, rows_at_once: int, seed: int
) -> None:
    case = case_of(n_items, dim, n_rows, size, seed)
    plain = PlainIndex(case.table)
    index = DeviceIndex(case.table, "cpu", block_bytes=4 * (n_items + 1) * rows_at_once)
    for hidden in (None, case.hidden):
        for ties in RULES:
            expected = plain.rank(case.features, case.targets, hidden, ties, k)
            got = index.rank(case.features, case.targets, hidden, ties, k)
            np.testing.assert_array_equal(got[0], expected[0])
            np.testing.assert_array_equal(got[1], expected[1])
        for allowed in (None, case.allowed):
            best, scores = plain.top_k(case.features, k, hidden=hidden, allowed=allowed)
            found, found_scores = index.top_k(case.features, k, hidden=hidden, allowed=allowed)
            np.testing.assert_array_equal(found, best)
            np.testing.assert_array_equal(found_scores, scores)
    for ties in RULES:
        expected_among = plain.rank_among(case.features, case.candidates, ties)
        np.testing.assert_array_equal(index.rank_among(case.features, case.candidates, ties), expected_among)


def test_of_more_equal_scores_than_a_list_takes_the_first_items_are_in_it() -> None:
    index = DeviceIndex(np.ones((5001, 4), np.float32), "cpu")
    hidden = Ragged.from_lists([[1, 3, 3, 5000]] * 7)
    for features in (np.ones((7, 4), np.float32), np.zeros((7, 4), np.float32)):
        assert index.top_k(features, 4, hidden=hidden)[0].tolist() == [[2, 4, 5, 6]] * 7


def test_ranks_of_trained_numbers_are_those_of_the_cpu_to_rounding() -> None:
    rng = np.random.default_rng(0)
    table, features = (rng.standard_normal((n, 64)).astype(np.float32) for n in (3000, 200))
    targets = rng.integers(1, 3000, 200).astype(np.int32)
    plain, index = PlainIndex(table), DeviceIndex(table, "cpu")
    ranks, lists = plain.rank(features, targets, None, "expected", 10)
    found, found_lists = index.rank(features, targets, None, "expected", 10)
    assert np.abs(found - ranks).max() <= 1
    assert (found == ranks).mean() > 0.99
    assert (found_lists == lists).mean() > 0.99


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_named_as_by_the_plain_index(bad: float) -> None:
    case = case_of(40, 4, 6, 2)
    case.features[3, 1] = bad
    index = DeviceIndex(case.table, "cpu", block_bytes=4 * 41 * 2)
    with pytest.raises(DataError, match=r"the score in row 3, column 1 is .*: scores must be finite numbers"):
        index.rank(case.features, case.targets, None, "expected", 3)
    with pytest.raises(DataError, match="must be finite numbers"):
        index.top_k(case.features, 3, allowed=case.allowed)
    with pytest.raises(DataError, match="must be finite numbers"):
        index.rank_among(case.features, case.candidates, "expected")


def test_padding_may_hold_anything() -> None:
    case = case_of(40, 4, 6, 2)
    expected = DeviceIndex(case.table, "cpu").top_k(case.features, 5)
    case.table[0] = np.nan
    found = DeviceIndex(case.table, "cpu").top_k(case.features, 5)
    np.testing.assert_array_equal(found[0], expected[0])


def test_a_list_of_nothing_is_refused() -> None:
    case = case_of(5, 2, 1, 2)
    with pytest.raises(ConfigError, match="k"):
        DeviceIndex(case.table, "cpu").top_k(case.features, 0)


def test_an_engine_says_where_its_items_are_ranked() -> None:
    model, train = ModelConfig(embedding_dim=8, max_seq_len=6), TrainConfig(threads=1)
    on_device = TorchEngine(model, 9, train, replace(ON_CUDA, bf16=False))
    assert isinstance(index_for(on_device, on_device.item_table()), DeviceIndex)
    assert isinstance(ModelScorer(on_device, 6).index, DeviceIndex)
    for name in ("torch", "auto"):
        engine = create_engine(model, 9, replace(train, engine=name, device="cpu"))
        assert not isinstance(index_for(engine, engine.item_table()), DeviceIndex)

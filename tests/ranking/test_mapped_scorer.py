"""A model on another log's items: every rank against a full matrix of scores."""

from __future__ import annotations

import numpy as np
import pytest
from made import random_histories, spread_weights

from sasrec.core.config import ModelConfig, Ties, TrainConfig
from sasrec.data.ragged import Ragged
from sasrec.engine.protocol import Engine, create_engine
from sasrec.ranking.mapped_scorer import MappedScorer
from sasrec.ranking.order import ranks_full, top_k
from sasrec.ranking.scorers import ModelScorer

MODEL = ModelConfig(embedding_dim=8, n_blocks=1, max_seq_len=6)
COUNTS = np.array([3, 9, 9, 1, 4, 6, 2])
OWN = np.array([0, 7, 0, 2, 3, 0, 5, 6, 1, 0], np.int32)  # of the log's 9 items, 4 of which the model does not know


@pytest.fixture(scope="module")
def engine() -> Engine:
    return create_engine(MODEL, 7, TrainConfig(threads=1), spread_weights(MODEL, 7))


def histories(n_items: int) -> Ragged:
    return Ragged.from_lists([*random_histories(3, 20, n_items), [2, 5], [9], [2, 4]])


def full_scores(engine: Engine, rows: Ragged) -> np.ndarray:
    """Scores of the log's items one history at a time; a low number where the model does not know the item."""
    table, scores = engine.item_table(), np.full((len(rows), len(OWN)), -1e30, np.float32)
    for i in range(len(rows)):
        known = [OWN[item] for item in rows.row(i) if OWN[item]]
        if known:
            own_scores = engine.encode(Ragged.from_lists([known[-6:]]))[0] @ table.T
        else:
            own_scores = np.concatenate([[0], COUNTS]).astype(np.float32)
        scores[i, OWN > 0] = own_scores[OWN[OWN > 0]]
    return scores


@pytest.mark.parametrize("ties", ["expected", "strict", "pessimistic"])
@pytest.mark.parametrize("hide", [False, True])
def test_ranks_and_lists_are_those_of_all_the_logs_items_with_unknown_ones_last(
    engine: Engine, hide: bool, ties: Ties
) -> None:
    rows = histories(9)
    rng = np.random.default_rng(0)
    targets = rng.choice(np.flatnonzero(OWN), len(rows)).astype(np.int32)
    scores, hidden = full_scores(engine, rows), rows if hide else None
    ranks, lists = MappedScorer(engine, 6, OWN, COUNTS).rank(rows, targets, hidden, ties, 3)
    np.testing.assert_array_equal(ranks, ranks_full(scores, targets, hidden, ties))
    best, values = top_k(scores, 3, hidden=hidden)
    np.testing.assert_array_equal(lists, np.where(values > -1e29, best, 0))


def test_a_target_that_the_model_does_not_know_is_never_found(engine: Engine) -> None:
    scorer, rows = MappedScorer(engine, 6, OWN, COUNTS), Ragged.from_lists([[1, 3], [2], [4]])
    targets = np.array([2, 5, 3], np.int32)
    assert scorer.rank(rows, targets, None, "strict", 9)[0].tolist()[:2] == [np.inf, np.inf]
    among = scorer.rank_among(rows, np.stack([targets, targets, np.array([9, 9, 9], np.int32)], axis=1), "strict")
    assert among.tolist() == [np.inf, np.inf, 1.0]


def test_sampled_candidates_that_it_does_not_know_are_below_all_it_knows(engine: Engine) -> None:
    rows = histories(9)
    candidates = np.tile(np.array([4, 1, 2, 5, 6, 9, 8], np.int32), (len(rows), 1))
    scorer, scores = MappedScorer(engine, 6, OWN, COUNTS), full_scores(engine, rows)
    expected = 1 + (scores[:, [1, 6, 8]] > scores[:, [4]]).sum(axis=1)
    np.testing.assert_array_equal(scorer.rank_among(rows, candidates, "expected"), expected)
    np.testing.assert_allclose(
        scorer.candidate_scores(rows, candidates)[:, [0, 1, 4]], scores[:, [4, 1, 6]], rtol=1e-5, atol=1e-6
    )
    found = scorer.scores(rows)
    np.testing.assert_allclose(found[:, OWN > 0], scores[:, OWN > 0], rtol=1e-5, atol=1e-6)
    assert (found[:, 1:][:, OWN[1:] == 0] < -1e30).all()


def test_on_its_own_items_it_ranks_as_the_model_does(engine: Engine) -> None:
    rows = Ragged.from_lists(random_histories(5, 30, 7))
    targets = np.resize(np.arange(1, 8, dtype=np.int32), len(rows))
    mapped, plain = MappedScorer(engine, 6, np.arange(8, dtype=np.int32), COUNTS), ModelScorer(engine, 6)
    (ranks, lists), expected = (scorer.rank(rows, targets, rows, "expected", 5) for scorer in (mapped, plain))
    np.testing.assert_array_equal(ranks, expected[0])
    np.testing.assert_array_equal(lists, expected[1])

"""What is served is what the library answers, whatever else is in the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import with_attributes

import sasrec
from sasrec.core.errors import RequestError
from sasrec.core.isa import load_native
from sasrec.data.vocabulary import Vocabulary
from sasrec.recommender import Recommender
from sasrec.serving import served_model
from sasrec.serving.schemas import Answer, Query
from sasrec.serving.served_model import Row, ServedModel, _ranked_together, not_yet_in


@pytest.fixture(scope="module")
def model(recommender: Recommender) -> ServedModel:
    return ServedModel(recommender)


def only(model: ServedModel, query: Query, user: Any = None) -> Answer:
    [answer] = model.answer([Row(query, user)])
    if isinstance(answer, RequestError):
        raise answer
    return answer


def as_pairs(frame: pl.DataFrame) -> list[tuple[Any, float]]:
    return list(frame.select("item_id", "score").iter_rows())


def pairs(answer: Answer) -> list[tuple[Any, float]]:
    assert [item.rank for item in answer.items] == list(range(1, len(answer.items) + 1))
    return [(item.item_id, item.score) for item in answer.items]


IDS = st.one_of(st.integers(1, 30), st.integers(1, 30).map(str), st.sampled_from([0, 31, -5, "x", "07", "ß日", ""]))
QUERIES = st.builds(
    Query,
    history=st.lists(IDS, max_size=12),
    k=st.sampled_from([1, 3, 10, 29, 30, 100, 500]),
    allow=st.none() | st.lists(IDS, max_size=8),
    deny=st.none() | st.lists(IDS, max_size=8),
    keep_seen=st.none() | st.booleans(),
    where=st.none()
    | st.sampled_from(["price < 9 or tags = 't1'", "genre = 'drama'", "count < 0", "not title like '%1%'"]),
    diversity=st.sampled_from([0.0, 0.0, 0.4, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(queries=st.lists(QUERIES, min_size=1, max_size=6))
def test_each_answer_of_a_batch_is_what_the_library_recommends(
    recommender: Recommender, model: ServedModel, queries: list[Query]
) -> None:
    for query, answer in zip(queries, model.answer([Row(query) for query in queries]), strict=True):
        assert isinstance(answer, Answer)
        filters = {"allow": query.allow, "deny": query.deny}
        known = {
            name: None if ids is None else [i for i in ids if recommender.vocabulary.index_of(i)]
            for name, ids in filters.items()
        }
        details = recommender.recommend_detailed(
            [query.history], query.k, keep_seen=query.keep_seen, where=query.where, diversity=query.diversity, **known
        )
        assert [i for i, _ in pairs(answer)] == details.frame["item_id"].to_list()
        assert np.allclose([s for _, s in pairs(answer)], details.frame["score"].to_list(), atol=1e-5)
        assert answer.fallback == details.fallback[0]
        others = [i for ids in filters.values() for i in ids or [] if not recommender.vocabulary.index_of(i)]
        assert answer.unknown_items == details.unknown_items[0] + others


ROWS = st.builds(Row, QUERIES, st.none() | st.sampled_from([3, "17", 200, "nobody"]))
SAME = 0.0 if load_native().module else 1e-5  # the compiled core gives the same bits whatever else is in the batch


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=8))
def test_a_batch_answers_each_row_as_it_is_answered_alone(model: ServedModel, rows: list[Row]) -> None:
    for row, answer in zip(rows, model.answer(rows), strict=True):
        [alone] = model.answer([row])
        if row.user == "nobody":
            assert isinstance(answer, RequestError)
            assert (answer.status, str(answer)) == (404, str(alone))
            continue
        assert isinstance(answer, Answer)
        assert [item.item_id for item in answer.items] == [item.item_id for item in alone.items]
        assert [s for _, s in pairs(answer)] == pytest.approx([s for _, s in pairs(alone)], rel=SAME, abs=SAME)
        assert (answer.unknown_items, answer.fallback) == (alone.unknown_items, alone.fallback)


def test_rows_of_one_expression_are_ranked_together(model: ServedModel) -> None:
    drama, dear = {"where": "genre = 'drama'"}, {"where": "price > 9"}
    queries = [
        Query([1], 5, **drama),
        Query([2], 5),
        Query([3], 9, **drama),
        Query([4], 5, **dear),
        Query([5], 5, allow=[1], **drama),
        Query([6], 5, **dear, diversity=0.5),
        Query([7], 6, **dear, diversity=0.5),
        Query([8], 5, **dear, diversity=0.5),
        Query([9], 500, **drama),
    ]
    assert _ranked_together(queries) == [[0, 2], [1], [3], [4], [5, 7], [6], [8]]
    answers = model.answer([Row(query) for query in queries])
    assert [pairs(answer) for answer in answers] == [pairs(only(model, query)) for query in queries]


def test_an_expression_that_does_not_fit_is_422_with_the_columns(model: ServedModel) -> None:
    for ask in (
        lambda: only(model, Query([1], where="secret = 1")),
        lambda: model.similar(5, 3, "secret = 1"),
        lambda: model.learn(model.masks.steps("secret = 1")),
    ):
        with pytest.raises(
            RequestError, match=r"where, character 1: .*the columns are title \(text\), genre"
        ) as refused:
            ask()
        assert refused.value.status == 422
        assert "secret" not in str(refused.value)


def test_a_mask_is_made_in_parts_of_a_bounded_time(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    served = ServedModel(with_attributes(recommender))
    monkeypatch.setattr(served_model, "STEP_SECONDS", 0.0)
    where = " or ".join(f"price = {i}" for i in range(1, 8))
    steps = served.masks.steps(where)
    assert [served.learn(steps) for _ in range(8)] == [False] * 7 + [True]
    assert served.masks.knows(where)
    assert served.learn(served.masks.steps("price < 3")) is False
    monkeypatch.setattr(served_model, "STEP_SECONDS", 60.0)
    assert served.learn(served.masks.steps("price < 3 and price > 1")) is True


def test_a_history_of_ten_thousand_items_is_answered_by_its_last_ones(model: ServedModel) -> None:
    long = [(7 * i) % 40 for i in range(10_000)]
    known = [i for i in long if 1 <= i <= 30]
    answer, short = only(model, Query(long, keep_seen=True)), only(model, Query(known[-8:], keep_seen=True))
    assert pairs(answer) == pairs(short)
    assert len(answer.unknown_items) == len(long) - len(known)
    assert pairs(only(model, Query(long))) == []  # all items were seen


def test_a_title_is_told_where_there_is_one(recommender: Recommender, model: ServedModel) -> None:
    assert only(model, Query([1])).items[0].title == f"Film {only(model, Query([1])).items[0].item_id}"
    vocabulary = Vocabulary(recommender.vocabulary.item_ids, recommender.vocabulary.counts)
    plain = ServedModel(Recommender(recommender.engine, vocabulary, recommender.config, None))
    assert only(plain, Query([1])).items[0].title is None


def test_a_user_gets_what_the_library_recommends_by_number_or_text(
    recommender: Recommender, model: ServedModel
) -> None:
    expected = as_pairs(recommender.recommend_users([17], k=5))
    assert pairs(only(model, Query([], 5), 17)) == pairs(only(model, Query([], 5), "17")) == expected
    with pytest.raises(RequestError, match=r"this user is not in the log \(200 users\)") as unknown:
        only(model, Query([]), "nobody")
    assert unknown.value.status == 404


def test_a_model_without_histories_says_so(recommender: Recommender) -> None:
    bare = ServedModel(Recommender(recommender.engine, recommender.vocabulary, recommender.config, None))
    with pytest.raises(RequestError, match="saved without histories"):
        only(bare, Query([]), 3)
    assert bare.known_user(3) is None


class Stored:
    """Events as the store gives them."""

    def __init__(self, **events: list[Any]) -> None:
        self.events = events

    def events_of(self, user: Any) -> list[Any]:
        return self.events.get(str(user), [])


def test_events_since_training_belong_to_the_history(recommender: Recommender, model: ServedModel) -> None:
    served = ServedModel(recommender, Stored(**{"17": ["4", "9"]}))
    history = model.history_of(17)
    assert served.history_of(17) == [*history, "4", "9"]
    assert pairs(only(served, Query([]), 17)) == pairs(only(model, Query([*history, 4, 9])))


@pytest.mark.parametrize(
    ("log", "events", "new"),
    [
        ([1, 2, 3], [], []),
        ([1, 2, 3], ["4", "5"], ["4", "5"]),
        ([1, 2, 3], ["2", "3"], []),
        ([1, 2, 3], ["3", "4"], ["4"]),
        ([1, 2, 3], ["2", "4"], ["2", "4"]),
        ([3], ["3", "3"], ["3"]),
        ([], ["3"], ["3"]),
    ],
)
def test_events_that_a_newer_log_ends_with_count_once(
    model: ServedModel, log: list[Any], events: list[Any], new: list[Any]
) -> None:
    assert not_yet_in(log, events, model.vocabulary.indices_of) == new


def test_similar_items_and_explanations_are_the_librarys(recommender: Recommender, model: ServedModel) -> None:
    similar = model.similar("5", 4)
    assert [(i.item_id, i.score) for i in similar.items] == as_pairs(recommender.similar_items(5, 4))
    cheap = model.similar("5", 4, "price < 9")
    assert [(i.item_id, i.score) for i in cheap.items] == as_pairs(recommender.similar_items(5, 4, where="price < 9"))
    assert {item.item_id for item in cheap.items} < set(range(1, 9))
    explained = model.explain([1, "x", 2, 3], 9)
    frame = recommender.explain([1, 2, 3], 9)
    assert [(r.item_id, r.position, r.contribution) for r in explained.reasons] == list(frame.iter_rows())
    assert explained.unknown_items == ["x"]
    assert explained.score == pytest.approx(float(recommender.score([[1, 2, 3]], [9])[0, 0]))
    assert explained.reasons[0].title == f"Film {explained.reasons[0].item_id}"


def test_questions_about_unknown_items_are_refused_without_repeating_them(model: ServedModel) -> None:
    for ask in (
        lambda: model.similar("secret", 3),
        lambda: model.explain([1], "secret"),
        lambda: model.explain(["secret"], 1),
    ):
        with pytest.raises(RequestError) as refused:
            ask()
        assert refused.value.status == 404
        assert "secret" not in str(refused.value)


def test_a_search_gives_items_with_title_and_count(recommender: Recommender, model: ServedModel) -> None:
    found = model.search("FILM 12", 3)
    assert [item.item_id for item in found.items] == [12]
    assert (found.items[0].title, found.items[0].count) == ("Film 12", recommender.vocabulary.counts[11])
    assert [item.item_id for item in model.search("", 3).items] == recommender.recommend([[]], 3)["item_id"].to_list()


def test_the_version_is_of_weights_and_items(model: ServedModel, runs: Path) -> None:
    assert ServedModel(sasrec.load(runs / "a")).version == model.version
    assert ServedModel(sasrec.load(runs / "b")).version != model.version


def test_histories_do_not_need_the_disk_once_loaded(run: Path) -> None:
    served = ServedModel(sasrec.load(run))
    items = run / "sequences" / "items.npy"
    items.write_bytes(b"")  # a mapped file cut short would end the process when it is read
    assert only(served, Query([]), 3).items

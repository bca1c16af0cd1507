"""What is served is what the library answers, whatever else is in the batch; and models are put in place of others."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log
from hypothesis import given, settings
from hypothesis import strategies as st

import sasrec
from sasrec.core.errors import CheckpointError, RequestError
from sasrec.data.vocabulary import Vocabulary
from sasrec.recommender import Recommender
from sasrec.serving.schemas import Answer, Query
from sasrec.serving.served_model import Row, ServedModel, _not_yet_in
from sasrec.serving.service import RecommendJob, Service
from sasrec.serving.telemetry import Metrics

SMALL: dict[str, Any] = {
    "embedding_dim": 8, "n_blocks": 1, "max_seq_len": 8, "threads": 1, "max_epochs": 1, "filter_seen": "yes",
}  # fmt: skip
TITLES = pl.DataFrame({"item_id": range(1, 31), "title": [f"Film {i}" for i in range(1, 31)]})


@pytest.fixture(scope="module")
def recommender(markov_log: pl.DataFrame) -> Recommender:
    return sasrec.fit(markov_log, titles=TITLES, **SMALL)


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
        details = recommender.recommend_detailed([query.history], query.k, keep_seen=query.keep_seen, **known)
        assert [i for i, _ in pairs(answer)] == details.frame["item_id"].to_list()
        assert np.allclose([s for _, s in pairs(answer)], details.frame["score"].to_list(), atol=1e-5)
        assert answer.fallback == details.fallback[0]
        others = [i for ids in filters.values() for i in ids or [] if not recommender.vocabulary.index_of(i)]
        assert answer.unknown_items == details.unknown_items[0] + others


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


def test_an_unknown_user_does_not_spoil_the_batch(model: ServedModel) -> None:
    first, second, third = model.answer([Row(Query([1])), Row(Query([]), "nobody"), Row(Query([]), 3)])
    assert isinstance(first, Answer)
    assert isinstance(second, RequestError)
    assert isinstance(third, Answer)


def test_a_model_without_histories_says_so(recommender: Recommender) -> None:
    bare = ServedModel(Recommender(recommender.engine, recommender.vocabulary, recommender.config, None))
    with pytest.raises(RequestError, match="saved without histories"):
        only(bare, Query([]), 3)
    assert not bare.knows_user(3)


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
    assert _not_yet_in(log, events, model.vocabulary.indices_of) == new


def test_similar_items_and_explanations_are_the_librarys(recommender: Recommender, model: ServedModel) -> None:
    similar = model.similar("5", 4)
    assert [(i.item_id, i.score) for i in similar.items] == as_pairs(recommender.similar_items(5, 4))
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


def search_model(titles: list[str | None], counts: list[int]) -> ServedModel:
    log = make_markov_log(60, len(titles))
    ids = pl.DataFrame({"item_id": range(1, len(titles) + 1), "title": titles})
    made = sasrec.fit(log, titles=ids, **SMALL)
    made.vocabulary.counts = np.array(counts, np.int64)
    return ServedModel(made)


def test_search_finds_words_without_case_and_accents_the_beginning_first_then_the_popular() -> None:
    titles = ["The Matrix", "Amélie", "Matrix Reloaded", "Postmatrix", "Other", None, "Matrix Zero"]
    model = search_model(titles, [9, 1, 2, 99, 5, 7, 3])

    def found(text: str, k: int = 10) -> list[Any]:
        return [item.item_id for item in model.search(text, k).items]

    assert found("matrix") == [7, 3, 1, 4]
    assert found("MATRIX rel") == [3]
    assert found("amelie") == found("AMÉLIE") == [2]
    assert found("6") == [6]
    assert found("a.*b [") == []
    assert found("  ", 2) == [4, 1]
    assert len(found("matrix", 2)) == 2


def test_the_version_is_of_weights_and_items(recommender: Recommender, model: ServedModel, tmp_path: Path) -> None:
    recommender.save(tmp_path / "run")
    assert ServedModel(sasrec.load(tmp_path / "run")).version == model.version
    other = sasrec.fit(make_markov_log(), **{**SMALL, "seed": 5})
    assert ServedModel(other).version != model.version


def test_a_model_that_is_not_finite_does_not_pass_its_warm_up(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save(tmp_path / "run")
    broken = sasrec.load(tmp_path / "run")
    weights = broken.engine.weights()
    broken.engine.load_weights({name: np.full_like(array, np.nan) for name, array in weights.items()})
    with pytest.raises(sasrec.SASRecError, match="finite"):
        Service(Metrics()).serve(Recommender(broken.engine, broken.vocabulary, broken.config, None))


@pytest.fixture
def service(recommender: Recommender, tmp_path: Path) -> Service:
    """A service of a run folder behind a link."""
    recommender.save(tmp_path / "a")
    (tmp_path / "run").symlink_to("a")
    made = Service(Metrics(), path=tmp_path / "run")
    made.load()
    return made


def point(link: Path, target: str) -> None:
    """Let the link lead elsewhere at one moment, as a deployment does."""
    (link.parent / "next").symlink_to(target)
    (link.parent / "next").rename(link)


def value(service: Service, name: str, **labels: str) -> float | None:
    return service.metrics.registry.get_sample_value(name, labels)


@pytest.mark.slow
def test_a_moved_link_is_noticed_and_the_new_model_answers(service: Service, tmp_path: Path) -> None:
    assert service.model is not None
    before = service.model.version
    assert not service.has_moved()
    sasrec.fit(make_markov_log(), **{**SMALL, "seed": 5}).save(tmp_path / "b")
    point(tmp_path / "run", "b")
    assert service.has_moved()
    assert service.reload()
    assert not service.has_moved()
    assert service.model.version != before
    assert value(service, "sasrec_model_info", version=service.model.version) == 1
    assert value(service, "sasrec_model_info", version=before) == 0
    assert value(service, "sasrec_reloads_total", outcome="done") == 1


def foreign(folder: Path) -> None:
    (folder / "config.json").write_text('{"name": "of something else"}')


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_items(folder: Path) -> None:
    (folder / "items.parquet").unlink()


def of_another_catalogue(folder: Path) -> None:
    log = make_markov_log().with_columns(pl.col("item_id") + 25)
    sasrec.fit(log, **SMALL).save(folder, overwrite=True)


def gone(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [foreign, truncated, without_items, of_another_catalogue, gone])
def test_a_model_that_cannot_be_served_leaves_the_old_one_answering_and_is_told(
    service: Service, recommender: Recommender, tmp_path: Path, damage: Any
) -> None:
    assert service.model is not None
    before, version = service.model, service.model.version
    recommender.save(tmp_path / "b")
    point(tmp_path / "run", "b")
    damage(tmp_path / "b")
    assert not service.reload()
    assert service.model is before
    [encoded] = service.answer([RecommendJob([Row(Query([1, 2]))])])
    assert isinstance(encoded, bytes)
    assert service.reload_error is not None
    assert str(tmp_path) in service.reload_error
    assert value(service, "sasrec_last_reload_ok") == 0
    assert value(service, "sasrec_reloads_total", outcome="failed") == 1
    assert value(service, "sasrec_model_info", version=version) == 1
    point(tmp_path / "run", "a")
    assert service.reload()
    assert service.reload_error is None
    assert value(service, "sasrec_last_reload_ok") == 1


def test_a_service_without_a_folder_has_nothing_to_reload(recommender: Recommender) -> None:
    service = Service(Metrics())
    service.serve(recommender)
    assert not service.reload()
    assert not service.has_moved()


def test_the_first_load_fails_with_the_librarys_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run folder"):
        Service(Metrics(), path=tmp_path / "nothing").load()


def test_without_a_model_every_job_is_told_to_come_again() -> None:
    [answer] = Service(Metrics()).answer([RecommendJob([Row(Query([1]))])])
    assert isinstance(answer, RequestError)
    assert answer.status == 503


def test_unknown_items_and_fallbacks_are_counted(recommender: Recommender) -> None:
    service = Service(Metrics())
    service.serve(recommender)
    service.answer([RecommendJob([Row(Query([1, "x"])), Row(Query(["y"]))], True), RecommendJob([Row(Query([2]))])])
    counts = {name: value(service, f"sasrec_{name}_total") for name in ("answers", "history_items", "unknown_items")}
    assert counts == {"answers": 3, "history_items": 4, "unknown_items": 2}
    assert value(service, "sasrec_fallback_answers_total") == 1


def test_histories_do_not_need_the_disk_once_loaded(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save(tmp_path / "run")
    served = ServedModel(sasrec.load(tmp_path / "run"))
    items = tmp_path / "run" / "sequences" / "items.npy"
    items.write_bytes(b"")  # a mapped file cut short would end the process when it is read
    assert only(served, Query([]), 3).items

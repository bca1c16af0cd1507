"""Your ids in, your ids and scores out."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from any_frame import FRAMES
from conftest import make_markov_log
from made import run_program
from served import with_attributes

import sasrec
from sasrec.core.errors import CheckpointError, ConfigError, DataError, UnknownItemError
from sasrec.data.ragged import Ragged
from sasrec.recommender import Recommender
from sasrec.runs.folder import RunFolder

SMALL = {"embedding_dim": 16, "n_blocks": 1, "max_epochs": 15, "learning_rate": 3e-3, "batch_size": 32, "patience": 0}


def text_ids(log: pl.DataFrame) -> pl.DataFrame:
    return log.select(pl.format("u{}", "user_id").alias("user_id"), pl.format("film {}", "item_id").alias("item_id"))


@pytest.fixture(scope="module")
def numbers() -> Recommender:
    """A model of the learnable log, whose ids are integers; seen items are hidden."""
    return sasrec.fit(make_markov_log(), **SMALL, filter_seen="yes")


@pytest.fixture(scope="module")
def texts() -> Recommender:
    """The same log with text ids."""
    return sasrec.fit(text_ids(make_markov_log()), **SMALL, filter_seen="yes")


@pytest.fixture(params=["numbers", "texts"])
def recommender(request: pytest.FixtureRequest) -> Recommender:
    """Either."""
    return request.getfixturevalue(request.param)


def some_ids(recommender: Recommender, *indices: int) -> list[object]:
    return recommender.vocabulary.ids_of(np.array(indices, np.int32)).to_list()


def test_recommendations_have_the_promised_columns_and_ranks_from_one(recommender: Recommender) -> None:
    frame = recommender.recommend([some_ids(recommender, 1, 2), some_ids(recommender, 3)], k=5)
    assert frame.columns == ["user_id", "item_id", "score", "rank"]
    assert frame["user_id"].to_list() == [0] * 5 + [1] * 5
    assert frame["rank"].to_list() == [1, 2, 3, 4, 5] * 2
    for user in (0, 1):
        scores = frame.filter(pl.col("user_id") == user)["score"].to_list()
        assert scores == sorted(scores, reverse=True)


def test_next_item_of_a_learnable_log_is_recommended_first(numbers: Recommender) -> None:
    item = 5
    following = (7 * (item - 1) + 3) % 30 + 1
    assert numbers.recommend([[item]], k=1)["item_id"].to_list() == [following]


def test_a_batch_gives_what_single_calls_give(recommender: Recommender) -> None:
    histories = [some_ids(recommender, *row) for row in ([1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12])]
    together = recommender.recommend(histories, k=7)
    for position, history in enumerate(histories):
        alone = recommender.recommend([history], k=7)
        mine = together.filter(pl.col("user_id") == position)
        assert mine["item_id"].to_list() == alone["item_id"].to_list()
        np.testing.assert_allclose(mine["score"], alone["score"], atol=1e-5)


def test_seen_items_are_hidden_unless_kept(recommender: Recommender) -> None:
    history = some_ids(recommender, 1, 2, 3)
    hidden = recommender.recommend([history], k=100)["item_id"].to_list()
    kept = recommender.recommend([history], k=100, keep_seen=True)["item_id"].to_list()
    assert not set(hidden) & set(history)
    assert len(hidden) == 27
    assert len(kept) == 30


def test_k_larger_than_the_candidates_gives_what_there_is(recommender: Recommender) -> None:
    allow = some_ids(recommender, 4, 5, 6)
    frame = recommender.recommend([some_ids(recommender, 1)], k=10**6, allow=allow)
    assert set(frame["item_id"]) == set(allow)


@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_k_that_is_no_number_of_items_is_refused(numbers: Recommender, k: object) -> None:
    with pytest.raises(ConfigError, match=r"use 1 or more"):
        numbers.recommend([[1]], k=k)


@pytest.mark.parametrize("k", [np.int64(3), np.uint8(3)])
def test_numpys_integers_are_numbers_of_items(numbers: Recommender, k: Any) -> None:
    assert numbers.recommend([[1]], k).equals(numbers.recommend([[1]], 3))
    assert numbers.recommend_users(np.array([2]), k).equals(numbers.recommend_users([2], 3))
    assert numbers.similar_items(np.int64(4), k).equals(numbers.similar_items(4, 3))
    assert numbers.explain(np.array([1, 2]), np.int64(4)).equals(numbers.explain([1, 2], 4))
    assert numbers.evaluate(k=k, baselines=False) == numbers.evaluate(k=3, baselines=False)


def test_settings_that_are_numpys_are_stored_and_read_back(tmp_path: Path) -> None:
    settings = SMALL | {"max_epochs": np.int64(1), "seed": np.int32(3), "dropout": np.float32(0.25), "k": np.array([5])}
    trained = sasrec.fit(make_markov_log(20), **settings, lazy_adam=np.False_, output=tmp_path / "run")
    loaded = sasrec.load(tmp_path / "run", threads=np.int64(1))
    assert (loaded.config.train.seed, loaded.config.model.dropout, loaded.config.eval.k) == (3, 0.25, (5,))
    assert loaded.config.model == trained.config.model


@pytest.mark.parametrize("k", [0, 5.0, np.float64(5), True, np.True_, "5", None])
def test_every_door_refuses_what_is_no_number_of_items(numbers: Recommender, k: Any) -> None:
    row = Ragged.from_lists([[1]])
    doors: list[Callable[[], object]] = [
        lambda: numbers.recommend([[1]], k),
        lambda: numbers.recommend([["new"]], k),
        lambda: numbers.recommend_users([1], k),
        lambda: numbers.recommend_rows(slice(0, 1), k),
        lambda: numbers.top_indices(row, k),
        lambda: numbers.next_items.top_k(row, k),
        lambda: numbers.next_items.top_k(Ragged.from_lists([[], [1]]), k),
        lambda: numbers.similar_items(1, k),
    ]
    for door in doors:
        with pytest.raises(ConfigError, match="is not a number of items; use 1 or more"):
            door()


@pytest.mark.parametrize("value", ["12", b"12", 12, np.int64(12), {1: 2}, np.array(12), np.array([[1, 2]]), [[1, 2]]])
def test_every_door_refuses_what_is_no_list_of_ids_and_names_the_argument(numbers: Recommender, value: Any) -> None:
    doors: dict[str, Callable[[], object]] = {
        "user_ids": lambda: numbers.recommend_users(value),
        "allow": lambda: numbers.recommend([[1]], allow=value),
        "deny": lambda: numbers.recommend_users([1], deny=value),
        "items": lambda: numbers.score([[1]], value),
        "history": lambda: numbers.explain(value, 1),
        "history 0": lambda: numbers.score([value], [1]),
        "history 1": lambda: numbers.recommend([[1], value]),
    }
    for name, door in doors.items():
        with pytest.raises(DataError, match=f"^{name} (is of type|holds a value of type)"):
            door()


def test_lists_of_ids_may_be_arrays_series_sets_and_generators(numbers: Recommender) -> None:
    wanted = numbers.recommend([[1, 2]], 30, deny=[3], allow=[3, 4, 5])
    for deny, allow in [
        (np.array([3]), pl.Series([3, 4, 5])), ({3}, pd.Series([3.0, 4.0, 5.0])), ((i for i in ["3.0"]), {3, 4, 5}),
        (pd.Index([3]), range(3, 6)),
    ]:  # fmt: skip
        assert numbers.recommend(np.array([[1, 2]]), 30, deny=deny, allow=allow).equals(wanted)
    assert numbers.recommend_users({2}).equals(numbers.recommend_users([2]))
    scores = numbers.score([[1, 2]], [5, 6])
    for items in (np.array([5, 6]), (i for i in (5, 6)), pl.Series(["5", "6"])):
        np.testing.assert_array_equal(numbers.score([[1, 2]], items), scores)
    with pytest.raises(DataError, match="items is of type set, not a list of item ids; a set has no order"):
        numbers.score([[1]], {5, 6})


@pytest.mark.parametrize("value", ["no", 0, np.int64(1)])
def test_keep_seen_is_true_false_or_none(numbers: Recommender, value: Any) -> None:
    assert numbers.recommend([[1]], 30, keep_seen=np.True_).equals(numbers.recommend([[1]], 30, keep_seen=True))
    with pytest.raises(ConfigError, match=r"keep_seen=.* use True, False or None"):
        numbers.recommend([[1]], keep_seen=value)


def test_denied_items_never_come(recommender: Recommender) -> None:
    deny = some_ids(recommender, 4, 5)
    frame = recommender.recommend([some_ids(recommender, 1)], k=100, deny=deny)
    assert not set(frame["item_id"]) & set(deny)
    assert len(frame) == 27


@pytest.mark.parametrize("name", ["allow", "deny"])
def test_unknown_ids_of_a_list_are_skipped_listed_and_warned_of(
    recommender: Recommender, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    history, ids = [some_ids(recommender, 1)], some_ids(recommender, 4, 5)
    with caplog.at_level("WARNING", "sasrec"):
        details = recommender.recommend_detailed(history, 100, **{name: [*ids, "no such item"]})
    assert details.frame.equals(recommender.recommend(history, 100, **{name: ids}))
    assert {"allow": details.unknown_allow, "deny": details.unknown_deny}[name] == ["no such item"]
    assert f"1 of the 3 items of {name} are unknown, such as 'no such item'; they are skipped" in caplog.text


@pytest.mark.parametrize("name", ["allow", "deny"])
def test_a_list_without_a_known_item_is_an_error_and_an_empty_one_is_not(recommender: Recommender, name: str) -> None:
    history = [some_ids(recommender, 1)]
    with pytest.raises(UnknownItemError, match=f"1 of the 1 items of {name} are unknown, such as 'no such item': none"):
        recommender.recommend(history, **{name: ["no such item"]})
    with pytest.raises(UnknownItemError, match=f"of {name} are unknown"):
        recommender.recommend_users(**{name: ["no such item"]})
    assert len(recommender.recommend(history, 100, **{name: []})) == {"allow": 0, "deny": 29}[name]


def test_unknown_items_of_a_history_are_skipped_and_counted(recommender: Recommender) -> None:
    known = some_ids(recommender, 1, 2)
    details = recommender.recommend_detailed([[known[0], "new", known[1], "newer"], known], k=5)
    assert details.unknown_items == [["new", "newer"], []]
    assert details.fallback == [False, False]
    first, second = (details.frame.filter(pl.col("user_id") == u)["item_id"].to_list() for u in (0, 1))
    assert first == second


@pytest.mark.parametrize("history", [[], ["new"]])
def test_history_without_a_known_item_gets_popular_items_and_is_flagged(
    recommender: Recommender, history: list[str]
) -> None:
    details = recommender.recommend_detailed([history], k=5)
    assert details.fallback == [True]
    counts = recommender.vocabulary.to_frame().sort("count", descending=True)["count"].to_list()
    assert details.frame["score"].to_list() == [float(c) for c in counts[:5]]


def test_integer_and_its_text_are_one_item_through_every_door(numbers: Recommender) -> None:
    integers, strings = numbers.recommend([[3, 4]], k=5), numbers.recommend([["3", "4"]], k=5)
    assert integers.equals(strings)
    np.testing.assert_array_equal(numbers.score([[3]], [7]), numbers.score([["3"]], ["7"]))
    assert numbers.similar_items(3).equals(numbers.similar_items("3"))
    assert numbers.explain([3, 4], 5).equals(numbers.explain(["3", "4"], "5"))
    assert numbers.recommend_users([2]).equals(numbers.recommend_users(["2"]))
    assert numbers.recommend([[3]], k=30, deny=["4"], allow=["5", 6, "4"])["item_id"].sort().to_list() == [5, 6]
    assert numbers.recommend_detailed([["03"]]).unknown_items == [["03"]]


def test_users_of_the_log_are_recommended_what_follows_all_of_their_events(recommender: Recommender) -> None:
    sequences = recommender.sequences
    assert sequences is not None
    user = sequences.user_ids[7]
    history = recommender.vocabulary.ids_of(sequences.history(7)).to_list()
    by_user, by_history = recommender.recommend_users([user], k=5), recommender.recommend([history], k=5)
    assert by_user["item_id"].to_list() == by_history["item_id"].to_list()
    assert by_user["user_id"].to_list() == [user] * 5
    assert recommender.recommend_users(k=2)["user_id"].n_unique() == 200


def test_unknown_user_is_an_error_that_names_it(recommender: Recommender) -> None:
    with pytest.raises(UnknownItemError, match="user 'nobody' is not in the log"):
        recommender.recommend_users(["nobody"])


@pytest.mark.parametrize("histories", [["a", "b"], [1, 2]])
def test_flat_list_in_place_of_a_list_of_histories_is_refused(numbers: Recommender, histories: list[object]) -> None:
    with pytest.raises(DataError, match="give a list with one history"):
        numbers.recommend(histories)


def test_frame_of_histories_keeps_user_ids_and_its_kind(numbers: Recommender) -> None:
    log = pl.DataFrame({"user_id": ["x", "x", "y"], "item_id": [1, 2, 3]})
    frame = numbers.recommend(log, k=2)
    assert frame["user_id"].to_list() == ["x", "x", "y", "y"]
    pandas = numbers.recommend(pd.DataFrame({"user_id": ["x", "x", "y"], "item_id": [1, 2, 3]}), k=2)
    assert isinstance(pandas, pd.DataFrame)
    assert pandas["item_id"].tolist() == frame["item_id"].to_list()


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_of_any_kind_gives_the_same_answers(numbers: Recommender, kind: str) -> None:
    made, users = FRAMES[kind], pl.DataFrame({"user": [2, 1]})
    histories = pl.DataFrame({"user_id": ["x", "x", "y"], "item_id": [1, 2, 3]})
    items = pl.DataFrame({"item": [4, 5, 6]})
    assert rows_of(numbers.recommend(made(histories), k=2)) == numbers.recommend(histories, k=2).rows()
    assert rows_of(numbers.recommend_users(made(users), k=2)) == numbers.recommend_users([2, 1], k=2).rows()
    np.testing.assert_array_equal(numbers.score(made(histories), made(items)), numbers.score(histories, [4, 5, 6]))
    for name in ("allow", "deny"):
        options: dict[str, Any] = {name: made(items)}
        assert rows_of(numbers.recommend([[1]], **options)) == numbers.recommend([[1]], **{name: [4, 5, 6]}).rows()
    log = make_markov_log(n_users=60, seed=1)
    assert numbers.evaluate(log=made(log)).metrics == numbers.evaluate(log=log).metrics


def rows_of(frame: Any) -> list[Any]:
    return pl.DataFrame(frame.to_native() if hasattr(frame, "to_native") else frame).rows()


def test_columns_in_give_frames_of_their_library_out(numbers: Recommender) -> None:
    assert isinstance(numbers.recommend_users(pd.Series([1, 2])), pd.DataFrame)
    assert isinstance(numbers.recommend_users(pa.array([1, 2])), pa.Table)
    assert isinstance(numbers.recommend(pa.array([[1, 2], [3]])), pa.Table)
    assert isinstance(numbers.recommend([pd.Series([1, 2])]), pl.DataFrame)


def test_scores_are_those_that_recommendations_are_sorted_by(recommender: Recommender) -> None:
    history = some_ids(recommender, 1, 2, 3)
    frame = recommender.recommend([history], k=5)
    scores = recommender.score([history], frame["item_id"].to_list())
    assert scores.shape == (1, 5)
    np.testing.assert_allclose(scores[0], frame["score"], atol=1e-5)


def test_scoring_an_unknown_item_or_an_unknown_history_is_an_error(numbers: Recommender) -> None:
    with pytest.raises(UnknownItemError, match="item 'new' is not in the log"):
        numbers.score([[1]], ["new"])
    with pytest.raises(UnknownItemError, match="history 1 has no item"):
        numbers.score([[1], ["new"]], [1])


def test_similar_items_are_ordered_by_cosine_and_leave_the_item_itself_out(recommender: Recommender) -> None:
    (item,) = some_ids(recommender, 3)
    frame = recommender.similar_items(item, k=100)
    assert frame.columns == ["item_id", "score", "rank"]
    assert len(frame) == 29
    assert item not in frame["item_id"].to_list()
    table = recommender.engine.item_table()[1:].astype(np.float64)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    expected = np.sort(np.delete(unit @ unit[2], 2))[::-1]
    np.testing.assert_allclose(frame["score"], expected, atol=1e-5)


def test_explanation_is_the_fall_of_the_score_without_each_item(numbers: Recommender) -> None:
    frame = numbers.explain([1, 2, 3], 9)
    with_all = numbers.score([[1, 2, 3]], [9])[0, 0]
    without = {1: [2, 3], 2: [1, 3], 3: [1, 2]}
    for row in frame.to_dicts():
        expected = with_all - numbers.score([without[row["item_id"]]], [9])[0, 0]
        assert row["contribution"] == pytest.approx(expected, abs=1e-4)
    assert frame["contribution"].to_list() == sorted(frame["contribution"], reverse=True)
    assert sorted(frame["position"]) == [0, 1, 2]


def test_explanation_of_a_single_item_history_is_its_whole_score(numbers: Recommender) -> None:
    assert numbers.explain([4], 9)["contribution"][0] == pytest.approx(float(numbers.score([[4]], [9])[0, 0]), abs=1e-5)


def test_saved_and_loaded_model_gives_bitwise_the_same(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save(tmp_path / "run")
    loaded = sasrec.load(tmp_path / "run")
    for name, weight in recommender.engine.weights().items():
        np.testing.assert_array_equal(weight, loaded.engine.weights()[name])
    assert loaded.recommend_users(k=3).equals(recommender.recommend_users(k=3))
    assert loaded.evaluate().to_dict() == recommender.evaluate().to_dict()
    assert loaded.results == recommender.results


def test_a_model_with_a_weight_that_is_not_finite_is_not_loaded(numbers: Recommender, tmp_path: Path) -> None:
    numbers.save(tmp_path / "run")
    weights, epoch = RunFolder(tmp_path / "run").load_weights()
    weights["position_embedding.weight"][0] = np.nan  # the row of the oldest place, which no history here reaches
    RunFolder(tmp_path / "run").save_weights(weights, epoch)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged \(weight position_embedding\.weight has"):
        sasrec.load(tmp_path / "run")


def test_model_saved_without_histories_serves_histories_but_not_users(numbers: Recommender, tmp_path: Path) -> None:
    numbers.save(tmp_path / "run", histories=False)
    loaded = sasrec.load(tmp_path / "run")
    assert loaded.recommend([[1]]).equals(numbers.recommend([[1]]))
    with pytest.raises(CheckpointError, match="without histories"):
        loaded.recommend_users([1])
    with pytest.raises(CheckpointError, match="without histories"):
        loaded.evaluate()


def test_saving_over_another_run_is_refused_unless_asked_for(numbers: Recommender, tmp_path: Path) -> None:
    numbers.save(tmp_path / "run")
    with pytest.raises(ConfigError, match="not empty"):
        numbers.save(tmp_path / "run")
    numbers.save(tmp_path / "run", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not a run folder"):
        numbers.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_fit_reports_valid_and_both_test_protocols_beside_baselines(numbers: Recommender) -> None:
    kinds = [(r.split, r.protocol) for r in numbers.results]
    assert kinds == [("valid", "full"), ("test", "full"), ("test", "sampled")]
    assert all({"popularity", "last_item"} <= set(r.baselines) for r in numbers.results)


def test_evaluation_settings_can_differ_from_the_run(numbers: Recommender) -> None:
    result = numbers.evaluate("valid", protocol="sampled", ties="strict", k=(1, 5), n_candidates=20)
    assert (result.protocol, result.ties, result.split) == ("sampled", "strict", "valid")
    assert {"ndcg@1", "hr@5"} <= set(result.metrics)
    with pytest.raises(ConfigError, match="unknown setting 'protokol'"):
        numbers.evaluate(protokol="full")


def test_refit_model_has_all_events_and_refuses_to_be_evaluated(tmp_path: Path) -> None:
    log = make_markov_log(n_users=60)
    recommender = sasrec.fit(log, output=tmp_path / "run", refit=True, **{**SMALL, "max_epochs": 2})
    loaded = sasrec.load(tmp_path / "run")
    assert loaded.config.refit_epochs == recommender.config.refit_epochs > 0
    assert loaded.recommend_users([1]).equals(recommender.recommend_users([1]))
    assert len(loaded.results) == 3
    with pytest.raises(ConfigError, match="seen the targets"):
        loaded.evaluate()


def test_fit_takes_pandas_and_ids_of_any_type() -> None:
    log = pd.DataFrame(make_markov_log(n_users=40).to_dict(as_series=False))
    log["item_id"] = log["item_id"].astype(str) + " ünï,çode 'x'"
    recommender = sasrec.fit(log, **{**SMALL, "max_epochs": 1})
    assert recommender.recommend([["1 ünï,çode 'x'"]], k=3)["item_id"].str.ends_with("ünï,çode 'x'").all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no events"),
        ([(1, 1), (1, 2), (2, 1)], "none of the 2 users has 3 events"),
    ],
)
def test_log_that_cannot_be_split_is_refused(rows: list[tuple[int, int]], message: str) -> None:
    log = pl.DataFrame(rows, schema={"user_id": pl.Int64, "item_id": pl.Int64}, orient="row")
    with pytest.raises(DataError, match=message):
        sasrec.fit(log, **SMALL)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(1, i) for i in range(6)], id="one user"),
        pytest.param([(u, 1) for u in range(8) for _ in range(4)], id="one item"),
        pytest.param([(u, i) for u in range(8) for i in range(5)], id="users who have seen every item"),
    ],
)
def test_degenerate_logs_still_give_a_model(rows: list[tuple[int, int]]) -> None:
    log = pl.DataFrame(rows, schema={"user_id": pl.Int64, "item_id": pl.Int64}, orient="row")
    recommender = sasrec.fit(log, **{**SMALL, "max_epochs": 2})
    frame = recommender.recommend_users(k=3, keep_seen=True)
    assert len(frame)
    assert np.isfinite(frame["score"].to_numpy()).all()


def test_unknown_setting_or_preset_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'epochs'"):
        sasrec.fit(make_markov_log(), epochs=3)
    with pytest.raises(ConfigError, match="preset 'magic' is not known"):
        sasrec.fit(make_markov_log(), preset="magic")


def test_the_paper_preset_chooses_a_small_log_s_epoch_by_full_ranking_unless_told_otherwise() -> None:
    rows = [(user, (user + step) % 12) for user in range(200) for step in range(10)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    small = SMALL | {"max_epochs": 12, "threads": 1}
    chosen = sasrec.fit(log, preset="paper", **small)
    valid, full, sampled = chosen.results
    assert (valid.protocol, full.protocol, sampled.protocol) == ("full", "full", "sampled")
    assert valid.metrics["ndcg@10"]["value"] > 0.9  # where the sampled protocol says 0 of the same model
    assert sampled.metrics["hr@10"]["value"] < 0.02
    assert "use protocol=full" in sampled.warnings[0]
    told = sasrec.fit(log, preset="paper", **small | {"max_epochs": 1}, valid_protocol="sampled")
    assert told.results[0].protocol == "sampled"
    assert "use protocol=full" in told.results[0].warnings[0]


def same_answers(one: Recommender, other: Recommender) -> bool:
    """Whether two recommenders say the same of the same histories, to the bit."""
    ids = one.vocabulary.item_ids.to_list()
    asked = [ids[:3], ids[4:5]]
    frames = [
        (r.recommend(asked), r.recommend_users(), r.similar_items(ids[0]), r.explain(ids[:3], ids[5]))
        for r in (one, other)
    ]
    return all(a.equals(b) for a, b in zip(*frames, strict=True)) and one.evaluate() == other.evaluate()


@pytest.mark.parametrize("copied", [lambda r: pickle.loads(pickle.dumps(r)), copy.deepcopy, copy.copy])
def test_pickles_and_copies_are_whole_and_stand_alone(
    recommender: Recommender, copied: Callable[[Recommender], Recommender]
) -> None:
    other = copied(recommender)
    assert other.engine is not recommender.engine
    assert other.model_version == recommender.model_version
    assert same_answers(recommender, other)
    assert other.results == recommender.results
    assert other.training_facts() == recommender.training_facts()
    other.engine.load_weights({name: np.zeros_like(value) for name, value in other.engine.weights().items()})
    assert Recommender.model_version.func(recommender) == recommender.model_version


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_loaded_model_is_pickled_as_it_computes_without_histories_too(engine: str, tmp_path: Path) -> None:
    sasrec.fit(text_ids(make_markov_log()), **SMALL | {"max_epochs": 1}, engine=engine, threads=1).save(
        tmp_path / "run", histories=False
    )
    recommender = sasrec.load(tmp_path / "run", threads=2)
    other = pickle.loads(pickle.dumps(recommender))
    assert (other.engine.name, other.engine.threads) == (recommender.engine.name, 2)
    assert other.sequences is None
    assert other.recommend([["film 1"]]).equals(recommender.recommend([["film 1"]]))


def test_another_process_takes_a_pickle(numbers: Recommender, tmp_path: Path) -> None:
    (tmp_path / "rec.pickle").write_bytes(pickle.dumps(numbers))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).recommend([[1, 2]], k=3).to_dicts())"
    assert run_program(code, tmp_path / "rec.pickle") == f"{numbers.recommend([[1, 2]], k=3).to_dicts()}\n"


def test_where_goes_together_with_allow_and_deny(recommender: Recommender) -> None:
    goods = with_attributes(recommender, pl.DataFrame({"price": range(30), "kind": ["a", "b", None] * 10}))
    history = [some_ids(recommender, 1, 2)]
    allow, deny = some_ids(recommender, *range(1, 16)), some_ids(recommender, 7)
    fitting = some_ids(recommender, *[i for i in range(3, 16) if i != 7 and i % 3 == 1])
    found = goods.recommend(history, k=30, allow=allow, deny=deny, where="kind = 'a' and price < 20")
    assert set(found["item_id"]) == set(fitting)
    assert found.equals(recommender.recommend(history, k=30, allow=fitting))
    assert goods.recommend_detailed(history, 3, where="kind = 'a'").frame["item_id"].len() == 3
    users = recommender.sequences.user_ids[:2].to_list() if recommender.sequences else []
    assert set(goods.recommend_users(users, 30, where="price >= 28")["item_id"]) <= set(some_ids(recommender, 29, 30))
    again = pickle.loads(pickle.dumps(goods))
    assert again.recommend(history, where="kind = 'b'").equals(goods.recommend(history, where="kind = 'b'"))
    with pytest.raises(ConfigError, match="where is of type int; give one expression as a text"):
        goods.recommend(history, where=3)


def test_a_diverse_list_has_other_ranks_and_the_models_scores(recommender: Recommender) -> None:
    history = [some_ids(recommender, 1, 2), []]
    plain, diverse = recommender.recommend(history, k=30), recommender.recommend(history, k=5, diversity=0.9)
    scores = {row[:2]: row[2] for row in plain.iter_rows()}
    assert diverse["rank"].to_list() == [1, 2, 3, 4, 5] * 2
    assert all(score == scores[user, item] for user, item, score, _ in diverse.iter_rows())
    for user in (0, 1):
        best, chosen = (f.filter(pl.col("user_id") == user)["item_id"].to_list() for f in (plain, diverse))
        assert chosen[0] == best[0]
        assert chosen != best[:5]
    assert recommender.recommend(history, k=30, diversity=0).equals(plain)
    with pytest.raises(ConfigError, match="diversity=-1 is not a number"):
        recommender.recommend(history, diversity=-1)
